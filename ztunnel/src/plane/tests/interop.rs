//! The control plane with the daemon's own client.

use tokio::time::Instant;

use super::*;
use crate::{
    control::remote::{ControlPlane, Keepalive, RemoteAuthority, RemoteMesh, Token},
    identity::{certificate::verify, source::CertSource as _},
    model::{
        identity::SpiffeId,
        workload::{Membership, NamespacedName},
    },
    store::{demand::Demand, snapshot::Snapshot},
};

impl Plane {
    /// The settings of the control plane for the daemon of `node-a`.
    fn as_told(&self) -> Arc<ControlPlane> {
        Arc::new(ControlPlane {
            url: format!("https://{}", self.addr).parse().unwrap(),
            roots: self.dir.path().join("ca/root-cert.pem"),
            token: Token::File(self.tokens().join("node-a")),
            alternative_name: Some(NAME.to_owned()),
            node: "node-a".into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
            keepalive: Keepalive::default(),
        })
    }
}

async fn follow(mesh: &mut RemoteMesh, snapshot: Snapshot, is_there: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let mut snapshot = snapshot;
    while !is_there(&snapshot) {
        snapshot = snapshot.apply(mesh.next().await.unwrap());
    }
    snapshot
}

#[tokio::test]
async fn a_daemon_has_the_mesh_and_its_certificates_from_here() {
    let mut plane = Plane::start(LIMITS).await;
    let service = "{apiVersion: v1, kind: Service, metadata: {namespace: demo, name: web}, spec: {selector: {app: b}, clusterIP: 10.96.0.1, \
                   ports: [{port: 80, targetPort: 8080}]}}";
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2"), service]);
    plane.says("p", &[POLICY]);
    let kept = tempfile::tempdir().unwrap();
    let mut mesh = RemoteMesh::new(plane.as_told(), kept.path().join("mesh"), TaskCount::default());
    let a = NamespacedName::new("demo", "a");
    let has_policy = |snapshot: &Snapshot| {
        snapshot.workload(&a).is_some_and(|pod| !snapshot.policies().protecting(pod, snapshot).is_empty())
    };
    let snapshot = follow(&mut mesh, Snapshot::default(), has_policy).await;
    assert!(!snapshot.is_partial() && snapshot.problems().is_empty(), "{:?}", snapshot.problems());
    let b = snapshot.workload_at("10.0.0.2".parse().unwrap()).unwrap();
    assert_eq!((b.membership, b.node.as_deref()), (Membership::InMesh, Some("node-b")));
    let [web] = snapshot.services_named("web.demo.svc.cluster.local") else { panic!() };
    assert_eq!(web.endpoints.len(), 1);
    assert_eq!(web.endpoints[0].ports, [(80, 8080)].into());
    // Settings of the mesh, which Istio's resources do not have.
    assert!(!snapshot.is_registry_only());
    let only = "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: istio}, data: {mesh: 'outboundTrafficPolicy: \
                {mode: REGISTRY_ONLY}'}}";
    plane.says("settings", &[only]);
    let snapshot = follow(&mut mesh, snapshot, Snapshot::is_registry_only).await;
    plane.says("settings", &[]);
    let snapshot = follow(&mut mesh, snapshot, |snapshot| !snapshot.is_registry_only()).await;
    // Changes of the mesh arrive.
    plane.says("p", &[]);
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), service]);
    let is_gone = |snapshot: &Snapshot| snapshot.counts().workloads == 1 && !has_policy(snapshot);
    follow(&mut mesh, snapshot, is_gone).await;
    let authority = RemoteAuthority::open(plane.as_told(), Duration::from_secs(600), TaskCount::default());
    let own: SpiffeId = "spiffe://cluster.local/ns/demo/sa/sa-a".parse().unwrap();
    let credentials = authority.issue(&own).await.unwrap();
    verify(&credentials.chain, &credentials.roots, std::time::SystemTime::now()).unwrap();
    assert_eq!(credentials.identity, own);
    let other: SpiffeId = "spiffe://cluster.local/ns/demo/sa/sa-b".parse().unwrap();
    let error = authority.issue(&other).await.unwrap_err();
    assert!(crate::model::cause::causes(&error).contains("node-a"), "{error:?}");
}

/// A daemon never sees a mesh without its settings, not even when it has just started.
#[tokio::test]
async fn a_daemon_knows_the_settings_before_the_mesh() {
    let mut plane = Plane::start(LIMITS).await;
    let only = "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: istio}, data: {mesh: 'outboundTrafficPolicy: \
                {mode: REGISTRY_ONLY}'}}";
    plane.says("settings", &[only]);
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1")]);
    let kept = tempfile::tempdir().unwrap();
    let a = NamespacedName::new("demo", "a");
    for _ in 0..2 {
        let mut mesh = RemoteMesh::new(plane.as_told(), kept.path().join("mesh"), TaskCount::default());
        let mut snapshot = Snapshot::default();
        while snapshot.workload(&a).is_none() || !snapshot.is_registry_only() {
            snapshot = snapshot.apply(mesh.next().await.unwrap());
            assert!(snapshot.is_registry_only() || snapshot.version() == 0 || snapshot.workload(&a).is_none());
        }
        drop(mesh);
    }
}

/// On demand, a daemon has the part of the mesh that its connections need, and gets the changes of that part.
#[tokio::test]
async fn a_daemon_on_demand_asks_for_what_it_needs() {
    let mut plane = Plane::start(LIMITS).await;
    let service = "{apiVersion: v1, kind: Service, metadata: {namespace: demo, name: web}, spec: {selector: {app: b}, clusterIP: 10.96.0.1, \
                   ports: [{port: 80, targetPort: 8080}]}}";
    let entry = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {namespace: demo, name: far}, spec: {hosts: [far.example], \
                 addresses: [198.51.100.0/24], ports: [{number: 80, name: http, protocol: TCP}], resolution: NONE, location: MESH_EXTERNAL}}";
    let pods = [pod("a", "node-a", "10.0.0.1"), pod("b", "node-b", "10.0.0.2"), pod("c", "node-b", "10.0.0.3")];
    let mut objects: Vec<&str> = pods.iter().map(String::as_str).collect();
    objects.extend([service, entry]);
    // The policy first, so that the control plane never has the pod without it.
    plane.says("p", &[POLICY]);
    plane.says("a", &objects);
    let (kept, demand) = (tempfile::tempdir().unwrap(), Demand::default());
    demand.set_own([NamespacedName::new("demo", "a")].into());
    let mut mesh =
        RemoteMesh::new(plane.as_told(), kept.path().join("mesh"), TaskCount::default()).on_demand(demand.clone());
    let a = NamespacedName::new("demo", "a");
    let has_a = |snapshot: &Snapshot| snapshot.workload(&a).is_some() && !snapshot.is_partial();
    let mut snapshot = follow(&mut mesh, Snapshot::default(), has_a).await;
    assert_eq!(snapshot.counts().workloads, 1);
    let own = snapshot.workload(&a).unwrap();
    assert_eq!(snapshot.policies().protecting(own, &snapshot).len(), 1, "its policies are there");
    for (address, workloads) in [("10.96.0.1", 2), ("10.0.0.3", 3), ("198.51.100.7", 3), ("203.0.113.1", 3)] {
        let known = demand.known(address.parse().unwrap(), Instant::now());
        tokio::pin!(known);
        loop {
            tokio::select! {
                known = &mut known => break known.unwrap(),
                batch = mesh.next() => snapshot = snapshot.apply(batch.unwrap()),
            }
        }
        assert_eq!(snapshot.counts().workloads, workloads, "{address}");
    }
    assert_eq!(snapshot.services_named("web.demo.svc.cluster.local")[0].endpoints.len(), 1);
    assert_eq!(snapshot.services_named("far.example").len(), 1);
    // Changes of that part arrive without a request: an endpoint, and a pod at an address that belonged to no pod.
    let more = [pod("b", "node-b", "10.0.0.22"), pod("d", "node-b", "203.0.113.1"), pod("e", "node-b", "10.0.0.5")];
    let mut objects: Vec<&str> = [&pods[0], &pods[2], &more[0], &more[1], &more[2]].map(String::as_str).into();
    objects.extend([service, entry]);
    plane.says("a", &objects);
    let has_changed = |snapshot: &Snapshot| {
        let endpoint = |address: &str| snapshot.workload_at(address.parse().unwrap()).is_some();
        endpoint("10.0.0.22") && endpoint("203.0.113.1")
    };
    let snapshot = follow(&mut mesh, snapshot, has_changed).await;
    assert!(snapshot.workload_at("10.0.0.5".parse().unwrap()).is_none(), "nobody needs it");
    assert_eq!(serde_json::to_value(plane.streams.shown()).unwrap()[0]["types"]["Authorization"]["wants"], "all");
}
