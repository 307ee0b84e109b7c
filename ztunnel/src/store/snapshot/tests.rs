use super::*;
use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::locality::Locality;
use crate::model::service::{Endpoint, Health, Resolution, ServiceKind, ServicePort, TargetPort, Visibility};

fn pod(name: &str, node: &str, addresses: &[&str]) -> Workload {
    Workload {
        node: Some(node.into()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        membership: Membership::InMesh,
        ..Workload::new(NamespacedName::new("demo", name), SpiffeId::new(TrustDomain::default(), "demo", "default"))
    }
}

fn service(name: &str, vips: &[&str]) -> Service {
    let hostname = format!("{name}.demo.svc.cluster.local");
    let vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
    Service { vips, ..Service::new(NamespacedName::new("demo", name), hostname) }
}

/// The owner of port 80 of an address for a pod of namespace demo.
fn at(snapshot: &Snapshot, address: &str) -> String {
    seen(snapshot, address, 80, "demo")
}

fn seen(snapshot: &Snapshot, address: &str, port: u16, namespace: &str) -> String {
    match snapshot.owner(address.parse().unwrap(), port, namespace) {
        Owner::Workload(workload) => format!("pod {}", workload.name.name),
        Owner::Service(service) => format!("service {}", service.name.name),
        Owner::Unclear(services) => format!("unclear {}", services.len()),
        Owner::Hidden(service) => format!("hidden {}", service.name.name),
        Owner::Contested(claimants) => {
            format!("contested: {}", claimants.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        Owner::Unknown => "nobody".to_owned(),
    }
}

fn with_port(port: u16, service: Service) -> Service {
    Service { ports: [ServicePort { name: None, port, target: TargetPort::Number(port) }].into(), ..service }
}

/// A ServiceEntry of this namespace with these addresses and IP blocks, and port 80.
fn entry(namespace: &str, name: &str, addresses: &[&str]) -> Service {
    let (ranges, vips): (Vec<&str>, Vec<&str>) = addresses.iter().partition(|text| text.contains('/'));
    let vips = vips.iter().map(|text| text.parse().unwrap()).collect();
    let ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
    let bare = Service::new(NamespacedName::new(namespace, name), format!("{name}.example"));
    with_port(80, Service { kind: ServiceKind::Entry, vips, ranges, ..bare })
}

#[test]
fn the_default_is_empty() {
    let snapshot = Snapshot::default();
    assert_eq!((snapshot.version(), snapshot.counts()), (0, Counts::default()));
    assert!(snapshot.is_partial());
    assert!(!Snapshot::build(1, vec![], vec![], vec![]).is_partial());
}

#[test]
fn addresses_lead_to_their_owner() {
    let snapshot = Snapshot::build(
        7,
        vec![pod("web", "a", &["10.0.0.1", "fd00::1"]), pod("client", "b", &["10.0.0.2"])],
        vec![service("web", &["10.96.0.1"])],
        vec![],
    );
    assert_eq!(at(&snapshot, "10.0.0.1"), "pod web");
    assert_eq!(at(&snapshot, "::ffff:10.0.0.1"), "pod web");
    assert_eq!(at(&snapshot, "fd00::1"), "pod web");
    assert_eq!(at(&snapshot, "10.0.0.2"), "pod client");
    assert_eq!(at(&snapshot, "10.0.0.3"), "nobody");
    assert_eq!(at(&snapshot, "::ffff:10.96.0.1"), "service web");
    assert_eq!(snapshot.pods_on("a").map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["demo/web"]);
    assert_eq!(snapshot.pods_on("c").count(), 0);
    assert_eq!(snapshot.counts(), Counts { workloads: 2, in_mesh: 2, services: 1, problems: 0 });
    assert!(snapshot.workload(&NamespacedName::new("demo", "web")).is_some());
    assert_eq!(snapshot.services_named("Web.demo.SVC.cluster.local").len(), 1);
    assert!(snapshot.services_named("client.demo.svc.cluster.local").is_empty());
}

#[test]
fn a_contested_address_leads_to_nobody() {
    let snapshot = Snapshot::build(
        1,
        vec![pod("one", "a", &["10.0.0.1", "10.0.0.2"]), pod("two", "a", &["10.0.0.1", "10.0.0.3"])],
        vec![service("three", &["10.0.0.3", "10.96.0.1"]), service("four", &["10.96.0.1"])],
        vec![],
    );
    assert_eq!(at(&snapshot, "10.0.0.1"), "contested: demo/one, demo/two");
    assert_eq!(at(&snapshot, "10.0.0.2"), "pod one");
    assert!(snapshot.workload_at("10.0.0.1".parse().unwrap()).is_none());
    assert_eq!(at(&snapshot, "10.0.0.3"), "pod two", "a pod keeps its address against services");
    assert!(snapshot.cluster_ip("10.0.0.3".parse().unwrap()).is_none());
    assert_eq!(at(&snapshot, "10.96.0.1"), "service four");
}

#[test]
fn services_share_an_address() {
    let own = |namespace: &str| Visibility::Namespaces(vec![namespace.into()]);
    let services = || {
        vec![
            entry("b", "b80", &["10.96.0.1"]),
            entry("a", "a80", &["10.96.0.1"]),
            with_port(443, entry("z", "z443", &["10.96.0.1"])),
            Service { visibility: own("c"), ..entry("c", "c80", &["10.96.0.1"]) },
        ]
    };
    let snapshot = Snapshot::build(1, vec![], services(), vec![]);
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "a"), "service a80");
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "b"), "service b80");
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "c"), "service c80");
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "d"), "service a80");
    assert_eq!(seen(&snapshot, "10.96.0.1", 443, "a"), "service z443");
    assert_eq!(seen(&snapshot, "10.96.0.1", 7, "b"), "service b80");

    let cluster = with_port(80, service("web", &["10.96.0.1"]));
    let snapshot = Snapshot::build(1, vec![], services().into_iter().chain([cluster.clone()]).collect(), vec![]);
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "d"), "service web");
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "a"), "service a80");
    assert_eq!(snapshot.cluster_ip("::ffff:10.96.0.1".parse().unwrap()).unwrap().name.name, "web".into());

    let passing = Service { resolution: Resolution::Passthrough, ..entry("a", "pass", &["10.96.0.1"]) };
    let snapshot = Snapshot::build(1, vec![], vec![cluster.clone(), passing], vec![]);
    assert_eq!(seen(&snapshot, "10.96.0.1", 80, "a"), "service web");

    let private = Service { visibility: own("demo"), ..cluster };
    let snapshot = Snapshot::build(1, vec![], vec![private], vec![]);
    assert_eq!(
        (at(&snapshot, "10.96.0.1"), seen(&snapshot, "10.96.0.1", 80, "a")),
        ("service web".into(), "hidden web".into())
    );
}

#[test]
fn the_smallest_range_wins_after_single_addresses_and_pods() {
    let services = vec![
        entry("demo", "all", &["0.0.0.0/0", "::/0"]),
        entry("demo", "ten", &["10.0.0.0/8"]),
        with_port(443, entry("demo", "tls", &["10.1.0.0/16"])),
        Service { visibility: Visibility::Namespaces(vec![]), ..entry("demo", "private", &["10.1.2.0/24"]) },
        entry("demo", "one", &["10.1.2.3"]),
        entry("demo", "v6", &["fd00:1::/32"]),
    ];
    let snapshot = Snapshot::build(1, vec![pod("web", "a", &["10.0.0.1"])], services, vec![]);
    assert_eq!(at(&snapshot, "10.0.0.1"), "pod web");
    assert_eq!(at(&snapshot, "10.0.0.2"), "service ten");
    assert_eq!(at(&snapshot, "10.1.2.3"), "service one");
    assert_eq!(at(&snapshot, "10.1.2.4"), "service ten");
    assert_eq!(seen(&snapshot, "10.1.2.4", 443, "demo"), "service tls");
    assert_eq!(seen(&snapshot, "10.1.2.4", 7, "demo"), "service tls");
    assert_eq!(at(&snapshot, "11.0.0.1"), "service all");
    assert_eq!(at(&snapshot, "fd00:1::5"), "service v6");
    assert_eq!(at(&snapshot, "fd00:2::5"), "service all");
}

#[test]
fn services_are_known_by_host_and_by_pod() {
    let web = NamespacedName::new("demo", "web");
    let endpoint = |address: &str| Endpoint {
        address: address.parse().unwrap(),
        ports: [(80, 8080)].into(),
        health: Health::Unready,
        workload: Some(web.clone()),
        weight: 1,
        node: None,
        locality: Locality::default(),
    };
    let hosted = |namespace: &str, name: &str| Service {
        hostname: "same.example".into(),
        endpoints: [endpoint("10.0.0.1"), endpoint("fd00::1")].into(),
        ..entry(namespace, name, &[])
    };
    let services = vec![hosted("b", "two"), hosted("a", "one"), hosted("a", "one-again")];
    let snapshot = Snapshot::build(1, vec![pod("web", "a", &["10.0.0.1", "fd00::1"])], services, vec![]);
    fn names<'a>(services: impl IntoIterator<Item = &'a Arc<Service>>) -> Vec<String> {
        services.into_iter().map(|service| service.name.to_string()).collect()
    }
    assert_eq!(names(snapshot.services_named("same.example")), ["a/one", "b/two"]);
    assert_eq!(names(snapshot.services_of(&web)), ["a/one", "b/two"]);
    assert_eq!(snapshot.services_of(&NamespacedName::new("demo", "client")).count(), 0);
}

#[test]
fn finished_and_host_network_pods_claim_no_address() {
    let finished = Workload { finished: true, ..pod("old", "a", &["10.0.0.1"]) };
    let on_host = Workload { host_network: true, ..pod("host", "a", &["10.0.0.1"]) };
    let snapshot = Snapshot::build(1, vec![finished, on_host, pod("new", "a", &["10.0.0.1"])], vec![], vec![]);
    assert_eq!(at(&snapshot, "10.0.0.1"), "pod new");
    assert_eq!(snapshot.pods_on("a").count(), 3);
}

#[test]
fn addresses_of_objects_that_cannot_be_read_are_found_among_any_number() {
    let nets =
        ["10.0.0.0/8", "10.1.2.0/24", "192.0.2.7/32", "fd00::/64", "10.0.0.0/16", "192.0.2.9/32", "fd00:1::5/128"];
    let mut snapshot = Snapshot::default().with_unread_addresses(nets.map(|net| net.parse().unwrap()));
    // A snapshot without a version is blind.
    snapshot.version = 1;
    for (address, hidden) in [
        ("10.1.2.3", true),
        ("10.255.255.255", true),
        ("11.0.0.0", false),
        ("9.255.255.255", false),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("192.0.2.9", true),
        ("::ffff:192.0.2.9", true),
        ("fd00::1", true),
        ("fd00:0:0:1::1", false),
        ("fd00:1::5", true),
        ("fd00:1::6", false),
        ("::1", false),
    ] {
        assert_eq!(snapshot.may_hide(address.parse().unwrap()), hidden, "{address}");
    }
    snapshot.unread_addresses = Arc::default();
    assert!(!snapshot.hides_addresses());
}
