//! Hosts outside of the cluster: no node of the mesh captures their connections, or evaluates policy for connections to them.

use crate::control::manifests::tests::routing::mesh_and_local;
use crate::explain::{Explanation, Query, Verdict, Way, explain};

const MESH: &str = "
    Namespace shop labels: {istio.io/dataplane-mode: ambient}
    Pod shop/client | spec: {serviceAccountName: client, containers: []}, status: {podIP: 10.0.0.1}
    WorkloadEntry shop/plain | spec: {address: 172.20.0.8, labels: {app: plain}}
    WorkloadEntry shop/vm labels: {networking.istio.io/tunnel: http} | spec: {address: 172.20.0.9, labels: {app: vm}, serviceAccount: vm}
    Service shop/plain | spec: {selector: {app: plain}, clusterIP: 10.96.0.1, ports: [{port: 80}]}
    Service shop/vm | spec: {selector: {app: vm}, clusterIP: 10.96.0.2, ports: [{port: 80}]}
    AuthorizationPolicy shop/deny | spec: {}\n";

fn ask(from: &str, to: &str) -> Explanation {
    let (snapshot, local) = mesh_and_local(MESH);
    explain(&snapshot, &local, &Query::parse(from, to, "80").unwrap()).unwrap()
}

#[test]
fn no_policy_is_enforced_for_a_host() {
    for (to, name, is_tunnel) in [("10.96.0.1", "shop/plain", false), ("10.96.0.2", "shop/vm", true)] {
        let explanation = ask("shop/client", to);
        assert_eq!(explanation.verdict, Verdict::Allowed);
        let [endpoint] = &explanation.endpoints[..] else { panic!("{:?}", explanation.endpoints) };
        assert_eq!(matches!(endpoint.way, Some(Way::Tunnel { .. })), is_tunnel, "{endpoint:?}");
        let unenforced = endpoint.judgement.as_ref().and_then(|judgement| judgement.unenforced.clone());
        assert_eq!(unenforced, Some(format!("WorkloadEntry {name} is a host that no node of the mesh serves")));
    }
    let explanation = ask("shop/client", "10.96.0.1");
    let Some(Way::Plaintext { because }) = &explanation.endpoints[0].way else { panic!("{explanation:?}") };
    assert!(because.contains("WorkloadEntry shop/plain is not in the mesh (it does not have the label"), "{because}");
}

#[test]
fn the_connections_of_a_host_are_not_captured_and_those_of_its_proxy_are_asked_for_by_identity() {
    let explanation = ask("shop/vm", "10.0.0.1");
    assert!(!explanation.from.captured);
    let told = "WorkloadEntry shop/vm is a host that no node of the mesh serves; if a proxy of the host opens HBONE connections, ask \
                with its identity: --from spiffe://cluster.local/ns/shop/sa/vm";
    assert_eq!(explanation.from.state, told);
    assert!(matches!(explanation.endpoints[0].way, Some(Way::Plaintext { .. })), "{explanation:?}");
    let explanation = ask("spiffe://cluster.local/ns/shop/sa/vm", "10.0.0.1");
    assert!(explanation.from.captured && explanation.from.pod.is_none(), "{:?}", explanation.from);
    assert!(matches!(explanation.endpoints[0].way, Some(Way::Tunnel { .. })), "{explanation:?}");
}
