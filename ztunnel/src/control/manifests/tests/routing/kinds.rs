//! Hosts outside the cluster, external addresses of services, and session affinity.

use std::collections::BTreeSet;

use super::{check, decide, mesh};

/// A client in `demo`, one in `other`, and two pods of the mesh behind `web`.
const MESH: &str = "
    Namespace demo labels: {istio.io/dataplane-mode: ambient}
    Namespace other labels: {istio.io/dataplane-mode: ambient}
    Pod demo/client | spec: {nodeName: a, containers: []}, status: {podIPs: [{ip: 10.0.1.1}]}
    Pod other/client | spec: {nodeName: a, containers: []}, status: {podIPs: [{ip: 10.0.1.9}], hostIPs: [{ip: 192.168.0.9}]}
    Pod demo/web-a labels: {app: web} | spec: {nodeName: a, serviceAccountName: web, containers: []}, status: {podIPs: [{ip: 10.0.1.2}]}
    Pod demo/web-b labels: {app: web} | spec: {nodeName: b, serviceAccountName: web, containers: []}, status: {podIPs: [{ip: 10.0.2.2}]}
";

fn with(lines: &str) -> crate::store::snapshot::Snapshot {
    mesh(&format!("{MESH}{lines}"))
}

#[test]
fn endpoints_stand_behind_a_service_without_selector() {
    let service =
        "Service demo/db | spec: {clusterIP: 10.96.0.20, ports: [{name: pg, port: 5432}, {name: admin, port: 90}]}\n";
    let endpoints = "Endpoints demo/db | subsets: [{addresses: [{ip: 172.20.0.5}], notReadyAddresses: [{ip: 172.20.0.6}], ports: \
                     [{name: pg, port: 15432}]}, {addresses: [{ip: 10.0.1.2, targetRef: {kind: Pod, name: web-a}}], ports: [{name: \
                     admin, port: 8090}]}]\n";
    let both = with(&format!("{service}{endpoints}"));
    check(&both, "demo/client -> 10.96.0.20:5432", "demo/db: plain 172.20.0.5:15432");
    check(&both, "demo/client -> 10.96.0.20:90", "demo/db: tunnel 10.0.1.2:8090 to web");
    // A slice takes precedence over Endpoints, and so does a selector.
    let slice = "EndpointSlice demo/db-1 labels: {kubernetes.io/service-name: db} | addressType: IPv4, ports: [{name: pg, port: 1}], \
                 endpoints: [{addresses: [172.20.0.7]}]\n";
    let all = with(&format!("{service}{endpoints}{slice}"));
    check(&all, "demo/client -> 10.96.0.20:5432", "demo/db: plain 172.20.0.7:1");
    let selecting = service.replace("spec: {", "spec: {selector: {app: web}, ");
    let selected = with(&format!("{selecting}{endpoints}"));
    check(&selected, "demo/client -> 10.96.0.20:90", "demo/db: tunnel 10.0.1.2:90 to web or tunnel 10.0.2.2:90 to web");
    check(
        &with(service),
        "demo/client -> 10.96.0.20:5432",
        "no_healthy_upstream: demo/db:5432: 0 of 0 endpoints ready",
    );
}

#[test]
fn hosts_of_workload_entries_stand_behind_what_selects_them() {
    let entry = "ServiceEntry demo/vm | spec: {hosts: [vm.internal], addresses: [240.240.0.1], ports: [{number: 80, name: http}, \
                 {number: 81, name: other, targetPort: 8081}], resolution: STATIC, workloadSelector: {labels: {app: vm}}}\n";
    let host = |metadata: &str, more: &str| {
        format!(
            "WorkloadEntry demo/vm-1 {metadata}| spec: {{address: 172.20.0.9, labels: {{app: vm}}, serviceAccount: vm, ports: {{http: \
             8080}}{more}}}\n"
        )
    };
    let outside = with(&format!("{entry}{}", host("", "")));
    check(&outside, "demo/client -> 240.240.0.1:80", "demo/vm: plain 172.20.0.9:8080");
    check(&outside, "demo/client -> 240.240.0.1:81", "demo/vm: plain 172.20.0.9:8081");
    // The namespace's label applies to pods only.
    check(&outside, "demo/client -> 172.20.0.9:80", "plain 172.20.0.9:80");
    for tunnel in ["labels: {networking.istio.io/tunnel: http}", "annotations: {networking.istio.io/tunnel: 'x, http'}"]
    {
        let inside = with(&format!("{entry}{}", host(tunnel, "")));
        check(&inside, "demo/client -> 240.240.0.1:80", "demo/vm: tunnel 172.20.0.9:8080 to vm");
    }
    let service =
        "Service demo/vms | spec: {clusterIP: 10.96.0.30, selector: {app: vm}, ports: [{name: http, port: 80}]}\n";
    let by_service = with(&format!("{service}{}", host("", ", weight: 3")));
    check(&by_service, "demo/client -> 10.96.0.30:80", "demo/vms: plain 172.20.0.9:8080");
    let sick = host("", "").trim_end().to_owned() + ", status: {conditions: [{type: Healthy, status: 'False'}]}\n";
    check(
        &with(&format!("{entry}{sick}")),
        "demo/client -> 240.240.0.1:80",
        "no_healthy_upstream: demo/vm:80: 0 of 1 endpoints ready",
    );
}

#[test]
fn a_workload_entry_takes_no_address_and_no_name_from_a_pod() {
    let entry = "ServiceEntry demo/vm | spec: {hosts: [vm.internal], addresses: [240.240.0.1], ports: [{number: 80}], resolution: \
                 STATIC, workloadSelector: {labels: {app: vm}}}\n";
    let thief = "WorkloadEntry demo/vm-1 labels: {networking.istio.io/tunnel: http} | spec: {address: 10.0.1.9, labels: {app: vm}, \
                 serviceAccount: thief}\n";
    let mesh = with(&format!("{entry}{thief}"));
    check(&mesh, "demo/client -> 10.0.1.9:80", "tunnel 10.0.1.9:80 to default");
    check(&mesh, "demo/client -> 240.240.0.1:80", "demo/vm: tunnel 10.0.1.9:80 to default");
    let named = with("WorkloadEntry demo/web-a | spec: {address: 172.20.0.9}\n");
    check(&named, "demo/client -> 10.0.1.2:80", "tunnel 10.0.1.2:80 to web");
    let told: Vec<String> = named.problems().iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|told| told.contains("WorkloadEntry demo/web-a: a Pod has the same name")), "{told:?}");
}

#[test]
fn addresses_from_outside_lead_to_pods_of_the_mesh_through_tunnels() {
    let both = "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:8080 to web";
    let front = |more: &str, status: &str| {
        with(&format!(
            "Service demo/web | spec: {{clusterIP: 10.96.0.1, type: LoadBalancer, selector: {{app: web}}, ports: [{{port: 80, \
             targetPort: 8080, nodePort: 30080}}]{more}}}, status: {{loadBalancer: {{ingress: [{{{status}}}]}}}}\n"
        ))
    };
    let mesh = front(", externalIPs: [203.0.113.9]", "ip: 203.0.113.8");
    check(&mesh, "demo/client -> 203.0.113.8:80", both);
    check(&mesh, "other/client -> 203.0.113.8:80", both);
    check(&mesh, "demo/client -> 203.0.113.9:80", both);
    // Anybody may write externalIPs: they only affect the pods of the namespace.
    check(&mesh, "other/client -> 203.0.113.9:80", "plain 203.0.113.9:80");
    // The nodes forward only the service's ports.
    check(&mesh, "demo/client -> 203.0.113.8:81", "plain 203.0.113.8:81");
    check(&mesh, "demo/client -> 192.168.0.9:30080", "plain 192.168.0.9:30080");
    let told: Vec<String> = mesh.problems().iter().map(ToString::to_string).collect();
    let [external, ports] = &told[..] else { panic!("{told:#?}") };
    assert!(external.contains("spec.externalIPs: 203.0.113.9 leads only pods of namespace demo"), "{external}");
    assert!(ports.contains("spec.ports: connections to an address of a node, nodePort 30080"), "{ports}");

    let local = front(", internalTrafficPolicy: Local", "ip: 203.0.113.8");
    check(&local, "demo/client -> 10.96.0.1:80", "demo/web: tunnel 10.0.1.2:8080 to web");
    check(&local, "demo/client -> 203.0.113.8:80", both);
    for (more, status) in [
        ("", "ip: 203.0.113.8, ipMode: Proxy"),
        (", loadBalancerSourceRanges: [10.0.0.0/8]", "ip: 203.0.113.8, ipMode: VIP"),
    ] {
        check(&front(more, status), "demo/client -> 203.0.113.8:80", "plain 203.0.113.8:80");
    }
    check(&front(", loadBalancerSourceRanges: [0.0.0.0/0]", "ip: 203.0.113.8"), "demo/client -> 203.0.113.8:80", both);
    check(&front("", "hostname: lb.example"), "demo/client -> 203.0.113.8:80", "plain 203.0.113.8:80");
}

#[test]
fn an_address_from_outside_takes_nothing_from_others() {
    let thief = |address: &str| {
        with(&format!(
            "Service demo/web | spec: {{clusterIP: 10.96.0.1, selector: {{app: web}}, externalIPs: ['{address}'], ports: [{{port: 80}}, \
             {{port: 90}}]}}, status: {{loadBalancer: {{ingress: [{{ip: '{address}'}}]}}}}
             Service other/db | spec: {{clusterIP: 10.96.0.2, selector: {{app: nobody}}, ports: [{{port: 90}}]}}
             Node n | status: {{addresses: [{{type: Hostname, address: n}}, {{type: InternalIP, address: 192.168.0.8}}]}}\n"
        ))
    };
    let pod = thief("10.0.1.9");
    check(&pod, "demo/client -> 10.0.1.9:80", "tunnel 10.0.1.9:80 to default");
    let service = thief("10.96.0.2");
    for port in [80, 90] {
        let flow = format!("demo/client -> 10.96.0.2:{port}");
        let why =
            if port == 80 { "Service other/db has no TCP port 80" } else { "other/db:90: 0 of 0 endpoints ready" };
        check(&service, &flow, &format!("no_healthy_upstream: {why}"));
    }
    // An address of a Node, and an address of a pod's node.
    for node in ["192.168.0.8", "192.168.0.9"] {
        check(&thief(node), &format!("demo/client -> {node}:80"), &format!("plain {node}:80"));
        let told: Vec<String> = thief(node).problems().iter().map(ToString::to_string).collect();
        let expected = format!("{node} is an address of a node: it does not lead to the service through the mesh");
        assert!(told.iter().any(|told| told.contains(&expected)), "{told:#?}");
    }
    check(
        &thief("127.0.0.1"),
        "demo/client -> 10.96.0.1:80",
        "demo/web: tunnel 10.0.1.2:80 to web or tunnel 10.0.2.2:80 to web",
    );
}

#[test]
fn a_client_stays_at_one_endpoint_where_the_service_says_so() {
    let service = |affinity: &str, endpoints: u8| {
        let endpoints: Vec<String> = (0..endpoints).map(|last| format!("{{addresses: [172.20.0.{last}]}}")).collect();
        with(&format!(
            "Service demo/aff | spec: {{clusterIP: 10.96.0.7, sessionAffinity: {affinity}, ports: [{{port: 80}}, {{port: 81}}]}}
             EndpointSlice demo/aff-1 labels: {{kubernetes.io/service-name: aff}} | addressType: IPv4, ports: [{{port: 80}}], \
             endpoints: [{}]\n",
            endpoints.join(", ")
        ))
    };
    let chosen = |mesh: &_, pod: &str| -> BTreeSet<String> {
        let to = |draw| decide(mesh, pod, "10.96.0.7:80", draw).unwrap().candidates[0].target.to_string();
        (0..64).map(to).collect()
    };
    assert_eq!(chosen(&service("None", 4), "demo/client").len(), 4);
    let clients = ["demo/client", "other/client", "demo/web-a", "demo/web-b"];
    let firsts = |endpoints| {
        let mesh = service("ClientIP", endpoints);
        let firsts = clients.map(|client| {
            let chosen = chosen(&mesh, client);
            assert_eq!(chosen.len(), 1, "{client} {chosen:?}");
            chosen.into_iter().next().unwrap()
        });
        BTreeSet::from(firsts)
    };
    assert!(firsts(16).len() > 1, "not all clients at one");
    assert_eq!(firsts(1).len(), 1);
    // Other endpoints are tried when the first one refuses.
    let outbound = decide(&service("ClientIP", 4), "demo/client", "10.96.0.7:80", 7).unwrap();
    assert_eq!(outbound.candidates.len(), 3);
}
