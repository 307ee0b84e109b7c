//! Two nodes with their daemons, and the programs in the pods.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use serde_json::Value;

use super::chain::Chain;
use super::crowd::{self, Crowd};
use super::crr;
use super::proc;
use super::servers::{WRK_REPORT, nginx};
use crate::admin::ConfigDump;
use crate::apps::programs;
use crate::daemon::{Daemon, DaemonOptions};
use crate::mesh::{Mesh, PodManifest};
use crate::process::{Launch, Process};
use crate::topology::{Family, Pod, TWO_NODES, Topology};
use crate::wait;

/// The path of the connections from client to server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mode {
    /// No pod is in the mesh: the reference for all comparisons.
    None,
    /// No pod is in the mesh, and the bytes are copied on both nodes as a mesh would do: the lower bound for any mesh.
    Chain,
    /// From pod to pod on two nodes, through HBONE.
    Mesh,
    /// The same, with connects that are held until the server is reached.
    Held,
    /// The same as [`Self::Mesh`] with 1,000 policy rules for the server's namespace.
    Policy,
    /// The client is in the mesh, the server is not: capture alone.
    Plaintext,
    /// The same, with connects that are held.
    PlaintextHeld,
    /// No pod is in the mesh, both pods are on one node.
    NoneSameNode,
    /// From pod to pod on one node, through HBONE.
    SameNode,
}

impl Mode {
    /// Its name in tables and files.
    #[must_use]
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "no mesh",
            Self::Chain => "copy chain",
            Self::Mesh => "mesh",
            Self::Held => "mesh, held connects",
            Self::Policy => "mesh, 1000 rules",
            Self::Plaintext => "capture alone",
            Self::PlaintextHeld => "capture alone, held connects",
            Self::NoneSameNode => "no mesh, one node",
            Self::SameNode => "mesh, one node",
        }
    }

    /// The mode with which it is compared.
    #[must_use]
    pub(super) const fn without(self) -> Self {
        match self {
            Self::NoneSameNode | Self::SameNode => Self::NoneSameNode,
            _ => Self::None,
        }
    }

    /// Whether the daemons carry its connections.
    #[must_use]
    pub(super) fn is_meshed(self) -> bool {
        matches!(self.way(), Way::Capture | Way::Tunnel)
    }

    /// Whether its CPU can be compared with the copy chain's: both go from node to node.
    #[must_use]
    pub(super) fn has_chain(self) -> bool {
        self.is_meshed() && self.without() == Self::None
    }

    /// Whether connects of the client are held.
    const fn is_held(self) -> bool {
        matches!(self, Self::Held | Self::PlaintextHeld)
    }

    /// The carrier of its bytes.
    const fn way(self) -> Way {
        match self {
            Self::None | Self::NoneSameNode => Way::Kernel,
            Self::Chain => Way::Chain,
            Self::Plaintext | Self::PlaintextHeld => Way::Capture,
            Self::Mesh | Self::Held | Self::Policy | Self::SameNode => Way::Tunnel,
        }
    }

    /// The pod of the server.
    #[must_use]
    pub(super) const fn server(self) -> &'static str {
        match self {
            Self::NoneSameNode | Self::SameNode => "web-a",
            _ => "web-b",
        }
    }
}

/// The carrier of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The kernel alone.
    Kernel,
    /// The copy chain.
    Chain,
    /// A daemon, without HBONE.
    Capture,
    /// Two daemons, or one daemon twice, through HBONE.
    Tunnel,
}

/// The annotation by which a pod's connects are held.
const CONNECT: &str = "traffic.ambient.mesh/connect";
/// The pod with all clients.
pub(super) const CLIENT: &str = "client-a";

/// Ports of the servers.
pub(super) const IPERF: u16 = 5201;
/// nginx.
pub(super) const HTTP: u16 = 80;
/// Connect, request, response.
pub(super) const EXCHANGE: u16 = 9000;
/// A server that accepts and does not read.
pub(super) const SLOW: u16 = 9001;

/// Everything that is set up; removed in the order of the fields.
pub(super) struct Stage {
    /// One daemon for each node.
    pub(super) daemons: Vec<Daemon>,
    _servers: Vec<Process>,
    _exchanges: Vec<crr::Server>,
    chain: Chain,
    /// The manifests that the daemons read.
    pub(super) mesh: Mesh,
    /// Nodes and pods.
    pub(super) topology: Topology,
    /// The script of wrk.
    pub(super) script: PathBuf,
    mode: Option<Mode>,
    crowd: Option<Crowd>,
    changes: usize,
}

/// The counters of the daemons, and of the copiers of the chain, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    cpu: Duration,
    /// CPU time of both copiers of the chain.
    chain_cpu: Duration,
    /// Payload that each of them has carried, both ways.
    chain: [f64; 2],
    /// Payload of HBONE connections, both ways, as the sources' daemons count it.
    left: f64,
    /// The same, as the destinations' daemons count it.
    arrived: f64,
    /// Payload that daemons carried without HBONE.
    plain: f64,
    /// Connections that were sent into HBONE connections.
    pub(super) connections: f64,
}

impl Used {
    /// Payload of HBONE connections, as both ends count it.
    #[must_use]
    pub(super) const fn tunnelled(self) -> (f64, f64) {
        (self.left, self.arrived)
    }

    fn since(self, before: Self) -> Self {
        let ([near, far], [near_before, far_before]) = (self.chain, before.chain);
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            chain_cpu: self.chain_cpu.saturating_sub(before.chain_cpu),
            chain: [near - near_before, far - far_before],
            left: self.left - before.left,
            arrived: self.arrived - before.arrived,
            plain: self.plain - before.plain,
            connections: self.connections - before.connections,
        }
    }

    /// Whether these counters match `payload` bytes in a mode.
    fn fits(self, mode: Mode, payload: f64) -> Result<()> {
        // Not all bytes are required: bytes that a client has sent when its time is over may not arrive.
        let most = payload * 0.9;
        let Self { left, arrived, plain, chain: [near, far], .. } = self;
        let has_tunnel = left >= most && arrived >= most;
        let (no_tunnel, no_chain) = (left == 0.0 && arrived == 0.0, near == 0.0 && far == 0.0);
        let fits = match mode.way() {
            Way::Tunnel => has_tunnel && plain == 0.0 && no_chain,
            Way::Capture => no_tunnel && plain >= most && no_chain,
            Way::Chain => no_tunnel && plain == 0.0 && near >= most && far >= most,
            Way::Kernel => no_tunnel && plain == 0.0 && no_chain,
        };
        ensure!(
            fits,
            "{payload} bytes of payload went another way than they should in mode {:?}: of them the daemons saw {left} \
             enter tunnels, {arrived} leave tunnels, and {plain} without a tunnel; the copy chain saw {near} and {far}",
            mode.name()
        );
        Ok(())
    }
}

/// The algorithm that every kernel has and that every namespace may use.
const CONGESTION_CONTROL: &str = "reno";

/// How long a daemon's counters may lag behind the clients.
const LAG: Duration = Duration::from_secs(2);

/// Longer than [`wait::PATIENCE`]: there may be 100,000 manifests to read.
const PATIENCE: Duration = Duration::from_secs(120);

impl Stage {
    /// Builds the stage.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub(super) fn build(ztunnel: &std::path::Path) -> Result<Self> {
        let topology = Topology::new(TWO_NODES)?;
        let mesh = Mesh::new(&topology.folder.join("mesh"))?;
        mesh.labelled_namespace(crowd::PLACE)?;
        for pod in topology.pods() {
            mesh.pod(&PodManifest::of(pod))?;
        }
        // Not the machine's default, which determines the figures more than anything here: BBR halves them.
        for netns in topology.pods().iter().map(|pod| &pod.netns).chain(topology.nodes().iter().map(|node| &node.netns))
        {
            netns.sysctl("ipv4/tcp_congestion_control", CONGESTION_CONTROL)?;
        }
        // The connections of every round have the same addresses: ports would run out if they could not be used again.
        let client = &topology.pod(CLIENT)?.netns;
        client.sysctl("ipv4/tcp_tw_reuse", "1")?;
        client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        let mut servers = Vec::new();
        let mut exchanges = Vec::new();
        for web in ["web-a", "web-b"] {
            let pod = topology.pod(web)?;
            servers.push(nginx(&topology, pod)?);
            servers.push(programs::iperf3_server(pod, IPERF)?);
            exchanges.push(crr::Server::start(pod, SocketAddr::new(Family::V4.any(), EXCHANGE), 16)?);
        }
        let script = topology.folder.join("report.lua");
        fs::write(&script, WRK_REPORT).with_context(|| format!("cannot write {}", script.display()))?;
        let start = |node| {
            // It logs as in normal use: a line for each connection is part of the cost.
            let options = DaemonOptions { patience: PATIENCE, ..DaemonOptions::new(ztunnel.to_owned()) };
            Daemon::start(&topology, node, &mesh, options)
        };
        let daemons = ["node-a", "node-b"].into_iter().map(start).collect::<Result<_>>()?;
        let chain = Chain::start(&topology, &[IPERF, HTTP, EXCHANGE], Mode::Chain.server())?;
        let (_servers, _exchanges) = (servers, exchanges);
        Ok(Self { daemons, _servers, _exchanges, chain, mesh, topology, script, mode: None, crowd: None, changes: 0 })
    }

    /// The pod of the clients.
    ///
    /// # Errors
    /// Never: the pod exists.
    pub(super) fn client(&self) -> Result<&Pod> {
        self.topology.pod(CLIENT)
    }

    /// The address to which clients connect for a server's port in a mode.
    ///
    /// # Errors
    /// Never: the pods and nodes exist.
    pub(super) fn target(&self, mode: Mode, port: u16) -> Result<SocketAddr> {
        if mode.way() == Way::Chain {
            return Ok(SocketAddr::new(self.topology.node("node-a")?.ip(Family::V4), port));
        }
        Ok(self.topology.pod(mode.server())?.at(Family::V4, port))
    }

    /// Brings the mesh into a mode, with a crowd, and waits until the daemons have applied it.
    ///
    /// # Errors
    /// When they do not apply it in time.
    pub(super) fn arrange(&mut self, mode: Mode, crowd: Option<Crowd>) -> Result<()> {
        if (self.mode, self.crowd) == (Some(mode), crowd) {
            return Ok(());
        }
        if self.crowd != crowd {
            self.gather(crowd)?;
        }
        let policies = self.mesh.folder().join(POLICIES);
        if mode == Mode::Policy {
            self.mesh.write(POLICIES, &thousand_rules())?;
        } else if policies.is_file() {
            self.mesh.remove(POLICIES)?;
        }
        for pod in self.topology.pods().iter().filter(|pod| number(pod).is_none()) {
            let manifest = PodManifest::of(pod);
            let manifest = if self.is_invited(pod, mode) { manifest } else { manifest.mode("none") };
            let is_held = mode.is_held() && pod.name == CLIENT;
            let manifest = if is_held { manifest.annotation(CONNECT, "held") } else { manifest };
            if !self.mesh.has_pod(&manifest) {
                self.mesh.pod(&manifest)?;
            }
        }
        if mode.is_meshed() {
            self.mesh.label()?;
        } else {
            self.mesh.unlabel()?;
        }
        self.mode = Some(mode);
        self.settle()
    }

    /// Ends the daemons and starts new ones, so that their memory belongs to the next work only.
    ///
    /// # Errors
    /// When one does not end or start as it should.
    pub(super) fn renew(&mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            daemon.terminate()?;
            daemon.restart()?;
        }
        self.settle()
    }

    /// Whether a pod is in the mesh when its namespace is.
    fn is_invited(&self, pod: &Pod, mode: Mode) -> bool {
        let pods = self.crowd.and_then(Crowd::pods);
        match (number(pod), &*pod.name) {
            // The two pods that existed before are part of the number.
            (Some(number), _) => pods.is_some_and(|pods| number + 2 < pods),
            (None, "web-b") => !matches!(mode, Mode::Plaintext | Mode::PlaintextHeld),
            (None, CLIENT) => true,
            (None, _) => pods != Some(1),
        }
    }

    /// Waits until no daemon has connections any more: the cost of ending them must not count for a later figure.
    ///
    /// # Errors
    /// When one still has some after a while.
    pub(super) fn rest(&self) -> Result<()> {
        for daemon in &self.daemons {
            wait::until_true(&format!("all connections of {} to end", daemon.node), PATIENCE, || {
                let metrics = daemon.metrics()?;
                let sum = |what: &str| metrics.sum(&format!("istio_tcp_connections_{what}_total"), &[]);
                Ok(sum("opened") == sum("closed"))
            })?;
        }
        Ok(())
    }

    /// Waits until all daemons have applied the manifests.
    ///
    /// # Errors
    /// When one does not in time.
    pub(super) fn settle(&self) -> Result<()> {
        let Some(mode) = self.mode else { return Ok(()) };
        let own = self.topology.pods().iter().filter(|pod| self.has_manifest(pod)).count() + self.changes.min(1);
        let (workloads, services) = self.crowd.map(Crowd::counts).unwrap_or_default();
        let counts = (Some((own + workloads) as u64), Some(services as u64));
        for daemon in &self.daemons {
            let local = || self.topology.pods().iter().filter(|pod| pod.node == daemon.node);
            let is_wanted = |pod: &Pod| self.is_invited(pod, mode) && (mode.is_meshed() || number(pod).is_some());
            let has_connect = |dump: &ConfigDump, pod: &Pod| {
                let connect = if mode.is_held() && pod.name == CLIENT { "held" } else { "early" };
                !is_wanted(pod) || dump.pod(&pod.name).is_some_and(|pod| pod.connect() == connect)
            };
            Self::until(daemon, "all manifests to be read and all pods to be as they say", |dump| {
                let count = |key: &str| dump.value().pointer(key).and_then(Value::as_u64);
                let is_enrolled = |pod: &Pod| dump.pod(&pod.name).is_some_and(|pod| pod.state() == "enrolled");
                (count("/snapshot/workloads"), count("/snapshot/services")) == counts
                    && local().all(|pod| is_enrolled(pod) == is_wanted(pod) && has_connect(dump, pod))
            })?;
            for pod in local().filter(|pod| number(pod).is_none() && is_wanted(pod)) {
                daemon.certified(&crate::ca::identity(&pod.name))?;
            }
        }
        Ok(())
    }

    /// A daemon that enrols 100 pods may not answer in time; only a daemon that has ended is an error.
    fn until(daemon: &Daemon, what: &str, holds: impl Fn(&ConfigDump) -> bool) -> Result<()> {
        wait::until_true(what, PATIENCE, || match daemon.dump() {
            Ok(dump) => Ok(holds(&dump)),
            Err(_) if proc::is_alive(daemon.id()) => Ok(false),
            Err(error) => Err(error),
        })
        .with_context(|| daemon.tail())
    }

    fn has_manifest(&self, pod: &Pod) -> bool {
        self.mesh.folder().join(format!("pod-{}.yaml", pod.name)).is_file()
    }

    /// Removes the last crowd and adds another.
    fn gather(&mut self, crowd: Option<Crowd>) -> Result<()> {
        let last = self.crowd.take();
        for (file, _) in last.into_iter().flat_map(Crowd::files) {
            self.mesh.remove(&file)?;
        }
        self.crowd = crowd;
        let further = crowd.and_then(Crowd::pods).unwrap_or_default().saturating_sub(2);
        for node in ["node-a", "node-b"] {
            for number in 0..further {
                let name = format!("{CROWD}{node}-{number}");
                if self.topology.pod(&name).is_err() {
                    self.topology.grow(node, &name)?;
                }
            }
        }
        for pod in self.topology.pods() {
            let Some(number) = number(pod) else { continue };
            match (number < further, self.has_manifest(pod)) {
                (true, false) => {
                    // One identity for all pods: the cost of certificates is not measured here.
                    let manifest = PodManifest::of(pod).namespace(crowd::PLACE).service_account("crowd");
                    self.mesh.pod(&manifest)?;
                }
                (false, true) => self.mesh.remove_pod(&pod.name)?,
                _ => (),
            }
        }
        for (file, text) in crowd.into_iter().flat_map(Crowd::files) {
            self.mesh.write(&file, &text)?;
        }
        Ok(())
    }

    /// Changes one workload among all, and returns the time until the change takes effect at the first daemon.
    ///
    /// # Errors
    /// When it never takes effect.
    pub(super) fn change_one(&mut self) -> Result<Duration> {
        self.changes += 1;
        let daemon = self.daemons.first().context("no daemon")?;
        let version = || Ok::<_, anyhow::Error>(daemon.metrics()?.sum("ztunnel_snapshot_version", &[]));
        let before = version()?;
        let begun = Instant::now();
        self.mesh.write("changing.yaml", &crowd::changing(self.changes))?;
        wait::until_true("one change to be read", PATIENCE, || Ok(version()? > before))?;
        let took = begun.elapsed();
        self.settle()?;
        Ok(took)
    }

    /// The present counters of daemons and copiers.
    ///
    /// # Errors
    /// When one of them has ended.
    pub(super) fn used(&self) -> Result<Used> {
        let mut used = Used { chain_cpu: self.chain.cpu()?, chain: self.chain.carried(), ..Used::default() };
        for daemon in &self.daemons {
            ensure!(proc::is_alive(daemon.id()), "the daemon of {} is dead: {}", daemon.node, daemon.tail());
            used.cpu += proc::cpu(daemon.id())?;
        }
        for daemon in &self.daemons {
            let metrics = daemon.metrics().with_context(|| format!("the daemon of {} does not answer", daemon.node))?;
            let bytes = |labels: &[_]| {
                metrics.sum("istio_tcp_sent_bytes_total", labels)
                    + metrics.sum("istio_tcp_received_bytes_total", labels)
            };
            let tunnel = ("connection_security_policy", "mutual_tls");
            let (left, arrived) =
                (bytes(&[("reporter", "source"), tunnel]), bytes(&[("reporter", "destination"), tunnel]));
            used.left += left;
            used.arrived += arrived;
            used.plain += bytes(&[]) - left - arrived;
            used.connections += metrics.sum("istio_tcp_connections_opened_total", &[("reporter", "source"), tunnel]);
        }
        Ok(used)
    }

    /// Checks that the measured bytes took the path of the mode, and returns the CPU time on both nodes.
    ///
    /// # Errors
    /// When they did not: a figure of another path is meaningless.
    pub(super) fn check(&self, mode: Mode, before: Used, payload: f64) -> Result<Duration> {
        let after = self.used()?.since(before);
        let mut last = after.fits(mode, payload);
        if last.is_err() {
            // Counters may lag, but a wrong path stays wrong.
            wait::pass(LAG);
            last = self.used()?.since(before).fits(mode, payload);
        }
        last.map(|()| if mode.way() == Way::Chain { after.chain_cpu } else { after.cpu })
    }

    /// The larger of the daemons' resident memories, in kB.
    ///
    /// # Errors
    /// When one is gone.
    pub(super) fn rss_kb(&self) -> Result<f64> {
        Ok(self.rss_of_each_kb()?.into_iter().fold(0.0, f64::max))
    }

    /// The daemons' resident memories, in kB.
    ///
    /// # Errors
    /// When one is gone.
    pub(super) fn rss_of_each_kb(&self) -> Result<Vec<f64>> {
        self.daemons.iter().map(|daemon| proc::rss_kb(daemon.id())).collect()
    }

    /// The number of HBONE connections that a pod has accepted and not closed.
    ///
    /// # Errors
    /// When its sockets can't be listed.
    pub(super) fn tunnels_to(&self, pod: &Pod) -> Result<usize> {
        let filter = format!("sport = :{HBONE_PORT}");
        let done = Launch::new("ss").args(["-Htn", "state", "established", &filter]).inside(&pod.netns).finish()?;
        ensure!(done.success, "ss failed: {}", done.stderr);
        Ok(done.stdout.lines().count())
    }
}

/// The prefix of the names of further pods.
const CROWD: &str = "crowd-";

/// The number of a further pod on its node; `None` for pods that are measured.
fn number(pod: &Pod) -> Option<usize> {
    pod.name.strip_prefix(CROWD)?.strip_prefix(&*pod.node)?.strip_prefix('-')?.parse().ok()
}

const POLICIES: &str = "policies.yaml";

/// 100 policies with 10 rules each. Only the last rule of the last policy allows the client.
fn thousand_rules() -> String {
    let mut text = String::new();
    for policy in 0..100 {
        text.push_str(&format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: policy-{policy}, namespace: {}}}\nspec:\n  rules:\n",
            crate::mesh::NAMESPACE
        ));
        for rule in 0..10 {
            let account =
                if (policy, rule) == (99, 9) { CLIENT.to_owned() } else { format!("account-{policy}-{rule}") };
            text.push_str(&format!(
                "  - from: [{{source: {{principals: [\"cluster.local/ns/{}/sa/{account}\"]}}}}]\n",
                crate::mesh::NAMESPACE
            ));
        }
    }
    text
}
