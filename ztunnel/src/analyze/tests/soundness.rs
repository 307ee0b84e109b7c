//! Findings about rules that cannot match, or have no effect, hold for every connection: random rules are compared with
//! the data path.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;

use super::pod;
use crate::analyze::covers::{rule_covers, scope_covers};
use crate::analyze::declared::Declared;
use crate::analyze::{Code, analyze};
use crate::model::identity::SpiffeId;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, Clause, Match, Part, PolicySet, Rule, Scope, StringMatch};
use crate::model::workload::{NamespacedName, Workload};
use crate::policy::{Connection, PodPolicies, Principal};
use crate::store::snapshot::Snapshot;

const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
const ACCOUNTS: [&str; 2] = ["x", "xy"];
const DOMAINS: [&str; 2] = ["cluster.local", "other"];

fn some<T>(random: &mut Rng, one: impl Fn(&mut Rng) -> T) -> Vec<T> {
    let count = random.usize(..7).saturating_sub(4);
    (0..count).map(|_| one(random)).collect()
}

fn pick(random: &mut Rng, of: &[&'static str]) -> &'static str {
    of[random.usize(..of.len())]
}

fn principal(random: &mut Rng) -> StringMatch {
    let (domain, namespace, account) = (pick(random, &DOMAINS), pick(random, &NAMESPACES), pick(random, &ACCOUNTS));
    StringMatch::new(&match random.usize(..8) {
        0 => "*".to_owned(),
        1 => format!("{domain}/ns/{namespace}*"),
        2 => format!("*/{account}"),
        3 => format!("{domain}/*"),
        _ => format!("{domain}/ns/{namespace}/sa/{account}"),
    })
}

fn namespace_of_client(random: &mut Rng) -> StringMatch {
    StringMatch::new(["*", "a*", "*b", "a", "ab", "b"][random.usize(..6)])
}

fn trust_domain(random: &mut Rng) -> StringMatch {
    StringMatch::new(["*", "cluster*", "*er", "cluster.local", "other"][random.usize(..5)])
}

fn seldom<T>(random: &mut Rng, one: impl Fn(&mut Rng) -> T) -> Vec<T> {
    if random.usize(..4) == 0 { some(random, one) } else { Vec::new() }
}

fn account(random: &mut Rng) -> NamespacedName {
    NamespacedName::new(pick(random, &NAMESPACES), pick(random, &ACCOUNTS))
}

fn range(random: &mut Rng) -> ipnet::IpNet {
    ["10.0.0.0/8", "10.0.0.0/30", "10.0.0.1/32", "10.0.0.2/32", "0.0.0.0/0", "::/0"][random.usize(..6)].parse().unwrap()
}

fn source(random: &mut Rng) -> Match {
    Match {
        principals: some(random, principal),
        not_principals: some(random, principal),
        namespaces: some(random, namespace_of_client),
        not_namespaces: some(random, namespace_of_client),
        service_accounts: some(random, account),
        not_service_accounts: some(random, account),
        trust_domains: seldom(random, trust_domain),
        not_trust_domains: seldom(random, trust_domain),
        source_ips: some(random, range),
        not_source_ips: some(random, range),
        ..Match::default()
    }
}

fn operation(random: &mut Rng) -> Match {
    let port = |random: &mut Rng| random.u16(1..4);
    Match { destination_ports: some(random, port), not_destination_ports: some(random, port), ..Match::default() }
}

fn rule(random: &mut Rng) -> Rule {
    let mut clauses = Vec::new();
    if random.bool() {
        let matches = (0..random.usize(1..3)).map(|_| source(random)).collect();
        clauses.push(Clause { part: Part::From, matches });
    }
    if random.usize(..3) == 0 {
        let matches = (0..random.usize(1..3)).map(|_| operation(random)).collect();
        clauses.push(Clause { part: Part::To, matches });
    }
    for index in 0..random.usize(..3) {
        let found = if random.bool() { source(random) } else { operation(random) };
        clauses.push(Clause { part: Part::When(index), matches: vec![found] });
    }
    Rule { clauses, unjudged: Vec::new() }
}

fn connections() -> Vec<Connection> {
    let mut sources = vec![None];
    for (domain, namespace, account) in DOMAINS.iter().flat_map(|domain| {
        NAMESPACES.iter().flat_map(move |namespace| ACCOUNTS.map(|account| (domain, namespace, account)))
    }) {
        sources.push(Some(Principal::new(SpiffeId::new(domain.parse().unwrap(), *namespace, account))));
    }
    let ips = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(192, 168, 0, 1)];
    let mut all = Vec::new();
    for source in &sources {
        for ip in ips {
            for port in 1..4 {
                let destination = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port);
                all.push(Connection { source: source.clone(), source_ip: ip.into(), destination });
            }
        }
    }
    all
}

fn denying(name: &str, scope: Scope, rule: Rule) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: NamespacedName::new("demo", name),
        origin: Origin::line_of("f", 1),
        scope,
        action: Action::Deny,
        dry_run: false,
        rules: vec![rule],
    }
}

fn mesh(policy: AuthorizationPolicy, pods: &[Workload]) -> Snapshot {
    let policies = PolicySet { authorization: vec![policy], ..PolicySet::default() };
    Snapshot::build(1, pods.to_vec(), Vec::new(), Vec::new()).with_policies(policies)
}

fn matched(rule: &Rule, pods: &[Workload], connections: &[Connection]) -> Vec<bool> {
    let snapshot = mesh(denying("p", Scope::Mesh, rule.clone()), pods);
    let guard = PodPolicies::of(&snapshot, &pods[0], &LocalPod::default());
    connections.iter().map(|connection| guard.judge(connection).is_err()).collect()
}

fn pods() -> Vec<Workload> {
    let labels: [&[(&str, &str)]; 3] = [&[("app", "web")], &[("app", "client")], &[("app", "web"), ("tier", "x")]];
    let named = |(index, labels): (usize, &&[(&str, &str)])| {
        ["demo", "other"].map(|namespace| pod(namespace, &format!("p{index}"), labels))
    };
    labels.iter().enumerate().flat_map(named).collect()
}

#[test]
fn what_a_rule_covers_it_matches() {
    let (mut random, pods, connections) = (Rng::with_seed(7), pods(), connections());
    let (mut covered, mut real) = (0, 0);
    for _ in 0..6_000 {
        let (wide, mut narrow) = (rule(&mut random), rule(&mut random));
        if random.bool() {
            // Two random rules rarely cover one another. A rule with additional clauses is covered.
            narrow.clauses.extend(wide.clauses.iter().cloned());
        }
        if !rule_covers(&wide, &narrow) {
            continue;
        }
        covered += 1;
        let (outer, inner) = (matched(&wide, &pods, &connections), matched(&narrow, &pods, &connections));
        real += usize::from(!wide.clauses.is_empty() && inner.contains(&true));
        let is_missed = outer.iter().zip(&inner).any(|(outer, inner)| *inner && !*outer);
        assert!(!is_missed, "{wide:#?}\ndoes not cover\n{narrow:#?}");
    }
    assert!(covered > 1_000 && real > 300, "{covered} {real}");
}

#[test]
fn a_scope_that_covers_protects_as_many() {
    let pods = pods();
    let labels = |text: &str| {
        text.split(',')
            .map(|one| one.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    let selector = |namespace: Option<&str>, text: &str| Scope::Selector {
        namespace: namespace.map(Arc::from),
        labels: labels(text),
    };
    let mut scopes = vec![Scope::Mesh, Scope::Namespace("demo".into()), Scope::Namespace("other".into())];
    for namespace in [None, Some("demo"), Some("other")] {
        scopes.extend(["app=web", "app=client", "tier=x", "app=web,tier=x"].map(|text| selector(namespace, text)));
    }
    let protected = |scope: &Scope| -> Vec<bool> {
        let snapshot = mesh(denying("p", scope.clone(), Rule::default()), &pods);
        pods.iter()
            .map(|pod| PodPolicies::of(&snapshot, pod, &LocalPod::default()).judge(&connections()[0]).is_err())
            .collect()
    };
    for wide in &scopes {
        for narrow in &scopes {
            let is_missed = protected(wide).iter().zip(protected(narrow)).any(|(outer, inner)| inner && !outer);
            assert!(!(scope_covers(wide, narrow) && is_missed), "{wide:?} {narrow:?}");
        }
    }
    assert!(scopes.iter().all(|scope| scope_covers(scope, scope) && scope_covers(&Scope::Mesh, scope)));
}

#[test]
fn what_can_t_match_matches_nothing() {
    let (mut random, pods, connections) = (Rng::with_seed(8), pods(), connections());
    let mut dead = 0;
    for _ in 0..1_500 {
        let mut rule = rule(&mut random);
        // Each clause has one entry, so that a dead entry makes the rule dead.
        rule.clauses.iter_mut().for_each(|clause| clause.matches.truncate(1));
        let snapshot = mesh(denying("p", Scope::Mesh, rule.clone()), &pods);
        let found = analyze(&snapshot, &LocalPods::new(), &Declared::default());
        if found.iter().any(|finding| finding.code == Code::NeverMatches) {
            dead += 1;
            assert!(!matched(&rule, &pods, &connections).contains(&true), "{rule:#?}\n{found:#?}");
        }
    }
    assert!(dead > 300, "{dead}");
}
