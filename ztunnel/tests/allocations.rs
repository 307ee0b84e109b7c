//! A judgement allocates no memory, whether it allows or denies.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnet::IpNet;
use ztunnel::model::identity::{SpiffeId, TrustDomain};
use ztunnel::model::local::LocalPod;
use ztunnel::model::origin::Origin;
use ztunnel::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, MtlsMode, Part, PeerAuthentication, PolicySet, Rule, Scope, StringMatch,
};
use ztunnel::model::workload::{Membership, NamedPort, NamespacedName, Workload};
use ztunnel::policy::{Connection, PodPolicies, Principal};
use ztunnel::store::snapshot::Snapshot;

/// The system's allocator, with a count of the calls of each thread.
struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no count any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller makes the promise that the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The pod's address.
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 9, 1));

fn identity(namespace: &str, service_account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), namespace, service_account)
}

fn web() -> Workload {
    Workload {
        addresses: vec![OWN],
        labels: [("app", "web")].into(),
        ports: vec![NamedPort { name: "http".into(), number: 8080 }],
        membership: Membership::InMesh,
        ..Workload::new(NamespacedName::new("demo", "web"), identity("demo", "web"))
    }
}

fn origin() -> Origin {
    Origin::line_of("policies.yaml", 1)
}

/// A policy with a rule of every kind for each number, so that all parts of the index are used.
fn policy(name: &str, action: Action, scope: Scope, numbers: Range<u16>) -> AuthorizationPolicy {
    let rule =
        |wanted: Match| Rule { clauses: vec![Clause { part: Part::From, matches: vec![wanted] }], unjudged: vec![] };
    let rules = numbers.flat_map(|n| {
        let text = |text: String| vec![StringMatch::new(&text)];
        let subnet = u8::try_from(n).unwrap_or_default();
        [
            rule(Match { principals: text(format!("cluster.local/ns/n{n}/sa/a")), ..Match::default() }),
            rule(Match { principals: text(format!("cluster.local/ns/n{n}/*")), ..Match::default() }),
            rule(Match { principals: text(format!("*/sa/a{n}")), ..Match::default() }),
            rule(Match { namespaces: text(format!("n{n}")), ..Match::default() }),
            rule(Match { service_accounts: vec![NamespacedName::new(format!("n{n}"), "a")], ..Match::default() }),
            rule(Match { source_ips: vec![IpNet::from(IpAddr::from([10, 7, subnet, 1]))], ..Match::default() }),
            rule(Match { destination_ports: vec![9000 + n], ..Match::default() }),
        ]
    });
    let name = NamespacedName::new("demo", name);
    AuthorizationPolicy { name, origin: origin(), scope, action, dry_run: false, rules: rules.collect() }
}

/// Whether the pod's guard allows a connection, and the number of calls of the allocator for that.
fn judged(guard: &PodPolicies, source: Option<SpiffeId>, source_ip: impl Into<IpAddr>, port: u16) -> (bool, usize) {
    let source = source.map(Principal::new);
    let connection = Connection { source, source_ip: source_ip.into(), destination: (OWN, port).into() };
    let before = ASKED.get();
    let is_allowed = guard.judge(&connection).is_ok();
    (is_allowed, ASKED.get() - before)
}

#[test]
fn a_judgement_allocates_nothing() {
    let before = ASKED.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ASKED.get() - before, 2, "the allocator counts");

    let selected = Scope::Selector { namespace: Some("demo".into()), labels: [("app", "web")].into() };
    let strict = PeerAuthentication {
        name: NamespacedName::new("demo", "ports"),
        origin: origin(),
        created: None,
        scope: selected.clone(),
        mode: None,
        ports: [(9099, Some(MtlsMode::Strict))].into(),
    };
    let authorization = vec![
        policy("allow", Action::Allow, Scope::Namespace("demo".into()), 0..100),
        policy("allow-selected", Action::Allow, selected, 100..101),
        policy("deny", Action::Deny, Scope::Mesh, 200..240),
    ];
    let policies = PolicySet { authorization, authentication: vec![strict], ..PolicySet::default() };
    let snapshot = Snapshot::build(1, vec![web()], vec![], vec![]).with_policies(policies);
    let guard = PodPolicies::of(&snapshot, &web(), &LocalPod { probe_ports: vec![8086], ..LocalPod::default() });

    let id = |namespace, account| Some(identity(namespace, account));
    // Allowed by an exact principal, a prefix, a suffix, an IP block, a port, a small group.
    assert_eq!(judged(&guard, id("n7", "a"), [10, 0, 0, 1], 80), (true, 0));
    assert_eq!(judged(&guard, id("n7", "b"), [10, 0, 0, 1], 80), (true, 0));
    assert_eq!(judged(&guard, id("x", "a9"), [10, 0, 0, 1], 80), (true, 0));
    assert_eq!(judged(&guard, None, [10, 7, 3, 1], 80), (true, 0));
    assert_eq!(judged(&guard, None, [10, 0, 0, 1], 9007), (true, 0));
    assert_eq!(judged(&guard, None, [10, 0, 0, 1], 9100), (true, 0));
    // Denied because no ALLOW matches, because a DENY matches, and by STRICT.
    assert_eq!(judged(&guard, id("x", "x"), [10, 0, 0, 1], 80), (false, 0));
    assert_eq!(judged(&guard, None, Ipv6Addr::LOCALHOST, 80), (false, 0));
    assert_eq!(judged(&guard, id("n220", "a"), [10, 7, 3, 1], 80), (false, 0));
    assert_eq!(judged(&guard, None, [10, 7, 230, 1], 9007), (false, 0));
    assert_eq!(judged(&guard, None, [10, 7, 3, 1], 9099), (false, 0));
}
