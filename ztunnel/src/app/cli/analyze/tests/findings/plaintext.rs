//! Rules by identity while plaintext is accepted, and rules that are split in two.

use super::*;

/// Checks the findings in the mesh without faults, except that it accepts plaintext.
fn permissive(more: &[String], expected: &[&str]) {
    let all = [&[SANE.replace("STRICT", "PERMISSIVE")], more].concat().join("---\n");
    let is_info = |line: &&&str| line.starts_with("info");
    let worse = expected.iter().filter(|line| !is_info(line));
    let infos = expected.iter().filter(is_info);
    // Among the infos, the one about the whole mesh comes first.
    let expected: Vec<&str> = worse.chain(&["info[no-strict] ..."]).chain(infos).copied().collect();
    check_all(&all, &expected);
}

#[test]
fn a_deny_by_identity_does_not_reach_clients_without_one() {
    let evil = [namespace("evil", ""), pod("evil", "bad", "", "", 9)];
    let table = [
        ("namespaces: [evil]", "namespaces"),
        ("principals: [cluster.local/ns/evil/sa/bad]", "principals"),
        ("serviceAccounts: [evil/bad]", "serviceAccounts"),
        ("trustDomains: [evil.example]", "trustDomains"),
        // Clients of the own trust domain may be outside of these manifests.
        ("trustDomains: [cluster.local]", "trustDomains"),
    ];
    for (source, field) in table {
        let deny = policy("p", &format!("action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]"));
        let told = format!(
            "warning[deny-misses-plaintext] AuthorizationPolicy demo/p: rules[0].from[0].source.{field}: a client without identity \
             never matches, and pods that the policy selects accept plaintext (PERMISSIVE), such as demo/client: ..."
        );
        permissive(&[evil.as_slice(), std::slice::from_ref(&deny)].concat(), &[&told]);
        // STRICT refuses these clients.
        check(&[evil.as_slice(), std::slice::from_ref(&deny)].concat(), &["info[namespaces-outside-mesh] ..."]);
        // Another DENY policy refuses them as well, and so does an ALLOW policy that does not match them.
        let nobody = policy("q", "action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]");
        permissive(&[evil.as_slice(), &[deny.clone(), nobody]].concat(), &[]);
        let known = policy("q", "rules: [{from: [{source: {namespaces: [demo]}}]}]");
        permissive(&[evil.as_slice(), &[deny, known]].concat(), &[]);
    }
    // All of these clients are in the mesh, and prove their identity.
    permissive(
        &[policy("p", "action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}]}]")],
        &["info[deny-misses-plaintext] AuthorizationPolicy demo/p: ..."],
    );
    permissive(&[policy("p", "action: DENY, rules: [{from: [{source: {ipBlocks: [10.9.0.0/16]}}]}]")], &[]);
    // An ALLOW policy by trust domain admits no client without identity, so the DENY policy misses none.
    let deny = policy("p", "action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]");
    let known = policy("q", "rules: [{from: [{source: {trustDomains: [cluster.local]}}]}]");
    permissive(&[evil.as_slice(), &[deny.clone(), known]].concat(), &[]);
    // One that excludes trust domains admits them, and a DENY policy that excludes them refuses them.
    let others = "[{from: [{source: {notTrustDomains: [evil.example]}}]}]";
    permissive(
        &[evil.as_slice(), &[deny.clone(), policy("q", &format!("rules: {others}"))]].concat(),
        &[
            "warning[deny-misses-plaintext] AuthorizationPolicy demo/p: ...",
            "warning[allow-admits-plaintext] AuthorizationPolicy demo/q: ...",
        ],
    );
    permissive(&[evil.as_slice(), &[deny, policy("q", &format!("action: DENY, rules: {others}"))]].concat(), &[]);
}

#[test]
fn an_allow_that_only_excludes_lets_clients_without_identity_in() {
    for (source, field) in [
        ("notNamespaces: [demo]", "notNamespaces"),
        ("notPrincipals: [cluster.local/ns/demo/sa/client]", "notPrincipals"),
        ("notServiceAccounts: [client]", "notServiceAccounts"),
        ("notTrustDomains: [evil.example]", "notTrustDomains"),
    ] {
        let rules = format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
        let told = format!(
            "warning[allow-admits-plaintext] AuthorizationPolicy demo/p: rules[0].from[0].source.{field}: the rule \
             has only not… fields for clients, ..."
        );
        permissive(&[policy("p", &rules)], &[&told]);
        check(&[policy("p", &rules)], &[]);
        if field != "notServiceAccounts" {
            permissive(&[policy("p", &rules.replace("source: {", "source: {principals: ['*'], "))], &[]);
        }
        for also in ["trustDomains: [cluster.local]", "ipBlocks: [10.0.0.0/24]"] {
            permissive(&[policy("p", &rules.replace("source: {", &format!("source: {{{also}, ")))], &[]);
        }
    }
    let when = "rules: [{when: [{key: source.namespace, notValues: [demo]}]}]";
    permissive(
        &[policy("p", when)],
        &["warning[allow-admits-plaintext] AuthorizationPolicy demo/p: rules[0].when[0].notValues: ..."],
    );
}

#[test]
fn one_dash_too_many() {
    let told = |source: usize, other: usize, what: &str| {
        format!(
            "warning[split-rule] AuthorizationPolicy demo/p: rules[0] and rules[1] are two rules, of which one is enough: \
             rules[{source}] has only from and matches its clients whatever they connect to, and rules[{other}] has only {what} and \
             matches every client | if one rule is meant, remove the dash where rules[1] begins"
        )
    };
    let from = "{from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}]}";
    let to = "{to: [{operation: {ports: ['8080']}}]}";
    let when = "{when: [{key: destination.port, values: ['8080']}]}";
    for (rules, expected) in [
        (format!("[{from}, {to}]"), told(0, 1, "to")),
        (format!("[{to}, {from}]"), told(1, 0, "to")),
        (format!("[{from}, {when}]"), told(0, 1, "when")),
    ] {
        check(&[policy("p", &format!("selector: {{matchLabels: {{app: web}}}}, rules: {rules}"))], &[&expected]);
    }
    let whole =
        "{from: [{source: {principals: [cluster.local/ns/demo/sa/client]}}], to: [{operation: {ports: ['8080']}}]}";
    let by_client = "{when: [{key: source.serviceAccount, values: [demo/web]}]}";
    for rules in
        [format!("[{whole}]"), format!("[{from}, {by_client}]"), format!("[{whole}, {to}]"), format!("[{from}]")]
    {
        let spec = format!("selector: {{matchLabels: {{app: web}}}}, rules: {rules}");
        let text = check_of(&[policy("p", &spec)]);
        assert!(!text.iter().any(|line| line.contains("split-rule")), "{rules}: {text:?}");
    }
}
