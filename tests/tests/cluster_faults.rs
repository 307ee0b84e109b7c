//! Programs of a node end and come back, the API server is away, a node reboots: the mesh goes on, and nothing is open meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::load::{Load, NAMESPACE, Pods, pod};
use ztunnel_tests::cluster::mesh::Mesh;
use ztunnel_tests::cluster::{Cluster, chart};
use ztunnel_tests::{settings, wait};

const CLIENT: &str = "node-1";
const SERVER: &str = "node-2";

/// How long the API server is away: longer than every deadline of a request to it, and than the pauses between attempts.
const AWAY: Duration = Duration::from_secs(120);

/// A number of seconds that no other process of the machine sleeps.
const SLEEP: &str = "48151623";

/// What the daemons and the events say, for the message of a failure.
fn told(cluster: &Cluster) -> String {
    let show = |args: &[&str]| cluster.api().try_kubectl(args).map(|done| done.stdout).unwrap_or_default();
    let pods = show(&["get", "pods", "-A", "-o", "wide"]);
    let events = show(&["get", "events", "-A", "--field-selector=type=Warning,reason!=MissingClusterDNS"]);
    let logs = show(&["logs", "-n", chart::NAMESPACE, "-l", "app=ztunnel", "--prefix", "--tail=40"]);
    let loud = logs.lines().filter(|line| !line.contains("\"scope\":\"access\"")).collect::<Vec<_>>().join("\n");
    format!("{pods}\n{events}\n{loud}")
}

/// A client that asks once, when its container starts, and says what came of it.
fn asks_once(server: &str) -> String {
    format!(
        "if timeout 5 wget -q -O /dev/null http://{server}:8080/; then echo carried; else echo failed; fi; exec sleep {SLEEP}"
    )
}

/// A client outside of the mesh, which the policy of the server refuses.
fn asks_from_outside(server: &str) -> String {
    format!(
        "while :; do timeout 1 wget -qO- http://{server}:8080/ >/dev/null 2>&1 && echo answered; echo asked; sleep 0.2; done"
    )
}

/// Installs the mesh, starts the load, and a client outside of the mesh.
fn start(cluster: &Cluster) -> Result<Pods> {
    let mesh = Mesh::install(cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    let load = Load::start(cluster, &mesh, CLIENT, SERVER)?;
    let outside = pod("stranger", SERVER, &asks_from_outside(&load.pods().server.address))
        .replace("labels: {app: stranger}", "labels: {app: stranger, istio.io/dataplane-mode: none}");
    cluster.api().apply(&outside)?;
    wait::until_true("the client outside of the mesh asks", wait::PATIENCE * 2, || Ok(asked(cluster)? > 0))?;
    Ok(load.pods().clone())
}

/// The load, when the kubelets answer again: they have its log.
fn load<'a>(cluster: &'a Cluster, pods: &Pods) -> Result<Load<'a>> {
    let load = Load::of(cluster, pods.clone());
    wait::until_true("the kubelets answer", wait::PATIENCE * 4, || Ok(load.seen().is_ok()))?;
    Ok(load)
}

/// How often the client outside of the mesh has asked. It has never got an answer.
fn asked(cluster: &Cluster) -> Result<usize> {
    let done = cluster.api().try_kubectl(["logs", "-n", NAMESPACE, "stranger"])?;
    ensure!(!done.stdout.contains("answered"), "a client outside of the mesh got an answer in spite of STRICT");
    Ok(done.stdout.lines().filter(|line| *line == "asked").count())
}

/// Starts a pod on a node, whose first connection has to be carried.
fn starts_in_the_mesh(cluster: &Cluster, pods: &Pods, name: &str, node: &str) -> Result<()> {
    cluster.api().apply(&pod(name, node, &asks_once(&pods.server.address)))?;
    says(cluster, name, "carried").with_context(|| told(cluster))
}

/// Waits until the log of a pod's container is one line.
fn says(cluster: &Cluster, name: &str, line: &str) -> Result<()> {
    wait::until_true(&format!("{name} says {line}"), wait::PATIENCE * 4, || {
        let log = cluster.api().try_kubectl(["logs", "-n", NAMESPACE, name])?.stdout;
        ensure!(!log.contains("failed"), "the first connection of {name} has failed");
        Ok(log.trim() == line)
    })
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn connections_go_on_while_kubelet_and_container_runtime_are_restarted() -> Result<()> {
    let mut cluster = Cluster::start(2)?;
    let pods = start(&cluster)?;
    for node in [CLIENT, SERVER] {
        cluster.node_mut(node)?.0.restart_kubelet()?;
        load(&cluster, &pods)?.goes_on(&format!("after the kubelet of {node}"))?;
        starts_in_the_mesh(&cluster, &pods, &format!("kubelet-{node}"), node)?;
        cluster.node_mut(node)?.0.restart_containerd()?;
        load(&cluster, &pods)?.goes_on(&format!("after containerd of {node}"))?;
        starts_in_the_mesh(&cluster, &pods, &format!("containerd-{node}"), node)?;
    }
    let load = load(&cluster, &pods)?;
    load.wake()?;
    let before = asked(&cluster)?;
    wait::until_true("the client outside of the mesh asks on", wait::PATIENCE * 2, || Ok(asked(&cluster)? > before))?;
    Mesh::of(&cluster).uninstall()
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn connections_policy_and_restarts_of_containers_go_on_without_the_api_server() -> Result<()> {
    let mut cluster = Cluster::start(2)?;
    let pods = start(&cluster)?;
    let again = pod("again", CLIENT, &asks_once(&pods.server.address)).replace("Policy: Never", "Policy: Always");
    cluster.api().apply(&again)?;
    says(&cluster, "again", "carried")?;
    let before = Load::of(&cluster, pods.clone()).goes_on("before")?;
    let asked_before = asked(&cluster)?;

    cluster.api_mut().stop()?;
    // The kubelet starts the container again without the API server.
    let killed = cluster.node(CLIENT)?.launch("pkill").args(["-KILL", "-f", &format!("sleep {SLEEP}")]).finish()?;
    ensure!(killed.success, "{killed:?}");
    wait::pass(AWAY);
    cluster.api_mut().resume()?;

    let load = load(&cluster, &pods)?;
    let after = load.seen()?;
    let seconds = usize::try_from(AWAY.as_secs())?;
    ensure!(after.faults.is_empty(), "{:?}", after.faults);
    ensure!(
        after.requests > before.requests + 5 * seconds && after.stream > before.stream,
        "the load has not gone on: {before:?} {after:?}"
    );
    let asked_after = asked(&cluster)?;
    ensure!(asked_after > asked_before + seconds / 5, "the client outside of the mesh has not asked: {asked_after}");
    wait::until_true("the container was started again", wait::PATIENCE * 4, || {
        let count = "jsonpath={.status.containerStatuses[0].restartCount}";
        Ok(cluster.api().kubectl(["get", "pod", "-n", NAMESPACE, "again", "-o", count])? == "1")
    })?;
    says(&cluster, "again", "carried")?;

    // News arrive again.
    cluster.api().apply(&format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: deny, namespace: {NAMESPACE}}}, \
         spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: ['8080']}}}}]}}]}}}}"
    ))?;
    load.until("the new policy is in force", |seen| Ok(!seen.faults.is_empty())).with_context(|| told(&cluster))?;
    starts_after(&cluster)?;
    Mesh::of(&cluster).uninstall()
}

/// A pod that is made after the API server was away is enrolled.
fn starts_after(cluster: &Cluster) -> Result<()> {
    cluster.api().apply(&pod("late", SERVER, &format!("exec sleep {SLEEP}")))?;
    cluster.api().kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/late", "--timeout=50s"])?;
    let pods = cluster.pods(NAMESPACE, "app=late")?;
    Mesh::of(cluster).wait_for(pods.first().context("no pod")?, "enrolled").with_context(|| told(cluster))
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_pods_of_a_node_that_reboots_come_back_in_the_mesh() -> Result<()> {
    let mut cluster = Cluster::start(2)?;
    let pods = start(&cluster)?;
    let server = &pods.server;
    for node in [CLIENT, SERVER] {
        let name = format!("again-{node}");
        let again = pod(&name, node, &asks_once(&server.address)).replace("Policy: Never", "Policy: Always");
        cluster.api().apply(&again)?;
        says(&cluster, &name, "carried")?;
    }
    let addresses = |cluster: &Cluster| -> Result<String> {
        cluster.api().kubectl(["get", "pod", "-n", NAMESPACE, "again-node-1", "-o", "jsonpath={.status.podIP}"])
    };
    let before = addresses(&cluster)?;

    let (node, api) = cluster.node_mut(CLIENT)?;
    node.reboot(api)?;
    let count = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
    wait::until_true("the pod of the node runs again", wait::PATIENCE * 8, || {
        let state = cluster.api().try_kubectl(["get", "pod", "-n", NAMESPACE, "again-node-1", "-o", count])?.stdout;
        Ok(state.split_once(' ').is_some_and(|(count, ready)| count != "0" && ready == "true"))
    })
    .with_context(|| told(&cluster))?;
    // Its first connection went through the daemon, which was started at the same time: outside of the mesh it would be refused.
    says(&cluster, "again-node-1", "carried").with_context(|| told(&cluster))?;
    let mesh = Mesh::of(&cluster);
    let again = cluster.pods(NAMESPACE, "app=again-node-1")?;
    let again = again.first().context("no pod")?;
    mesh.wait_for(again, "enrolled").with_context(|| told(&cluster))?;
    ensure!(addresses(&cluster)? == again.address && !before.is_empty(), "{before}");
    // The other node was not touched, and its pods connect to those of the node.
    says(&cluster, "again-node-2", "carried")?;
    let answer = cluster.fetch(again, &format!("http://{}:8080/", server.address))?;
    ensure!(answer.as_ref() == Ok(&server.name), "{answer:?}");
    let line = mesh.logged(CLIENT, &server.address, |line| line.get("dst.hbone_addr").is_some())?;
    ensure!(line["src.identity"] == format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/default"), "{line}");
    asked(&cluster)?;
    mesh.uninstall()?;
    for node in [CLIENT, SERVER] {
        ensure!(cluster.in_kernel(node)?.is_empty(), "{node}: {:?}", cluster.in_kernel(node)?);
    }
    Ok(())
}
