use super::*;
use crate::model::workload::Exclusions;

fn pod(name: &str, node: &str, addresses: &[&str]) -> Workload {
    Workload {
        name: NamespacedName::new("demo", name),
        uid: "".into(),
        service_account: "default".into(),
        node: Some(node.into()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        host_network: false,
        labels: Arc::default(),
        netns: None,
        ports: vec![],
        ready: true,
        finished: false,
        membership: Membership::InMesh,
        exclusions: Exclusions::default(),
    }
}

fn service(name: &str, vips: &[&str]) -> Service {
    Service {
        name: NamespacedName::new("demo", name),
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        ports: vec![],
        endpoints: vec![],
        selector: Arc::default(),
    }
}

/// Who answers at an address: `pod NAME`, `service NAME` or `nobody`.
fn at(snapshot: &Snapshot, address: &str) -> String {
    let address = address.parse().unwrap();
    match (snapshot.workload_at(address), snapshot.service_at(address)) {
        (Some(workload), None) => format!("pod {}", workload.name.name),
        (None, Some(service)) => format!("service {}", service.name.name),
        (None, None) => "nobody".to_owned(),
        (Some(_), Some(_)) => "both".to_owned(),
    }
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
    assert!(snapshot.service(&NamespacedName::new("demo", "client")).is_none());
}

#[test]
fn a_contested_address_leads_to_nobody() {
    let snapshot = Snapshot::build(
        1,
        vec![pod("one", "a", &["10.0.0.1", "10.0.0.2"]), pod("two", "a", &["10.0.0.1", "10.0.0.3"])],
        vec![service("three", &["10.0.0.3", "10.96.0.1"]), service("four", &["10.96.0.1"])],
        vec![],
    );
    assert_eq!(at(&snapshot, "10.0.0.1"), "nobody");
    assert_eq!(at(&snapshot, "10.0.0.2"), "pod one");
    assert_eq!(at(&snapshot, "10.0.0.3"), "nobody");
    assert_eq!(at(&snapshot, "10.96.0.1"), "nobody");
}

#[test]
fn finished_and_host_network_pods_claim_no_address() {
    let finished = Workload { finished: true, ..pod("old", "a", &["10.0.0.1"]) };
    let on_host = Workload { host_network: true, ..pod("host", "a", &["10.0.0.1"]) };
    let snapshot = Snapshot::build(1, vec![finished, on_host, pod("new", "a", &["10.0.0.1"])], vec![], vec![]);
    assert_eq!(at(&snapshot, "10.0.0.1"), "pod new");
    assert_eq!(snapshot.pods_on("a").count(), 3);
}
