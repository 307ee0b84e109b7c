//! What a large mesh costs: a snapshot to build, a connection to route, its CONNECT to write and to read, and all live
//! connections to judge again.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prometheus_client::registry::Registry;
use ztunnel::flow::gate::{Gates, Rechecked, Visit};
use ztunnel::metrics::traffic::Traffic;
use ztunnel::model::addr::{OrigDst, PeerAddr};
use ztunnel::model::flow::{Direction, Flow};
use ztunnel::model::identity::{SpiffeId, TrustDomain};
use ztunnel::model::locality::Locality;
use ztunnel::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, Part, Place, PolicySet, Rule, Scope, StringMatch,
};
use ztunnel::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use ztunnel::model::workload::{Controller, ControllerKind, Exclusions, Membership, NamespacedName, Workload};
use ztunnel::policy::{Connection, Principal};
use ztunnel::route::decide;
use ztunnel::store::publish;
use ztunnel::store::snapshot::Snapshot;
use ztunnel::wire::baggage::Baggage;
use ztunnel::wire::connect::{ConnectRequest, ConnectResponse};
use ztunnel::wire::forwarded::Forwarded;
use ztunnel::wire::trace::TraceParent;

/// Services and pods of a large mesh.
const LARGE: (usize, usize) = (10_000, 50_000);

/// Connections that are judged again.
const LIVE: usize = 10_000;

/// An address of its own for each number: pods in 10.0.0.0/8, services in 11.0.0.0/8.
fn address(network: u8, number: usize) -> IpAddr {
    let [_, high, middle, low] = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    Ipv4Addr::new(network, high, middle, low).into()
}

fn name(number: usize) -> NamespacedName {
    NamespacedName::new(format!("space-{}", number % 100), format!("web-{number}"))
}

fn identity(name: &NamespacedName) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), Arc::clone(&name.namespace), "default")
}

fn workload(number: usize) -> Workload {
    let name = name(number);
    let app: Arc<str> = format!("app-{}", number / 5).into();
    Workload {
        uid: format!("uid-{number}").into(),
        identity: identity(&name),
        controller: Controller { kind: ControllerKind::Deployment, name: Arc::clone(&app) },
        canonical_name: Arc::clone(&app),
        canonical_revision: "v1".into(),
        locality: Locality::default(),
        node: Some(format!("node-{}", number % 500).into()),
        addresses: vec![address(10, number)],
        host_network: false,
        labels: Arc::new(BTreeMap::from([("app".to_owned(), app.to_string())])),
        netns: None,
        ports: vec![],
        probe_ports: vec![],
        node_addresses: vec![],
        ready: true,
        finished: false,
        membership: Membership::InMesh,
        exclusions: Exclusions::default(),
        name,
    }
}

/// A service with an even share of the pods.
fn service(number: usize, services: usize, pods: usize) -> Service {
    let share = pods / services.max(1);
    let endpoint = |pod| Endpoint {
        address: address(10, pod),
        ports: BTreeMap::from([(80, 8080)]),
        health: Health::Ready,
        workload: Some(name(pod)),
        weight: 1,
        node: None,
        locality: Locality::default(),
    };
    let own = NamespacedName::new(format!("space-{}", number % 100), format!("service-{number}"));
    let hostname = format!("{}.{}.svc.cluster.local", own.name, own.namespace);
    Service {
        vips: vec![address(11, number)],
        ports: vec![ServicePort { name: None, port: 80, target: TargetPort::Number(8080) }],
        endpoints: (number * share..(number + 1) * share).map(endpoint).collect(),
        ..Service::new(own, hostname)
    }
}

fn objects((services, pods): (usize, usize)) -> (Vec<Workload>, Vec<Service>) {
    ((0..pods).map(workload).collect(), (0..services).map(|number| service(number, services, pods)).collect())
}

fn mesh(size: (usize, usize)) -> Snapshot {
    let (workloads, services) = objects(size);
    Snapshot::build(1, workloads, services, vec![])
}

/// A connection of the first pod.
fn flow(to: SocketAddr) -> Flow {
    let peer = PeerAddr::new((address(10, 0), 40_000).into());
    Flow { direction: Direction::Outbound, peer, dst: OrigDst::new(to) }
}

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
    let baggage = Baggage::of(&workload(1), &"Kubernetes".into());
    let client = SocketAddr::from((address(10, 0), 40_000));
    let request = ConnectRequest {
        baggage: baggage.clone(),
        forwarded: Some(Forwarded::new(client, Some("service-1.space-1.svc.cluster.local".to_owned()))),
        traceparent: Some(TraceParent::new(1, 2)),
        ..ConnectRequest::to(SocketAddr::from((address(10, 1), 8080)).into())
    };
    let response = ConnectResponse::ok(Some(baggage));
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
        place: Place { file: "policies.yaml".into(), line: 1 },
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
    let gate = gates.gate(name(0), reader);
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
