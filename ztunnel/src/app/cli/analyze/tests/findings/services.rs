//! Services that lead nowhere.

use super::*;

#[test]
fn services_without_endpoints() {
    check(
        &[service("s", "clusterIP: 10.96.0.2, ports: [{port: 80}]")],
        &["warning[service-without-endpoints] Service demo/s: has neither a selector nor an EndpointSlice, so it \
             has no endpoints | add one of them"],
    );
    check(
        &[service("s", "ipFamilies: [IPv6], selector: {app: web}, ports: [{port: 8080}]")],
        &[
            "warning[service-without-endpoints] Service demo/s: has no endpoints: none of the pods that it selects has an \
           address of its families | see the pods' status",
        ],
    );
    check(
        &[service("alias", "type: ExternalName, externalName: example.org")],
        &["info[external-name] Service demo/alias: ..."],
    );
    check(&[service("s", "selector: {app: web}, ports: [{port: 8080}]")], &[]);
}

#[test]
fn endpoints_that_are_not_ready() {
    let unready =
        pod("demo", "p", "app: p", "", 3).replace("podIPs", "conditions: [{type: Ready, status: 'False'}], podIPs");
    check(
        &[unready, service("s", "selector: {app: p}, ports: [{port: 80}]")],
        &[
            "info[service-not-ready] Service demo/s: none of its endpoints is ready: connections to it are refused | see the \
           pods' status",
        ],
    );
}

#[test]
fn a_target_port_that_no_pod_has() {
    let of = |port: &str| service("s", &format!("selector: {{app: web}}, ports: [{{port: 80, targetPort: {port}}}]"));
    check(
        &[of("metrics")],
        &[
            "warning[service-port-without-endpoint] Service demo/s: none of its endpoints has port 80: its targetPort is the \
           name of no container port | name a port of the pods' containers, or write its number",
        ],
    );
    check(&[of("http")], &[]);
    check(&[of("81")], &[]);
    // The endpoints are given, and the names of the ports differ.
    let given = |name: &str| {
        let name = if name.is_empty() { String::new() } else { format!("name: {name}, ") };
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: s, namespace: demo}}\nsubsets: [{{addresses: [{{ip: 10.0.0.1}}], ports: \
             [{{{name}port: 8080}}]}}]\n"
        )
    };
    let of = |ports: &str| service("s", &format!("ports: [{{{ports}}}]"));
    let differs = |why: &str| {
        format!(
            "warning[service-port-without-endpoint] Service demo/s: none of its endpoints has port 80: {why} | give the ports of the \
             Service and of its endpoints the same names"
        )
    };
    for target in ["", ", targetPort: http", ", targetPort: 8080"] {
        check(
            &[of(&format!("name: web, port: 80{target}")), given("http")],
            &[&differs("no port of its EndpointSlices and Endpoints has the name web, which this port has")],
        );
        check(
            &[of(&format!("port: 80{target}")), given("http")],
            &[&differs("the ports of its EndpointSlices and Endpoints have names, and this port has none")],
        );
        check(&[of(&format!("name: http, port: 80{target}")), given("http")], &[]);
        check(&[of(&format!("port: 80{target}")), given("")], &[]);
    }
}

#[test]
fn a_service_outside_of_its_namespace_s_mesh() {
    let permissive = SANE.replace("STRICT", "PERMISSIVE");
    let out = pod("demo", "out", "app: out, istio.io/dataplane-mode: none", "", 3);
    check_all(
        &[permissive, out, service("s", "selector: {app: out}, ports: [{port: 80}]")].join("---\n"),
        &[
            "info[no-strict] ...",
            "info[service-outside-mesh] Service demo/s: all of its pods are outside of the mesh, and other pods of \
             its namespace are inside: connections to it use plaintext | label its pods, if they are meant to be in \
             the mesh",
        ],
    );
}
