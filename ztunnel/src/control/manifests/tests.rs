mod broken;
pub(crate) mod changes;
mod corpus;
mod istio;
mod json;
mod membership;
mod policies;
mod probes;
mod repeated;
pub(crate) mod routing;
mod services;
mod show;
mod tenant;

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
