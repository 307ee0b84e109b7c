//! While a file of the mesh could never be read, and with entries of a hostile author: known routes stay as they are,
//! and no connection is made in plaintext to an address at which a pod of the mesh may be.

use super::{MESH, check, mesh};
use crate::model::problem::Severity;
use crate::model::service::Service;
use crate::store::snapshot::Snapshot;

/// The mesh of [`MESH`] and these lines, with a file that could never be read.
fn partial(lines: &str) -> Snapshot {
    mesh(&format!("{MESH}{lines}")).with_blind(true)
}

fn unread(what: &str) -> String {
    format!(
        "unknown_destination: {what} may be in a file of the mesh that has never been readable: repair the file, \
         which /config_dump names"
    )
}

#[test]
fn what_is_unknown_is_refused_while_a_file_is_unread() {
    let mesh = partial(
        "
        ServiceEntry demo/none | spec: {hosts: [n.example], addresses: [198.51.0.0/16, 203.0.113.7], ports: [{number: 443}]}
        ServiceEntry demo/static | spec: {hosts: [s.example], addresses: [203.0.113.8], ports: [{number: 443}], resolution: STATIC, endpoints: [{address: 203.0.113.9}]}
        Service demo/slice | spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}
        EndpointSlice demo/slice labels: {kubernetes.io/service-name: slice} | addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.1.9], targetRef: {kind: Pod, name: unread}}]
        EndpointSlice demo/slice-2 labels: {kubernetes.io/service-name: slice} | addressType: IPv4, ports: [{port: 81}], endpoints: [{addresses: [10.0.1.2]}]
    ",
    );
    for unknown in ["203.0.113.1:443", "10.0.1.9:80", "[fd00:1::9]:80"] {
        check(&mesh, &format!("demo/client -> {unknown}"), &unread(unknown));
    }
    // An entry shows that there is something at the address, but not that it is not a pod.
    for passed in ["198.51.7.7:443", "203.0.113.7:443", "198.51.7.7:80"] {
        check(&mesh, &format!("demo/client -> {passed}"), &unread(passed));
    }
    let none = |service: &str| {
        format!(
            "no_healthy_upstream: {service}: 1 of 1 endpoints ready, and none that this pod may use while a file of the \
             mesh can't be read: /config_dump names it"
        )
    };
    check(&mesh, "demo/client -> 203.0.113.8:443", &none("demo/static:443"));
    // A slice's endpoint that is a pod of the unread file does not count; its other endpoints do.
    check(&mesh, "demo/client -> 10.96.0.11:80", "demo/slice: tunnel 10.0.1.2:81 to web");
}

#[test]
fn only_addresses_of_unread_objects_are_refused() {
    let mesh = mesh(&format!(
        "{MESH}
        Service demo/slice | spec: {{clusterIP: 10.96.0.11, ports: [{{port: 80}}]}}
        EndpointSlice demo/slice labels: {{kubernetes.io/service-name: slice}} | addressType: IPv4, ports: [{{port: 80}}], endpoints: [{{addresses: [10.0.1.9]}}, {{addresses: [203.0.113.9]}}]
    "
    ));
    let mesh = mesh.with_unread_addresses(["10.0.1.9/32", "198.51.100.0/24"].map(|net| net.parse().unwrap()));
    for refused in ["10.0.1.9:80", "198.51.100.7:443"] {
        check(&mesh, &format!("demo/client -> {refused}"), &unread(refused));
    }
    for passed in ["10.0.1.8:80", "198.51.101.7:443", "[fd00:1::9]:80"] {
        check(&mesh, &format!("demo/client -> {passed}"), &format!("plain {passed}"));
    }
    check(&mesh, "demo/client -> 10.96.0.11:80", "demo/slice: plain 203.0.113.9:80");
    // A known pod whose address another, unread object names as well.
    let known = mesh.with_unread_addresses(["10.0.0.0/8".parse().unwrap()]);
    check(&known, "demo/client -> 10.0.2.2:1234", "tunnel 10.0.2.2:1234 to web");
    check(&known, "demo/client -> 10.0.2.3:7", "plain 10.0.2.3:7");
}

#[test]
fn what_is_known_goes_on_while_a_file_is_unread() {
    let mesh = partial("Namespace plain\n");
    check(&mesh, "demo/client -> 10.96.0.1:80", "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web");
    check(&mesh, "demo/client -> 10.0.2.2:1234", "tunnel 10.0.2.2:1234 to web");
    check(&mesh, "demo/client -> 10.96.0.3:80", "plain/old: plain 10.0.2.3:80");
    check(&mesh, "demo/client -> 10.0.2.3:7", "plain 10.0.2.3:7");
    check(&mesh, "demo/client -> 10.96.0.5:80", "demo/host: plain 192.168.0.2:80");
    check(&mesh, "demo/client -> 10.0.1.1:80", "plain 10.0.1.1:80");
}

#[test]
fn a_namespace_in_an_unread_file_may_be_labelled() {
    let lines = "
        Pod plain/out labels: {istio.io/dataplane-mode: none} | status: {podIPs: [{ip: 10.0.2.8}]}
        Pod plain/host labels: {app: old} | spec: {hostNetwork: true, containers: []}, status: {podIPs: [{ip: 192.168.0.3}]}
    ";
    let mesh = partial(lines);
    check(&mesh, "demo/client -> 10.0.2.3:7", &unread("the label of namespace plain, where Pod plain/old is,"));
    check(&mesh, "demo/client -> 10.96.0.3:80", "plain/old: plain 192.168.0.3:80");
    check(&mesh, "demo/client -> 10.0.2.8:7", "plain 10.0.2.8:7");
    check(&mesh.with_blind(false), "demo/client -> 10.0.2.3:7", "plain 10.0.2.3:7");
}

#[test]
fn an_entry_takes_no_pods_address_and_adds_no_identity_to_others_services() {
    let grabs = "
        ServiceEntry plain/grab | spec: {hosts: [web.demo.svc.cluster.local], addresses: [10.0.1.2, 10.0.2.3, 10.96.0.1, 10.96.0.4, 0.0.0.0/0], ports: [{number: 80}, {number: 7}], resolution: STATIC, endpoints: [{address: 10.0.1.2}], subjectAltNames: ['spiffe://cluster.local/ns/plain/sa/evil']}
    ";
    let mesh = mesh(&format!("{MESH}{grabs}"));
    let both = "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web";
    check(&mesh, "demo/client -> 10.0.1.2:80", "tunnel 10.0.1.2:80 to web");
    check(&mesh, "demo/client -> 10.0.2.3:7", "plain 10.0.2.3:7");
    check(&mesh, "demo/client -> 10.96.0.1:80", both);
    check(&mesh, "demo/client -> 10.96.0.4:80", "demo/open: tunnel 10.0.2.4:80 to default");
    let errors = mesh.problems().iter().filter(|problem| problem.severity == Severity::Error);
    let problems: Vec<String> = errors.map(|problem| problem.message.clone()).collect();
    let kept = |address: &str, pod: &str| {
        format!("spec.addresses: {address} is the address of Pod {pod}, which takes precedence")
    };
    assert_eq!(problems, [kept("10.0.1.2", "demo/web-a"), kept("10.0.2.3", "plain/old")]);
}

/// Entries of a tenant for addresses that are not his own.
const GRABS: &str = "
    ServiceEntry evil/all | spec: {hosts: [a.example], addresses: [0.0.0.0/0, '::/0'], ports: [{number: 443}], resolution: STATIC, endpoints: [{address: 203.0.113.66}], exportTo: ['*']}
    ServiceEntry evil/one | spec: {hosts: [b.example], addresses: [198.51.100.1], ports: [{number: 443}], resolution: STATIC, endpoints: [{address: 203.0.113.67}]}
    ServiceEntry evil/pods | spec: {hosts: [c.example], addresses: [198.51.100.2], ports: [{number: 443}], resolution: STATIC, workloadSelector: {labels: {app: trap}}, exportTo: [demo]}
    Pod evil/trap labels: {app: trap} | status: {phase: Running, podIPs: [{ip: 10.66.0.1}], conditions: [{type: Ready, status: 'True'}]}
    Pod evil/client | status: {podIPs: [{ip: 10.66.0.2}]}
";

#[test]
fn the_traffic_of_others_is_not_taken_by_an_entry() {
    let kept = mesh(&format!("{MESH}{GRABS}"));
    for address in ["192.0.2.1", "198.51.100.1", "198.51.100.2"] {
        check(&kept, &format!("demo/client -> {address}:443"), &format!("plain {address}:443"));
    }
    check(&kept, "evil/client -> 192.0.2.1:443", "evil/all: plain 203.0.113.66:443");
    check(&kept, "evil/client -> 198.51.100.1:443", "evil/one: plain 203.0.113.67:443");
    // The entry is exported to demo, so the pods of its own namespace do not see it.
    check(&kept, "evil/client -> 198.51.100.2:443", "evil/all: plain 203.0.113.66:443");
    let told = |mesh: &Snapshot, text: &str| {
        let warnings = mesh.problems().iter().filter(|problem| problem.severity == Severity::Warning);
        warnings.filter(|problem| problem.message.contains(text)).count()
    };
    assert_eq!(told(&kept, "leads only pods of namespace evil"), 3);

    let settings =
        "ConfigMap istio-system/istio annotations: {traffic.ambient.mesh/service-entries-lead: exported} | data: {}\n";
    let as_in_istio = mesh(&format!("{MESH}{GRABS}{settings}"));
    check(&as_in_istio, "demo/client -> 192.0.2.1:443", "evil/all: plain 203.0.113.66:443");
    check(&as_in_istio, "demo/client -> 198.51.100.1:443", "evil/one: plain 203.0.113.67:443");
    check(&as_in_istio, "demo/client -> 198.51.100.2:443", "evil/pods: plain 10.66.0.1:443");
    assert_eq!(told(&as_in_istio, "leads only pods of namespace evil"), 0);
    assert_eq!(told(&as_in_istio, "can direct the traffic of all pods"), 1);

    let root = GRABS.replace("ServiceEntry evil", "ServiceEntry istio-system");
    let of_root = mesh(&format!("{MESH}{root}"));
    check(&of_root, "demo/client -> 192.0.2.1:443", "istio-system/all: plain 203.0.113.66:443");
    check(&of_root, "demo/client -> 198.51.100.1:443", "istio-system/one: plain 203.0.113.67:443");
}

#[test]
fn entries_that_share_an_address_are_told() {
    let entry = |name: &str, address: &str| {
        format!("ServiceEntry {name} | spec: {{hosts: [h.example], addresses: [{address}], ports: [{{number: 80}}]}}\n")
    };
    let told = |lines: &[String]| {
        let problems = mesh(&format!("{MESH}{}", lines.concat())).problems().to_vec();
        let told = problems.iter().filter(|problem| problem.message.contains("is also an address of"));
        told.map(|problem| problem.object.clone().unwrap()).collect::<Vec<_>>()
    };
    let one = entry("demo/one", "192.0.2.1");
    assert_eq!(told(&[one.clone(), entry("plain/two", "192.0.2.1")]), <[&str; 0]>::default());
    assert_eq!(told(&[one.clone(), entry("demo/two", "192.0.2.2")]), <[&str; 0]>::default());
    assert_eq!(told(&[one.clone(), entry("istio-system/two", "192.0.2.1")]), ["ServiceEntry demo/one"]);
    let both = told(&[one, entry("demo/two", "192.0.2.1").replace("h.example", "i.example")]);
    assert_eq!(both, ["ServiceEntry demo/one", "ServiceEntry demo/two"]);
}

#[test]
fn a_pod_is_not_made_unreachable_by_a_service_that_claims_its_address() {
    let claim = "
        Service plain/grab | spec: {selector: {app: old}, clusterIP: 10.0.1.2, ports: [{port: 80}]}
    ";
    let mesh = mesh(&format!("{MESH}{claim}"));
    check(&mesh, "demo/client -> 10.0.1.2:80", "tunnel 10.0.1.2:80 to web");
    check(&mesh, "plain/old -> 10.0.1.2:80", "tunnel 10.0.1.2:80 to web");
    let both = "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web";
    check(&mesh, "demo/client -> 10.96.0.1:80", both);
    let problems: Vec<String> = mesh.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let told = "Service plain/grab: spec.clusterIPs: 10.0.1.2 is the address of Pod demo/web-a, which takes precedence";
    assert!(problems[0].ends_with(told), "{problems:?}");
}

/// A Service of another namespace with an address of `demo/web` and one of a node.
#[test]
fn the_address_of_a_service_or_node_is_not_taken_by_a_service_of_another_namespace() {
    let node = "Node n | status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}\n";
    // By name it comes before the Service whose address it claims.
    let grab = |export: &str| {
        format!(
            "
            Service any/grab annotations: {{networking.istio.io/exportTo: '{export}'}} | spec: {{selector: {{app: trap}}, clusterIPs: [10.96.0.1, 192.0.2.9], ports: [{{port: 80}}, {{port: 81}}]}}
            Pod any/trap labels: {{app: trap}} | status: {{podIPs: [{{ip: 10.66.0.1}}], conditions: [{{type: Ready, status: 'True'}}]}}
            Pod any/client | status: {{podIPs: [{{ip: 10.66.0.2}}]}}
            Pod third/client | status: {{podIPs: [{{ip: 10.66.0.3}}]}}
        "
        )
    };
    let both = "demo/web: tunnel 10.0.1.2:8080 to web or tunnel 10.0.2.2:80 to web";
    let unclear = |address: &str| {
        format!(
            "no_healthy_upstream: {address} is the address of Service any/grab, Service demo/web, of different namespaces: \
             pods of namespace third cannot connect to it until only one of them has it"
        )
    };
    for export in ["*", "."] {
        let mesh = mesh(&format!("{MESH}{node}{}", grab(export)));
        for port in [80, 81] {
            check(&mesh, &format!("third/client -> 10.96.0.1:{port}"), &unclear("10.96.0.1"));
        }
        // Each namespace has its own.
        check(&mesh, "demo/client -> 10.96.0.1:80", both);
        let no_port = "no_healthy_upstream: Service demo/web has no TCP port 81";
        check(&mesh, "demo/client -> 10.96.0.1:81", no_port);
        check(&mesh, "any/client -> 10.96.0.1:80", "any/grab: plain 10.66.0.1:80");
        for client in ["demo/client", "any/client", "third/client"] {
            check(&mesh, &format!("{client} -> 192.0.2.9:80"), "plain 192.0.2.9:80");
        }
        let errors = mesh.problems().iter().filter(|problem| problem.severity == Severity::Error);
        let mut told: Vec<String> =
            errors.map(|problem| format!("{} {}", problem.object.clone().unwrap(), problem.message)).collect();
        told.sort();
        let of = |service: &str, other: &str| {
            format!(
                "Service {service} spec.clusterIPs: 10.96.0.1 is also the address of Service {other}: pods of other \
                 namespaces than these two cannot connect to it; give each Service an address of its own"
            )
        };
        let of_node = "Service any/grab spec.clusterIPs: 192.0.2.9 is an address of a node, which takes precedence";
        assert_eq!(told, [of("any/grab", "demo/web"), of_node.to_owned(), of("demo/web", "any/grab")]);
    }
    // Whoever has the address alone has it for all.
    let alone = mesh(&format!("{MESH}{node}{}", grab("*").replace("10.96.0.1, ", "")));
    check(&alone, "third/client -> 10.96.0.1:80", both);
}

#[test]
fn the_mesh_says_to_whom_services_are_exported_that_do_not_say_it() {
    let lines = "
        ConfigMap istio-system/istio | data: {mesh: '{defaultServiceExportTo: [.]}'}
        ServiceEntry plain/all | spec: {hosts: [a.example], addresses: [0.0.0.0/0], ports: [{number: 80}], resolution: STATIC, endpoints: [{address: 203.0.113.66}]}
        ServiceEntry plain/told | spec: {hosts: [b.example], addresses: [198.51.100.1], ports: [{number: 80}], resolution: STATIC, endpoints: [{address: 203.0.113.67}], exportTo: ['*']}
        ServiceEntry istio-system/told | spec: {hosts: [b.example], addresses: [198.51.100.2], ports: [{number: 80}], resolution: STATIC, endpoints: [{address: 203.0.113.68}], exportTo: ['*']}
        Service demo/told annotations: {networking.istio.io/exportTo: 'plain'} | spec: {selector: {app: web}, clusterIP: 10.96.0.12, ports: [{port: 80}]}
    ";
    let mesh = mesh(&format!("{MESH}{lines}"));
    check(&mesh, "demo/client -> 192.0.2.1:80", "plain 192.0.2.1:80");
    check(&mesh, "plain/old -> 192.0.2.1:80", "plain/all: plain 203.0.113.66:80");
    check(&mesh, "demo/client -> 198.51.100.1:80", "plain 198.51.100.1:80");
    check(&mesh, "demo/client -> 198.51.100.2:80", "istio-system/told: plain 203.0.113.68:80");
    check(&mesh, "demo/client -> 10.96.0.4:80", "demo/open: tunnel 10.0.2.4:80 to default");
    check(
        &mesh,
        "plain/old -> 10.96.0.4:80",
        "no_healthy_upstream: Service demo/open is not exported to namespace plain",
    );
    check(&mesh, "plain/old -> 10.96.0.12:80", "demo/told: tunnel 10.0.1.2:80 to web or tunnel 10.0.2.2:80 to web");
}

#[test]
fn a_large_entry_is_cut_and_its_hosts_share_their_endpoints() {
    let list = |count: usize, text: &dyn Fn(usize) -> String| (0..count).map(text).collect::<Vec<_>>().join(", ");
    let hosts = list(300, &|number| format!("h{number}.example"));
    let endpoints = list(5000, &|number| format!("{{address: 198.18.{}.{}}}", number >> 8, number & 0xff));
    let few = list(20, &|number| format!("f{number}.example"));
    let entry = |name: &str, hosts: &str, endpoints: &str| {
        format!(
            "ServiceEntry plain/{name} | spec: {{hosts: [{hosts}], ports: [{{number: 80}}], resolution: STATIC, endpoints: \
             [{endpoints}]}}\n"
        )
    };
    let mesh = mesh(&(entry("hosts", &hosts, "{address: 198.18.0.1}") + &entry("endpoints", &few, &endpoints)));
    for (name, hosts, endpoints) in [("hosts", 256, 1), ("endpoints", 20, 4096)] {
        let services: Vec<_> = mesh.services().filter(|service| *service.name.name == *name).collect();
        assert_eq!((services.len(), services[0].endpoints.len()), (hosts, endpoints));
        let shares = |service: &&std::sync::Arc<Service>| {
            let first = services[0];
            std::sync::Arc::ptr_eq(&service.endpoints, &first.endpoints)
                && std::sync::Arc::ptr_eq(&service.ports, &first.ports)
        };
        assert!(services.iter().all(shares));
    }
    let problems: Vec<&str> = mesh.problems().iter().map(|problem| &*problem.message).collect();
    assert_eq!(
        problems,
        [
            "spec.hosts: there are 300, of which only the first 256 count",
            "spec.endpoints: there are 5000, of which only the first 4096 count"
        ]
    );
}

#[test]
fn an_address_that_many_claim_is_told_in_one_short_line() {
    let pods: String =
        (0..1000).map(|number| format!("Pod demo/p{number:04} | status: {{podIPs: [{{ip: 10.9.9.9}}]}}\n")).collect();
    check(
        &mesh(&format!("{MESH}{pods}")),
        "demo/client -> 10.9.9.9:80",
        "no_healthy_upstream: 10.9.9.9 is claimed by Pod demo/p0000, Pod demo/p0001, Pod demo/p0002, Pod demo/p0003 and 996 \
         more: the address belongs to no pod until only one of them claims it",
    );
}
