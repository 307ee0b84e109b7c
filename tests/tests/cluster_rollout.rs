//! The daemons of a cluster are replaced while its pods connect all the time, and while pods start.

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::load::{self, Load, NAMESPACE};
use ztunnel_tests::cluster::mesh::Mesh;
use ztunnel_tests::cluster::{Cluster, chart};
use ztunnel_tests::{settings, wait};

const RESTARTS: usize = 3;
/// Pods that start at the same time.
const AT_ONCE: usize = 3;
const NODES: [&str; 2] = ["node-1", "node-2"];

/// Pods that connect once, before anything else, and end.
struct Starts<'a> {
    load: &'a Load<'a>,
    cluster: &'a Cluster,
    number: usize,
}

impl Starts<'_> {
    /// Makes one more, on the other node than the last one, if not too many are starting.
    fn next(&mut self) -> Result<()> {
        let ended = self.phases()?.lines().filter(|line| line.ends_with(" Succeeded")).count();
        if self.number >= ended + AT_ONCE {
            return Ok(());
        }
        let node = NODES.get(self.number % NODES.len()).context("no node")?;
        let script = format!("exec timeout 5 wget -q -O /dev/null http://{}:8080/", self.load.pods().server.address);
        self.cluster.api().apply(&load::pod(&format!("starts-{}", self.number), node, &script))?;
        self.number += 1;
        Ok(())
    }

    /// A line for each, with name, node and phase.
    fn phases(&self) -> Result<String> {
        let phases = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.phase}\n{end}";
        let pods = self.cluster.api().kubectl(["get", "pods", "-n", NAMESPACE, "-o", phases])?;
        Ok(pods.lines().filter(|line| line.starts_with("starts-")).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until all have ended, and makes sure that none has failed.
    fn have_succeeded(&self) -> Result<()> {
        let ended = wait::until_true("all pods have ended", wait::PATIENCE * 4, || {
            let pods = self.phases()?;
            let failed: Vec<_> = pods.lines().filter(|line| line.ends_with(" Failed")).collect();
            ensure!(failed.is_empty(), "the first connection has failed: {failed:?}");
            Ok(pods.lines().filter(|line| line.ends_with(" Succeeded")).count() == self.number)
        });
        ended.with_context(|| format!("{}\n{}", self.phases().unwrap_or_default(), told(self.cluster)))
    }
}

/// What the daemons and the events say, for the message of a failure.
fn told(cluster: &Cluster) -> String {
    let show = |args: &[&str]| cluster.api().try_kubectl(args).map(|done| done.stdout).unwrap_or_default();
    let pods = show(&["get", "pods", "-n", chart::NAMESPACE, "-o", "wide"]);
    let events = show(&["get", "events", "-A", "--field-selector=type=Warning,reason!=MissingClusterDNS"]);
    let logs = show(&["logs", "-n", chart::NAMESPACE, "-l", "app=ztunnel", "--prefix", "--tail=60"]);
    let loud = logs.lines().filter(|line| !line.contains("\"scope\":\"access\"")).collect::<Vec<_>>().join("\n");
    format!("{pods}\n{events}\n{loud}")
}

/// Replaces the daemons of all nodes, and does something again and again meanwhile. `kubectl rollout status` would also wait for the end
/// of the old daemons, which serve their connections.
fn restart(cluster: &Cluster, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
    let before = daemons(cluster)?;
    cluster.api().kubectl(["rollout", "restart", "-n", chart::NAMESPACE, "daemonset/ztunnel"])?;
    let done = wait::until_true("the daemons are replaced", wait::PATIENCE * 6, || {
        meanwhile()?;
        let now = daemons(cluster)?;
        let new = now.iter().filter(|daemon| {
            daemon.is_ready && !daemon.is_leaving && !before.iter().any(|old| old.name == daemon.name)
        });
        let old = before.iter().filter(|old| now.iter().any(|daemon| daemon.name == old.name && !daemon.is_leaving));
        Ok(new.count() == NODES.len() && old.count() == 0)
    });
    done.with_context(|| told(cluster))
}

/// A pod of the DaemonSet.
struct Daemon {
    name: String,
    is_ready: bool,
    /// It is to be deleted.
    is_leaving: bool,
}

fn daemons(cluster: &Cluster) -> Result<Vec<Daemon>> {
    let lines = r#"jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}"#;
    let pods = cluster.api().kubectl(["get", "pods", "-n", chart::NAMESPACE, "-l", "app=ztunnel", "-o", lines])?;
    let daemon = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (name, ready, deleted) = (words.next()?, words.next()?, words.next().unwrap_or_default());
        Some(Daemon { name, is_ready: ready == "True", is_leaving: !deleted.is_empty() })
    };
    Ok(pods.lines().filter_map(daemon).collect())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_rolling_restart_refuses_and_cuts_no_connection_and_pods_start_in_the_mesh() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    let load = Load::start(&cluster, &mesh, NODES[0], NODES[1])?;
    let mut starts = Starts { load: &load, cluster: &cluster, number: 0 };
    for number in 1..=RESTARTS {
        restart(&cluster, || starts.next())?;
        load.goes_on(&format!("after restart {number}")).with_context(|| told(&cluster))?;
        // The daemons before have the connections that were opened to them.
        ensure!(daemons(&cluster)?.len() > NODES.len(), "a daemon has ended that had connections: {}", told(&cluster));
    }
    starts.have_succeeded()?;
    load.wake()?;
    load.end_stream()?;
    let seen = load.goes_on("at the end")?;
    println!("{seen:?}; {} pods have started meanwhile", starts.number);
    wait::until_true("the daemons that were replaced have ended", wait::PATIENCE * 2, || {
        Ok(daemons(&cluster)?.len() == NODES.len())
    })
    .with_context(|| told(&cluster))?;

    // A daemon that has only an old connection does not delay the end of the installation.
    let holds = load::pod("holds", NODES[0], &format!("sleep 3600 | nc {} 9000", load.pods().server.address));
    cluster.api().apply(&holds)?;
    cluster.api().kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod/holds", "--timeout=50s"])?;
    restart(&cluster, || Ok(()))?;
    load.goes_on("with an old connection").with_context(|| told(&cluster))?;
    ensure!(daemons(&cluster)?.len() > NODES.len(), "nothing holds a daemon: {}", told(&cluster));
    mesh.uninstall().with_context(|| told(&cluster))?;
    for node in NODES {
        ensure!(cluster.in_kernel(node)?.is_empty(), "{node}: {:?}", cluster.in_kernel(node)?);
    }
    Ok(())
}

/// A client outside of the mesh. Each answer that it gets is a line of its log: the policy of the server refuses all of them.
fn stranger(server: &str) -> String {
    format!(
        "while :; do timeout 1 wget -qO- http://{server}:8080/ >/dev/null 2>&1 && echo answered; echo asked; sleep 0.05; done"
    )
}

/// A roll-out that ends the old daemon of a node before the new one starts.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn without_a_surge_connections_wait_and_nothing_is_open_and_everything_is_given_back() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let api = cluster.api();
    let values = [
        "controlPlane.replicas=1",
        "node.updateStrategy.rollingUpdate.maxSurge=0",
        "node.updateStrategy.rollingUpdate.maxUnavailable=1",
        "node.drainTimeoutSeconds=3",
    ];
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &values)?;
    let load = Load::start(&cluster, &mesh, NODES[0], NODES[1])?;
    // On the node of the server, without the label of the mesh.
    let outside = load::pod("stranger", NODES[1], &stranger(&load.pods().server.address))
        .replace("labels: {app: stranger}", "labels: {app: stranger, istio.io/dataplane-mode: none}");
    api.apply(&outside)?;
    let strangers = || api.kubectl(["logs", "-n", NAMESPACE, "stranger"]);
    wait::until_true("the stranger asks", wait::PATIENCE * 2, || {
        Ok(strangers().is_ok_and(|log| log.lines().filter(|line| *line == "asked").count() > 5))
    })?;
    for number in 1..=RESTARTS {
        let before = load.seen()?;
        restart(&cluster, || Ok(()))?;
        load.until(&format!("after restart {number}"), |seen| Ok(seen.requests >= before.requests + 200))
            .with_context(|| told(&cluster))?;
    }
    let seen = load.seen()?;
    let others: Vec<_> = seen
        .faults
        .iter()
        .filter(|line| !["failed", "pause", "cut"].iter().any(|known| line.starts_with(known)))
        .collect();
    ensure!(others.is_empty(), "bytes were lost or doubled: {others:?}");
    println!("{} requests; longest pause {:?} ms", seen.requests, seen.pauses.iter().max().map(|pause| pause * 10));
    ensure!(seen.pauses.iter().all(|pause| *pause < 1_500), "a node was closed for too long: {:?}", seen.pauses);
    let asked = strangers()?;
    ensure!(!asked.contains("answered"), "a client outside of the mesh got an answer in spite of STRICT");

    mesh.uninstall().with_context(|| told(&cluster))?;
    for node in NODES {
        ensure!(cluster.in_kernel(node)?.is_empty(), "{node}: {:?}\n{}", cluster.in_kernel(node)?, told(&cluster));
    }
    Ok(())
}

/// The old daemon of a node drains when the DaemonSet is deleted: no other daemon comes after it.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn an_installation_that_is_removed_during_a_roll_out_gives_every_pod_back() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let api = cluster.api();
    let values = [
        "controlPlane.replicas=1",
        "node.updateStrategy.rollingUpdate.maxSurge=0",
        "node.updateStrategy.rollingUpdate.maxUnavailable=1",
        "node.drainTimeoutSeconds=600",
    ];
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &values)?;
    let load = Load::start(&cluster, &mesh, NODES[0], NODES[0])?;
    api.kubectl(["rollout", "restart", "-n", chart::NAMESPACE, "daemonset/ztunnel"])?;
    wait::until_true("the daemon is told to stop", wait::PATIENCE * 2, || {
        let logs = api.kubectl(["logs", "-n", chart::NAMESPACE, "-l", "app=ztunnel", "--tail=-1"])?;
        Ok(logs.lines().any(|line| line.contains("draining: new connections are accepted")))
    })
    .with_context(|| told(&cluster))?;
    load.goes_on("while the daemon drains")?;
    mesh.uninstall().with_context(|| told(&cluster))?;
    let left = cluster.in_kernel(NODES[0])?;
    ensure!(left.is_empty(), "{left:?}\n{}", told(&cluster));
    // The clients connect again, outside of the mesh.
    let before = load.seen()?.requests;
    load.until("the clients connect again", |seen| Ok(seen.requests > before + 100)).map(drop)
}
