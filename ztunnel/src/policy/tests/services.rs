//! A policy that names services protects the pods behind them.

use super::fixture::check;

const DENIED: &str = "AuthorizationPolicy demo/d (DENY), rules[0]: every connection";

fn at(services: &str, port: u16, expected: &str) {
    let mesh = format!("DENY demo/d @service/web: *\n{services}");
    check(&mesh, &format!("cluster.local/ns/demo/sa/client 10.0.1.1 {port}"), expected);
}

#[test]
fn endpoints_are_protected_at_target_ports() {
    at("SERVICE demo/web 80:8080 behind:80:8080", 8080, DENIED);
    at("SERVICE demo/web 80:8080 behind:80:8080", 80, "allowed");
    at("SERVICE demo/web 80:http behind:80:8080", 8080, DENIED);
    at("SERVICE demo/web 80:http behind:80:8080", 8081, "allowed");
    // The endpoint's target port counts in addition to the service's.
    at("SERVICE demo/web 80:8080 behind:80:9090", 9090, DENIED);
}

#[test]
fn so_is_what_the_selector_means() {
    at("SERVICE demo/web 80:8080 selector:app=web", 8080, DENIED);
    at("SERVICE demo/web 80:http selector:app=web", 8080, DENIED);
    at("SERVICE demo/web 80:http selector:app=web", 80, "allowed");
    at("SERVICE demo/web 80:8080 selector:app=web,tier=back", 8080, "allowed");
    at("SERVICE demo/web 80:8080", 8080, "allowed");
}

#[test]
fn where_a_port_cant_be_told_all_are_meant() {
    at("SERVICE demo/web 80:metrics selector:app=web", 1, DENIED);
    at("SERVICE demo/web 80:8080 81:metrics selector:app=web", 1, DENIED);
    at("SERVICE demo/web selector:app=web", 1, DENIED);
    // The endpoint resolves the name of the port.
    at("SERVICE demo/web 80:metrics behind:80:9090", 9090, DENIED);
    at("SERVICE demo/web 80:metrics behind:80:9090", 1, "allowed");
}

#[test]
fn where_a_port_cant_be_told_nobody_is_let_in_by_that() {
    let mesh = |service: &str| format!("ALLOW demo/a @service/web: *\nALLOW demo/b\nSERVICE demo/web {service}");
    let closed = "no ALLOW policy matched: demo/a, demo/b";
    check(&mesh("80:metrics selector:app=web"), "- 10.0.1.1 1", closed);
    check(&mesh("80:8080 81:metrics selector:app=web"), "- 10.0.1.1 1", closed);
    check(&mesh("80:8080 81:metrics selector:app=web"), "- 10.0.1.1 8080", "allowed");
    check(&mesh("selector:app=web"), "- 10.0.1.1 1", "allowed");
}

#[test]
fn an_unknown_service_protects_nobody() {
    at("SERVICE demo/api 80:8080 selector:app=web", 8080, "allowed");
    at("SERVICE prod/web 80:8080 behind:80:8080", 8080, "allowed");
    check("ALLOW demo/a @service/web", "- 10.0.1.1 80", "allowed");
}

#[test]
fn an_allow_policy_closes_the_ports_of_its_services_only() {
    let mesh = "ALLOW demo/a @service/web,api: from namespaces=demo
        SERVICE demo/web 80:8080 selector:app=web
        SERVICE demo/api 81:8081 selector:app=web";
    check(mesh, "cluster.local/ns/demo/sa/client 10.0.1.1 8080", "allowed");
    for port in [8080, 8081] {
        check(mesh, &format!("- 10.0.1.1 {port}"), "no ALLOW policy matched: demo/a");
    }
    check(mesh, "- 10.0.1.1 80", "allowed");
    // The policy is named once, although two services lead to the pod.
    let both = "ALLOW demo/a @service/web,api,web
        SERVICE demo/web 80:8080 selector:app=web
        SERVICE demo/api 81:8080 selector:app=web";
    check(both, "- 10.0.1.1 8080", "no ALLOW policy matched: demo/a");
    let many: String = (1..=13).map(|n| format!("ALLOW demo/p{n:02} @service/web,api\n")).collect();
    let both = format!("{many}SERVICE demo/web 80:80 selector:app=web\nSERVICE demo/api 81:80 selector:app=web");
    let ten: Vec<String> = (1..=10).map(|n| format!("demo/p{n:02}")).collect();
    check(&both, "- 10.0.1.1 80", &format!("no ALLOW policy matched: {} and 3 more", ten.join(", ")));
}
