//! Tests of each check: manifests and their findings, with a case that must have no finding.

mod clients;
mod contradictions;
mod fields;
mod identities;
mod membership;
mod mtls;
mod network;
mod plaintext;
mod ports;
mod selectors;
mod services;
mod shadows;
mod sources;
mod templates;

use std::sync::Arc;

use crate::analyze::declared::Declared;
use crate::analyze::{Finding, Severity, analyze};
use crate::control::declared::Collector;
use crate::control::file::read_once;
use crate::control::manifests::{Assembled, assemble, parse};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::origin::Origin;
use crate::store::snapshot::Snapshot;

/// A mesh without faults: `web` behind a service, and its client. Both are in the mesh, which is STRICT.
const SANE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}, annotations: {ambient.mesh/netns: /run/netns/web}}
spec: {nodeName: a, serviceAccountName: web, containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: demo, labels: {app: client}, annotations: {ambient.mesh/netns: /run/netns/client}}
spec: {nodeName: a, serviceAccountName: client, containers: [{name: curl}]}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: http}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// The local facts in manifests.
fn local(manifests: &str) -> LocalPods {
    let file: Arc<str> = "mesh.yaml".into();
    assemble([(&file, &parse(&file, manifests).unwrap())], &TrustDomain::default()).local
}

fn snapshot(manifests: &str) -> Snapshot {
    let file: Arc<str> = "mesh.yaml".into();
    let content = parse(&file, manifests).unwrap_or_else(|error| panic!("{error}\n{manifests}"));
    let files = || [(&file, &content)].into_iter();
    let Assembled { workloads, services, namespaces, policies, problems, origins, .. } =
        assemble(files(), &TrustDomain::default());
    Snapshot::build(1, workloads, services, problems)
        .with_namespaces(namespaces)
        .with_policies(policies)
        .with_origins(origins)
}

/// The objects in manifests that are not part of the mesh.
fn declared(manifests: &str) -> Declared {
    let mut collector = Collector::new("default");
    collector.take(&"mesh.yaml".into(), manifests);
    collector.finish(&TrustDomain::default())
}

/// Each finding as a line: severity, code, object, message, and the remedy after a bar.
fn shown(findings: &[Finding]) -> Vec<String> {
    let line = |finding: &Finding| {
        let Finding { severity, code, object, message, remedy, .. } = finding;
        let object = object.as_ref().map_or(String::new(), |object| format!("{object}: "));
        let remedy = remedy.as_ref().map_or(String::new(), |remedy| format!(" | {remedy}"));
        format!("{severity}[{code}] {object}{message}{remedy}")
    };
    findings.iter().map(line).collect()
}

/// Checks the findings in the mesh without faults and more manifests. An expected line that ends in `...` is the beginning of a
/// finding.
fn check(more: &[String], expected: &[&str]) {
    check_all(&format!("{SANE}---\n{}", more.join("\n---\n")), expected);
}

/// The findings in the mesh without faults and more manifests, as lines.
fn check_of(more: &[String]) -> Vec<String> {
    let manifests = format!("{SANE}---\n{}", more.join("\n---\n"));
    shown(&analyze(&snapshot(&manifests), &local(&manifests), &declared(&manifests)))
}

/// Checks the findings in a mesh.
fn check_all(manifests: &str, expected: &[&str]) {
    let found = shown(&analyze(&snapshot(manifests), &local(manifests), &declared(manifests)));
    let is_same = |(found, expected): (&String, &&str)| match expected.strip_suffix("...") {
        Some(start) => found.starts_with(start),
        None => found == expected,
    };
    let matches = found.len() == expected.len() && found.iter().zip(expected).all(is_same);
    assert!(matches, "expected:\n{}\n\nis:\n{}", expected.join("\n"), found.join("\n"));
}

/// An AuthorizationPolicy of namespace `demo`.
fn policy(name: &str, spec: &str) -> String {
    policy_of("demo", name, spec)
}

fn policy_of(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

fn authentication(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

/// A pod whose service account has the same name. `address` is the last number of its address.
fn pod(namespace: &str, name: &str, labels: &str, spec: &str, address: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}, annotations: \
         {{ambient.mesh/netns: /run/netns/{name}}}}}\nspec: {{nodeName: a, serviceAccountName: {name}, containers: \
         []{spec}}}\nstatus: {{podIPs: [{{ip: 10.0.0.{address}}}]}}\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A Service, with an address unless `spec` mentions one.
fn service(name: &str, spec: &str) -> String {
    let has_address = ["clusterIP", "type: "].iter().any(|word| spec.contains(word));
    let address = if has_address { "" } else { "clusterIP: 10.96.0.200, " };
    let spec = format!("{address}{spec}");
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{{spec}}}\n")
}

#[test]
fn a_sane_mesh_gives_nothing() {
    check(&[], &[]);
    let sane = [
        policy("deny-all", ""),
        policy(
            "allow-web",
            "selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}], to: [{operation: {ports: ['8080']}}]}]",
        ),
        policy(
            "allow-same",
            "selector: {matchLabels: {app: client}}, rules: [{from: [{source: {namespaces: [demo]}}]}]",
        ),
        policy(
            "no-guests",
            "action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}], to: [{operation: {notPorts: ['8080']}}]}]",
        ),
        policy(
            "targets",
            "targetRefs: [{kind: Service, name: web}], rules: [{when: [{key: source.serviceAccount, values: [demo/client]}]}]",
        ),
    ];
    check(&sane, &[]);
}

#[test]
fn the_demo_gives_no_error_and_no_warning() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let (snapshot, local) = read_once(&folder, TrustDomain::default()).unwrap();
    let found = analyze(&snapshot, &local, &Declared::default());
    assert!(found.iter().all(|finding| finding.severity == Severity::Info), "{:#?}", shown(&found));
}

#[test]
fn findings_come_by_severity_then_by_line_and_know_their_lines() {
    let more = [
        policy("a", "action: AUDIT"),
        policy("b", "rules: [{from: [{source: {principals: ['spiffe://x*']}}]}]"),
        service("lost", "selector: {app: nobody}, ports: [{port: 80}]"),
    ];
    let manifests = format!("{SANE}---\n{}", more.join("---\n"));
    let found = analyze(&snapshot(&manifests), &local(&manifests), &declared(&manifests));
    let origins: Vec<_> = found.iter().map(|found| (found.severity, found.code.code(), found.origin.clone())).collect();
    let line = |line| Some(Origin::line_of("mesh.yaml", line));
    let expected = [
        (Severity::Error, "spiffe-prefix", line(33)),
        (Severity::Warning, "no-rules", line(28)),
        (Severity::Warning, "unmatched-selector", line(38)),
    ];
    assert_eq!(origins, expected);
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(
        (&json["severity"], &json["code"], &json["file"], &json["line"]),
        (&"error".into(), &"spiffe-prefix".into(), &"mesh.yaml".into(), &33.into())
    );
}
