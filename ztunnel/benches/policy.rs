//! What a judgement costs, by how many policies there are and what they name; and what the index costs to build.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ztunnel::model::identity::{SpiffeId, TrustDomain};
use ztunnel::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, Part, Place, PolicySet, Rule, Scope, StringMatch,
};
use ztunnel::model::workload::{Membership, NamespacedName, Workload};
use ztunnel::policy::{Connection, Guard, Principal};
use ztunnel::store::snapshot::Snapshot;

/// Rules of each policy, where there are many.
const RULES: usize = 10;

/// What the policies name.
#[derive(Clone, Copy)]
enum Shape {
    /// Each rule a principal of its own.
    Principals,
    /// The same, and one of four ports.
    PortsAndPrincipals,
    /// Each rule a range of its own.
    Ranges,
    /// Each policy a selector of its own: one protects the pod.
    Selectors,
    /// Nothing that could be looked up: every rule is compared.
    NotPrincipals,
}

impl Shape {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Principals, "principals"),
        (Self::PortsAndPrincipals, "ports and principals"),
        (Self::Ranges, "ranges"),
        (Self::Selectors, "selectors"),
        (Self::NotPrincipals, "notPrincipals, no index"),
    ];

    fn rule(self, n: usize) -> Rule {
        let principal = || vec![StringMatch::new(&format!("cluster.local/ns/space-{}/sa/account-{n}", n % 100))];
        let clause = |part, wanted| Clause { part, matches: vec![wanted] };
        let clauses = match self {
            Self::Principals | Self::Selectors => {
                vec![clause(Part::From, Match { principals: principal(), ..Match::default() })]
            }
            Self::PortsAndPrincipals => {
                let ports = u16::try_from(8080 + n % 4).into_iter().collect();
                vec![
                    clause(Part::From, Match { principals: principal(), ..Match::default() }),
                    clause(Part::To, Match { destination_ports: ports, ..Match::default() }),
                ]
            }
            Self::Ranges => {
                let range = format!("10.{}.{}.{}/{}", n >> 16, n >> 8 & 255, n & 255, 32).parse().into_iter();
                vec![clause(Part::From, Match { source_ips: range.collect(), ..Match::default() })]
            }
            // Only who is of the namespace is not meant; the client is.
            Self::NotPrincipals => {
                let not_principals = [principal(), vec![StringMatch::new("cluster.local/ns/demo/*")]].concat();
                vec![clause(Part::From, Match { not_principals, ..Match::default() })]
            }
        };
        Rule { clauses, unjudged: vec![] }
    }

    fn scope(self, n: usize) -> Scope {
        match self {
            Self::Selectors => {
                let labels = [("app".to_owned(), format!("app-{n}"))].into();
                Scope::Selector { namespace: Some("demo".into()), labels }
            }
            _ => Scope::Namespace("demo".into()),
        }
    }
}

/// Half of them DENY, half ALLOW, so that both are searched.
fn policies(shape: Shape, count: usize, rules: usize) -> PolicySet {
    let authorization = (0..count).map(|n| AuthorizationPolicy {
        name: NamespacedName::new("demo", format!("policy-{n:05}")),
        place: Place { file: "policies.yaml".into(), line: 1 },
        scope: shape.scope(n),
        action: if n % 2 == 0 { Action::Deny } else { Action::Allow },
        dry_run: false,
        rules: (0..rules).map(|rule| shape.rule(n * rules + rule)).collect(),
    });
    PolicySet { authorization: authorization.collect(), ..PolicySet::default() }
}

/// The pod's address.
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1));

fn identity(namespace: &str, service_account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), namespace, service_account)
}

fn pod() -> Workload {
    let labels = BTreeMap::from([("app".to_owned(), "app-1".to_owned()), ("tier".to_owned(), "front".to_owned())]);
    Workload {
        addresses: vec![OWN],
        labels: Arc::new(labels),
        membership: Membership::InMesh,
        ..Workload::new(NamespacedName::new("demo", "web"), identity("demo", "web"))
    }
}

fn mesh() -> Snapshot {
    Snapshot::build(1, vec![pod()], vec![], vec![])
}

/// A client that no rule means: nothing ends the search early.
fn stranger() -> Connection {
    Connection {
        source: Some(Principal::new(identity("demo", "some-client"))),
        source_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        destination: (OWN, 8080).into(),
    }
}

/// A client that one ALLOW rule means: the last.
fn guest(rules: usize) -> Connection {
    let (space, n) = ((rules - 1) % 100, rules - 1);
    let identity = identity(&format!("space-{space}"), &format!("account-{n}"));
    Connection { source: Some(Principal::new(identity)), ..stranger() }
}

fn judgements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(700)).sample_size(20);
    for (shape, name) in Shape::ALL {
        for (count, rules) in [(10, 1), (1_000, RULES), (10_000, RULES)] {
            let mesh = mesh().with_policies(policies(shape, count, rules));
            let guard = Guard::of(&mesh, &pod());
            let stranger = stranger();
            assert!(guard.judge(&stranger).is_err(), "no ALLOW rule means a stranger");
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| guard.judge(black_box(&stranger)).is_ok());
            });
        }
    }
    let mesh = mesh().with_policies(policies(Shape::Principals, 10_000, RULES));
    let (guard, guest) = (Guard::of(&mesh, &pod()), guest(10_000 * RULES));
    assert!(guard.judge(&guest).is_ok(), "a rule lets the guest in");
    group.bench_function("principals, let in/10000", |bencher| {
        bencher.iter(|| guard.judge(black_box(&guest)).is_ok());
    });
    group.finish();
}

fn building(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    for (shape, name) in Shape::ALL {
        let policies = policies(shape, 10_000, RULES);
        group.bench_function(BenchmarkId::new("index", name), |bencher| {
            let fresh = || (mesh(), policies.clone());
            bencher.iter_batched(fresh, |(mesh, policies)| mesh.with_policies(policies), BatchSize::PerIteration);
        });
    }
    let mesh = mesh().with_policies(policies(Shape::Selectors, 10_000, RULES));
    let pod = pod();
    group.bench_function("guard", |bencher| bencher.iter(|| Guard::of(black_box(&mesh), black_box(&pod))));
    group.finish();
}

criterion_group!(benches, judgements, building);
criterion_main!(benches);
