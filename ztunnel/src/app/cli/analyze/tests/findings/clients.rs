//! Clients without an identity that are allowed by name.

use super::*;

#[test]
fn clients_outside_of_the_mesh() {
    let legacy = [
        namespace("legacy", ""),
        pod("legacy", "cron", "", "", 3),
        authentication("legacy", "a", "mtls: {mode: PERMISSIVE}"),
    ];
    let left_over = "warning[permissive-left-over] PeerAuthentication legacy/a: ...";
    let table = [
        ("principals: [cluster.local/ns/legacy/sa/cron]", "principals", "service account legacy/cron"),
        ("serviceAccounts: [legacy/cron]", "serviceAccounts", "service account legacy/cron"),
        ("namespaces: [legacy]", "namespaces", "namespace legacy"),
    ];
    for (source, field, whose) in table {
        let expected = format!(
            "warning[client-outside-mesh] AuthorizationPolicy demo/p: rules[0].from[0].source.{field}: all pods of {whose} \
             are outside of the mesh and have no identity (legacy/cron: not labelled), so it never matches | label the \
             namespace, or the pod, istio.io/dataplane-mode: ambient"
        );
        let rules = format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
        check(&[legacy.as_slice(), &[policy("p", &rules)]].concat(), &[left_over, &expected]);
        // The DENY policy can't match clients without an identity, which is harmless here.
        check(&[legacy.as_slice(), &[policy("p", &format!("action: DENY, {rules}"))]].concat(), &[left_over]);
    }
}

#[test]
fn some_pods_of_a_client_are_outside() {
    let out = pod("demo", "out", "istio.io/dataplane-mode: none", "", 3);
    let rules = "rules: [{from: [{source: {namespaces: [demo]}}]}]";
    check(
        &[out, policy("p", rules)],
        &[
            "warning[pod-outside-mesh] Pod demo/out: ...",
            "info[client-outside-mesh] AuthorizationPolicy demo/p: rules[0].from[0].source.namespaces: some pods of \
             namespace demo are outside of the mesh and have no identity (demo/out: labelled istio.io/dataplane-mode: \
             none), so the rule does not match them | ...",
        ],
    );
}
