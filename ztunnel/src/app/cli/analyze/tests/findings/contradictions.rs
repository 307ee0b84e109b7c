//! Entries and values that no connection can match.

use super::*;

const FIX: &str = "correct one of the two fields, or remove the entry";

/// Checks the finding about the only rule of an AUDIT policy; an empty code stands for no finding.
fn rule(rule: &str, code: &str, message: &str) {
    let line = format!("warning[{code}] AuthorizationPolicy demo/p: {message} | ...");
    let expected: &[&str] = if code.is_empty() { &[] } else { &[&line] };
    check(&[policy("p", &format!("action: AUDIT, rules: [{{{rule}}}]"))], expected);
}

#[test]
fn a_value_that_is_in_the_not_list_as_well() {
    let never = "never-matches";
    rule(
        "to: [{operation: {ports: ['8080'], notPorts: ['8080']}}]",
        never,
        "rules[0].to[0] can never match: 8080 of rules[0].to[0].operation.ports is excluded by \
         rules[0].to[0].operation.notPorts",
    );
    rule(
        "from: [{source: {namespaces: [demo], notNamespaces: ['de*']}}]",
        never,
        "rules[0].from[0] can never match: demo of rules[0].from[0].source.namespaces is excluded by \
         rules[0].from[0].source.notNamespaces",
    );
    rule(
        "from: [{source: {ipBlocks: [10.0.0.0/24], notIpBlocks: [10.0.0.0/8]}}]",
        never,
        "rules[0].from[0] can never match: 10.0.0.0/24 of rules[0].from[0].source.ipBlocks is excluded by \
         rules[0].from[0].source.notIpBlocks",
    );
    rule(
        "from: [{source: {serviceAccounts: [web], notServiceAccounts: [demo/web]}}]",
        never,
        "rules[0].from[0] can never match: demo/web of rules[0].from[0].source.serviceAccounts is excluded by \
         rules[0].from[0].source.notServiceAccounts",
    );
    rule("to: [{operation: {ports: ['8080'], notPorts: ['81']}}]", "", "");
    rule("from: [{source: {namespaces: ['*'], notNamespaces: [demo]}}]", "", "");
    rule("from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.0.0.0/24]}}]", "", "");
}

#[test]
fn some_of_the_values_are_excluded() {
    rule(
        "from: [{source: {principals: [cluster.local/ns/demo/sa/web, cluster.local/ns/demo/sa/client], notPrincipals: ['*/web']}}]",
        "dead-value",
        "rules[0].from[0] has a value without effect: cluster.local/ns/demo/sa/web of rules[0].from[0].source.principals \
         is excluded by rules[0].from[0].source.notPrincipals",
    );
}

#[test]
fn fields_that_exclude_each_other() {
    let more = [
        namespace("other", ""),
        policy("p", "rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/web], namespaces: [other]}}]}]"),
    ];
    let expected = format!(
        "warning[never-matches] AuthorizationPolicy demo/p: rules[0].from[0] can never match: cluster.local/ns/demo/sa/web \
         of rules[0].from[0].source.principals is in no namespace of rules[0].from[0].source.namespaces | {FIX}"
    );
    check(&more, &[&expected]);
    rule(
        "from: [{source: {serviceAccounts: [web]}}], when: [{key: source.namespace, notValues: [demo]}]",
        "never-matches",
        "rules[0].from[0] can never match: demo/web of rules[0].from[0].source.serviceAccounts is excluded by \
         rules[0].when[0].notValues",
    );
    rule(
        "from: [{source: {notPrincipals: ['*'], namespaces: [demo]}}]",
        "never-matches",
        "rules[0].from[0] can never match: rules[0].from[0].source.namespaces requires a client with an identity, \
         and * of rules[0].from[0].source.notPrincipals a client without one",
    );
    rule(
        "to: [{operation: {ports: ['8080']}}], when: [{key: destination.port, values: ['1']}]",
        "never-matches",
        "rules[0].to[0] can never match: 8080 of rules[0].to[0].operation.ports is not in rules[0].when[0].values",
    );
    rule("from: [{source: {principals: [cluster.local/ns/demo/sa/web], namespaces: ['d*']}}]", "", "");
    rule("from: [{source: {notPrincipals: ['*'], ipBlocks: [10.0.0.2]}}]", "", "");
    rule("from: [{source: {serviceAccounts: [web]}}], when: [{key: source.namespace, values: [demo]}]", "", "");
}

#[test]
fn what_one_entry_excludes_another_may_want() {
    rule(
        "from: [{source: {serviceAccounts: [web]}}, {source: {serviceAccounts: [client]}}], \
         when: [{key: source.serviceAccount, values: [demo/web, demo/client]}]",
        "",
        "",
    );
}

#[test]
fn conditions_that_exclude_each_other_are_told_once() {
    rule(
        "from: [{source: {ipBlocks: [10.0.0.1]}}], when: [{key: source.namespace, values: [demo]}, {key: \
         source.namespace, notValues: [demo]}]",
        "never-matches",
        "rules[0].when[0] can never match: demo of rules[0].when[0].values is excluded by rules[0].when[1].notValues",
    );
}
