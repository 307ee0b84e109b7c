mod broken;
pub(crate) mod changes;
mod corpus;
mod istio;
mod json;
mod policies;
mod probes;
mod repeated;
pub(crate) mod routing;
mod show;

use std::fmt::Write;
use std::sync::Arc;

use self::show::{show_authentication, show_authorization, show_service, show_workload};
use super::*;
use crate::control::objects::Body;
use crate::model::identity::TrustDomain;
use crate::model::problem::Severity;

/// Reads files that are given as `# file: NAME` sections, joins them and compares the result line by line. An object
/// that can't be read shows as `broken ...`.
fn check(files: &str, expected: &str) {
    let shown = show(files);
    // The first line comes directly after the quotation mark; the test's source indents the others.
    let lines = || expected.lines().filter(|line| !line.trim().is_empty());
    let indent = lines().skip(1).map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    let expected: Vec<&str> =
        lines().enumerate().map(|(number, line)| &line[if number == 0 { 0 } else { indent }..]).collect();
    let matches = expected.len() == shown.lines().count()
        && expected.iter().zip(shown.lines()).all(|(expected, shown)| match expected.strip_suffix("...") {
            Some(start) => shown.starts_with(start),
            None => *expected == shown,
        });
    assert!(matches, "expected:\n{}\n\nis:\n{shown}", expected.join("\n"));
}

fn show(files: &str) -> String {
    let mut out = String::new();
    let mut contents = Vec::new();
    for section in files.split("# file: ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap();
        let name: Arc<str> = name.trim().into();
        let content = read(&name, &undent(text));
        content.faults.iter().for_each(|fault| writeln!(out, "broken {}", fault.error).unwrap());
        contents.push((name, content));
    }
    let contents = contents.iter().map(|(name, content)| (name, content));
    let mesh = assemble(contents, &TrustDomain::default());
    let Assembled { workloads, local, services, registry_only, policies, problems, .. } = mesh;
    workloads.iter().for_each(|workload| show_workload(&mut out, workload, &local[&workload.name]));
    services.iter().for_each(|service| show_service(&mut out, service));
    if registry_only {
        out.push_str("registry only\n");
    }
    policies.authorization.iter().for_each(|policy| show_authorization(&mut out, policy));
    policies.authentication.iter().for_each(|policy| show_authentication(&mut out, policy));
    for problem in &problems {
        let word = match problem.severity {
            Severity::Error => "problem",
            Severity::Warning => "warning",
            Severity::Info => "note",
        };
        writeln!(out, "{word} {problem}").unwrap();
    }
    out
}

/// Removes the indentation of the test's source; line numbers stay the same.
fn undent(text: &str) -> String {
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    let indent = lines().map(|line| line.len() - line.trim_start_matches(' ').len()).min().unwrap_or(0);
    text.lines().fold(String::new(), |out, line| out + line.get(indent..).unwrap_or_default() + "\n")
}

/// A pod `p` in namespace `demo`, with a network namespace and an address, and with these labels, spec and status
/// added.
fn pod(labels: &str, annotations: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: demo, labels: {{{labels}}}, annotations: {{\
         ambient.mesh/netns: /run/netns/p{annotations}}}}}\nspec: {{containers: []{spec}}}\nstatus: {{podIPs: [{{ip: \
         10.0.0.1}}]{status}}}\n"
    )
}

#[test]
fn membership_follows_the_labels() {
    let table = [
        ("", "", "not labelled"),
        ("", "istio.io/dataplane-mode: ambient", "in mesh"),
        ("", "istio.io/dataplane-mode: none", "opted out"),
        ("", "istio.io/dataplane-mode: other", "not labelled"),
        ("istio.io/dataplane-mode: ambient", "", "in mesh"),
        ("istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: none", "opted out"),
        ("istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: other", "in mesh"),
        ("istio.io/dataplane-mode: Ambient", "", "not labelled"),
        ("istio.io/dataplane-mode: none", "", "not labelled"),
        ("istio.io/dataplane-mode: none", "istio.io/dataplane-mode: ambient", "in mesh"),
    ];
    for (namespace, own, expected) in table {
        let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, labels: {{{namespace}}}}}\n");
        check(
            &format!("# file: n.yaml\n{namespace}# file: p.yaml\n{}", pod(own, "", "", "")),
            &format!("pod demo/p sa=default 10.0.0.1 netns=/run/netns/p {expected}"),
        );
    }
}

#[test]
fn a_labelled_pod_that_cannot_be_captured_is_refused() {
    let ambient = "istio.io/dataplane-mode: ambient";
    let table = [
        (", hostNetwork: true", "", "10.0.0.1 netns=/run/netns/p refused: HostNetwork"),
        ("", ", phase: Succeeded", "10.0.0.1 netns=/run/netns/p refused: Finished unready"),
        ("", ", phase: Failed", "10.0.0.1 netns=/run/netns/p refused: Finished unready"),
        ("", ", phase: Running", "10.0.0.1 netns=/run/netns/p in mesh"),
        ("", ", conditions: [{type: Ready, status: 'False'}]", "10.0.0.1 netns=/run/netns/p in mesh unready"),
    ];
    for (spec, status, expected) in table {
        check(
            &format!("# file: p.yaml\n{}", pod(ambient, "", spec, status)),
            &format!("pod demo/p sa=default {expected}"),
        );
    }
    check(
        "# file: p.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: no-address, labels: {istio.io/dataplane-mode: ambient}}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: no-netns, labels: {istio.io/dataplane-mode: ambient}}
        spec: {nodeName: a, serviceAccountName: web}
        status: {podIP: 10.0.0.1}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: gone, deletionTimestamp: 2024-01-01T00:00:00Z, labels: {istio.io/dataplane-mode: ambient}}",
        "pod default/gone sa=default refused: Finished unready
         pod default/no-address sa=default refused: NoAddress
         pod default/no-netns sa=web node=a 10.0.0.1 in mesh",
    );
}

#[test]
fn addresses_are_canonical_and_plausible() {
    check(
        "# file: p.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: p}
        status:
          podIP: 10.0.0.9
          podIPs: [{ip: '::ffff:10.0.0.1'}, {ip: 10.0.0.1}, {ip: 'FD00::1'}, {ip: 127.0.0.1}, {ip: '::'}, {ip: 224.0.0.1}, {ip: web}]
        ",
        "pod default/p sa=default 10.0.0.1 fd00::1 not labelled
         problem p.yaml:6: Pod default/p: status.podIPs: \"web\" is not an IP address; the address is ignored
         problem p.yaml:6: Pod default/p: status.podIPs: 127.0.0.1 is a loopback, ...
         problem p.yaml:6: Pod default/p: status.podIPs: 224.0.0.1 is a loopback, ...
         problem p.yaml:6: Pod default/p: status.podIPs: :: is a loopback, ...",
    );
}

#[test]
fn exclusions_that_are_wrong_exclude_nothing() {
    let ambient = "istio.io/dataplane-mode: ambient";
    let good = ", traffic.ambient.mesh/exclude-outbound-ports: '443, 80', traffic.ambient.mesh/exclude-outbound-cidrs: \
                '10.0.0.0/8,fd00::/8', traffic.ambient.mesh/exclude-inbound-ports: 9090";
    check(
        &format!("# file: p.yaml\n{}", pod(ambient, good, "", "")),
        "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p in mesh exclude out=80,443 [10.0.0.0/8, fd00::/8] in=9090",
    );
    check(
        "# file: p.yaml
        # The line of the annotation is told, not the pod's.
        apiVersion: v1
        kind: Pod
        metadata:
          name: p
          labels: {istio.io/dataplane-mode: ambient}
          annotations:
            ambient.mesh/netns: run/netns/p
            traffic.ambient.mesh/exclude-outbound-ports: '80,http'
            traffic.ambient.mesh/exclude-outbound-cidrs: 10.0.0.0/33
            traffic.ambient.mesh/exclude-inbound-ports: '9090'
        status: {podIPs: [{ip: 10.0.0.1}]}",
        "pod default/p sa=default 10.0.0.1 in mesh exclude out= [] in=9090
         problem p.yaml:8: Pod default/p: annotation ambient.mesh/netns: \"run/netns/p\": the path is not absolute; the pod can't be captured
         problem p.yaml:9: Pod default/p: annotation traffic.ambient.mesh/exclude-outbound-ports: \"80,http\": \"http\" is not a port, ...
         problem p.yaml:10: Pod default/p: annotation traffic.ambient.mesh/exclude-outbound-cidrs: \"10.0.0.0/33\": \
             \"10.0.0.0/33\" is not an IP block, ...",
    );
}

#[test]
fn endpoints_follow_the_selector() {
    check(
        "# file: mesh.yaml
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: demo}
        spec:
          selector: {app: web}
          clusterIPs: [10.96.0.1]
          ports: [{port: 80, targetPort: http}, {name: same, port: 81}, {port: 82, targetPort: 8082}, {port: 53, protocol: UDP}]
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: headless, namespace: demo}
        spec: {selector: {app: web}, clusterIP: None, publishNotReadyAddresses: true}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: elsewhere, namespace: other}
        spec: {selector: {app: web}, clusterIP: 10.96.0.2}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: without-selector, namespace: demo}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: one, namespace: demo, labels: {app: web}}
        spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]}
        status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: two, namespace: demo, labels: {app: web}}
        status: {podIPs: [{ip: 10.0.0.2}], conditions: [{type: Ready, status: 'False'}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: over, namespace: demo, labels: {app: web}}
        status: {podIPs: [{ip: 10.0.0.1}], phase: Succeeded}",
        "pod demo/one sa=default 10.0.0.1 fd00::1 http=8080 not labelled
         pod demo/over sa=default 10.0.0.1 not labelled unready
         pod demo/two sa=default 10.0.0.2 not labelled unready
         service demo/headless
           10.0.0.1 demo/one
           10.0.0.2 demo/two
           fd00::1 demo/one
         service demo/web 10.96.0.1 80->http 81->81 82->8082
           10.0.0.1 80->8080 81->81 82->8082 demo/one
           10.0.0.2 81->81 82->8082 unready demo/two
         service demo/without-selector somewhere
         service other/elsewhere 10.96.0.2",
    );
}

#[test]
fn endpoint_slices_replace_the_selector() {
    check(
        "# file: mesh.yaml
        apiVersion: v1
        kind: Service
        metadata: {name: web}
        spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 90}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: one, labels: {app: web}}
        status: {podIPs: [{ip: 10.0.0.1}]}
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
        addressType: IPv4
        ports: [{name: http, port: 8080, protocol: TCP}]
        endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.7], conditions: {ready: false}}, {addresses: [127.0.0.1]}]
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: web-2, labels: {kubernetes.io/service-name: web}}
        addressType: IPv4
        ports: [{name: admin, port: 9000}]
        endpoints: [{addresses: [10.0.0.1]}]
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: lost, labels: {kubernetes.io/service-name: nobody}}
        addressType: IPv4
        endpoints: []
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: stray}
        addressType: IPv4
        endpoints: []",
        "pod default/one sa=default 10.0.0.1 not labelled
         service default/web 10.96.0.1 80->http 90->90
           10.0.0.1 80->8080 90->9000 default/one
           10.0.0.7 80->8080 unready
         problem mesh.yaml:16: EndpointSlice default/web-1: endpoints.addresses: 127.0.0.1 is a loopback, ...
         problem mesh.yaml:25: EndpointSlice default/lost: there is no Service default/nobody: the slice is ignored
         warning mesh.yaml:33: EndpointSlice default/stray: label kubernetes.io/service-name is missing: ...",
    );
}

#[test]
fn what_is_claimed_twice_is_told() {
    check(
        "# file: a.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: one, namespace: demo}
        status: {podIPs: [{ip: 10.0.0.1}]}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: web, namespace: demo}
        spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}
        # file: b.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: one, namespace: demo}
        status: {podIPs: [{ip: 10.0.0.9}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: two, namespace: demo, labels: {app: web}}
        status: {podIPs: [{ip: '::ffff:10.0.0.1'}]}",
        "pod demo/one sa=default 10.0.0.1 not labelled
         pod demo/two sa=default 10.0.0.1 not labelled
         service demo/web 10.96.0.1 80->80
           10.0.0.1 80->80
         problem a.yaml:1: Pod demo/one: 10.0.0.1 is also claimed by Pod demo/two: until only one of them claims it, the address belongs to no pod
         problem b.yaml:1: Pod demo/one: is already in a.yaml:1, which is in force: remove one of the two
         problem b.yaml:6: Pod demo/two: 10.0.0.1 is also claimed by Pod demo/one: until only one of them claims it, \
             the address belongs to no pod",
    );
}

#[test]
fn pods_with_a_sidecar_are_left_alone() {
    let ambient = "istio.io/dataplane-mode: ambient";
    let with = |annotations: &str, containers: &str, spec: &str| {
        let text =
            pod(ambient, annotations, spec, "").replace("containers: []", &format!("containers: [{containers}]"));
        format!("# file: p.yaml\n{text}")
    };
    let shown = "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p refused: Sidecar";
    check(&with(", sidecar.istio.io/status: '{}'", "{name: app}", ""), &format!("{shown}(Istio)"));
    check(&with("", "{name: app}, {name: istio-proxy}", ""), &format!("{shown}(Istio)"));
    check(&with("", "{name: linkerd-proxy}, {name: app}", ""), &format!("{shown}(Linkerd)"));
    check(&with("", "{name: app}, {name: kuma-sidecar}", ""), &format!("{shown}(Kuma)"));
    check(&with("", "{name: app}, {name: consul-dataplane}", ""), &format!("{shown}(Consul)"));
    let native = ", initContainers: [{name: istio-proxy, restartPolicy: Always}]";
    check(&with("", "{name: app}", native), &format!("{shown}(Istio)"));
    let in_mesh = "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p in mesh";
    check(&with("", "{name: app}", ", initContainers: [{name: istio-proxy}, {name: istio-init}]"), in_mesh);
    check(&with(", sidecar.istio.io/inject: 'true'", "{name: proxy}", ""), in_mesh);
    // Without the mesh's label there is nothing to report.
    let unlabelled = pod("", ", sidecar.istio.io/status: '{}'", "", "");
    check(&format!("# file: p.yaml\n{unlabelled}"), "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p not labelled");
}

#[test]
fn a_namespace_that_asks_for_the_mesh_and_for_sidecars_is_told() {
    let namespace = |labels: &str, annotations: &str| {
        format!(
            "# file: n.yaml\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: demo\n  labels: {{istio.io/dataplane-mode: \
             ambient{labels}}}\n  annotations: {{{annotations}}}"
        )
    };
    check(
        &namespace(", istio-injection: enabled", ""),
        "warning n.yaml:5: Namespace demo: istio-injection: enabled is set together with istio.io/dataplane-mode: \
         ambient: ...",
    );
    check(
        &namespace("", "linkerd.io/inject: enabled"),
        "warning n.yaml:6: Namespace demo: linkerd.io/inject: enabled is set together with istio.io/dataplane-mode: \
         ambient: ...",
    );
    check(&namespace(", istio-injection: disabled", "linkerd.io/inject: disabled"), "");
    check(&namespace(", istio-injection: enabled", "").replace("ambient", "none"), "");
}

#[test]
fn inbound_capture_can_be_bypassed_as_a_whole() {
    let with = |value: &str| {
        let annotation = format!(", ambient.istio.io/bypass-inbound-capture: '{value}'");
        format!("# file: p.yaml\n{}", pod("istio.io/dataplane-mode: ambient", &annotation, "", ""))
    };
    let shown = "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p in mesh";
    for value in ["true", "True", "1", "t"] {
        check(&with(value), &format!("{shown} exclude out= [] in= all in"));
    }
    for value in ["false", "0"] {
        check(&with(value), shown);
    }
    check(
        &with("yes"),
        &format!(
            "{shown}
         problem p.yaml:3: Pod demo/p: annotation ambient.istio.io/bypass-inbound-capture: \"yes\": is neither \"true\" nor \"false\"; \
         the annotation is ignored, and the traffic is captured"
        ),
    );
}

#[test]
fn a_pod_that_leaves_gives_its_address_to_the_one_that_stays() {
    let pod = |name: &str, metadata: &str, status: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: demo, labels: {{app: {name}}}{metadata}}}
status: {{podIPs: [{{ip: 10.0.0.1}}], {status}}}
"
        )
    };
    let service = |name: &str, address: u8| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: demo}}
spec: {{selector: {{app: {name}}}, clusterIP: 10.96.0.{address}, ports: [{{port: 80}}]}}
"
        )
    };
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: given-1, namespace: demo, labels: {kubernetes.io/service-name: given}}
addressType: IPv4
ports: [{name: '', port: 80}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: old}}]
";
    let services = format!("{}{}{}{slice}", service("old", 1), service("web", 2), service("given", 3));
    let deleted = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let leaving = [
        (deleted, "phase: Running, conditions: [{type: Ready, status: 'False'}], reason: NodeLost", " unready"),
        (deleted, "phase: Running", " unready"),
        (deleted, "phase: Pending", " unready"),
        ("", "phase: Running, reason: NodeLost", ""),
        ("", "phase: Unknown", ""),
        ("", "phase: Running, conditions: [{type: PodReadyToStartContainers, status: 'False'}]", ""),
    ];
    for (metadata, status, unready) in leaving {
        let (old, web) = (pod("old", metadata, status), pod("web", "", "phase: Running"));
        let expected = format!(
            "pod demo/old sa=default 10.0.0.1 not labelled{unready} leaving
         pod demo/web sa=default 10.0.0.1 not labelled
         service demo/given 10.96.0.3 80->80
         service demo/old 10.96.0.1 80->80
         service demo/web 10.96.0.2 80->80
           10.0.0.1 80->80 demo/web"
        );
        for files in [format!("{old}{web}{services}"), format!("{services}{web}{old}")] {
            check(&format!("# file: mesh.yaml\n{files}"), &expected);
        }
    }
    // Without a successor the pod keeps its address.
    check(
        &format!("# file: mesh.yaml\n{}{}", pod("old", deleted, "phase: Running"), service("old", 1)),
        "pod demo/old sa=default 10.0.0.1 not labelled unready leaving
         service demo/old 10.96.0.1 80->80
           10.0.0.1 80->80 draining demo/old",
    );
}

#[test]
fn lists_and_json_are_read() {
    check(
        "# file: list.yaml
        kind: List
        apiVersion: v1
        metadata: {}
        items:
        - apiVersion: v1
          kind: Pod
          metadata: {name: one}
          status:
            podIPs: [{ip: nowhere}]
        - {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {items: x}}
        - {apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}}
        # file: pod.json
        {
        \t\"apiVersion\": \"v1\", \"kind\": \"Pod\",
        \t\"metadata\": {\"name\": \"two\", \"namespace\": \"demo\", \"creationTimestamp\": null},
        \t\"status\": {
        \t\t\"podIPs\": [{\"ip\": \"10.0.0.2\"}, {\"ip\": \"fd00::2\"}]
        \t}
        }
        # file: void.yaml
        # nothing but words
        ---
        ---
        # file: empty.json
        ",
        "pod default/one sa=default refused: NoAddress
         pod demo/two sa=default 10.0.0.2 fd00::2 not labelled
         problem list.yaml:9: Pod default/one: status.podIPs: \"nowhere\" is not an IP address; ...",
    );
    check(
        "# file: list.yaml
        kind: List
        apiVersion: v1
        items:
        - {apiVersion: v1, kind: Pod, metadata: {name: one}}
        - apiVersion: v1
          kind: Pod
          metadata: {name: two}
          spec:
            containers:
            - name: c
              ports: [{containerPort: eighty}]",
        "broken list.yaml:11:31: items[1].spec.containers[0].ports[0].containerPort: ...
         pod default/one sa=default not labelled",
    );
    check(
        "# file: l.yaml\nkind: List\napiVersion: v1\nitems: [{kind: List, apiVersion: v1, items: [{apiVersion: v1, kind: Pod, metadata: {name: p}}]}]",
        "pod default/p sa=default not labelled",
    );
    check("# file: l.yaml\nkind: PodList\napiVersion: v1\nitems: []", "");
    check("# file: l.yaml\nkind: List\napiVersion: v1\n", "");
}

#[test]
fn kinds_that_mean_nothing_are_ignored() {
    check(
        "# file: other.yaml
        apiVersion: gateway.networking.k8s.io/v1
        kind: Gateway
        metadata: 7",
        "",
    );
    check(
        "# file: other.yaml
        apiVersion: gateway.networking.k8s.io/v1
        kind: Gateway
        metadata: {name: Anything}
        spec: {}
        ---
        apiVersion: security.istio.io/v1
        kind: RequestAuthentication
        metadata: {name: tokens, namespace: demo}
        spec: {anything: [goes]}",
        "warning other.yaml:6: RequestAuthentication demo/tokens: RequestAuthentication needs a waypoint: ...",
    );
}

#[test]
fn what_others_carry_out_is_told_once_for_each_namespace() {
    let object = |version: &str, kind: &str, name: &str| {
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{x: [1]}}\n"
        )
    };
    let table = [
        ("networking.k8s.io/v1", "NetworkPolicy", "the network plugin of the cluster enforces it; ..."),
        ("networking.istio.io/v1", "Sidecar", "it is for sidecar proxies, ..."),
        ("networking.istio.io/v1", "DestinationRule", "a waypoint or a gateway carries it out, ..."),
        ("networking.istio.io/v1beta1", "VirtualService", "a waypoint or a gateway carries it out, ..."),
        ("networking.istio.io/v1", "Gateway", "the proxy of the gateway carries it out"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", "a waypoint or a gateway carries it out, ..."),
        ("telemetry.istio.io/v1", "Telemetry", "a waypoint or a gateway carries it out; ..."),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "a waypoint or a gateway carries it out, ..."),
    ];
    for (version, kind, by) in table {
        let told =
            |more: &str| format!("note o.yaml:1: {kind} of namespace demo: has no effect in this daemon{more}: {by}");
        let one = object(version, kind, "a");
        check(&format!("# file: o.yaml\n{}", one.trim_start_matches("---\n")), &told(""));
        let three = [one, object(version, kind, "b"), object(version, kind, "c")].concat();
        let three = three.trim_start_matches("---\n").to_owned();
        check(&format!("# file: o.yaml\n{three}"), &told(" (and 2 more of namespace demo)"));
    }
    // Objects of several kinds, also of kinds with one name, may share a name: Bookinfo has three that are `reviews`.
    let kinds = [
        ("networking.istio.io/v1", "DestinationRule"),
        ("networking.istio.io/v1", "VirtualService"),
        ("networking.istio.io/v1", "Gateway"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "TCPRoute"),
    ];
    let all: String = kinds.iter().map(|(version, kind)| object(version, kind, "reviews")).collect();
    let routed = "a waypoint or a gateway carries it out, for the traffic that goes through it";
    check(
        &format!("# file: o.yaml\n{all}"),
        &format!(
            "note o.yaml:2: DestinationRule of namespace demo: has no effect in this daemon: {routed}
             note o.yaml:7: VirtualService of namespace demo: has no effect in this daemon: {routed}
             note o.yaml:12: Gateway of namespace demo: has no effect in this daemon: the proxy of the gateway carries it out
             note o.yaml:17: Gateway of namespace demo: has no effect in this daemon: the proxy of the gateway carries it out
             note o.yaml:22: HTTPRoute of namespace demo: has no effect in this daemon: {routed}
             note o.yaml:27: TCPRoute of namespace demo: has no effect in this daemon: {routed}"
        ),
    );
    check("# file: o.yaml\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: NONE}", "");
    check("# file: o.yaml\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: NONE}", "");
}

#[test]
fn what_a_service_says_of_its_address() {
    let service = |spec: &str| {
        format!("# file: s.yaml\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}")
    };
    check(&service("ports: [{port: 80}]"), "service default/web somewhere 80->80");
    check(&service("clusterIP: '', ports: [{port: 80}]"), "service default/web somewhere 80->80");
    check(&service("clusterIP: None"), "service default/web");
    check(&service("clusterIPs: [None]"), "service default/web");
    check(&service("clusterIP: 10.96.0.1"), "service default/web 10.96.0.1");
    check(
        &service("clusterIP: nowhere"),
        "service default/web somewhere
         problem s.yaml:4: Service default/web: spec.clusterIPs: \"nowhere\" is not an IP address; ...",
    );
    check(
        &service("type: ExternalName, externalName: DB.example.com., ports: [{port: 80}]"),
        "service default/web alias of db.example.com 80->80",
    );
    check(&service("clusterIP: 10.96.0.1, sessionAffinity: ClientIP"), "service default/web 10.96.0.1 sticky");
    check(
        &service("clusterIP: 10.96.0.1, sessionAffinity: clientip"),
        "service default/web 10.96.0.1
         problem s.yaml:4: Service default/web: spec.sessionAffinity: \"clientip\" is not ClientIP or None; ...",
    );
}

#[test]
fn the_mesh_of_the_demo_is_good() {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let read = |name: &str| format!("# file: {name}\n{}", std::fs::read_to_string(demo.join(name)).unwrap());
    let service = "service demo/web 10.96.0.10 fd00:10:96::10 80->http
           10.10.1.11 80->80 demo/web-a
           10.10.2.11 80->80 demo/web-b
           fd00:10:1::11 80->80 demo/web-a
           fd00:10:2::11 80->80 demo/web-b";
    let pods = |mode: &str| {
        let lines = [
            ("client", "a", 1, 10, ""),
            ("client", "b", 2, 10, ""),
            ("web", "a", 1, 11, " http=80"),
            ("web", "b", 2, 11, " http=80"),
        ];
        lines
            .map(|(app, node, net, host, ports)| {
                format!(
                    "pod demo/{app}-{node} sa={app} node=node-{node} 10.10.{net}.{host} fd00:10:{net}::{host} \
                 netns=/run/netns/zt-demo-{app}-{node}{ports} {mode}"
                )
            })
            .join("\n         ")
    };
    let rest = read("pods.yaml") + &read("services.yaml");
    let namespace = read("namespace.yaml");
    check(&format!("{namespace}{rest}"), &format!("{}\n         {service}", pods("not labelled")));
    let labelled = namespace.replace("  name: demo", "  name: demo\n  labels:\n    istio.io/dataplane-mode: ambient");
    check(&format!("{labelled}{rest}"), &format!("{}\n         {service}", pods("in mesh")));
}
