//! Pods of templates count like running pods.

use super::*;

/// An object of this kind with a pod template.
fn template(kind: &str, name: &str, labels: &str, pod: &str) -> String {
    let version = match kind {
        "Job" | "CronJob" => "batch/v1",
        "ReplicationController" => "v1",
        _ => "apps/v1",
    };
    let template = format!(
        "template: {{metadata: {{labels: {{{labels}}}}}, spec: {{serviceAccountName: {name}, containers: [{{name: c, ports: [{{name: \
         http, containerPort: 8080}}]}}]{pod}}}}}"
    );
    let spec = if kind == "CronJob" { format!("jobTemplate: {{spec: {{{template}}}}}") } else { template };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{{spec}}}\n")
}

#[test]
fn selectors_services_and_names_find_them() {
    for kind in
        ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob", "Rollout"]
    {
        let more = [
            template(kind, "api", "app: api", ""),
            service("api", "selector: {app: api}, ports: [{port: 80, targetPort: http}]"),
            policy(
                "api",
                "selector: {matchLabels: {app: api}}, rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/api]}}], to: \
                 [{operation: {ports: ['8080']}}]}]",
            ),
        ];
        check(&more, &[]);
    }
}

#[test]
fn what_does_not_fit_them_is_told() {
    let more = [
        template("Deployment", "api", "app: api", ""),
        service("api", "selector: {app: api}, ports: [{port: 80, targetPort: htpp}]"),
        policy("api", "selector: {matchLabels: {app: apii}}, rules: [{}]"),
    ];
    check(
        &more,
        &[
            "warning[service-port-without-endpoint] Service demo/api: none of its endpoints has port 80: ...",
            "warning[unmatched-selector] AuthorizationPolicy demo/api: spec.selector app=apii matches no pod of \
             namespace demo: the policy applies to no pod | no pod has app: apii; is app: api meant?",
        ],
    );
}

#[test]
fn they_may_be_outside_of_the_mesh() {
    let outside = |why: &str| {
        format!(
            "warning[pod-outside-mesh] Deployment demo/api: is outside of the mesh ({why}): mTLS mode STRICT of \
             PeerAuthentication \
             istio-system/default is not enforced there; ..."
        )
    };
    let out = template("Deployment", "api", "app: api, istio.io/dataplane-mode: none", "");
    check(&[out], &[&outside("labelled istio.io/dataplane-mode: none")]);
    check(&[template("Deployment", "api", "app: api", ", hostNetwork: true")], &[&outside("hostNetwork")]);
    // The namespace is declared elsewhere, so its labels are unknown.
    let elsewhere = template("Deployment", "api", "app: api", "").replace("namespace: demo", "namespace: other");
    check(&[elsewhere], &[]);
}

#[test]
fn a_template_that_can_t_be_read_is_told() {
    let wrong = template("Deployment", "api", "app: api", "").replace("containerPort: 8080", "containerPort: http");
    check(&[wrong], &["error[manifest] Deployment demo/api: the template of its pods cannot be read: ..."]);
    let odd = template("Deployment", "api", "app: api", "").replace(
        "metadata: {labels",
        "metadata: {annotations: {traffic.ambient.mesh/exclude-inbound-ports: nine}, labels",
    );
    check(
        &[odd],
        &["error[manifest] Deployment demo/api: template: annotation traffic.ambient.mesh/exclude-inbound-ports: ..."],
    );
}

#[test]
fn pods_that_no_node_has_yet_count_as_well() {
    let planned = pod("demo", "p", "app: p", "", 3).replace("nodeName: a, ", "").replace("{ip: 10.0.0.3}", "");
    check(&[planned, service("p", "selector: {app: p}, ports: [{port: 80}]")], &[]);
}

#[test]
fn without_any_pod_selectors_are_not_checked() {
    check_all(
        &[
            policy("p", "selector: {matchLabels: {app: web}}, rules: [{}]"),
            service("s", "selector: {app: web}, ports: [{port: 80}]"),
        ]
        .join("---\n"),
        &["info[no-pods] no pod and no template of pods is in these manifests: ..."],
    );
}
