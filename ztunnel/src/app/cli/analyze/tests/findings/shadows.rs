//! Rules that add nothing.

use super::*;

const CLIENT: &str = "from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}]";
const CLIENT_AT: &str =
    "from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}], to: [{operation: {ports: ['8080']}}]";

/// Checks whether a rule covers another rule of the same policy.
fn pair(wide: &str, narrow: &str, is_covered: bool) {
    let expected: &[&str] = if is_covered {
        &["warning[shadowed-rule] AuthorizationPolicy demo/p: rules[0] has no effect: rules[1] matches every \
             connection that it matches | remove it, or narrow the other one"]
    } else {
        &[]
    };
    check(&[policy("p", &format!("rules: [{{{narrow}}}, {{{wide}}}]"))], expected);
}

#[test]
fn a_rule_that_another_one_covers() {
    let source = |source: &str| format!("from: [{{source: {{{source}}}}}]");
    pair("", CLIENT, true);
    pair(CLIENT, CLIENT_AT, true);
    pair(CLIENT_AT, &CLIENT.replace("client", "web"), false);
    pair(&CLIENT_AT.replace("8080", "8080', '8081"), CLIENT_AT, true);
    pair(&source("principals: ['*']"), CLIENT, true);
    pair(&source("principals: ['cluster.local/ns/demo/*']"), CLIENT, true);
    pair(&source("principals: ['*/client']"), CLIENT, true);
    pair(&source("principals: ['*/web']"), CLIENT, false);
    pair(&source("namespaces: [demo]"), CLIENT, true);
    pair(&source("namespaces: ['d*']"), &source("serviceAccounts: [client]"), true);
    pair(&source("serviceAccounts: [client]"), CLIENT, true);
    pair(&source("serviceAccounts: [web]"), CLIENT, false);
    pair(&source("principals: ['*']"), &source("serviceAccounts: [client]"), true);
    pair(&source("ipBlocks: [10.0.0.0/8]"), &source("ipBlocks: [10.1.0.0/16, 10.2.0.0/16]"), true);
    pair(&source("ipBlocks: [10.0.0.0/8]"), &source("ipBlocks: [10.1.0.0/16, 11.0.0.0/16]"), false);
    pair(&source("notPrincipals: ['*/web']"), CLIENT, true);
    pair(&source("notPrincipals: ['*/client']"), &source("namespaces: [demo]"), false);
    pair(&source("notPrincipals: ['*/client']"), &source("notPrincipals: ['*/client'], namespaces: [demo]"), true);
    // A client without an identity has no namespace, so `notNamespaces` does not exclude it.
    pair(&source("notNamespaces: [de*]"), &source("notPrincipals: ['*']"), false);
}

#[test]
fn every_entry_must_be_covered() {
    let both = "from: [{source: {serviceAccounts: [client]}}, {source: {serviceAccounts: [web]}}]";
    pair(both, CLIENT, true);
    check(
        &[policy("p", &format!("rules: [{{{both}}}, {{{CLIENT_AT}}}]"))],
        &["warning[shadowed-rule] AuthorizationPolicy demo/p: rules[1] has no effect: rules[0] ..."],
    );
    check(&[policy("p", &format!("rules: [{{{both}, to: [{{operation: {{ports: ['8080']}}}}]}}, {{{CLIENT}}}]"))], &[]);
}

#[test]
fn the_scope_must_be_covered_as_well() {
    let narrow = policy("narrow", &format!("selector: {{matchLabels: {{app: web}}}}, rules: [{{{CLIENT_AT}}}]"));
    let covered = |scope: &str| {
        format!(
            "warning[shadowed-rule] AuthorizationPolicy demo/narrow: rules[0] has no effect: rules[0] of \
             AuthorizationPolicy \
             {scope}/wide matches every connection that it matches | ..."
        )
    };
    let wide =
        |namespace: &str, selector: &str| policy_of(namespace, "wide", &format!("{selector}rules: [{{{CLIENT}}}]"));
    check(&[narrow.clone(), wide("demo", "")], &[&covered("demo")]);
    check(&[narrow.clone(), wide("istio-system", "")], &[&covered("istio-system")]);
    check(
        &[narrow.clone(), wide("istio-system", "selector: {matchLabels: {app: web}}, ")],
        &[&covered("istio-system")],
    );
    check(&[narrow.clone(), wide("demo", "selector: {matchLabels: {app: client}}, ")], &[]);
    check(&[narrow.clone(), namespace("other", ""), wide("other", "")], &[]);
    check(&[narrow, wide("demo", "targetRefs: [{kind: Service, name: web}], ")], &[]);
}

#[test]
fn what_is_denied_is_not_allowed() {
    let deny = |rule: &str| policy("deny", &format!("action: DENY, rules: [{{{rule}}}]"));
    let allow = policy("allow", &format!("rules: [{{{CLIENT_AT}}}]"));
    let denied = "warning[denied-rule] AuthorizationPolicy demo/allow: rules[0] allows no connection: every \
        connection that it matches is denied by rules[0] of DENY policy demo/deny | narrow the DENY rule, or remove \
        this one";
    check(&[allow.clone(), deny("from: [{source: {namespaces: [demo]}}]")], &[denied]);
    check(&[allow.clone(), deny("from: [{source: {notPrincipals: ['*']}}]")], &[]);
    check(&[allow.clone(), deny(&CLIENT_AT.replace("8080', '", "").replace("ports", "notPorts"))], &[]);
    // The field that can't be evaluated is left out, so the rule denies more.
    let with_method = "from: [{source: {namespaces: [demo]}}], to: [{operation: {methods: [POST]}}]";
    check(&[allow, deny(with_method)], &[denied, "warning[l7-without-waypoint] AuthorizationPolicy demo/deny: ..."]);
}

#[test]
fn the_same_policy_twice() {
    let rules = format!("rules: [{{{CLIENT}}}]");
    check(
        &[policy("a", &rules), policy("b", &rules)],
        &["warning[duplicate-policy] AuthorizationPolicy demo/b: has the same rules as AuthorizationPolicy demo/a, \
             for the same pods | remove one of the two"],
    );
    let other = rules.replace("client", "web");
    check(&[policy("a", &rules), policy("b", &other), policy("c", &format!("action: AUDIT, {rules}"))], &[]);
}

#[test]
fn policies_that_only_tell_shadow_nothing() {
    let rules = format!("rules: [{{{CLIENT}}}]");
    let dry = policy("dry", "rules: [{}]").replace("{name: dry", "{annotations: {istio.io/dry-run: 'true'}, name: dry");
    check(
        &[policy("a", &rules), dry, policy("audit", "action: AUDIT, rules: [{}]")],
        &["info[dry-run] AuthorizationPolicy demo/dry: is in dry-run: its ALLOW is reported, and not enforced | \
             remove the annotation istio.io/dry-run when the log shows the decisions that you expect"],
    );
}
