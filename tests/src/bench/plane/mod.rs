//! The cost of a control plane: 500 streams of nodes, 50,000 workloads, 100 changes of pods a second.
//!
//! The control plane is `ztunnel control-plane --kubernetes`, as it is shipped. The API server is a small one in this program: it has the
//! pods, and sends their changes. The streams use the real protocol over TLS. Each is of a node of its own with a token of its own, and
//! stores nothing. One real daemon beside them shows the cost at a node.

mod api;
mod client;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use self::api::Api;
use self::client::{Clients, Wish};
use super::{proc, say};
use crate::ca::Authority;
use crate::daemon::{Daemon, DaemonOptions, Remote, ca_folder};
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::topology::{TWO_NODES, Topology};
use crate::{admin, requirements, wait};

/// The port to which nodes connect.
const PORT: u16 = 15012;
/// The node of the real daemon.
const NODE: &str = "node-b";
/// Deadline for the control plane to be ready, and for all streams to be synchronised.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pods that a stream asks for on demand: its own, and those to which their connections go.
const ON_DEMAND: usize = 200;

/// Distance from one pod that changes to the next. It is a prime number, so no pod changes twice.
const STEP: usize = 7919;

/// Settings of a measurement.
#[derive(Debug, Clone)]
pub struct PlaneBench {
    /// Streams of nodes.
    pub streams: usize,
    /// Workloads.
    pub workloads: usize,
    /// Number of pods that change in a second.
    pub changes: u32,
    /// Duration of each measurement, in seconds.
    pub seconds: u32,
    /// File for the figures as JSON.
    pub json: Option<PathBuf>,
    /// The program.
    pub ztunnel: PathBuf,
}

/// The part of the mesh that the streams ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Wildcard,
    OnDemand,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Wildcard => "wildcard",
            Self::OnDemand => "on-demand",
        }
    }
}

/// The figures of one mode.
#[derive(Debug)]
struct Figures {
    mode: Mode,
    /// From the first connection until every stream has everything.
    synced: Duration,
    /// Number of changes.
    changes: usize,
    /// Number of changes that streams were told of, over all streams.
    told: usize,
    /// Time from the event of the API server to the client, in microseconds, sorted.
    latencies: Vec<u32>,
    /// Number of processors that the control plane used.
    server_cpu: f64,
    server_kb: f64,
    /// Its highest memory since its start.
    server_peak_kb: f64,
    /// Bytes a second over all streams.
    bytes: f64,
    responses: f64,
    /// Number of processors that all clients and the API server used.
    clients_cpu: f64,
    daemon_cpu: f64,
    daemon_kb: f64,
}

/// Measures, and prints the table.
///
/// # Errors
/// When something fails, or a stream is not told of a change.
pub fn run(options: &PlaneBench) -> Result<()> {
    requirements::check()?;
    ensure!(options.ztunnel.is_file(), "{} is no file: build the daemon first", options.ztunnel.display());
    let total = options.changes as usize * options.seconds as usize;
    ensure!(
        total <= options.workloads && !options.workloads.is_multiple_of(STEP),
        "{total} changes are more than {} workloads: each changes once",
        options.workloads
    );
    let mut all = Vec::new();
    for mode in [Mode::Wildcard, Mode::OnDemand] {
        let figures = measure(options, mode)?;
        say(&format!("{}: {}", mode.name(), figures.short()))?;
        all.push(figures);
    }
    let machine = proc::machine();
    let PlaneBench { streams, workloads, changes, seconds, .. } = options;
    say(&format!(
        "{machine}; {streams} streams, {workloads} workloads, {changes} changes a second for {seconds} s\n{}",
        table(&all)
    ))?;
    if let Some(path) = &options.json {
        let rows: Vec<Value> = all.iter().map(Figures::json).collect();
        let figures =
            json!({"machine": machine, "streams": streams, "workloads": workloads, "changes": changes, "rows": rows});
        fs::write(path, format!("{figures:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One control plane, its API server and its streams.
struct Stage {
    topology: Topology,
    server: Process,
    address: SocketAddr,
    log: PathBuf,
    tokens: PathBuf,
}

impl Stage {
    fn start(options: &PlaneBench, api: SocketAddr, topology: Topology) -> Result<Self> {
        let node = topology.node("node-a")?;
        let (folder, address) = (topology.folder.clone(), SocketAddr::new(node.v4().into(), PORT));
        Authority::create(&ca_folder(&topology))?;
        let (tokens, log) = (folder.join("tokens"), folder.join("control-plane.log"));
        fs::create_dir_all(&tokens)?;
        for name in (0..options.streams).map(client::node).chain([NODE.to_owned()]) {
            let path = tokens.join(&name);
            fs::write(&path, client::token(&name))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        }
        let kubeconfig = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&kubeconfig, config.to_string())?;
        let places = (options.streams + 16).to_string();
        let server = Launch::new(&options.ztunnel.display().to_string())
            .args(["control-plane", "--listen", &address.to_string(), "--serving-name", &address.ip().to_string()])
            .args(["--kubernetes".as_ref(), "--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .args(["--ca-dir".as_ref(), ca_folder(&topology).as_os_str()])
            .args(["--node-tokens".as_ref(), tokens.as_os_str()])
            .args(["--max-connections-per-address", &places, "--drain-timeout", "0"])
            .inside(&Netns::existing(node.netns.name()))
            .log_to(&log)
            .start()?;
        Ok(Self { topology, server, address, log, tokens })
    }

    fn until_ready(&mut self) -> Result<()> {
        let netns = Netns::existing(self.topology.node("node-a")?.netns.name());
        let ready = wait::until_true("the control plane to have all workloads", PATIENCE, || {
            if let Some(status) = self.server.ended()? {
                bail!("it ended: {status}");
            }
            let answer = admin::get_from(&netns, "127.0.0.1:15022", "/healthz/ready");
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        });
        ready.with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// A real daemon, on the other node.
    fn daemon(&self, options: &PlaneBench, mode: Mode) -> Result<Daemon> {
        let own = Mesh::new(&self.topology.folder.join("pods"))?;
        let remote = Remote {
            url: format!("https://{}", self.address),
            roots: ca_folder(&self.topology).join("root-cert.pem"),
            token: self.tokens.join(NODE),
            pods: own.folder().to_owned(),
        };
        let arguments = ["--control-plane-mode".to_owned(), mode.name().to_owned()];
        let options = DaemonOptions {
            control_plane: Some(remote),
            arguments: arguments.into(),
            patience: PATIENCE,
            ..DaemonOptions::new(options.ztunnel.clone())
        };
        Daemon::start(&self.topology, NODE, &own, options)
    }
}

fn measure(options: &PlaneBench, mode: Mode) -> Result<Figures> {
    let topology = Topology::new(TWO_NODES)?;
    let netns = Netns::existing(topology.node("node-a")?.netns.name());
    netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure_inside(options, mode, topology))
    })?
}

async fn measure_inside(options: &PlaneBench, mode: Mode, topology: Topology) -> Result<Figures> {
    let api = Api::start(options.workloads, NODE).await?;
    let mut stage = Stage::start(options, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), api.port()), topology)?;
    // The wait blocks its thread, and the API server must answer meanwhile.
    let mut stage = blocking(move || stage.until_ready().map(|()| stage)).await?;
    let roots = fs::read(ca_folder(&stage.topology).join("root-cert.pem"))?;
    let wish = match mode {
        Mode::Wildcard => Wish::Everything { workloads: options.workloads },
        Mode::OnDemand => Wish::Names { count: ON_DEMAND.min(options.workloads) },
    };
    let begin = Instant::now();
    let clients = Clients::start(stage.address, &roots, options.streams, wish, Arc::clone(&api)).await?;
    clients.synced(PATIENCE).await?;
    let synced = begin.elapsed();
    let (daemon, stage_back) = {
        let options = options.clone();
        blocking(move || Ok((stage.daemon(&options, mode)?, stage))).await?
    };
    stage = stage_back;

    let server = stage.server.id();
    let (own, before) = (std::process::id(), Instant::now());
    let cpu = || Ok::<_, anyhow::Error>([proc::cpu(server)?, proc::cpu(daemon.id())?, proc::cpu(own)?]);
    let (cpu_before, counts) = (cpu()?, clients.counts());
    let total = options.changes * options.seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.changes.max(1));
    for number in 0..total {
        ticks.tick().await;
        // Each pod once, all over the mesh.
        api.change(number as usize * STEP % options.workloads);
    }
    let took = before.elapsed().as_secs_f64();
    let used: Vec<f64> = cpu()?.iter().zip(cpu_before).map(|(now, then)| (*now - then).as_secs_f64() / took).collect();
    let told = clients.counts();
    // Changes that are still on their way count as well.
    clients.told_of(&api, Duration::from_secs(30)).await?;
    let mut latencies = clients.latencies();
    latencies.sort_unstable();
    let [server_cpu, daemon_cpu, clients_cpu] = used.as_slice() else { bail!("no CPU times") };
    let figures = Figures {
        mode,
        synced,
        changes: total as usize,
        told: latencies.len(),
        latencies,
        server_cpu: *server_cpu,
        server_kb: proc::rss_kb(server)?,
        server_peak_kb: proc::peak_kb(server)?,
        bytes: (told.bytes - counts.bytes) as f64 / took,
        responses: (told.responses - counts.responses) as f64 / took,
        clients_cpu: *clients_cpu,
        daemon_cpu: *daemon_cpu,
        daemon_kb: proc::rss_kb(daemon.id())?,
    };
    drop(clients);
    blocking(move || {
        drop((daemon, stage));
        Ok(())
    })
    .await?;
    Ok(figures)
}

/// Runs a function that blocks, on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("it panicked")?
}

impl Figures {
    /// A latency in milliseconds, of this part of all.
    fn quantile(&self, part: f64) -> f64 {
        let index = (self.latencies.len() as f64 * part) as usize;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(index.min(last)).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }

    fn short(&self) -> String {
        format!("p50 {:.1} ms, p99 {:.1} ms, {} deliveries", self.quantile(0.5), self.quantile(0.99), self.told)
    }

    fn json(&self) -> Value {
        json!({
            "mode": self.mode.name(), "synced_ms": self.synced.as_millis() as u64, "changes": self.changes, "deliveries": self.told,
            "p50_ms": self.quantile(0.5), "p99_ms": self.quantile(0.99), "most_ms": self.quantile(1.0),
            "server_cpu": self.server_cpu, "server_rss_kb": self.server_kb, "server_peak_rss_kb": self.server_peak_kb,
            "bytes_per_second": self.bytes, "responses_per_second": self.responses, "clients_cpu": self.clients_cpu,
            "daemon_cpu": self.daemon_cpu, "daemon_rss_kb": self.daemon_kb,
        })
    }
}

fn table(all: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "mode",
        "all streams synced",
        "deliveries",
        "p50 / p99 / most ms",
        "server CPU",
        "server RSS (most) MB",
        "sent MB/s, responses/s",
        "streams' CPU",
        "daemon CPU, RSS MB",
    ]);
    for figures in all {
        let quantiles = [0.5, 0.99, 1.0].map(|part| format!("{:.1}", figures.quantile(part)));
        table.add_row([
            figures.mode.name().to_owned(),
            format!("{:.1} s", figures.synced.as_secs_f64()),
            format!("{} of {} changes", figures.told, figures.changes),
            quantiles.join(" / "),
            format!("{:.0} %", figures.server_cpu * 100.0),
            format!("{:.0} ({:.0})", figures.server_kb / 1000.0, figures.server_peak_kb / 1000.0),
            format!("{:.1}, {:.0}", figures.bytes / 1e6, figures.responses),
            format!("{:.0} %", figures.clients_cpu * 100.0),
            format!("{:.1} %, {:.0}", figures.daemon_cpu * 100.0, figures.daemon_kb / 1000.0),
        ]);
    }
    table.to_string()
}

/// The settings of `cargo xtask bench control-plane`.
#[must_use]
pub fn of(ztunnel: &Path) -> PlaneBench {
    PlaneBench { streams: 500, workloads: 50_000, changes: 100, seconds: 30, json: None, ztunnel: ztunnel.to_owned() }
}
