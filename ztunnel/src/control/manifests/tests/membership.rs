//! Pods: membership, addresses, and the annotations that exclude traffic.

use super::check;

/// A pod `p` in namespace `demo`, with a network namespace and an address, and with these labels, spec and status
/// added.
pub(super) fn pod(labels: &str, annotations: &str, spec: &str, status: &str) -> String {
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
