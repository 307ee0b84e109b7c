//! Host names of services, and names of ports.

use super::*;

const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: cli, annotations: {ambient.mesh/netns: /n}}, spec: {containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web-0, labels: {app: web}, annotations: {ambient.mesh/netns: /n}}, spec: {containers: [{name: c, ports: [{name: http-alt, containerPort: 8080}]}]}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http-alt}, {name: admin, port: 81, targetPort: 9000}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: nodes}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: other, name: web}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: other, name: api}, spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {namespace: shop, name: db}, spec: {hosts: [db.example.com, '*.wild.example'], addresses: [192.0.2.7], ports: [{number: 5432, name: tcp-db, protocol: TCP}], resolution: STATIC, endpoints: [{address: 198.51.100.7}]}}
";

/// Asks a question, and checks the beginning of the explanation or a part of the error.
fn asked(from: &str, to: &str, port: &str, said: &str) {
    let shop = folder(&[("mesh.yaml", SHOP)]);
    let words = ["ztunnel", "explain", &mesh(shop.path()), "--from", from, "--to", to, "--port", port];
    let Command::Explain(args) = Args::try_parse_from(words).unwrap().command else { panic!("another command") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = answer(&args, Style::default(), &mut out, &mut err);
    let text = String::from_utf8([out, err].concat()).unwrap();
    assert!(text.contains(said), "{from} {to} {port}: {code}\n{text}");
}

#[test]
fn services_by_host_name() {
    let web = "To     Service shop/web, 10.96.0.1, port 80";
    for host in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "WEB.shop.svc.cluster.local."] {
        asked("shop/cli", host, "80", web);
    }
    asked("shop/cli", "web.other", "80", "Service other/web");
    // The client has no namespace, so the namespace of the service must be given.
    asked("192.0.2.1", "web", "80", "\"web\" may mean other/web or shop/web");
    asked("192.0.2.1", "web.shop", "80", web);
    asked("192.0.2.1", "api", "80", "Service other/api");
    asked("shop/cli", "api", "80", "no service of the mesh has the host name \"api\" for a client of namespace shop");
    asked("shop/cli", "web-0.nodes.shop.svc.cluster.local", "8080", "To     Pod shop/web-0, 10.0.0.2, port 8080");
    asked("shop/cli", "web-0.web.shop.svc", "8080", "no service of the mesh");
    asked("shop/cli", "db.example.com", "5432", "198.51.100.7:5432");
    asked("shop/cli", "a.wild.example", "5432", "198.51.100.7:5432");
    asked("shop/cli", "www.example.org", "443", "give the address to which the client's resolver resolves it");
}

#[test]
fn clients_by_host_name() {
    asked("web.shop", "shop/cli", "80", "From   Pod shop/web-0");
    asked("nodes.shop.svc.cluster.local", "shop/cli", "80", "one of 1 pods behind shop/nodes");
    asked("api.other", "shop/cli", "80", "Service other/api has no pod that the mesh knows");
}

#[test]
fn ports_by_name() {
    asked("shop/cli", "web", "http", "10.0.0.2:8080");
    asked("shop/cli", "shop/web", "admin", "10.0.0.2:9000");
    asked("shop/cli", "shop/web-0", "http-alt", "10.0.0.2:8080");
    asked("shop/cli", "shop/web", "htpp", "Service shop/web has no TCP port named \"htpp\"; it has http, admin");
    asked("shop/cli", "10.0.0.2", "http", "10.0.0.2 has no TCP port named \"http\": write its number");
    asked("shop/cli", "db.example.com", "tcp-db", "198.51.100.7:5432");
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let open = folder(&[("mesh.yaml", MESH)]);
    let (code, out, err) = run(&[&mesh(open.path()), "--from=demo/c", "--to=demo/b", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, err.as_str(), &json["schemaVersion"]), (2, "", &1.into()));
    assert!(json["error"].as_str().unwrap().contains("no Pod demo/c"), "{json}");
}

const NAMES: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: cli, annotations: {ambient.mesh/netns: /n}}, spec: {nodeName: a, containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}, annotations: {ambient.mesh/netns: /n}}, spec: {nodeName: a, containers: []}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: ext}, spec: {type: ExternalName, externalName: db.example.com, ports: [{port: 5432}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: old}, spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}}
";

/// The exit code and the output for a question about the client `shop/cli`.
fn of_names(more: &str, to: &str, port: &str) -> (u8, String) {
    let shop = folder(&[("mesh.yaml", NAMES), ("more.yaml", more)]);
    let words = ["ztunnel", "explain", &mesh(shop.path()), "--from=shop/cli", "--to", to, "--port", port];
    let Command::Explain(args) = Args::try_parse_from(words).unwrap().command else { panic!("another command") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = answer(&args, Style::default(), &mut out, &mut err);
    (code, String::from_utf8([out, err].concat()).unwrap())
}

#[test]
fn an_alias_is_passed_on_or_explained_as_the_service_that_it_names() {
    let (code, text) = of_names("", "shop/ext", "5432");
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("passed on, in plaintext, to the address to which the client's resolver resolves db.example.com"),
        "{text}"
    );
    assert!(text.contains("Service shop/ext is an alias in DNS") && !text.contains("headless"), "{text}");
    let registry = "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}}";
    let (code, text) = of_names(registry, "shop/ext", "5432");
    assert!(code == 3 && text.contains("add a ServiceEntry for host db.example.com"), "{text}");
    let (code, text) = of_names("", "old.shop", "80");
    assert!(code == 0 && text.contains("10.0.0.2:8080") && text.contains("alias in DNS"), "{text}");
    let alias = |name: &str, of: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: shop, name: {name}}}, spec: {{type: ExternalName, externalName: {of}.shop.svc.cluster.local}}}}\n"
        )
    };
    let (_, text) = of_names(&(alias("round", "about") + &alias("about", "round")), "round.shop", "80");
    assert!(text.contains("Service shop/round is an alias in DNS"), "{text}");
}

#[test]
fn a_service_whose_address_is_not_known_is_explained_by_its_target_port() {
    let only = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: web, namespace: shop}, spec: {rules: [{to: [{operation: {ports: ['8080']}}]}]}}";
    for to in ["shop/web", "service:shop/web", "web", "web.shop.svc"] {
        let to = if to == "shop/web" { "service:shop/web" } else { to };
        let (code, text) = of_names(only, to, "http");
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("10.0.0.2:8080") && text.contains("has no clusterIP in its manifest"), "{text}");
        assert!(!text.contains("is headless") && !text.contains("192.0.2."), "{text}");
    }
}
