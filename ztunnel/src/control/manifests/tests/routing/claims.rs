//! Whoever claims an address, rightly or wrongly: no connection to a pod of the mesh is made in plaintext.

use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

use super::{decide, mesh};
use crate::model::workload::{Membership, Workload};
use crate::route::decide::Hop;

/// Lines of a mesh of pods, services and entries that claim a few addresses, rightly or wrongly.
pub(crate) fn any_mesh() -> impl Strategy<Value = String> {
    let address = || (0u8..8).prop_map(|last| format!("10.0.0.{last}"));
    let namespace = || prop_oneof![Just("demo"), Just("plain")];
    let pod = (namespace(), address(), any::<bool>(), any::<bool>(), 0u8..3, 0u8..3);
    let pod = pod.prop_map(|(namespace, ip, host, ready, app, leaving)| {
        let leaving = if leaving == 0 { ", deletionTimestamp: '2026-01-01T00:00:00Z'" } else { "" };
        format!(
            " labels: {{app: a{app}}}, namespace: {namespace}{leaving}| spec: {{hostNetwork: {host}, containers: []}}, status: \
             {{podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: '{}'}}]}}",
            if ready { "True" } else { "False" }
        )
    });
    // Whether or not the pod's node can enrol it, and whatever ports it does not capture.
    let local = (
        address(),
        prop::sample::subsequence(
            vec![
                "ambient.mesh/netns: /n",
                "traffic.ambient.mesh/exclude-inbound-ports: '80,81'",
                "traffic.ambient.mesh/exclude-outbound-cidrs: 0.0.0.0/0",
                "ambient.istio.io/bypass-inbound-capture: 'true'",
            ],
            0..=4,
        ),
    );
    let local = local.prop_map(|(ip, annotations)| {
        format!(" namespace: demo, annotations: {{{}}}| status: {{podIPs: [{{ip: {ip}}}]}}", annotations.join(", "))
    });
    let ports = "ports: [{port: 80}, {port: 81}, {port: 82, targetPort: 15008}]";
    let service = (namespace(), address(), 0u8..3, 0u8..3, address(), 0u8..4, any::<bool>());
    let service = service.prop_map(move |(namespace, ip, app, export, outside, ways, sticky)| {
        let external = if ways & 1 == 0 { String::new() } else { format!("externalIPs: [{outside}], ") };
        let sticky = if sticky { "sessionAffinity: ClientIP, " } else { "" };
        let balancer = match ways & 2 {
            0 => String::new(),
            _ => format!(", status: {{loadBalancer: {{ingress: [{{ip: {outside}}}]}}}}"),
        };
        let export = [".", "*", "plain"][usize::from(export)];
        format!(
            " namespace: {namespace}, annotations: {{networking.istio.io/exportTo: '{export}'}}| spec: {{clusterIP: {ip}, \
             {external}{sticky}selector: {{app: a{app}}}, {ports}}}{balancer}"
        )
    });
    let entry = (namespace(), address(), address(), 0u8..5, 24u8..33).prop_map(|(namespace, ip, endpoint, leads, length)| {
        let (resolution, endpoints) = match leads {
            0 | 1 => ("STATIC", format!("endpoints: [{{address: {endpoint}}}]")),
            2 => ("STATIC", "workloadSelector: {labels: {app: a0}}".to_owned()),
            _ => ("NONE", "endpoints: []".to_owned()),
        };
        format!(
            " namespace: {namespace}| spec: {{hosts: [e.example], addresses: [{ip}/{length}], ports: [{{number: 80}}, \
             {{number: 81}}, {{number: 15008}}], resolution: {resolution}, {endpoints}}}"
        )
    });
    // Hosts outside of the cluster, some with a proxy that takes tunnels.
    let host = (namespace(), address(), any::<bool>(), any::<bool>(), 0u8..3);
    let host = host.prop_map(|(namespace, ip, takes_tunnels, ready, app)| {
        let tunnel = if takes_tunnels { ", labels: {networking.istio.io/tunnel: http}" } else { "" };
        format!(
            " namespace: {namespace}{tunnel}| spec: {{address: {ip}, labels: {{app: a{app}}}, serviceAccount: host}}, status: \
             {{conditions: [{{type: Healthy, status: '{}'}}]}}",
            if ready { "True" } else { "False" }
        )
    });
    let lines = |kind: &'static str, what: prop::strategy::BoxedStrategy<String>, most: usize| {
        prop::collection::vec(what, 0..most).prop_map(move |all| {
            let numbered = all.into_iter().enumerate();
            let name = kind.to_ascii_lowercase();
            numbered.map(|(number, line)| format!("{kind} {name}{number}{line}\n")).collect::<String>()
        })
    };
    let parts = (
        lines("Pod", prop_oneof![pod, local].boxed(), 8),
        lines("Service", service.boxed(), 5),
        lines("ServiceEntry", entry.boxed(), 5),
        lines("WorkloadEntry", host.boxed(), 4),
    );
    parts.prop_map(|(pods, services, entries, hosts)| {
        format!(
            "Namespace demo labels: {{istio.io/dataplane-mode: ambient}}\n\
             Pod demo/own | status: {{podIPs: [{{ip: 10.0.0.1}}]}}\n{pods}{services}{entries}{hosts}"
        )
    })
}

proptest! {
    #[test]
    fn plaintext_never_reaches_a_pod_of_the_mesh(lines in any_mesh(), partial in any::<bool>(), last in 0u8..8, port in prop_oneof![Just(80u16), Just(81), Just(82), Just(15008)], draw in any::<u64>()) {
        let mesh = mesh(&lines).with_blind(partial);
        let dst = format!("10.0.0.{last}:{port}");
        let Ok(outbound) = decide(&mesh, "demo/own", &dst, draw) else { return Ok(()) };
        assert!((1..=3).contains(&outbound.candidates.len()));
        for (index, candidate) in outbound.candidates.iter().enumerate() {
            assert!(!outbound.candidates[..index].contains(candidate), "{outbound:?}");
            let ip = candidate.target.ip();
            // All pods that claim the address, rightly or wrongly.
            let all: Vec<_> = mesh.workloads().filter(|pod| pod.own_addresses().contains(&ip)).collect();
            // A pod that is leaving has the address only if no other pod has it.
            let is_left = |pod: &&Arc<Workload>| !pod.leaving || all.iter().all(|pod| pod.leaving);
            let claimants: Vec<_> = all.iter().copied().filter(is_left).collect();
            let in_mesh = claimants.iter().any(|pod| pod.membership == Membership::InMesh);
            match &candidate.hop {
                Hop::Plain => {
                    let itself = |pod: &&Arc<Workload>| pod.name.to_string() == "demo/own";
                    assert!(!in_mesh || claimants.iter().all(itself), "{dst} -> {candidate:?}");
                    assert!(!in_mesh || candidate.target.port() != 15008);
                    assert!(mesh.cluster_ip(ip).is_none(), "{dst} -> {candidate:?}");
                    // In a partial mesh, plaintext needs a known pod that the unread file cannot put into the mesh.
                    let known = candidate.workload.as_ref().is_some_and(|pod| in_mesh || !mesh.may_be_in_mesh(pod));
                    assert!(!partial || known, "{dst} -> {candidate:?}");
                }
                Hop::Tunnel { to, expected } => {
                    assert!(to.port() == 15008 && candidate.target.port() != 15008);
                    let workload = candidate.workload.as_ref().unwrap();
                    assert_eq!(expected.first(), Some(&workload.identity));
                    match claimants[..] {
                        [pod] => assert!(in_mesh && pod.name == workload.name, "{dst} -> {candidate:?}"),
                        // An entry has no address of its own. No pod's node could prove the identity of the entry.
                        _ => assert!(workload.is_entry && workload.membership == Membership::InMesh, "{dst} -> {candidate:?}"),
                    }
                }
            }
        }
    }
}
