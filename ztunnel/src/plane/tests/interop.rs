//! The daemon's own client.

use super::*;
use crate::{
    control::remote::{ControlPlane, Keepalive, RemoteAuthority, RemoteMesh, Token},
    identity::{certificate::verify, source::CertSource as _},
    model::{
        identity::SpiffeId,
        workload::{Membership, NamespacedName},
    },
    store::snapshot::Snapshot,
};

impl Plane {
    /// The control plane, as the daemon of `node-a` is told of it.
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
    // What changes.
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

/// No mesh is ever seen without its settings, also by a daemon that starts anew.
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
