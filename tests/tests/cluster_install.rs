//! The steps of a user: install the chart and label a namespace; then requests between its running pods use HBONE.

use anyhow::{Result, bail, ensure};
use ztunnel_tests::cluster::mesh::{Mesh, Pod};
use ztunnel_tests::cluster::{Cluster, images};
use ztunnel_tests::{settings, wait};

const NAMESPACE: &str = "demo";
const IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/default";
const LABEL: &str = "istio.io/dataplane-mode";

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: demo}
spec: {mtls: {mode: STRICT}}";

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: demo}
spec: {action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]}";

fn page(cluster: &Cluster, client: &Pod, server: &Pod) -> Result<Result<String, String>> {
    cluster.fetch(client, &format!("http://{}:8080/", server.address))
}

fn answers(cluster: &Cluster, client: &Pod, server: &Pod) -> Result<()> {
    let answer = page(cluster, client, server)?;
    ensure!(answer.as_ref() == Ok(&server.name), "{answer:?} answers, not {}", server.name);
    Ok(())
}

/// A policy is in force when the request fails. Another test checks the time that this takes.
fn becomes_refused(cluster: &Cluster, client: &Pod, server: &Pod) -> Result<()> {
    wait::until_true("the request is refused", wait::PATIENCE, || Ok(page(cluster, client, server)?.is_err()))
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_label_puts_running_pods_into_the_mesh_and_everything_is_given_back() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let api = cluster.api();
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &[])?;
    for namespace in [NAMESPACE, "outside"] {
        api.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))?;
    }
    api.apply(&images::web("web", NAMESPACE, 2))?;
    api.apply(&images::web("stranger", "outside", 1))?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    cluster.rolled_out("outside", "deployment/stranger")?;
    let pods = cluster.pods(NAMESPACE, "app=web")?;
    let [client, server] = pods.as_slice() else { bail!("{} pods, not two", pods.len()) };
    ensure!(client.node != server.node, "both pods are on {}", client.node);
    let strangers = cluster.pods("outside", "app=stranger")?;
    let [stranger] = strangers.as_slice() else { bail!("{strangers:?}") };

    answers(&cluster, client, server)?;
    for node in cluster.nodes() {
        let logged = mesh.access(&node.name, &server.address)?;
        ensure!(logged.is_empty(), "a request was carried before the label: {logged:?}");
    }

    api.kubectl(["label", "namespace", NAMESPACE, &format!("{LABEL}=ambient")])?;
    for pod in [client, server] {
        mesh.wait_for(pod, "enrolled")?;
    }
    answers(&cluster, client, server)?;
    for (node, direction) in [(&client.node, "outbound"), (&server.node, "inbound")] {
        let is_tunnelled =
            |line: &serde_json::Value| line["direction"] == direction && line.get("dst.hbone_addr").is_some();
        let line = mesh.logged(node, &server.address, is_tunnelled)?;
        ensure!(line["src.identity"] == IDENTITY && line["dst.identity"] == IDENTITY, "{line}");
    }
    answers(&cluster, stranger, server)?;
    ensure!(cluster.in_kernel(&client.node)?.len() > 2, "{:?}", cluster.in_kernel(&client.node)?);

    api.apply(STRICT)?;
    becomes_refused(&cluster, stranger, server)?;
    answers(&cluster, client, server)?;
    let denied = mesh.logged(&server.node, &server.address, |line| line["reason"] == "denied")?;
    ensure!(
        denied["error"].as_str().is_some_and(|error| error.contains("PeerAuthentication demo/strict: STRICT")),
        "{denied}"
    );
    // Probes of the kubelet are still allowed.
    api.kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=10s"])?;

    api.apply(DENY)?;
    becomes_refused(&cluster, client, server)?;
    api.kubectl(["delete", "-n", NAMESPACE, "authorizationpolicy", "deny"])?;
    wait::until_true("the request is allowed again", wait::PATIENCE, || Ok(page(&cluster, client, server)?.is_ok()))?;

    api.kubectl(["label", "namespace", NAMESPACE, &format!("{LABEL}-")])?;
    for pod in [client, server] {
        mesh.wait_for(pod, "absent")?;
    }
    let carried = mesh.access(&client.node, &server.address)?.len();
    answers(&cluster, client, server)?;
    answers(&cluster, stranger, server)?;
    ensure!(
        mesh.access(&client.node, &server.address)?.len() == carried,
        "a request is carried after the label is gone"
    );

    // Uninstall while pods are in the mesh.
    api.kubectl(["label", "namespace", NAMESPACE, &format!("{LABEL}=ambient")])?;
    for pod in [client, server] {
        mesh.wait_for(pod, "enrolled")?;
    }
    mesh.uninstall()?;
    for node in cluster.nodes() {
        let left = cluster.in_kernel(&node.name)?;
        ensure!(left.is_empty(), "{}: {left:?}", node.name);
    }
    answers(&cluster, client, server)?;
    answers(&cluster, stranger, server)?;
    // Policies remain after the chart is uninstalled.
    api.kubectl(["get", "-n", NAMESPACE, "peerauthentication", "strict"]).map(drop)
}

/// A pod for a cluster of one node, in the mesh from the start.
fn ordinary(name: &str, uses_host: bool) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}
spec:
  hostNetwork: {uses_host}
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, 'mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www']
",
        images::BUSYBOX
    )
}

fn job(url: &str) -> String {
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: short, namespace: {NAMESPACE}}}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: client
        image: {}
        imagePullPolicy: IfNotPresent
        command: [/bin/sh, -c, 'timeout 5 wget -qO- {url} && sleep 1']
",
        images::BUSYBOX
    )
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn pods_come_and_go_and_daemons_are_replaced() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let api = cluster.api();
    let node = cluster.node("node-1")?;
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    api.apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{{LABEL}: ambient}}}}}}"
    ))?;
    // The controller creates the service account `default` of a new namespace a moment later.
    let manifests = [ordinary("client", false), ordinary("web", false), ordinary("host", true)].join("---\n");
    wait::until_true("the pods are accepted", wait::PATIENCE, || Ok(api.apply(&manifests).is_ok()))?;
    node.run_static_pod("static", &ordinary("static", false))?;
    let ready = |pod: &str| -> Result<Pod> {
        wait::until_true("the pod is there", wait::PATIENCE, || {
            Ok(api.try_kubectl(["get", "pod", "-n", NAMESPACE, pod])?.success)
        })?;
        api.kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=50s"])?;
        let label = format!("app={}", pod.trim_end_matches("-node-1"));
        let pods = cluster.pods(NAMESPACE, &label)?;
        let [pod] = pods.as_slice() else { bail!("{pods:?}") };
        Ok(pod.clone())
    };
    let (client, web) = (ready("client")?, ready("web")?);
    for pod in [&client, &web] {
        mesh.wait_for(pod, "enrolled")?;
    }
    answers(&cluster, &client, &web)?;

    // The processes of a static pod have another UID than the object that the kubelet creates for it.
    let fixed = ready("static-node-1")?;
    mesh.wait_for(&fixed, "enrolled")?;
    ensure!(page(&cluster, &client, &fixed)?.is_ok(), "{:?}", page(&cluster, &client, &fixed)?);
    // A pod in the network of the node can't be captured.
    mesh.wait_for(&ready("host")?, "refused")?;
    wait::until_true("kubectl describe shows why", wait::PATIENCE, || {
        let text = api.kubectl(["describe", "pod", "host", "-n", NAMESPACE])?;
        Ok(text.lines().any(|line| line.contains("MeshRefused") && line.contains("ambient.mesh/ztunnel")))
    })?;

    // The daemon's container has everything that the daemon needs.
    let check = ["ztunnel", "check", "--pods", "kubernetes", "-o", "json"];
    let found = api.kubectl(["exec", "-n", "istio-system", "daemonset/ztunnel", "--"].iter().chain(&check))?;
    let found: serde_json::Value = serde_json::from_str(&found)?;
    ensure!(found["fit"] == true, "{found:#}");

    // A pod of the same name, with another address and another network namespace.
    api.kubectl(["delete", "pod", "-n", NAMESPACE, "web"])?;
    api.apply(&ordinary("web", false))?;
    let again = ready("web")?;
    ensure!(again.address != web.address, "{again:?} {web:?}");
    mesh.wait_for(&again, "enrolled")?;
    answers(&cluster, &client, &again)?;

    // A Job that ends at once causes no fault, and nothing is left of it.
    api.apply(&job(&format!("http://{}:8080/", again.address)))?;
    api.kubectl(["wait", "-n", NAMESPACE, "--for=condition=Complete", "job/short", "--timeout=50s"])?;
    let jobs = cluster.pods(NAMESPACE, "job-name=short")?;
    let [done] = jobs.as_slice() else { bail!("{jobs:?}") };
    mesh.wait_for(done, "absent")?;

    // A new daemon takes the pods over.
    mesh.upgrade(&["controlPlane.replicas=1", "node.drainTimeoutSeconds=1"])?;
    for pod in [&client, &again, &fixed] {
        mesh.wait_for(pod, "enrolled")?;
    }
    answers(&cluster, &client, &again)?;
    mesh.logged("node-1", &again.address, |line| line.get("dst.hbone_addr").is_some())?;
    let values = api.helm(["get", "values", "ztunnel", "-n", "istio-system"])?;
    ensure!(values.contains("drainTimeoutSeconds: 1"), "{values}");

    mesh.uninstall()?;
    ensure!(cluster.in_kernel("node-1")?.is_empty(), "{:?}", cluster.in_kernel("node-1")?);
    answers(&cluster, &client, &again)
}
