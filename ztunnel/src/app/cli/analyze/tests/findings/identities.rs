//! Identities that no client has.

use super::*;

/// Checks the finding about the only source of a policy; an empty text stands for no finding.
fn source(source: &str, expected: &str) {
    let line = expected.replacen("] ", "] AuthorizationPolicy demo/p: ", 1);
    let expected: &[&str] = if line.is_empty() { &[] } else { &[&line] };
    check(&[policy("p", &format!("action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]"))], expected);
}

#[test]
fn principals_are_written_without_their_scheme() {
    source(
        "principals: ['spiffe://cluster.local/ns/demo/sa/client']",
        "error[spiffe-prefix] rules[0].from[0].source.principals: spiffe://cluster.local/ns/demo/sa/client contains \
         spiffe://, which principals do not have, so it never matches | write \
         cluster.local/ns/demo/sa/client",
    );
    source(
        "notPrincipals: ['spiffe://cluster.local/*']",
        "error[spiffe-prefix] rules[0].from[0].source.notPrincipals: spiffe://cluster.local/* contains spiffe://, \
         which principals do not have, so it excludes no client | write cluster.local/*",
    );
}

#[test]
fn principals_of_nobody() {
    let table = [
        (
            "cluster.local/ns/demo/sa/cleint",
            "unknown-principal",
            "no pod has service account demo/cleint, so it never matches | is cluster.local/ns/demo/sa/client meant?",
        ),
        (
            "cluster.local/ns/dmeo/sa/client",
            "unknown-principal",
            "service account dmeo/client is of namespace dmeo, which has no pods, so it never matches | is \
             cluster.local/ns/demo/sa/client meant?",
        ),
        (
            "cluster.local/ns/demo/sa/database",
            "unknown-principal",
            "no pod has service account demo/database, so it never matches | correct it, or add the manifests of the pods \
             that have it",
        ),
        (
            "cluster.local/ns/prod/*",
            "unknown-principal",
            "no pod has the principal cluster.local/ns/prod/*, so it never matches | correct it",
        ),
        ("*/sa/cleint", "unknown-principal", "no pod has the principal */sa/cleint, so it never matches | correct it"),
        (
            "example.org/ns/demo/sa/client",
            "other-trust-domain",
            "example.org/ns/demo/sa/client is of trust domain example.org, and the pods of this mesh are of cluster.local, \
             so it never matches | write cluster.local/ns/demo/sa/client, if pods of this mesh are meant",
        ),
        (
            "example.org/ns/*",
            "other-trust-domain",
            "example.org/ns/* is of trust domain example.org, and the pods of this mesh are of cluster.local, so it never \
             matches | write cluster.local/ns/*, if pods of this mesh are meant",
        ),
        (
            "client",
            "malformed-principal",
            "client is not a principal, so it never matches | write TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
        ),
    ];
    for (principal, code, message) in table {
        let expected = format!("warning[{code}] rules[0].from[0].source.principals: {message}");
        source(&format!("principals: ['{principal}']"), &expected);
    }
    for known in
        ["cluster.local/ns/demo/sa/client", "cluster.local/*", "*/sa/client", "*", "cluster.local/ns/demo/sa/cl*"]
    {
        source(&format!("principals: ['{known}']"), "");
    }
}

#[test]
fn accounts_and_namespaces_of_nobody() {
    source(
        "serviceAccounts: [cleint]",
        "warning[unknown-service-account] rules[0].from[0].source.serviceAccounts: no pod has service account demo/cleint, \
         so it never matches | is demo/client meant?",
    );
    source(
        "notServiceAccounts: [demos/client]",
        "warning[unknown-service-account] rules[0].from[0].source.notServiceAccounts: service account demos/client is of \
         namespace demos, which has no pods, so it excludes no client | is demo/client meant?",
    );
    source(
        "namespaces: [dmeo]",
        "warning[unknown-source-namespace] rules[0].from[0].source.namespaces: namespace dmeo has no manifest and no \
         pod, so it never matches | is demo meant?",
    );
    source(
        "namespaces: ['prod-*']",
        "warning[unknown-source-namespace] rules[0].from[0].source.namespaces: namespace prod-* has no manifest and \
         no pod, so it never matches | correct it, or add the namespace's manifests",
    );
    source("serviceAccounts: [demo/client]", "");
    source("namespaces: ['de*', demo]", "");
}

#[test]
fn a_name_in_several_rules_is_told_once() {
    let rule = "{from: [{source: {namespaces: [prod]}}], to: [{operation: {ports: ['8080']}}]}";
    let other = rule.replace("ports", "notPorts");
    check(
        &[policy("p", &format!("rules: [{rule}, {other}]"))],
        &[
            "warning[unknown-source-namespace] AuthorizationPolicy demo/p: rules[0].from[0].source.namespaces: namespace \
           prod has no manifest and no pod, so it never matches | ...",
        ],
    );
}
