//! Selectors and namespaces without a pod.

use super::*;

#[test]
fn a_selector_that_matches_no_pod_comes_with_what_was_meant() {
    let table = [
        ("app: web", None),
        ("app: wbe", Some("no pod has app: wbe; is app: web meant?")),
        ("ap: web", Some("no pod has a label ap: is app meant?")),
        ("app: database", Some("no pod has app: database: correct the selector, or label the pods")),
        ("team: a", Some("no pod has a label team: correct the selector, or label the pods")),
    ];
    for (labels, remedy) in table {
        let spec = format!("selector: {{matchLabels: {{{labels}}}}}");
        let shown = labels.replace(": ", "=");
        let lines = remedy.map(|remedy| {
            [
                format!(
                    "warning[unmatched-selector] AuthorizationPolicy demo/p: spec.selector {shown} matches no pod of \
                     namespace demo: the policy applies to no pod | {remedy}"
                ),
                format!(
                    "warning[unmatched-selector] PeerAuthentication demo/a: spec.selector {shown} matches no pod of \
                     namespace demo: the policy applies to no pod | {remedy}"
                ),
                format!(
                    "warning[unmatched-selector] Service demo/s: spec.selector {shown} matches no pod: the service \
                     has no endpoints | {remedy}"
                ),
            ]
        });
        let more = [
            policy("p", &spec),
            authentication("demo", "a", &spec),
            service("s", &format!("selector: {{{labels}}}, ports: [{{port: 8080}}]")),
        ];
        let lines = lines.iter().flatten().map(String::as_str).collect::<Vec<_>>();
        check(&more, &lines);
    }
}

#[test]
fn labels_of_several_pods_are_no_selector() {
    let more =
        [pod("demo", "c", "app: web, tier: x", "", 3), policy("p", "selector: {matchLabels: {app: client, tier: x}}")];
    check(
        &more,
        &["warning[unmatched-selector] AuthorizationPolicy demo/p: spec.selector app=client,tier=x matches no pod of \
            namespace demo: the policy applies to no pod | each of these labels is on some pod, but no pod has all \
            of them: correct the selector, or label the pods"],
    );
}

#[test]
fn a_selector_of_the_root_namespace_is_for_all() {
    check(&[policy_of("istio-system", "p", "selector: {matchLabels: {app: web}}")], &[]);
    check(
        &[policy_of("istio-system", "p", "selector: {matchLabels: {app: wbe}}")],
        &["warning[unmatched-selector] AuthorizationPolicy istio-system/p: spec.selector app=wbe matches no pod of \
             the mesh: the policy applies to no pod | no pod has app: wbe; is app: web meant?"],
    );
}

#[test]
fn a_policy_of_an_unknown_namespace() {
    check(
        &[policy_of("dmeo", "p", ""), authentication("other", "a", "mtls: {mode: STRICT}")],
        &[
            "warning[unknown-namespace] AuthorizationPolicy dmeo/p: namespace dmeo has no manifest and no pod: the \
             policy applies to no pod | is namespace demo meant?",
            "warning[unknown-namespace] PeerAuthentication other/a: namespace other has no manifest and no pod: the \
             policy applies to no pod | correct metadata.namespace, or add the namespace's manifests",
        ],
    );
    // The namespace is declared and may get pods.
    check(&[namespace("empty", ""), policy_of("empty", "p", "")], &[]);
}

#[test]
fn a_service_without_pods_protects_nobody() {
    let target = policy("p", "targetRefs: [{kind: Service, name: s}]");
    check(
        &[target.clone(), service("s", "clusterIP: None, ports: [{port: 80}]")],
        &["error[manifest] AuthorizationPolicy demo/p: spec.targetRefs: Service demo/s has no selector, and no \
            EndpointSlice names it: this target matches no pod"],
    );
    check(
        &[target, service("s", "selector: {app: s}, ports: [{port: 80}]")],
        &[
            "warning[unmatched-target] AuthorizationPolicy demo/p: spec.targetRefs: Service demo/s has no pod: this \
             target matches no pod | correct the service's selector, or its endpoints",
            "warning[unmatched-selector] Service demo/s: spec.selector app=s matches no pod: the service has no \
             endpoints | ...",
        ],
    );
    check(&[policy("p", "targetRefs: [{kind: Service, name: web}]")], &[]);
}
