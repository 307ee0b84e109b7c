//! YAML that says less than it seems to: each oddity has its literal meaning, or is reported.

use std::fmt::Write;

use super::super::show::{show_authentication, show_authorization};
use super::super::{Arc, TrustDomain, assemble, read};

/// Policies and problems of a file, in one line. Unlike in the other tests, the text is read byte by byte as it is.
fn raw(text: &str) -> String {
    let file: Arc<str> = "p.yaml".into();
    let content = read(&file, text);
    let found = assemble([(&file, &content)], &TrustDomain::default());
    let mut out = String::new();
    content.faults.iter().for_each(|fault| writeln!(out, "broken {}", fault.error).unwrap());
    found.policies.authorization.iter().for_each(|policy| show_authorization(&mut out, policy));
    found.policies.authentication.iter().for_each(|policy| show_authentication(&mut out, policy));
    found.problems.iter().for_each(|problem| write!(out, "{problem} ").unwrap());
    out.trim().replace('\n', "; ")
}

fn check(text: &str, expected: &str) {
    let shown = raw(text);
    let is_as_expected = match expected.strip_suffix("...") {
        Some(start) => shown.starts_with(start),
        None => shown == expected,
    };
    assert!(is_as_expected, "{text}\n{shown}\n{expected}");
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: demo}}\nspec: {spec}\n"
    )
}

const DENY: &str = "{action: DENY, rules: [{}]}";
const DENIES: &str = "DENY demo/p for namespace demo: anything";

#[test]
fn marks_and_line_ends() {
    let (p, q) = (policy("p", DENY), policy("q", DENY));
    let both = format!("{DENIES}; {}", DENIES.replace("/p", "/q"));
    check(&format!("\u{feff}{p}"), DENIES);
    check(&format!("\u{feff}---\n{p}---\n{q}"), &both);
    check(&p.replace('\n', "\r\n"), DENIES);
    check(&format!("{p}---\n{q}").replace('\n', "\r\n"), &both);
    check(&p.replace('\n', "\r"), DENIES);
    check(&format!("{p}---\n{q}").replace('\n', "\r"), &both);
    check(&format!("{p}...\n{q}"), &both);
    check(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n...\n{p}"), DENIES);
    check(&format!("...\n{p}"), DENIES);
    check(&format!("# first\n--- # second\n{p}"), DENIES);
    check(&format!("---\nnull\n---\n{p}"), DENIES);
    check(
        &format!("text\n---\n{p}"),
        &format!("{DENIES}; p.yaml:1: not a Kubernetes object: apiVersion and kind are missing; ..."),
    );
    check(&format!("{p} ---\n{q}"), "broken p.yaml:5:2: ...");
    check(
        &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\ndata:\n  a: |\n    ---\n    b\n---\n{p}"),
        DENIES,
    );
    check(&p.replace("spec: ", "spec:\n\taction: DENY\n"), "broken p.yaml:5:2: ...");
    let json = "{\n\t\"apiVersion\": \"security.istio.io/v1\", \"kind\": \"Authorization\\u0050olicy\",\n\t\"metadata\": \
                {\"name\": \"p\", \"namespace\": \"demo\"}, \"spec\": {\"action\": \"DENY\", \"rules\": [{}]}}\n";
    check(json, DENIES);
    let other = json.replace("\"p\"", "\"q\"");
    check(&format!("{json}{other}"), &both);
    check(
        &format!("{json}{json}"),
        &format!("{DENIES}; p.yaml:4: AuthorizationPolicy demo/p: is already in p.yaml:1, ..."),
    );
}

#[test]
fn keys_that_are_there_twice() {
    let p = policy("p", DENY);
    check(&format!("{p}spec: {{}}\n"), "broken p.yaml:5:1: spec: ...");
    check(&format!("{p}\"spec\": {{}}\n"), "broken p.yaml:5:1: spec: ...");
    for labels in ["{a: x, a: y}", "{a: x, \"a\": y}", "{1: x, \"1\": y}", "{\"1\": x, 1: y}", "{true: x, 'true': y}"] {
        let policy = policy("p", &format!("{{selector: {{matchLabels: {labels}}}, action: DENY, rules: [{{}}]}}"));
        check(&policy, "broken p.yaml:4:...");
    }
    for ports in ["{80: {mode: STRICT}, \"80\": {mode: PERMISSIVE}}", "{80: {mode: STRICT}, 080: {mode: PERMISSIVE}}"] {
        let policy = policy("p", &format!("{{selector: {{matchLabels: {{a: b}}}}, portLevelMtls: {ports}}}"));
        check(&policy.replace("AuthorizationPolicy", "PeerAuthentication"), "broken p.yaml:4:...");
    }
    check(
        &policy("p", "{selector: {matchLabels: &a {b: c}}, targetRefs: null, rules: []}"),
        "ALLOW demo/p for b=c in demo:",
    );
    let anchored = |labels: &str| {
        policy("p", &format!("{{selector: {{matchLabels: {labels}}}, action: DENY, rules: [{{}}]}}"))
            .replace("demo}", "demo, labels: &l {a: b}}")
    };
    check(&anchored("*l"), "DENY demo/p for a=b in demo: anything");
    check(&anchored("{<<: *l}"), "DENY demo/p for a=b in demo: anything");
    check(&anchored("{<<: *l, c: d}"), "DENY demo/p for a=b,c=d in demo: anything");
}

#[test]
fn values_of_another_type() {
    let broken = [
        "[{}]",
        "''",
        "7",
        "{action: ''}",
        "{action: Deny}",
        "{rules: {}}",
        "{rules: ''}",
        "{rules: ['']}",
        "{selector: []}",
        "{selector: {matchLabels: ''}}",
        "{selector: {matchLabels: {a: null}}}",
        "{selector: {matchLabels: {a: ~}}}",
        "{selector: {matchLabels: {a: }}}",
        "{rules: [{from: [null]}]}",
        "{rules: [{from: [{source: null}]}]}",
        "{rules: [{when: [null]}]}",
        "{targetRefs: [null]}",
        "{rules: [{from: [{source: {principals: [~]}}]}]}",
        "{rules: [{to: [{operation: {ports: [0x50]}}]}]}",
        "{rules: [{to: [{operation: {ports: [80.0]}}]}]}",
        "{rules: [{to: [{operation: {ports: ['80-90']}}]}]}",
        "{rules: [{to: [{operation: {ports: [-1]}}]}]}",
    ];
    for spec in broken {
        check(&policy("p", spec), "broken p.yaml:4:...");
    }
    for spec in [
        "{mtls: ''}",
        "{mtls: [STRICT]}",
        "{mtls: {mode: ''}}",
        "{mtls: {mode: true}}",
        "{portLevelMtls: {80: STRICT}}",
    ] {
        check(&policy("p", spec).replace("AuthorizationPolicy", "PeerAuthentication"), "broken p.yaml:4:...");
    }
    check(
        &policy("p", "{rules: [{to: [{operation: {ports: [80, 081]}}]}]}"),
        "ALLOW demo/p for namespace demo: to port=80|81",
    );
    check(
        &policy("p", "{selector: {matchLabels: {a: true, b: yes, c: 1.0, d: 0x10, e: 1e3}}}"),
        "ALLOW demo/p for a=true,b=yes,c=1.0,d=0x10,e=1e3 in demo:",
    );
    for deep in [40, 1_500, 50_000] {
        let deep = format!("{{provider: {}{}}}", "[".repeat(deep), "]".repeat(deep));
        let shown = raw(&policy("p", &deep));
        assert!(shown.starts_with("broken p.yaml:4:") || shown.starts_with("ALLOW demo/p"), "{shown}");
    }
}

#[test]
fn a_misspelt_head_is_told() {
    let p = policy("p", DENY);
    check(&p.replace("namespace:", "namepsace:"), "broken p.yaml:3:...");
    check(&p.replace("demo}", "demo, annotation: {istio.io/dry-run: 'true'}}"), "broken p.yaml:3:...");
    for kind in ["AuthorisationPolicy", "authorizationpolicy", "AuthorizationPolicies", "Authorization"] {
        check(&p.replace("AuthorizationPolicy", kind), &format!("broken p.yaml:1: {kind:?} is not a kind of ..."));
    }
    for version in ["security.istio.io", "v1", "networking.istio.io/v1", "istio.io/v1"] {
        let wrong = p.replace("security.istio.io/v1", version);
        check(&wrong, &format!("broken p.yaml:1: {version:?} has no AuthorizationPolicy: ..."));
    }
    check(&p.replace("security.istio.io/v1", "policy.linkerd.io/v1alpha1"), "");
    let list = |head: &str, items: &str| {
        format!(
            "{head}\n{items}: [{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}}}]\n"
        )
    };
    check(
        &list("apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}", "items"),
        "ALLOW default/p for namespace default:",
    );
    check(&list("apiVersion: v1\nkind: List", "item"), "broken p.yaml:3:1: item: unknown field...");
    check(
        &list("apiVersion: v1\nkind: list", "items"),
        "broken p.yaml:1: apiVersion \"v1\" and kind \"list\" are not a list of objects: ...",
    );
    check(
        &list("apiVersion: meta.k8s.io/v1\nkind: List", "items"),
        "broken p.yaml:1: apiVersion \"meta.k8s.io/v1\" and kind \"List\" are not a list of objects: ...",
    );
}

#[test]
fn a_star_that_is_no_wildcard_is_told() {
    let rule = |values: &str| {
        policy("p", &format!("{{action: DENY, rules: [{{from: [{{source: {{principals: [{values}]}}}}]}}]}}"))
    };
    for value in ["**", "a*b", "*a*", "*a*b", "a*b*"] {
        let told = raw(&rule(&format!("'{value}', '*/ns/foo/sa/bar'")));
        let expected = format!("spec.rules[0]: {value:?} matches no client: ");
        assert!(told.contains(&expected), "{told}");
    }
    check(&rule("'*', 'a*', '*/ns/foo/sa/bar'"), "DENY demo/p for namespace demo: from principal=*|a*|*/ns/foo/sa/bar");
    let when = "{rules: [{when: [{key: source.namespace, notValues: ['a*b']}]}]}";
    assert!(raw(&policy("p", when)).contains("\"a*b\" matches no client"));
}

#[test]
fn aliases_of_the_trust_domain_are_told_for_not_counting() {
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \
                    '{trustDomainAliases: [old.example]}'}\n";
    check(
        settings,
        "p.yaml:1: ConfigMap istio-system/istio: data.mesh.trustDomainAliases: \"old.example\" has no effect: ...",
    );
}
