//! The identity of nodes, and the authority that they trust, with a control plane on a real API server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::ApiServer;
use ztunnel_tests::cluster::calls::{CREATE_CERTIFICATE, Connection, certificate_request};
use ztunnel_tests::cluster::plane::{self, NAMESPACE, Plane};
use ztunnel_tests::wait;

const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

/// Two node daemons, a pod of the mesh on each of their nodes, and a pod with another service account.
const WORLD: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: istio-system}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: other, namespace: istio-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: demo}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: far, namespace: demo}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-1, namespace: istio-system}, spec: {serviceAccountName: ztunnel, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-2, namespace: istio-system}, spec: {serviceAccountName: ztunnel, nodeName: node-2, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: istio-system}, spec: {serviceAccountName: other, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo}, spec: {serviceAccountName: web, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: demo}, spec: {serviceAccountName: far, nodeName: node-2, containers: [{name: c, image: none}]}}
";

fn world(api: &ApiServer) -> Result<()> {
    plane::prepare(api, true)?;
    api.apply(WORLD)?;
    for (pod, address) in [("web", "10.244.1.5"), ("far", "10.244.2.5")] {
        let status =
            format!("{{\"phase\": \"Running\", \"podIP\": \"{address}\", \"podIPs\": [{{\"ip\": \"{address}\"}}]}}");
        api.pod_status("demo", pod, &status)?;
    }
    Ok(())
}

fn token(api: &ApiServer, account: &str, audience: &str, pod: Option<&str>) -> Result<String> {
    let mut args = vec!["create", "token", account, "-n", NAMESPACE, "--audience", audience];
    args.extend(pod.into_iter().flat_map(|pod| ["--bound-object-kind", "Pod", "--bound-object-name", pod]));
    api.kubectl(args)
}

/// The roots that are published in a namespace.
fn roots(api: &ApiServer, namespace: &str) -> Result<String> {
    let mut roots = String::new();
    wait::until_true("the roots are published", wait::PATIENCE, || {
        let found = api.try_kubectl([
            "get",
            "configmap",
            "istio-ca-root-cert",
            "-n",
            namespace,
            "-o",
            "jsonpath={.data.root-cert\\.pem}",
        ])?;
        roots = found.stdout;
        Ok(found.success && roots.contains("BEGIN CERTIFICATE"))
    })?;
    Ok(roots)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_node_is_proved_by_the_token_of_its_daemons_pod() -> Result<()> {
    let api = ApiServer::start()?;
    world(&api)?;
    let plane = Plane::start(&api, 0, &[])?;
    let connect = || Connection::open(&api, &plane, &roots(&api, NAMESPACE)?);
    let request = |account: &str| certificate_request(&format!("spiffe://cluster.local/ns/demo/sa/{account}"));
    let good = token(&api, "ztunnel", "istio-ca", Some("zt-1"))?;
    let connection = connect()?;
    let stream = connection.stream(&good).with_context(|| plane.log())?;
    let shown = plane.nodes(&api)?;
    ensure!(shown.pointer("/streams/0/node").is_some_and(|node| node == "node-1"), "{shown:#}");
    let own = connection.call(CREATE_CERTIFICATE, &good, &request("web")?)?;
    ensure!(own.code == 0, "{own:?}\n{}", plane.log());
    let far = connection.call(CREATE_CERTIFICATE, &good, &request("far")?)?;
    ensure!(far.code == PERMISSION_DENIED && far.message.contains("node-1"), "{far:?}");
    // The daemon of the other node gets that certificate, and not the first one.
    let second = token(&api, "ztunnel", "ztunnel", Some("zt-2"))?;
    ensure!(connection.call(CREATE_CERTIFICATE, &second, &request("far")?)?.code == 0);
    ensure!(connection.call(CREATE_CERTIFICATE, &second, &request("web")?)?.code == PERMISSION_DENIED);
    let refused = [
        (token(&api, "ztunnel", "https://kubernetes.default.svc.cluster.local", Some("zt-1"))?, "audience"),
        (token(&api, "ztunnel", "istio-ca", None)?, "not bound to a pod"),
        (token(&api, "other", "istio-ca", Some("other"))?, "belongs to service account istio-system/other"),
        (tampered(&good), "is not accepted"),
        ("nonsense".to_owned(), "is not a service account token"),
    ];
    for (token, why) in refused {
        // Each case uses a new connection: a client without a proof has only one try on a connection.
        let ended = connect()?.call(CREATE_CERTIFICATE, &token, &request("web")?)?;
        ensure!(ended.code == UNAUTHENTICATED, "{ended:?} for {why}");
        ensure!(ended.message.replace("%20", " ").contains(why), "{ended:?} for {why}");
    }
    // When the pod is deleted, the streams that its token opened end.
    api.kubectl(["delete", "pod", "zt-1", "-n", NAMESPACE, "--force", "--grace-period=0"])?;
    let ended = connection.end_of(stream, Duration::from_secs(15)).with_context(|| plane.log())?;
    ensure!(ended.code == UNAUTHENTICATED, "{ended:?}");
    ensure!(connect()?.call(CREATE_CERTIFICATE, &good, &request("web")?)?.code == UNAUTHENTICATED);
    ensure!(connection.call(CREATE_CERTIFICATE, &second, &request("far")?)?.code == 0, "the other node goes on");
    // The same for a deleted service account; the control plane asks the API again once a minute.
    let stream = connection.stream(&second)?;
    api.kubectl(["delete", "serviceaccount", "ztunnel", "-n", NAMESPACE])?;
    let ended = connection.end_of(stream, Duration::from_secs(90)).with_context(|| plane.log())?;
    ensure!(ended.code == UNAUTHENTICATED, "{ended:?}");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn replicas_that_start_together_make_one_authority() -> Result<()> {
    let api = ApiServer::start()?;
    world(&api)?;
    let mut planes = (0..4).map(|number| Plane::launch(&api, number, &[])).collect::<Result<Vec<_>>>()?;
    planes.iter_mut().try_for_each(|plane| plane.until_ready(&api))?;
    let made = planes.iter().filter(|plane| plane.log().contains("created a certificate authority")).count();
    ensure!(made == 1, "{made} replicas have made one");
    let (system, demo) = (roots(&api, NAMESPACE)?, roots(&api, "demo")?);
    ensure!(system == demo && system.matches("BEGIN CERTIFICATE").count() == 1, "{system}{demo}");
    for plane in &planes {
        Connection::open(&api, plane, &system).with_context(|| plane.log())?;
    }
    // A namespace without pods of the mesh has no ConfigMap with the roots.
    let default = api.try_kubectl(["get", "configmap", "istio-ca-root-cert", "-n", "default"])?;
    ensure!(!default.success, "{default:?}");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_authority_is_followed_and_never_replaced_in_silence() -> Result<()> {
    let api = ApiServer::start()?;
    world(&api)?;
    let mut plane = Plane::start(&api, 0, &[])?;
    let first = roots(&api, NAMESPACE)?;
    // Two roots, as during a replacement of the authority.
    let other = rcgen_root()?;
    let both = format!("{first}{other}");
    let patch = serde_json::json!({"stringData": {"root-cert.pem": both}}).to_string();
    api.kubectl(["patch", "secret", "ztunnel-ca", "-n", NAMESPACE, "--type=merge", "-p", &patch])?;
    wait::until_true("both roots are published", wait::PATIENCE, || {
        Ok(roots(&api, "demo")?.matches("BEGIN CERTIFICATE").count() == 2)
    })
    .with_context(|| plane.log())?;
    // An invalid Secret leaves the last valid one in force.
    let patch = serde_json::json!({"stringData": {"ca-key.pem": "nonsense"}}).to_string();
    api.kubectl(["patch", "secret", "ztunnel-ca", "-n", NAMESPACE, "--type=merge", "-p", &patch])?;
    wait::until_true("the fault is told", wait::PATIENCE, || {
        Ok(plane.log().contains("does not hold a valid certificate authority"))
    })?;
    Connection::open(&api, &plane, &first).with_context(|| plane.log())?;
    // A deleted ConfigMap is created again.
    api.kubectl(["delete", "configmap", "istio-ca-root-cert", "-n", "demo"])?;
    ensure!(roots(&api, "demo")?.matches("BEGIN CERTIFICATE").count() == 2);
    plane.kill9()?;
    // If the Secret is gone, no new authority is made, because no node would trust it.
    api.kubectl(["delete", "secret", "ztunnel-ca", "-n", NAMESPACE])?;
    let mut again = Plane::launch(&api, 1, &[])?;
    again.ended()?;
    ensure!(again.log().contains("there is no certificate authority"), "{}", again.log());
    ensure!(!api.try_kubectl(["get", "secret", "ztunnel-ca", "-n", NAMESPACE])?.success);
    // If the published roots are deleted on purpose as well, a new authority is made.
    api.kubectl(["delete", "configmap", "istio-ca-root-cert", "-n", NAMESPACE])?;
    let plane = Plane::start(&api, 2, &[])?;
    wait::until_true("new roots are published", wait::PATIENCE, || {
        let now = roots(&api, "demo")?;
        Ok(now != both && now.matches("BEGIN CERTIFICATE").count() == 1)
    })
    .with_context(|| plane.log())
}

/// A token with another signature. The last digit is unchanged, because not all of its bits count.
fn tampered(token: &str) -> String {
    let (text, signature) = token.rsplit_once('.').unwrap_or_default();
    let other = |c: char| if c == 'A' { 'B' } else { 'A' };
    let signature: String = signature.char_indices().map(|(at, c)| if at == 10 { other(c) } else { c }).collect();
    format!("{text}.{signature}")
}

/// The certificate of another authority.
fn rcgen_root() -> Result<String> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Ok(params.self_signed(&rcgen::KeyPair::generate()?)?.pem())
}
