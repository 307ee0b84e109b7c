//! Ports without a listening application.

use super::*;

#[test]
fn the_port_of_a_service_is_not_that_of_its_pods() {
    let to =
        |port: &str| format!("selector: {{matchLabels: {{app: web}}}}, rules: [{{to: [{{operation: {{{port}}}}}]}}]");
    let expected = "80 is the port of Service demo/web, which leads to port 8080 of the pods; policies are compared \
        with the pod's port \
                    | write 8080";
    for (field, values) in [("ports", "ports: ['80']"), ("notPorts", "notPorts: ['80']")] {
        let line =
            format!("warning[service-port] AuthorizationPolicy demo/p: rules[0].to[0].operation.{field}: {expected}");
        check(&[policy("p", &to(values))], &[&line]);
    }
    let line = format!("warning[service-port] AuthorizationPolicy demo/p: rules[0].when[0].values: {expected}");
    let condition = "rules: [{when: [{key: destination.port, values: ['80']}]}]";
    check(&[policy("p", condition)], &[&line]);
    check(&[policy("p", &to("ports: ['8080']"))], &[]);
    check(&[policy("p", &format!("targetRefs: [{{kind: Service, name: web}}], {condition}"))], &[&line]);
    // Another pod may listen at this port.
    let listening = pod("demo", "other", "", "", 9)
        .replace("containers: []", "containers: [{name: c, ports: [{name: x, containerPort: 80}]}]");
    check(&[policy("p", condition), listening], &[]);
}

#[test]
fn a_port_that_nobody_declares() {
    let rules = "rules: [{to: [{operation: {ports: ['9999']}}]}]";
    check(
        &[policy("p", &format!("selector: {{matchLabels: {{app: web}}}}, {rules}"))],
        &["info[undeclared-port] AuthorizationPolicy demo/p: rules[0].to[0].operation.ports: no pod that the policy \
            selects declares port 9999 | correct the port, if another one is meant"],
    );
    // The client declares no ports, so it may listen at any port.
    check(&[policy("p", rules)], &[]);
}

#[test]
fn ports_of_peer_authentications() {
    let of = |port: u16| {
        authentication(
            "demo",
            "a",
            &format!("selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{'{port}': {{mode: STRICT}}}}"),
        )
    };
    check(
        &[of(80)],
        &[
            "warning[service-port] PeerAuthentication demo/a: spec.portLevelMtls[80]: 80 is the port of Service demo/web, \
           which leads to port 8080 of the pods; here the pod's port is meant | write 8080",
        ],
    );
    check(
        &[of(81)],
        &["info[undeclared-port] PeerAuthentication demo/a: spec.portLevelMtls[81]: no pod that the policy selects..."],
    );
    check(&[of(8080)], &[]);
}

#[test]
fn the_address_of_a_service_is_not_that_of_its_pods() {
    let rule =
        |address: &str| policy("p", &format!("rules: [{{when: [{{key: destination.ip, values: [{address}]}}]}}]"));
    check(
        &[rule("10.96.0.1")],
        &[
            "warning[service-address] AuthorizationPolicy demo/p: rules[0].when[0]: 10.96.0.1 is the address of Service \
           demo/web; policies are compared with the address of the pod behind it | write the addresses of the pods (demo/web), or use \
           spec.targetRefs",
        ],
    );
    check(&[rule("10.0.0.1")], &[]);
    check(&[rule("10.96.0.0/16")], &[]);
}
