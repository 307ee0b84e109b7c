//! Services: their addresses and endpoints.

use super::check;

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
