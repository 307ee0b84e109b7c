//! No container of a pod of the mesh runs before the pod is enrolled: the CNI plugin, installed by the chart.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ztunnel_tests::cluster::mesh::{Mesh, Pod};
use ztunnel_tests::cluster::{Cluster, images, node};
use ztunnel_tests::{settings, wait};

const NAMESPACE: &str = "demo";
const OUTSIDE: &str = "outside";
const NODE: &str = "node-1";
/// Pods that start at the same time.
const TOGETHER: usize = 20;

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: demo}
spec: {mtls: {mode: STRICT}}";

/// A pod, or the template of one, whose first container connects before it does anything else, once.
fn connects(url: &str) -> String {
    format!(
        "spec:
      restartPolicy: Always
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: first
        image: {image}
        imagePullPolicy: IfNotPresent
        command: [/bin/timeout, '5', wget, -q, -O, /dev/null, '{url}']
      containers:
      - name: main
        image: {image}
        imagePullPolicy: IfNotPresent
        command: [/bin/sleep, '3600']
",
        image = images::BUSYBOX
    )
}

fn deployment(name: &str, namespace: &str, replicas: usize, url: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    {}",
        connects(url)
    )
}

fn job(name: &str, url: &str) -> String {
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  backoffLimit: 0
  template:
    metadata: {{labels: {{app: short}}}}
    spec:
      restartPolicy: Never
      containers:
      - name: client
        image: {}
        imagePullPolicy: IfNotPresent
        command: [/bin/timeout, '5', wget, -q, -O, /dev/null, '{url}']
",
        images::BUSYBOX
    )
}

/// Connections to the server that the daemon has carried out of pods, by the address of the pod.
fn carried(mesh: &Mesh<'_>, server: &Pod) -> Result<Vec<String>> {
    let lines = mesh.access(NODE, &server.address)?;
    let is_carried = |line: &&Value| {
        line["direction"] == "outbound" && line.get("dst.hbone_addr").is_some() && line["src.identity"].is_string()
    };
    let source = |line: &Value| Some(line["src.addr"].as_str()?.rsplit_once(':')?.0.to_owned());
    Ok(lines.iter().filter(is_carried).filter_map(source).collect())
}

/// How often containers of these pods have been started again, or failed.
fn failures(cluster: &Cluster, label: &str) -> Result<String> {
    let counts = "jsonpath={.items[*].status['initContainerStatuses','containerStatuses'][*].restartCount}";
    let counts = cluster.api().kubectl(["get", "pods", "-n", NAMESPACE, "-l", label, "-o", counts])?;
    Ok(counts.split_whitespace().filter(|count| *count != "0").collect())
}

/// The messages of the events of a pod.
fn events(cluster: &Cluster, namespace: &str, pod: &str) -> Result<String> {
    let selected = format!("involvedObject.name={pod}");
    let messages = "jsonpath={range .items[*]}{.message}\n{end}";
    cluster.api().kubectl(["get", "events", "-n", namespace, "--field-selector", &selected, "-o", messages])
}

fn only(cluster: &Cluster, namespace: &str, label: &str) -> Result<Pod> {
    let pods = cluster.pods(namespace, label)?;
    let [pod] = pods.as_slice() else { bail!("{label}: {pods:?}") };
    Ok(pod.clone())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_first_connection_of_the_first_container_is_carried() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let (api, on) = (cluster.api(), cluster.node(NODE)?);
    let before = on.conflist()?;
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    wait::until_true("the plugin is in the CNI configuration", wait::PATIENCE, || {
        Ok(on.conflist()?.contains("ztunnel-cni"))
    })?;
    for (namespace, mode) in [(NAMESPACE, "ambient"), (OUTSIDE, "none")] {
        api.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{istio.io/dataplane-mode: {mode}}}}}}}"
        ))?;
    }
    api.apply(STRICT)?;
    api.apply(&images::web("web", NAMESPACE, 1))?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    let server = only(&cluster, NAMESPACE, "app=web")?;
    let url = format!("http://{}:8080/", server.address);

    // Many at the same time, and many that are gone at once. A connection outside of the mesh would be refused.
    api.apply(&deployment("first", NAMESPACE, TOGETHER, &url))?;
    for number in 0..5 {
        api.apply(&job(&format!("short-{number}"), &url))?;
    }
    cluster.rolled_out(NAMESPACE, "deployment/first")?;
    for number in 0..5 {
        let job = format!("job/short-{number}");
        api.kubectl(["wait", "-n", NAMESPACE, "--for=condition=Complete", &job, "--timeout=50s"])
            .with_context(|| format!("{job}: {:?}", cluster.pods(NAMESPACE, "app=short")))?;
    }
    let failed = failures(&cluster, "app=first")?;
    ensure!(failed.is_empty(), "first connections have failed: {failed}");
    let pods = cluster.pods(NAMESPACE, "app=first")?;
    ensure!(pods.len() == TOGETHER, "{pods:?}");
    let addresses = carried(&mesh, &server)?;
    for pod in &pods {
        ensure!(addresses.contains(&pod.address), "nothing of {pod:?} was carried: {addresses:?}");
        mesh.wait_for(pod, "enrolled")?;
    }
    ensure!(addresses.len() >= TOGETHER + 5, "{addresses:?}");

    // The daemon is away: pods of the mesh wait for it, all others do not.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"yes"}}}}}"#;
    api.kubectl(["patch", "daemonset", "ztunnel", "-n", "istio-system", "-p", nowhere])?;
    wait::until_true("the daemon is gone", wait::PATIENCE * 2, || {
        Ok(api.kubectl(["get", "pods", "-n", "istio-system", "-l", "app=ztunnel", "-o", "name"])?.is_empty())
    })?;
    ensure!(on.conflist()?.contains("ztunnel-cni"), "a daemon that stops removes the plugin");
    api.apply(&deployment("waits", NAMESPACE, 1, &url))?;
    api.apply(&images::web("stranger", OUTSIDE, 1))?;
    cluster.rolled_out(OUTSIDE, "deployment/stranger")?;
    wait::until_true("the pod of the mesh is told why it waits", wait::PATIENCE * 2, || {
        let pods = api.kubectl([
            "get",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app=waits",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ])?;
        Ok(!pods.is_empty() && events(&cluster, NAMESPACE, &pods)?.contains("no daemon answers"))
    })?;
    let phase =
        api.kubectl(["get", "pods", "-n", NAMESPACE, "-l", "app=waits", "-o", "jsonpath={.items[*].status.phase}"])?;
    ensure!(phase == "Pending", "a pod of the mesh is {phase} without a daemon");
    let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/nowhere"}]"#;
    api.kubectl(["patch", "daemonset", "ztunnel", "-n", "istio-system", "--type=json", "-p", back])?;
    cluster.rolled_out("istio-system", "daemonset/ztunnel")?;
    cluster.rolled_out(NAMESPACE, "deployment/waits")?;
    ensure!(failures(&cluster, "app=waits")?.is_empty(), "the first connection has failed");
    let waited = only(&cluster, NAMESPACE, "app=waits")?;
    ensure!(carried(&mesh, &server)?.contains(&waited.address), "nothing of {waited:?} was carried");

    // Nothing is left, and pods start without the plugin.
    mesh.uninstall()?;
    ensure!(on.conflist()? == before, "{} is not {before}", on.conflist()?);
    let programs = on.launch("ls").args(["-A", node::CNI_PROGRAMS]).finish()?.stdout;
    ensure!(!programs.contains("ztunnel"), "{programs}");
    api.kubectl(["delete", "pod", "-n", NAMESPACE, &waited.name])?;
    cluster.rolled_out(NAMESPACE, "deployment/waits")
}

/// Milliseconds from the creation of a pod until its container runs, in order.
fn starts(cluster: &Cluster, round: &str) -> Result<Vec<u128>> {
    let mut all = Vec::new();
    for number in 0..30 {
        let name = format!("{round}-{number}");
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {NAMESPACE}}}, spec: {{nodeName: {NODE}, \
             terminationGracePeriodSeconds: 0, containers: [{{name: main, image: '{}', imagePullPolicy: IfNotPresent, \
             command: [/bin/sh, -c, 'cat /proc/uptime >/dev/termination-log'], }}], restartPolicy: Never}}}}",
            images::BUSYBOX
        );
        let begun = Instant::now();
        cluster.api().apply(&manifest)?;
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let applied = begun.elapsed();
        let seconds = |text: &str| text.split(' ').next().and_then(|word| word.parse::<f64>().ok()).unwrap_or_default();
        let message = "jsonpath={.status.containerStatuses[0].state.terminated.message}";
        let ran = wait::until("the container has run", wait::PATIENCE, || {
            let message = cluster.api().kubectl(["get", "pod", "-n", NAMESPACE, &name, "-o", message])?;
            Ok((!message.is_empty()).then_some(message))
        })?;
        let took = Duration::from_secs_f64((seconds(&ran) - seconds(&uptime)).max(0.0)) + applied / 2;
        all.push(took.as_millis());
    }
    all.sort_unstable();
    Ok(all)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn pods_start_without_waiting_for_a_deadline() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let image = settings::daemon_image()?;
    let mesh = Mesh::install(&cluster, &image, &["controlPlane.replicas=1", "cni.install=false"])?;
    cluster.api().apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio.io/dataplane-mode: ambient}}}}}}"
    ))?;
    wait::until_true("the service account is there", wait::PATIENCE, || {
        Ok(cluster.api().try_kubectl(["get", "serviceaccount", "default", "-n", NAMESPACE])?.success)
    })?;
    let without = starts(&cluster, "without")?;
    mesh.upgrade(&["controlPlane.replicas=1", "cni.install=true"])?;
    wait::until_true("the plugin is in the CNI configuration", wait::PATIENCE, || {
        Ok(cluster.node(NODE)?.conflist()?.contains("ztunnel-cni"))
    })?;
    let with = starts(&cluster, "with")?;
    let at =
        |all: &[u128], part: usize| all.get((all.len() * part / 100).min(all.len() - 1)).copied().unwrap_or_default();
    println!(
        "ms from creation to the first command, p50 and p99: without the plugin {} {}, with it {} {}",
        at(&without, 50),
        at(&without, 99),
        at(&with, 50),
        at(&with, 99)
    );
    // A pod whose sandbox waits for a deadline of the daemon takes 10 s longer. That is no limit of the latency, which is printed.
    ensure!(at(&with, 50) < at(&without, 50) + 8_000, "without {without:?}, with {with:?}");
    // Turned off, it is removed.
    mesh.upgrade(&["controlPlane.replicas=1", "cni.install=false"])?;
    wait::until_true("the plugin is out of the CNI configuration", wait::PATIENCE, || {
        Ok(!cluster.node(NODE)?.conflist()?.contains("ztunnel-cni"))
    })?;
    mesh.uninstall()
}
