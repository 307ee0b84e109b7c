//! Addresses and ports outside of the mesh that lead to its pods: the answer names the Service or the Pod.

use crate::control::manifests::tests::routing::mesh_and_local;
use crate::explain::{Explanation, Query, Verdict, explain};

const MESH: &str = "
    Namespace shop labels: {istio.io/dataplane-mode: ambient}
    Pod shop/client | spec: {serviceAccountName: client, containers: []}, status: {podIP: 10.0.0.1, hostIP: 192.0.2.1}
    Pod shop/web labels: {app: web} | spec: {nodeName: n, containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}]}]}, status: {podIP: 10.0.0.2, hostIP: 192.0.2.2}
    Service shop/web | spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}, {port: 81, nodePort: 30081}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.10, ipMode: Proxy}]}}
    Service shop/other | spec: {selector: {app: web}, clusterIP: 10.96.0.2, externalIPs: [203.0.113.20], ports: [{port: 80}]}\n";

fn ask(from: &str, to: &str, port: u16) -> Explanation {
    let (snapshot, local) = mesh_and_local(MESH);
    explain(&snapshot, &local, &Query::parse(from, to, &port.to_string()).unwrap()).unwrap()
}

/// Checks that there is one such note, and that the warnings include the problem of that object.
#[track_caller]
fn check(to: &str, port: u16, note: &str, problem: Option<&str>) {
    let explanation = ask("shop/client", to, port);
    assert_eq!(explanation.verdict, Verdict::Allowed);
    let notes: Vec<&String> =
        explanation.notes.iter().filter(|note| note.contains("in plaintext and without identity")).collect();
    let [found] = notes[..] else { panic!("{:#?}", explanation.notes) };
    assert!(found.starts_with(note), "{found}");
    let is_listed = |warning: &&String| problem.is_some_and(|problem| warning.contains(problem));
    assert_eq!(
        explanation.warnings.iter().filter(is_listed).count(),
        usize::from(problem.is_some()),
        "{explanation:#?}"
    );
}

#[test]
fn the_answer_names_the_service_to_which_nodes_lead() {
    let balanced = "203.0.113.10 is an external address of Service shop/web: the connection reaches a pod of the Service in plaintext \
                    and without identity, and the policies of that pod decide there. To use the mesh, connect to the Service: --to \
                    service:shop/web";
    check("203.0.113.10", 80, balanced, Some("connections to 203.0.113.10 are left to the node"));
    for port in [30080, 30081] {
        let of_node = format!("port {port} of the nodes is a nodePort of Service shop/web: the connection reaches ");
        check("192.0.2.2", port, &of_node, Some("nodePort 30080, 30081, are left to the node"));
        // It is not known whether a node has this address.
        let may_be = format!(
            "port {port} is a nodePort of Service shop/web: if 198.51.100.1 is an address of a node, the connection reaches "
        );
        check("198.51.100.1", port, &may_be, Some("nodePort 30080, 30081, are left to the node"));
    }
    check(
        "192.0.2.2",
        8080,
        "port 8080 is a hostPort of Pod shop/web: the connection reaches the pod in plaintext",
        None,
    );
}

#[test]
fn nothing_is_said_of_other_destinations() {
    // The node of another pod, other ports and addresses.
    let unknown = [("192.0.2.1", 8080), ("192.0.2.2", 3008), ("203.0.113.1", 80), ("203.0.113.100", 80)];
    // Destinations in the mesh. The problems of their own objects are listed.
    let known = [("10.96.0.1", 80), ("10.0.0.2", 30080), ("203.0.113.20", 80)];
    for (to, port) in unknown.into_iter().chain(known) {
        let Explanation { notes, warnings, .. } = ask("shop/client", to, port);
        assert!(!notes.iter().any(|note| note.contains("without identity, and")), "{to}:{port}: {notes:#?}");
        let is_listed = warnings.iter().any(|warning| warning.contains("left to the node"));
        assert_eq!(is_listed, known.contains(&(to, port)), "{to}:{port}: {warnings:#?}");
    }
}
