//! Istio's part of a mesh: controllers and canonical names, localities, distribution, service entries, mesh settings.

use super::{check, show, undent};
use std::sync::Arc;

use crate::control::manifests::{assemble, parse};
use crate::model::identity::TrustDomain;

/// The names of a pod with these labels and this owner: `kind name canonical-name revision region/zone/subzone`.
fn called(labels: &str, owner: &str) -> String {
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: n, labels: {{topology.kubernetes.io/region: r, \
         topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: p-1, labels: {{{labels}}}, ownerReferences: [{owner}]}}\nspec: \
         {{nodeName: n, containers: []}}\n"
    );
    let file: Arc<str> = "f.yaml".into();
    let content = parse(&file, &text).unwrap();
    let mesh = assemble([(&file, &content)], &"example.org".parse::<TrustDomain>().unwrap());
    assert_eq!(mesh.problems, []);
    let pod = &mesh.workloads[0];
    assert_eq!(pod.identity.to_string(), "spiffe://example.org/ns/default/sa/default");
    let place = &pod.locality;
    format!(
        "{} {} {} {} {}/{}/{}",
        pod.controller.kind.name(),
        pod.controller.name,
        pod.canonical_name,
        pod.canonical_revision,
        place.region,
        place.zone,
        place.subzone
    )
}

fn owner(kind: &str, name: &str) -> String {
    format!("{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}")
}

#[test]
fn pods_are_called_by_what_made_them() {
    let table = [
        ("", String::new(), "pod p-1 p-1 latest r/z/s"),
        ("", owner("ReplicaSet", "web-5d4f"), "deployment web-5d4f web-5d4f latest r/z/s"),
        ("pod-template-hash: 5d4f", owner("ReplicaSet", "web-5d4f"), "deployment web web latest r/z/s"),
        ("pod-template-hash: other", owner("ReplicaSet", "web-5d4f"), "deployment web-5d4f web-5d4f latest r/z/s"),
        ("", owner("StatefulSet", "db"), "pod p-1 p-1 latest r/z/s"),
        ("", owner("DaemonSet", "agent"), "pod p-1 p-1 latest r/z/s"),
        ("", owner("Job", "migrate-2"), "job migrate-2 migrate-2 latest r/z/s"),
        ("", owner("Job", "backup-28123456"), "cronjob backup backup latest r/z/s"),
        ("", owner("Job", "12345678"), "job 12345678 12345678 latest r/z/s"),
        ("", owner("Node", "n"), "pod p-1 p-1 latest r/z/s"),
        ("", "{apiVersion: v1, kind: Job, name: j, uid: u}".to_owned(), "pod p-1 p-1 latest r/z/s"),
        ("", owner("Job", "Bad_Name"), "pod p-1 p-1 latest r/z/s"),
        ("app: a, version: v1", String::new(), "pod p-1 a v1 r/z/s"),
        (
            "app: a, version: v1, app.kubernetes.io/name: n, app.kubernetes.io/version: v2",
            String::new(),
            "pod p-1 n v2 r/z/s",
        ),
        (
            "app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: v3",
            String::new(),
            "pod p-1 c v3 r/z/s",
        ),
        ("istio-locality: a.b.c", String::new(), "pod p-1 p-1 latest a/b/c"),
        ("istio-locality: a.b.c, topology.istio.io/locality: d", String::new(), "pod p-1 p-1 latest d//"),
    ];
    for (labels, owner, expected) in table {
        assert_eq!(called(labels, &owner), expected, "{labels} {owner}");
    }
}

#[test]
fn labels_that_are_no_labels_do_not_count() {
    check(
        "# file: p.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: p, labels: {app: 'a,b=c'}}",
        "pod default/p sa=default not labelled
         warning p.yaml:3: Pod default/p: label app: \"a,b=c\" is not a label's value: ...",
    );
}

#[test]
fn distribution_is_the_services_own_or_its_namespaces() {
    let services = |annotation: &str, spec: &str| {
        format!(
            "# file: s.yaml
            apiVersion: v1
            kind: Namespace
            metadata: {{name: demo, annotations: {{networking.istio.io/traffic-distribution: PreferSameNode}}}}
            ---
            apiVersion: v1
            kind: Service
            metadata: {{name: s, namespace: demo, annotations: {{{annotation}}}}}
            spec: {{clusterIP: 10.96.0.1{spec}}}"
        )
    };
    let annotation = |value: &str| format!("networking.istio.io/traffic-distribution: {value}");
    let node = "prefer [Region, Zone, Subzone, Node]";
    let table = [
        (String::new(), "", node),
        (annotation("PreferClose"), "", "prefer [Region, Zone]"),
        (annotation("prefersamezone"), "", "prefer [Region, Zone]"),
        (annotation("PreferSameZone"), ", trafficDistribution: PreferSameNode", node),
        (String::new(), ", internalTrafficPolicy: Local, trafficDistribution: PreferClose", "same node only"),
        (String::new(), ", internalTrafficPolicy: Cluster, trafficDistribution: PreferClose", "prefer [Region, Zone]"),
    ];
    for (annotation, spec, expected) in table {
        check(&services(&annotation, spec), &format!("service demo/s 10.96.0.1 {expected}"));
    }
    check(&services(&annotation("Any"), ""), "service demo/s 10.96.0.1");
    check(
        &services(&annotation("PreferSameRegion"), ", internalTrafficPolicy: Everywhere"),
        "service demo/s 10.96.0.1
         problem s.yaml:7: Service demo/s: annotation networking.istio.io/traffic-distribution: \"PreferSameRegion\": is not ...
         problem s.yaml:8: Service demo/s: spec.internalTrafficPolicy: \"Everywhere\" is not Cluster or Local; ...",
    );
}

#[test]
fn services_are_exported_to_namespaces() {
    let service = |export: &str| {
        format!(
            "# file: s.yaml
            apiVersion: v1
            kind: Service
            metadata: {{name: s, namespace: demo, annotations: {{networking.istio.io/exportTo: '{export}'}}}}
            spec: {{clusterIP: 10.96.0.1}}"
        )
    };
    let table =
        [("", ""), ("*", ""), (".", " for [demo]"), ("., other", " for [demo other]"), ("~", " for []"), (".,*", "")];
    for (export, expected) in table {
        check(&service(export), &format!("service demo/s 10.96.0.1{expected}"));
    }
    check(
        &service("Bad"),
        "service demo/s 10.96.0.1 for []
         problem s.yaml:3: Service demo/s: annotation networking.istio.io/exportTo: \"Bad\" is not a Kubernetes name: ...",
    );
}

#[test]
fn slices_say_how_endpoints_are_and_where() {
    check(
        "# file: s.yaml
        apiVersion: v1
        kind: Node
        metadata: {name: n, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: s}
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
        addressType: IPv4
        ports: [{port: 80}]
        endpoints:
        - {addresses: [192.0.2.1], nodeName: n}
        - {addresses: [192.0.2.2], nodeName: n, zone: other}
        - {addresses: [192.0.2.3], conditions: {ready: false, serving: true, terminating: true}}
        - {addresses: [192.0.2.4], conditions: {ready: false, serving: false, terminating: true}}
        - {addresses: [192.0.2.5], conditions: {ready: false}}
        - {addresses: [192.0.2.5], conditions: {ready: null}}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: t}",
        "service default/s 10.96.0.1 80->80
           192.0.2.1 80->80 node=n in r/z/
           192.0.2.2 80->80 node=n in r/other/
           192.0.2.3 80->80 draining
           192.0.2.4 80->80 unready
           192.0.2.5 80->80
         service default/t somewhere",
    );
}

#[test]
fn pods_that_end_serve_on() {
    let pod = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: a}}, deletionTimestamp: \
             2024-01-01T00:00:00Z}}\nstatus: {{podIPs: [{{ip: {rest}}}\n"
        )
    };
    let text = "# file: s.yaml\napiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: a}, ports: \
                [{port: 80}]}\n"
        .to_owned()
        + &pod("ending", "10.0.0.1}]")
        + &pod("unready", "10.0.0.2}], conditions: [{type: Ready, status: 'False'}]");
    check(
        &text,
        "pod default/ending sa=default 10.0.0.1 not labelled unready leaving
         pod default/unready sa=default 10.0.0.2 not labelled unready leaving
         service default/s somewhere 80->80
           10.0.0.1 80->80 draining default/ending
           10.0.0.2 80->80 unready default/unready",
    );
}

#[test]
fn service_entries_are_read() {
    check(
        "# file: e.yaml
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: db, namespace: demo}
        spec:
          hosts: [DB.example, '*.db.example']
          addresses: [192.0.2.1, 192.0.2.0/24, 198.51.100.7/32, '::ffff:10.0.0.0/104', 10.1.2.3/8]
          location: MESH_EXTERNAL
          ports:
          - {number: 5432, name: pg, protocol: TCP, targetPort: 5433}
          - {number: 443, name: tls, protocol: TLS}
          - {number: 53, name: dns, protocol: UDP}
          resolution: STATIC
          endpoints:
          - {address: 203.0.113.2, ports: {pg: 6000}, weight: 5, locality: r/z/s, labels: {a: b}, network: n, serviceAccount: x}
          - {address: 10.0.0.9, weight: 0}
          exportTo: ['.', other]
          subjectAltNames: ['spiffe://cluster.local/ns/db/sa/db']
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: db, namespace: elsewhere}
        status: {podIPs: [{ip: 10.0.0.9}]}",
        "pod elsewhere/db sa=default 10.0.0.9 not labelled
         entry demo/db *.db.example 192.0.2.1 198.51.100.7 5432->5433 443->443 192.0.2.0/24 10.0.0.0/8 spiffe://cluster.local/ns/db/sa/db for [demo]
           10.0.0.9 443->443 5432->5433 elsewhere/db
           203.0.113.2 443->443 5432->6000 weight=5 in r/z/s
         entry demo/db db.example 192.0.2.1 198.51.100.7 5432->5433 443->443 192.0.2.0/24 10.0.0.0/8 spiffe://cluster.local/ns/db/sa/db for [demo]
           10.0.0.9 443->443 5432->5433 elsewhere/db
           203.0.113.2 443->443 5432->6000 weight=5 in r/z/s
         warning e.yaml:1: ServiceEntry demo/db: spec.exportTo: the entry has endpoints, and so it leads only pods of namespace demo: ...",
    );
    check(
        "# file: e.yaml
        apiVersion: networking.istio.io/v1beta1
        kind: ServiceEntry
        metadata: {name: none, annotations: {networking.istio.io/traffic-distribution: PreferSameZone}}
        spec: {hosts: [a.example], addresses: [192.0.2.0/24], ports: [{number: 443}]}
        ---
        apiVersion: networking.istio.io/v1alpha3
        kind: ServiceEntry
        metadata: {name: pods}
        spec: {hosts: [b.example], ports: [{number: 80, targetPort: 8080}], resolution: STATIC, workloadSelector: {labels: {app: b}}}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: b, labels: {app: b}}
        status: {podIPs: [{ip: 10.0.0.9}]}",
        "pod default/b sa=default 10.0.0.9 not labelled
         entry default/none a.example 443->443 192.0.2.0/24 passes through prefer [Region, Zone]
         entry default/pods b.example 80->8080 for [default]
           10.0.0.9 80->8080 default/b",
    );
}

#[test]
fn what_a_service_entry_cannot_have_is_told() {
    check(
        "# file: e.yaml
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: dns}
        spec: {hosts: [a.example], ports: [{number: 443}], resolution: DNS, endpoints: [{address: b.example}]}
        ---
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: odd}
        spec:
          hosts: [a.example, 'b c']
          addresses: [web, 127.0.0.1, 1.2.3.4/33]
          ports: [{number: 0}, {number: 70000}, {number: 80, name: h, targetPort: 90000}, {number: 81, name: i}]
          resolution: STATIC
          endpoints: [{address: 'unix:///x'}, {address: b.example}, {address: 192.0.2.1, ports: {i: 0}}, {}]
          workloadSelector: {labels: {app: b}}
          exportTo: [B]
          subjectAltNames: [example.com]
        ---
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: void}
        spec: {resolution: STATIC}",
        "entry default/dns a.example 443->443 passes through
         warning e.yaml:4: ServiceEntry default/dns: spec.resolution: this version does not resolve host names: ...
         problem e.yaml:6: ServiceEntry default/odd: spec.hosts: a.example belongs to another service of namespace default; ...
         problem e.yaml:10: ServiceEntry default/odd: spec.hosts: \"b c\" is not a host name; it is ignored
         problem e.yaml:11: ServiceEntry default/odd: spec.addresses: \"1.2.3.4/33\" is not an IP address or IP \
             block; ...
         problem e.yaml:11: ServiceEntry default/odd: spec.addresses: \"web\" is not an IP address; ...
         problem e.yaml:11: ServiceEntry default/odd: spec.addresses: 127.0.0.1 is a loopback, ...
         problem e.yaml:12: ServiceEntry default/odd: spec.ports.number: 0 is not a port from 1 to 65535; ...
         problem e.yaml:12: ServiceEntry default/odd: spec.ports.number: 70000 is not a port from 1 to 65535; ...
         problem e.yaml:12: ServiceEntry default/odd: spec.ports.targetPort: 90000 is not a port from 1 to 65535; ...
         problem e.yaml:14: ServiceEntry default/odd: spec.endpoints.address: \"\" is not an IP address; ...
         problem e.yaml:14: ServiceEntry default/odd: spec.endpoints.address: \"b.example\" is not an IP address; ...
         problem e.yaml:14: ServiceEntry default/odd: spec.endpoints.address: \"unix:///x\" is a Unix socket, which is not TCP; ...
         problem e.yaml:14: ServiceEntry default/odd: spec.endpoints.ports: 192.0.2.1 has no port from 1 to 65535 for 81
         problem e.yaml:15: ServiceEntry default/odd: spec: workloadSelector has no effect together with endpoints: ...
         problem e.yaml:16: ServiceEntry default/odd: spec.exportTo: \"B\" is not a Kubernetes name: ...
         problem e.yaml:17: ServiceEntry default/odd: spec.subjectAltNames: \"example.com\" is not spiffe://...
         problem e.yaml:22: ServiceEntry default/void: spec.hosts: there is no valid host name: the entry has no effect
         problem e.yaml:22: ServiceEntry default/void: spec: resolution is STATIC, but there are neither ...",
    );
    let entry = |version: &str, spec: &str| {
        format!(
            "# file: e.yaml\napiVersion: networking.istio.io/{version}\nkind: ServiceEntry\nmetadata: {{name: e}}\nspec: {spec}\n"
        )
    };
    check(&entry("v2", "{}"), "broken e.yaml:1:13: apiVersion: ...");
    check(&entry("v1", "{hosts: 7}"), "broken e.yaml:4:15: spec.hosts: ...");
    check(&entry("v1", "{resolution: SOMETIMES}"), "broken e.yaml:4:20: spec.resolution: ...");
    check(&entry("v1", "{ports: [{number: many}]}"), "broken e.yaml:4:25: spec.ports[0].number: ...");
    check(
        &entry("v1", "{hosts: [a.example], unknown: {fields: [are, tolerated]}}"),
        "entry default/e a.example passes through",
    );
}

#[test]
fn a_pod_keeps_its_address_against_an_entry() {
    check(
        "# file: e.yaml
        apiVersion: networking.istio.io/v1
        kind: ServiceEntry
        metadata: {name: e}
        spec: {hosts: [a.example, b.example], addresses: [10.0.0.1, 10.96.0.1], ports: [{number: 80}]}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: s}
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: p}
        status: {podIPs: [{ip: 10.0.0.1}]}",
        "pod default/p sa=default 10.0.0.1 not labelled
         service default/s 10.96.0.1 80->80
         entry default/e a.example 10.0.0.1 10.96.0.1 80->80 passes through
         entry default/e b.example 10.0.0.1 10.96.0.1 80->80 passes through
         problem e.yaml:1: ServiceEntry default/e: spec.addresses: 10.0.0.1 is the address of Pod default/p, which takes precedence
         warning e.yaml:1: ServiceEntry default/e: spec.addresses: 10.96.0.1 is the address of Service default/s, \
             which takes precedence",
    );
}

/// The ConfigMap with these settings, in a file of its own.
fn config_map(name: &str, namespace: &str, mesh: &str) -> String {
    let mesh: String = undent(mesh).lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "# file: m.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata:\n  \
         mesh: |-\n{mesh}  meshNetworks: 'networks: {{}}'\n"
    )
}

#[test]
fn mesh_settings_are_read_from_their_config_map_only() {
    let registry_only = "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\ndefaultConfig: {anything: [goes]}\n";
    let show_in = |name: &str, namespace: &str, mesh: &str| show(&config_map(name, namespace, mesh));
    assert_eq!(show_in("istio", "istio-system", registry_only), "registry only\n");
    assert_eq!(show_in("istio", "istio-system", "outboundTrafficPolicy: {mode: ALLOW_ANY}"), "");
    assert_eq!(show_in("istio", "istio-system", "outboundTrafficPolicy: {}\ntrustDomain: cluster.local"), "");
    assert_eq!(show_in("istio", "istio-system", "# nothing"), "");
    assert_eq!(show_in("istio", "default", "kind: ["), "");
    assert_eq!(show_in("other", "istio-system", "kind: ["), "");
    check("# file: m.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}", "");
    check(
        &config_map("istio", "istio-system", "trustDomain: example.org\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}"),
        "registry only
         problem m.yaml:1: ConfigMap istio-system/istio: data.mesh.trustDomain: example.org differs from the trust \
             domain of this daemon, ...",
    );
}

#[test]
fn broken_mesh_settings_break_their_file() {
    let table = [
        (
            "outboundTrafficPolicy:\n  mode: registry_only",
            "broken m.yaml:6:5: data.mesh.outboundTrafficPolicy.mode: unknown value...",
        ),
        ("outboundTrafficPolicy: REGISTRY_ONLY", "broken m.yaml:6:5: data.mesh.outboundTrafficPolicy: ..."),
        ("trustDomain: UPPER", "broken m.yaml:6:5: data.mesh.trustDomain: \"UPPER\" is not a trust domain: ..."),
        ("a: [", "broken m.yaml:6:5: data.mesh: ..."),
        ("just words", "broken m.yaml:6:5: data.mesh: ..."),
    ];
    for (mesh, expected) in table {
        check(&config_map("istio", "istio-system", mesh), expected);
    }
    check(
        "# file: m.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: {a: b}}",
        "broken m.yaml:4:14: data.mesh: ...",
    );
}
