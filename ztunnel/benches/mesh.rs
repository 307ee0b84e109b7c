//! The costs of a large mesh: building a snapshot, routing a connection, writing and reading its CONNECT, and judging all live
//! connections again.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prometheus_client::registry::Registry;
use ztunnel::flow::enforcement::{Enforcement, EnforcementPoints, Rechecked};
use ztunnel::metrics::traffic::Traffic;
use ztunnel::model::local::LocalPod;
use ztunnel::model::origin::Origin;
use ztunnel::model::policy::{Action, AuthorizationPolicy, Clause, Match, Part, PolicySet, Rule, Scope, StringMatch};
use ztunnel::model::workload::{NamespacedName, Workload};
use ztunnel::policy::{Connection, Principal};
use ztunnel::route::decide;
use ztunnel::store::change::{Batch, Change};
use ztunnel::store::publish;
use ztunnel::store::snapshot::{Owner, Snapshot};
use ztunnel::wire::connect::{ConnectRequest, ConnectResponse};

use self::fixtures::{LARGE, address, connect, flow, identity, mesh, name, objects};

#[path = "fixtures/mesh.rs"]
mod fixtures;

/// The number of connections that are judged again.
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

/// The numbers of workloads, services and policies of a very large mesh.
const HUGE: (usize, usize, usize) = (100_000, 10_000, 1_000);

/// The changes that make up a mesh: a tenth of the policies in each of some namespaces.
fn everything((workloads, services, policies): (usize, usize, usize)) -> Vec<Change> {
    let (pods, fronts) = objects((services, workloads));
    let policies = self::policies(policies).authorization.into_iter().enumerate().map(|(number, policy)| {
        let namespace: Arc<str> = format!("space-{}", number % 100).into();
        let name = NamespacedName::new(Arc::clone(&namespace), Arc::clone(&policy.name.name));
        AuthorizationPolicy { name, scope: Scope::Namespace(namespace), ..policy }
    });
    let pods = pods.into_iter().map(|pod| Change::Workload(Arc::new(pod)));
    let fronts = fronts.into_iter().map(|service| Change::Service(Arc::new(service)));
    pods.chain(fronts).chain(policies.map(|policy| Change::Authorization(Arc::new(policy)))).collect()
}

/// The cost of one change in a very large mesh until all readers see it, and the cost of a look-up.
fn change(criterion: &mut Criterion) {
    let size = format!("{} workloads, {} services, {} policies", HUGE.0, HUGE.1, HUGE.2);
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4 / 1024
    };
    let (publisher, mesh) = publish::channel();
    let (before, all) = (resident(), everything(HUGE));
    publisher.apply(Batch::of(all));
    println!("a mesh of {size}: {} MB more than before", resident() - before);
    quick(criterion, "change", |group| {
        group.sample_size(10);
        let fresh = || Batch::of(everything(HUGE));
        group.bench_function(BenchmarkId::new("first build", &size), |bencher| {
            bencher.iter_batched(fresh, |batch| Snapshot::default().apply(batch), BatchSize::PerIteration);
        });
        group.sample_size(50);
        let mut number = 0;
        let mut next = || {
            number += 1;
            number
        };
        let pod = |number: usize| {
            let pod = fixtures::workload(number * 7919 % HUGE.0);
            Batch::of(vec![Change::Workload(Arc::new(Workload { uid: format!("again-{number}").into(), ..pod }))])
        };
        group.bench_function(BenchmarkId::new("one pod", &size), |bencher| {
            bencher.iter_batched(|| pod(next()), |batch| publisher.apply(batch), BatchSize::PerIteration);
        });
        let endpoint = |number: usize| {
            let mut service = fixtures::service(number * 7919 % HUGE.1, HUGE.1, HUGE.0);
            let mut endpoints = service.endpoints.to_vec();
            if let Some(endpoint) = endpoints.first_mut() {
                endpoint.weight = u32::try_from(number).unwrap_or(1);
            }
            service.endpoints = endpoints.into();
            Batch::of(vec![Change::Service(Arc::new(service))])
        };
        group.bench_function(BenchmarkId::new("one endpoint", &size), |bencher| {
            bencher.iter_batched(|| endpoint(next()), |batch| publisher.apply(batch), BatchSize::PerIteration);
        });
        let comes_and_goes = |number: usize| {
            let pod = fixtures::workload(HUGE.0 + number);
            let gone = pod.name.clone();
            [Change::Workload(Arc::new(pod)), Change::WorkloadGone(gone)].map(|change| Batch::of(vec![change]))
        };
        group.bench_function(BenchmarkId::new("a pod that comes and goes", &size), |bencher| {
            let both = |[comes, goes]: [Batch; 2]| (publisher.apply(comes), publisher.apply(goes));
            bencher.iter_batched(|| comes_and_goes(next()), both, BatchSize::PerIteration);
        });
        let snapshot = mesh.load();
        let addresses: Vec<_> = (0..HUGE.0).map(|number| address(10, number * 7919 % HUGE.0)).collect();
        let mut at = 0;
        let mut random = || {
            at = (at + 1) % addresses.len();
            addresses.get(at).copied()
        };
        group.bench_function(BenchmarkId::new("a workload by its address", &size), |bencher| {
            bencher
                .iter(|| random().and_then(|address| snapshot.workload_at(black_box(address)).is_some().then_some(())));
        });
        group.bench_function(BenchmarkId::new("the owner of an address", &size), |bencher| {
            bencher
                .iter(|| random().map(|address| matches!(snapshot.owner(address, 80, "space-0"), Owner::Workload(_))));
        });
    });
}

/// Policies that allow ten service accounts each. The last one allows those of the live connections, so that none is cut.
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

/// The cost of a change of the mesh with live connections: the guard is made again, and all connections are judged.
fn recheck(criterion: &mut Criterion) {
    let (publisher, reader) = publish::channel();
    let points = EnforcementPoints::default();
    let point = points.point(name(0), reader, LocalPod::default());
    let traffic = Traffic::register(&mut Registry::default(), Duration::from_secs(900), "Kubernetes".into());
    let fresh = |version| {
        let (workloads, services) = objects((10, 50));
        Snapshot::build(version, workloads, services, vec![]).with_policies(policies(1_000))
    };
    publisher.publish(fresh(1));
    let enter = |number: usize| {
        let source = NamespacedName::new(format!("space-{}", number % 100), format!("client-{number}"));
        point.enter(Connection {
            source: Some(Principal::new(identity(&source))),
            source_ip: address(12, number),
            destination: (address(10, 0), 8080).into(),
        })
    };
    let live: Vec<Enforcement> = (0..LIVE).map(enter).collect();
    let expected = Rechecked { judged: LIVE, cut: 0 };
    quick(criterion, "recheck", |group| {
        group.sample_size(10).throughput(Throughput::Elements(LIVE as u64));
        group.bench_function("10000 connections, 1000 policies of 10 rules", |bencher| {
            // A different mesh each time, so that the guard is made again.
            let another = || publisher.publish(fresh(2));
            let judge = |()| assert_eq!(points.recheck(traffic.decisions()), expected);
            bencher.iter_batched(another, judge, BatchSize::PerIteration);
        });
    });
    drop(live);
}

criterion_group!(benches, route, wire, snapshot, change, recheck);
criterion_main!(benches);
