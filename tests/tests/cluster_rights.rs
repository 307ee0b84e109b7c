//! The rules of RBAC: each is needed. What a daemon or a control plane lacks is named, and nothing is opened for it.

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::ApiServer;
use ztunnel_tests::cluster::calls::{CREATE_CERTIFICATE, Connection, certificate_request};
use ztunnel_tests::cluster::chart;
use ztunnel_tests::cluster::plane::{self, Plane};
use ztunnel_tests::wait;

const UNAVAILABLE: u32 = 14;

/// A node daemon, and a pod of the mesh on its node.
const WORLD: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: istio-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: demo}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-1, namespace: istio-system}, spec: {serviceAccountName: ztunnel, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo}, spec: {serviceAccountName: web, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: demo}, spec: {mtls: {mode: STRICT}}}
";

/// The rights of the control plane with another text in place of a text.
fn rights(text: &str, other: &str) -> Result<String> {
    let rights = plane::RBAC.replacen(text, other, 1);
    ensure!(rights != plane::RBAC, "the rules have no {text}");
    Ok(rights)
}

/// Types of objects without which the mesh is not complete: the rule that names them, the rule without one, and the type.
const OF_THE_MESH: [(&str, &str, &str); 9] = [
    ("[namespaces, nodes, pods, services]", "[nodes, pods, services]", "namespaces"),
    ("[namespaces, nodes, pods, services]", "[namespaces, pods, services]", "nodes"),
    ("[namespaces, nodes, pods, services]", "[namespaces, nodes, services]", "pods"),
    ("[namespaces, nodes, pods, services]", "[namespaces, nodes, pods]", "services"),
    ("[endpointslices]", "[others]", "endpointslices"),
    ("[serviceentries, workloadentries]", "[workloadentries]", "serviceentries"),
    ("[serviceentries, workloadentries]", "[serviceentries]", "workloadentries"),
    ("[authorizationpolicies, peerauthentications]", "[peerauthentications]", "authorizationpolicies"),
    ("[authorizationpolicies, peerauthentications]", "[authorizationpolicies]", "peerauthentications"),
];

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn without_a_type_of_the_mesh_a_control_plane_serves_nothing_and_names_the_rule() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    api.apply(WORLD)?;
    for (number, (rule, without, missing)) in (0..).zip(OF_THE_MESH) {
        api.apply(&rights(rule, without)?)?;
        let mut plane = Plane::launch(&api, number, &[])?;
        let resource = format!("resources: [\"{missing}\"], verbs: [\"list\", \"watch\"]");
        let told = wait::until_true("the missing rule is named", wait::PATIENCE, || {
            let Ok(readiness) = plane.readiness(&api) else { return Ok(false) };
            ensure!(!readiness.is_ready, "{missing}: {readiness:?}");
            Ok(readiness.text.contains(&resource))
        });
        told.with_context(|| format!("{missing}: {:?}\n{}", plane.readiness(&api), plane.log()))?;
        let shown = plane.nodes(&api)?;
        ensure!(shown["served"] == false, "{missing}: {shown:#}");
        let metrics = plane.metrics(&api)?;
        let failures = metrics.lines().find(|line| {
            line.starts_with("ztunnel_kubernetes_failures_total{") && line.contains(&format!("resource=\"{missing}"))
        });
        ensure!(failures.is_some_and(|line| line.contains("reason=\"forbidden\"")), "{missing}: {failures:?}");
        plane.kill9()?;
    }
    api.apply(plane::RBAC)?;
    Plane::start(&api, 20, &[]).map(drop)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn without_another_rule_a_control_plane_says_what_it_cannot_do() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    api.apply(WORLD)?;
    api.pod_status("demo", "web", r#"{"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}]}"#)?;
    let logs = |plane: &Plane, texts: &[&str]| {
        let found = wait::until_true("it is in the log", wait::PATIENCE, || {
            let log = plane.log();
            Ok(log.lines().any(|line| texts.iter().all(|text| line.contains(text))))
        });
        found.with_context(|| format!("{texts:?}\n{}", plane.log()))
    };

    // The Secret with the authority cannot be created: no authority, no service.
    api.apply(&rights("resources: [secrets]\n    verbs: [create]", "resources: [others]\n    verbs: [create]")?)?;
    let mut plane = Plane::launch(&api, 0, &[])?;
    logs(&plane, &["secrets", "create"])?;
    ensure!(!plane.readiness(&api).is_ok_and(|readiness| readiness.is_ready), "{}", plane.log());
    plane.kill9()?;
    ensure!(!api.try_kubectl(["get", "secret", "ztunnel-ca", "-n", plane::NAMESPACE])?.success);

    // The roots cannot be published.
    api.apply(&rights("resources: [configmaps]\n    verbs: [create]", "resources: [others]\n    verbs: [create]")?)?;
    let mut plane = Plane::launch(&api, 1, &[])?;
    logs(&plane, &["the roots are not published", "configmaps", "create"])?;
    plane.kill9()?;

    // Tokens of nodes cannot be reviewed: no node is served.
    api.apply(plane::RBAC)?;
    let mut plane = Plane::start(&api, 2, &[])?;
    let roots =
        ["get", "configmap", "istio-ca-root-cert", "-n", plane::NAMESPACE, "-o", "jsonpath={.data.root-cert\\.pem}"];
    let roots = wait::until("the roots are published", wait::PATIENCE, || {
        let found = api.try_kubectl(roots)?.stdout;
        Ok(found.contains("BEGIN CERTIFICATE").then_some(found))
    })?;
    plane.kill9()?;
    api.apply(&rights("resources: [tokenreviews]", "resources: [others]")?)?;
    let mut plane = Plane::start(&api, 3, &[])?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "zt-1"];
    let token = api.kubectl(
        ["create", "token", "ztunnel", "-n", plane::NAMESPACE, "--audience", "istio-ca"].iter().chain(&bound),
    )?;
    let request = certificate_request("spiffe://cluster.local/ns/demo/sa/web")?;
    let ended = Connection::open(&api, &plane, &roots)?.call(CREATE_CERTIFICATE, &token, &request)?;
    ensure!(ended.code == UNAVAILABLE, "{ended:?}");
    logs(&plane, &["tokens of nodes cannot be reviewed", "tokenreviews", "create"])?;
    plane.kill9()?;

    // The status of policies cannot be written: they are in force nevertheless.
    api.apply(&rights("[authorizationpolicies/status, peerauthentications/status]", "[others]")?)?;
    let mut plane = Plane::start(&api, 4, &[])?;
    logs(&plane, &["peerauthentications/status", "patch"])?;
    ensure!(plane.readiness(&api)?.is_ready, "{:?}", plane.readiness(&api));
    ensure!(
        Connection::open(&api, &plane, &roots)?.call(CREATE_CERTIFICATE, &token, &request)?.code == 0,
        "{}",
        plane.log()
    );
    plane.kill9()
}

/// What the token of a node daemon may read, and what it may not.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_token_of_a_daemon_reads_pods_namespaces_and_nodes_and_nothing_else() -> Result<()> {
    let api = ApiServer::start()?;
    api.kubectl(["apply", "-k", &chart::base().display().to_string()])?;
    api.namespace("demo")?;
    api.kubectl(["create", "secret", "generic", "hidden", "-n", "demo", "--from-literal=a=b"])?;
    let audience = "https://kubernetes.default.svc.cluster.local";
    let token = api.service_account_token(chart::NAMESPACE, "ztunnel", audience)?;
    let kubeconfig = api.kubeconfig_for("daemon", &token)?;
    let ask = |args: &[&str]| api.try_kubectl_as(&kubeconfig, args);
    wait::until_true("the roles are in force", wait::PATIENCE, || Ok(ask(&["get", "pods", "-A"])?.success))?;
    for readable in ["pods", "namespaces", "nodes"] {
        let list = ask(&["get", readable, "-A"])?;
        ensure!(list.success, "{readable}: {list:?}");
    }
    // All types of the API server, but those that every authenticated user may create to ask about itself.
    let types = api.kubectl(["api-resources", "--verbs=list", "-o", "name"])?;
    ensure!(types.lines().count() > 40, "{types}");
    let readable = ["pods", "namespaces", "nodes"];
    for resource in types.lines().filter(|name| !readable.contains(name)) {
        let list = ask(&["get", resource, "-A"])?;
        ensure!(!list.success && list.stderr.contains("orbidden"), "{resource}: {list:?}");
    }
    for (verb, args) in [
        ("read a Secret", &["get", "secret", "hidden", "-n", "demo"][..]),
        ("read a Secret of its namespace", &["get", "secret", "ztunnel-ca", "-n", chart::NAMESPACE]),
        ("delete a pod", &["delete", "pod", "none", "-n", "demo"]),
        ("label a namespace", &["label", "namespace", "demo", "a=b"]),
        ("make a token", &["create", "token", "default", "-n", "demo"]),
        ("run a command in a pod", &["create", "--raw", "/api/v1/namespaces/demo/pods/none/exec", "-f", "/dev/null"]),
    ] {
        let done = ask(args)?;
        ensure!(!done.success && done.stderr.contains("orbidden"), "{verb}: {done:?}");
    }
    Ok(())
}
