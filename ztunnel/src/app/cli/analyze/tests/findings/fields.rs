//! Fields of Services, Namespaces and pods without an effect on routing.

use super::*;

#[test]
fn namespaces_for_sidecars_and_for_the_mesh() {
    let told = "warning[injection-and-ambient] Namespace both: has the labels istio-injection: enabled and istio.io/dataplane-mode: \
                ambient: ...";
    check(&[namespace("both", "istio-injection: enabled, istio.io/dataplane-mode: ambient")], &[told]);
    for labels in [
        "istio-injection: enabled",
        "istio-injection: disabled, istio.io/dataplane-mode: ambient",
        "istio.io/rev: stable, istio.io/dataplane-mode: ambient",
        "istio.io/dataplane-mode: ambient",
    ] {
        check(&[namespace("one", labels)], &[]);
    }
}

#[test]
fn addresses_that_a_daemon_does_not_know() {
    let told = "info[service-address-unknown] Service demo/s: has no clusterIP in its manifest, ...";
    let absent = service("s", "selector: {app: web}, ports: [{port: 8080}]").replace("clusterIP: 10.96.0.200, ", "");
    check(&[absent], &[told]);
    check(&[service("s", "clusterIP: '', selector: {app: web}, ports: [{port: 8080}]")], &[told]);
    check(&[service("s", "clusterIP: None, selector: {app: web}, ports: [{port: 8080}]")], &[]);
    check(&[service("s", "clusterIPs: [10.96.0.7], selector: {app: web}, ports: [{port: 8080}]")], &[]);
}

#[test]
fn an_alias_is_told() {
    check(
        &[service("alias", "type: ExternalName, externalName: db.example.com, ports: [{port: 5432}]")],
        &["info[external-name] Service demo/alias: is an alias in DNS for db.example.com: ..."],
    );
}

#[test]
fn ports_of_nodes() {
    let with = |labels: &str| {
        pod("demo", "p", labels, "", 3)
            .replace("containers: []", "containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}]}]")
    };
    check(&[with("app: p")], &["info[host-port] Pod demo/p: has hostPort 8080: ..."]);
    check(&[with("istio.io/dataplane-mode: none")], &["warning[pod-outside-mesh] ..."]);
}

#[test]
fn other_addresses_of_services_in_front_of_the_mesh() {
    let of = |spec: &str| service("s", &format!("clusterIP: 10.96.0.7, selector: {{app: web}}, {spec}"));
    check(
        &[of("type: NodePort, ports: [{port: 8080, nodePort: 30080}]")],
        &[
            "info[service-other-address] Service demo/s: its pods are in the mesh, and it has other addresses than its clusterIP \
           (nodePort 30080): ...",
        ],
    );
    check(&[of("type: NodePort, ports: [{port: 8080}]")], &["info[service-other-address] Service demo/s: ..."]);
    check(&[of("ports: [{port: 8080}]")], &[]);
    let balanced = |spec: &str, ingress: &str| {
        let spec = of(&format!("ports: [{{port: 8080}}]{spec}"));
        format!("{}\nstatus: {{loadBalancer: {{ingress: [{ingress}]}}}}\n", spec.trim_end())
    };
    let told = |address: &str| {
        format!(
            "info[service-other-address] Service demo/s: its pods are in the mesh, and it has other addresses than its clusterIP ({address}): ..."
        )
    };
    check(&[balanced("", "{ip: 203.0.113.10}")], &[]);
    check(
        &[balanced("", "{ip: 203.0.113.10, ipMode: Proxy}")],
        &[&told("status.loadBalancer.ingress 203.0.113.10 with ipMode Proxy")],
    );
    check(
        &[balanced(", loadBalancerSourceRanges: [10.0.0.0/8]", "{ip: 203.0.113.10}")],
        &[&told("status.loadBalancer.ingress 203.0.113.10 with spec.loadBalancerSourceRanges, which the nodes check")],
    );
    // The address belongs to a pod.
    check(
        &[balanced("", "{ip: 10.0.0.2}")],
        &[
            "info[manifest] Service demo/s: status.loadBalancer.ingress: 10.0.0.2 is the address of Pod demo/client: it does not lead \
           to the service through the mesh",
        ],
    );
    let outside = pod("demo", "p", "app: p, istio.io/dataplane-mode: none", "", 3);
    let of_outside = of("type: NodePort, ports: [{port: 8080, nodePort: 30080}]").replace("app: web", "app: p");
    check(&[outside, of_outside], &["warning[pod-outside-mesh] ...", "info[service-outside-mesh] ..."]);
}
