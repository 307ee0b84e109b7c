//! What a large mesh costs: a snapshot to build, a connection to route, its CONNECT to write and to read, and all live
//! connections to judge again.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prometheus_client::registry::Registry;
use ztunnel::flow::gate::{Gates, Rechecked, Visit};
use ztunnel::metrics::traffic::Traffic;
use ztunnel::model::local::LocalPod;
use ztunnel::model::origin::Origin;
use ztunnel::model::policy::{Action, AuthorizationPolicy, Clause, Match, Part, PolicySet, Rule, Scope, StringMatch};
use ztunnel::model::workload::NamespacedName;
use ztunnel::policy::{Connection, Principal};
use ztunnel::route::decide;
use ztunnel::store::publish;
use ztunnel::store::snapshot::Snapshot;
use ztunnel::wire::connect::{ConnectRequest, ConnectResponse};

use self::fixtures::{LARGE, address, connect, flow, identity, mesh, name, objects};

#[path = "fixtures/mesh.rs"]
mod fixtures;

/// Connections that are judged again.
const LIVE: usize = 10_000;

fn quick(
    criterion: &mut Criterion,
    name: &str,
    bench: impl FnOnce(&mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>),
) {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    bench(&mut group);
    group.finish();
}

fn route(criterion: &mut Criterion) {
    quick(criterion, "route", |group| {
        for size in [(10, 50), LARGE] {
            let (mesh, own) = (mesh(size), name(0));
            let (last_service, last_pod) = (address(11, size.0 - 1), address(10, size.1 - 1));
            let stranger = Ipv4Addr::new(192, 0, 2, 1).into();
            let found = decide::outbound(&mesh, &flow((last_service, 80).into()), &own, 0);
            assert!(found.is_ok_and(|found| found.service.is_some() && !found.candidates.is_empty()), "no way");
            for (what, to) in [("service", (last_service, 80)), ("pod", (last_pod, 8080)), ("stranger", (stranger, 80))]
            {
                let flow = flow(to.into());
                group.bench_function(
                    BenchmarkId::new(what, format!("{} services, {} pods", size.0, size.1)),
                    |bencher| {
                        bencher.iter(|| decide::outbound(black_box(&mesh), black_box(&flow), &own, black_box(7)));
                    },
                );
            }
        }
    });
}

fn wire(criterion: &mut Criterion) {
    let (request, response) = connect();
    let (asked, _) = request.to_http().into_parts();
    let (answered, _) = response.to_http().into_parts();
    assert_eq!(ConnectRequest::from_http(&asked).ok().as_ref(), Some(&request), "what was written is read");
    assert_eq!(ConnectResponse::from_http(&answered), response, "what was written is read");
    quick(criterion, "wire", |group| {
        group.bench_function("write a CONNECT", |bencher| bencher.iter(|| black_box(&request).to_http()));
        group.bench_function("read a CONNECT", |bencher| bencher.iter(|| ConnectRequest::from_http(black_box(&asked))));
        group.bench_function("write an answer", |bencher| bencher.iter(|| black_box(&response).to_http()));
        group.bench_function("read an answer", |bencher| {
            bencher.iter(|| ConnectResponse::from_http(black_box(&answered)));
        });
    });
}

fn snapshot(criterion: &mut Criterion) {
    quick(criterion, "snapshot", |group| {
        group.sample_size(10);
        for pods in [1_000, 10_000] {
            let (workloads, services) = objects((pods / 5, pods));
            group.throughput(Throughput::Elements(pods as u64));
            group.bench_function(BenchmarkId::new("build", format!("{pods} workloads")), |bencher| {
                let fresh = || (workloads.clone(), services.clone());
                let build = |(workloads, services)| Snapshot::build(1, workloads, services, vec![]);
                bencher.iter_batched(fresh, build, BatchSize::PerIteration);
            });
        }
    });
}

/// Each lets ten service accounts in; those of the live connections are in the last, so that none is cut.
fn policies(count: usize) -> PolicySet {
    let rule = |policy: usize, rule: usize| {
        let wanted = if policy + 1 == count {
            "cluster.local/ns/*".to_owned()
        } else {
            format!("cluster.local/ns/x/sa/{policy}-{rule}")
        };
        let from = Match { principals: vec![StringMatch::new(&wanted)], ..Match::default() };
        Rule { clauses: vec![Clause { part: Part::From, matches: vec![from] }], unjudged: vec![] }
    };
    let policy = |policy| AuthorizationPolicy {
        name: NamespacedName::new("space-0", format!("policy-{policy:05}")),
        origin: Origin::line_of("policies.yaml", 1),
        scope: Scope::Namespace("space-0".into()),
        action: Action::Allow,
        dry_run: false,
        rules: (0..10).map(|number| rule(policy, number)).collect(),
    };
    PolicySet { authorization: (0..count).map(policy).collect(), ..PolicySet::default() }
}

/// What a change of the mesh costs while there are connections: the guard is made anew, and all are judged.
fn recheck(criterion: &mut Criterion) {
    let (publisher, reader) = publish::channel();
    let gates = Gates::default();
    let gate = gates.gate(name(0), reader, LocalPod::default());
    let traffic = Traffic::register(&mut Registry::default(), Duration::from_secs(900), "Kubernetes".into());
    let fresh = |version| {
        let (workloads, services) = objects((10, 50));
        Snapshot::build(version, workloads, services, vec![]).with_policies(policies(1_000))
    };
    publisher.publish(fresh(1));
    let enter = |number: usize| {
        let source = NamespacedName::new(format!("space-{}", number % 100), format!("client-{number}"));
        gate.enter(Connection {
            source: Some(Principal::new(identity(&source))),
            source_ip: address(12, number),
            destination: (address(10, 0), 8080).into(),
        })
    };
    let live: Vec<Visit> = (0..LIVE).map(enter).collect();
    let expected = Rechecked { judged: LIVE, cut: 0 };
    quick(criterion, "recheck", |group| {
        group.sample_size(10).throughput(Throughput::Elements(LIVE as u64));
        group.bench_function("10000 connections, 1000 policies of 10 rules", |bencher| {
            // Another mesh each time, so that every guard is made anew.
            let another = || publisher.publish(fresh(2));
            let judge = |()| assert_eq!(gates.recheck(traffic.decisions()), expected);
            bencher.iter_batched(another, judge, BatchSize::PerIteration);
        });
    });
    drop(live);
}

criterion_group!(benches, route, wire, snapshot, recheck);
criterion_main!(benches);
