//! The kinds of work that are measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::crowd::{Crowd, SERVICE, thousands};
use super::crr::{self, Idle};
use super::proc;
use super::slow::Stuck;
use super::stage::{self, Mode, Stage};
use crate::process::Launch;
use crate::wait;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// iperf3 with this number of streams.
    Bulk(u32),
    /// wrk over this number of connections that stay open.
    Requests(u32),
    /// New connections, by this number of clients at once.
    Connections(usize),
    /// This number of idle connections.
    Idle(usize),
    /// This number of connections whose servers do not read, while the clients send as fast as they can.
    SlowReader(usize),
    /// From the start of a daemon until it is ready.
    Start,
    /// One of these tasks with a crowd.
    Scale(Crowd, Task),
}

/// A task that is measured with a crowd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// As [`Work::Start`].
    Start,
    /// From the change of one manifest until it takes effect.
    Change,
    /// As [`Work::Connections`].
    Connections,
    /// As [`Work::Bulk`], one stream.
    Bulk,
}

/// The number of clients that open connections at once.
const CLIENTS: usize = 16;

/// Whether a higher or a lower value is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Throughput.
    Higher,
    /// Latency, memory.
    Lower,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sample {
    /// The value, in the work's unit.
    pub(super) value: f64,
    /// CPU of both daemons, or of the chain's copiers, for one unit of work: seconds for each gigabyte, microseconds
    /// for each request or connection.
    pub(super) cpu_per_unit: Option<f64>,
    /// Median latency in microseconds.
    pub(super) p50_us: Option<f64>,
    /// 99th percentile of the latency in microseconds.
    pub(super) p99_us: Option<f64>,
    /// 99.9th percentile of the latency in microseconds.
    pub(super) p999_us: Option<f64>,
    /// Resident memory of the larger daemon, afterwards.
    pub(super) rss_kb: Option<f64>,
    /// Bytes that a client could send before it was blocked.
    pub(super) taken: Option<f64>,
}

impl Work {
    /// All work in the order of the table, with the modes in which it is measured.
    #[must_use]
    pub(super) fn all() -> Vec<(Self, Vec<Mode>)> {
        use Mode::{Chain, Held, Mesh, None, NoneSameNode, Plaintext, PlaintextHeld, Policy, SameNode};
        let workloads = |count, task| (Self::Scale(Crowd::Workloads(count), task), vec![Mesh]);
        // One task after the other, so that the crowd is set up only once.
        let both = |crowd| [Task::Connections, Task::Bulk].map(|task| (Self::Scale(crowd, task), vec![None, Mesh]));
        let crowds = [
            Crowd::Pods(1),
            Crowd::Pods(10),
            Crowd::Pods(100),
            Crowd::Services(1),
            Crowd::Services(100),
            Crowd::Services(10_000),
            Crowd::Connections(10),
            Crowd::Connections(10_000),
        ];
        let plain = [
            (Self::Start, vec![Mesh]),
            (Self::Idle(0), vec![Mesh]),
            (Self::Bulk(1), vec![None, Chain, Mesh, Plaintext, NoneSameNode, SameNode]),
            (Self::Bulk(8), vec![None, Chain, Mesh]),
            (Self::Requests(1), vec![None, Chain, Mesh, Policy, Plaintext, NoneSameNode, SameNode]),
            (Self::Requests(64), vec![None, Chain, Mesh, Plaintext]),
            (Self::Connections(1), vec![None, Mesh, Held, Plaintext, PlaintextHeld]),
            (
                Self::Connections(CLIENTS),
                vec![None, Chain, Mesh, Held, Policy, Plaintext, PlaintextHeld, NoneSameNode, SameNode],
            ),
            (Self::Idle(1_000), vec![Mesh]),
            (Self::Idle(10_000), vec![Mesh]),
            (Self::SlowReader(8), vec![Mesh]),
            (Self::SlowReader(64), vec![Mesh]),
        ];
        let large = [
            workloads(1_000, Task::Start),
            workloads(10_000, Task::Start),
            workloads(100_000, Task::Start),
            workloads(1_000, Task::Change),
            workloads(10_000, Task::Change),
            workloads(100_000, Task::Change),
        ];
        plain.into_iter().chain(crowds.into_iter().flat_map(both)).chain(large).collect()
    }

    /// Whether it takes minutes, and is measured only if selected by name.
    #[must_use]
    pub(super) const fn is_long(self) -> bool {
        matches!(self, Self::Scale(Crowd::Workloads(100_000), _))
    }

    /// Its name, the key in files.
    #[must_use]
    pub(super) fn name(self) -> String {
        let many = |count: u32| thousands(count as usize);
        match self {
            Self::Bulk(1) => "iperf3, 1 stream".to_owned(),
            Self::Bulk(streams) => format!("iperf3, {} streams", many(streams)),
            Self::Requests(1) => "wrk, 1 connection".to_owned(),
            Self::Requests(connections) => format!("wrk, {} connections", many(connections)),
            Self::Connections(clients) => format!("connect-request-response, {} at once", thousands(clients)),
            Self::Idle(0) => "idle".to_owned(),
            Self::Idle(connections) => format!("{} idle connections", thousands(connections)),
            Self::SlowReader(connections) => format!("slow reader, {} connections", thousands(connections)),
            Self::Start => "start to ready".to_owned(),
            Self::Scale(crowd, Task::Connections) => format!("scale: {}", crowd.name()),
            Self::Scale(crowd, Task::Bulk) => format!("scale: {}, one stream", crowd.name()),
            Self::Scale(crowd, Task::Start) => format!("scale: {}, cold start", crowd.name()),
            Self::Scale(crowd, Task::Change) => format!("scale: {}, one change", crowd.name()),
        }
    }

    /// The unit of its value.
    #[must_use]
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Bulk(_) | Self::Scale(_, Task::Bulk) => "Gbit/s",
            Self::Requests(_) => "requests/s",
            Self::Connections(_) | Self::Scale(_, Task::Connections) => "connections/s",
            Self::Idle(_) => "% CPU",
            Self::SlowReader(_) => "MB",
            Self::Start | Self::Scale(_, Task::Start | Task::Change) => "ms",
        }
    }

    /// The unit of its CPU.
    #[must_use]
    pub(super) const fn cpu_unit(self) -> &'static str {
        match self {
            Self::Bulk(_) | Self::Scale(_, Task::Bulk) => "s/GB",
            Self::Requests(_) => "us/request",
            Self::Connections(_) | Self::Scale(_, Task::Connections) => "us/connection",
            Self::Idle(_) | Self::SlowReader(_) | Self::Start | Self::Scale(_, Task::Start | Task::Change) => "",
        }
    }

    /// Whether a higher or a lower value is better.
    #[must_use]
    pub(super) const fn better(self) -> Better {
        match self {
            Self::Bulk(_)
            | Self::Requests(_)
            | Self::Connections(_)
            | Self::Scale(_, Task::Connections | Task::Bulk) => Better::Higher,
            Self::Idle(_) | Self::SlowReader(_) | Self::Start | Self::Scale(_, Task::Start | Task::Change) => {
                Better::Lower
            }
        }
    }

    /// The crowd of the measurement.
    #[must_use]
    pub(super) const fn crowd(self) -> Option<Crowd> {
        if let Self::Scale(crowd, _) = self { Some(crowd) } else { None }
    }

    /// Measures it once.
    ///
    /// # Errors
    /// When it fails, or took another path than the mode's.
    pub(super) fn measure(self, stage: &mut Stage, mode: Mode, seconds: u32) -> Result<Sample> {
        stage
            .arrange(mode, self.crowd())
            .and_then(|()| match self {
                Self::Bulk(streams) => bulk(stage, mode, None, streams, seconds),
                Self::Requests(connections) => requests(stage, mode, connections, seconds),
                Self::Connections(clients) => connections(stage, mode, None, clients, seconds),
                Self::Idle(connections) => idle(stage, mode, connections, seconds),
                Self::SlowReader(connections) => slow_reader(stage, mode, connections),
                Self::Start | Self::Scale(_, Task::Start) => start(stage),
                Self::Scale(_, Task::Change) => change(stage),
                Self::Scale(crowd, Task::Connections) => connections(stage, mode, Some(crowd), CLIENTS, seconds),
                Self::Scale(crowd, Task::Bulk) => bulk(stage, mode, Some(crowd), 1, seconds),
            })
            .with_context(|| format!("{}, {}", self.name(), mode.name()))
    }
}

/// The address to which clients connect for a server's port, with a crowd.
fn target(stage: &Stage, mode: Mode, crowd: Option<Crowd>, port: u16) -> Result<SocketAddr> {
    match crowd {
        // Without the mesh nothing translates a service's address.
        Some(Crowd::Services(_)) if mode != Mode::None => Ok(SocketAddr::new(SERVICE.parse()?, port)),
        _ => stage.target(mode, port),
    }
}

/// The live connections of a crowd.
fn others(stage: &Stage, mode: Mode, crowd: Option<Crowd>) -> Result<Idle> {
    let count = if let Some(Crowd::Connections(count)) = crowd { count } else { 0 };
    Idle::open(stage.client()?, stage.target(mode, stage::HTTP)?, count)
}

fn bulk(stage: &Stage, mode: Mode, crowd: Option<Crowd>, streams: u32, seconds: u32) -> Result<Sample> {
    let (client, target) = (stage.client()?, target(stage, mode, crowd, stage::IPERF)?);
    let others = others(stage, mode, crowd)?;
    let before = stage.used()?;
    let done = Launch::new("iperf3")
        .args(["-J", "-c", &target.ip().to_string(), "-p", &target.port().to_string()])
        .args(["-t", &seconds.to_string(), "-P", &streams.to_string()])
        .inside(&client.netns)
        .patience(wait::PATIENCE + Duration::from_secs(u64::from(seconds)))
        .finish()?;
    ensure!(done.success, "iperf3 failed: {}{}", done.stdout, done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).context("iperf3 wrote no JSON")?;
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"));
    let (bits, bytes) = (number("/end/sum_received/bits_per_second")?, number("/end/sum_received/bytes")?);
    let cpu = stage.check(mode, before, bytes)?;
    let rss_kb = Some(stage.rss_kb()?);
    others.close()?;
    stage.rest()?;
    Ok(Sample { value: bits / 1e9, cpu_per_unit: Some(cpu.as_secs_f64() / (bytes / 1e9)), rss_kb, ..Sample::default() })
}

fn requests(stage: &Stage, mode: Mode, connections: u32, seconds: u32) -> Result<Sample> {
    let (client, target) = (stage.client()?, stage.target(mode, stage::HTTP)?);
    let before = stage.used()?;
    let done = Launch::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
        .args([stage.script.as_os_str()])
        .args([format!("http://{target}/")])
        .inside(&client.netns)
        .patience(wait::PATIENCE + Duration::from_secs(u64::from(seconds)))
        .finish()?;
    ensure!(done.success, "wrk failed: {}{}", done.stdout, done.stderr);
    let line = done.stdout.lines().find_map(|line| line.strip_prefix("RESULT ")).context("wrk wrote no result")?;
    let fields = line.split(' ').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>().context("wrk's result")?;
    let &[requests, duration_us, bytes, p50, p99, p999, errors] = fields.as_slice() else {
        anyhow::bail!("wrk wrote {line}");
    };
    ensure!(errors == 0.0, "{errors} requests failed");
    let cpu = stage.check(mode, before, bytes)?;
    Ok(Sample {
        value: requests / (duration_us / 1e6),
        cpu_per_unit: Some(cpu.as_secs_f64() * 1e6 / requests),
        p50_us: Some(p50),
        p99_us: Some(p99),
        p999_us: Some(p999),
        rss_kb: Some(stage.rss_kb()?),
        ..Sample::default()
    })
}

fn connections(stage: &Stage, mode: Mode, crowd: Option<Crowd>, clients: usize, seconds: u32) -> Result<Sample> {
    let (client, target) = (stage.client()?, target(stage, mode, crowd, stage::EXCHANGE)?);
    let others = others(stage, mode, crowd)?;
    let before = stage.used()?;
    let report = crr::run(client, target, clients, Duration::from_secs(u64::from(seconds)))?;
    let done = report.latencies.len() as f64;
    let cpu = stage.check(mode, before, done * crr::MESSAGE as f64 * 2.0)?;
    let rss_kb = Some(stage.rss_kb()?);
    others.close()?;
    stage.rest()?;
    Ok(Sample {
        value: report.rate(),
        cpu_per_unit: Some(cpu.as_secs_f64() * 1e6 / done),
        p50_us: report.permille_us(500),
        p99_us: report.permille_us(990),
        p999_us: report.permille_us(999),
        rss_kb,
        ..Sample::default()
    })
}

fn idle(stage: &mut Stage, mode: Mode, connections: usize, seconds: u32) -> Result<Sample> {
    // Memory is measured: the memory of connections that have ended must not count.
    stage.renew()?;
    let (client, target) = (stage.client()?, stage.target(mode, stage::HTTP)?);
    let before = stage.used()?;
    let open = Idle::open(client, target, connections)?;
    stage.check(mode, before, open.payload())?;
    let sent = stage.used()?.connections - before.connections;
    ensure!(sent >= connections as f64, "only {sent} of {connections} connections went through tunnels");
    let all = |stage: &Stage| {
        let used = stage.daemons.iter().map(|daemon| proc::cpu(daemon.id())).collect::<Result<Vec<_>>>()?;
        Ok::<_, anyhow::Error>(used.into_iter().sum::<Duration>())
    };
    let begun = all(stage)?;
    let watched = Duration::from_secs(u64::from(seconds));
    wait::pass(watched);
    let cpu = all(stage)?.saturating_sub(begun);
    let rss_kb = stage.rss_kb()?;
    open.close()?;
    stage.rest()?;
    let value = cpu.as_secs_f64() / watched.as_secs_f64() * 100.0;
    Ok(Sample { value, rss_kb: Some(rss_kb), ..Sample::default() })
}

/// The memory that HBONE connections may use for bytes that nobody reads: the numbers of the daemon's
/// `hbone::settings`, in bytes.
mod limits {
    /// For a stream, at the server's node.
    pub(super) const STREAM_WINDOW: usize = 4 << 20;
    /// For an HBONE connection, at the server's node.
    pub(super) const CONNECTION_WINDOW: usize = 16 << 20;
    /// For a stream, at the client's node.
    pub(super) const SEND_BUFFER: usize = 256 << 10;
    /// For a daemon, whatever its connections do: copy buffers, TLS records, memory that the allocator keeps.
    pub(super) const OTHERWISE: usize = 16 << 20;
}

/// The number of bytes by which a daemon may grow.
fn allowed(streams: usize, tunnels: usize) -> usize {
    let windows = (streams * limits::STREAM_WINDOW).min(tunnels * limits::CONNECTION_WINDOW);
    windows + streams * limits::SEND_BUFFER + limits::OTHERWISE
}

fn slow_reader(stage: &mut Stage, mode: Mode, connections: usize) -> Result<Sample> {
    // Memory is measured: the memory of connections that have ended must not count.
    stage.renew()?;
    let (client, server) = (stage.client()?, stage.topology.pod(mode.server())?);
    let (rss_before, before) = (stage.rss_of_each_kb()?, stage.used()?);
    let mut stuck = Stuck::open(client, server, stage.target(mode, stage::SLOW)?, connections)?;
    stuck.fill(|| Ok(stage.used()?.tunnelled()))?;
    let (rss, tunnels, taken) = (stage.rss_of_each_kb()?, stage.tunnels_to(server)?, stuck.taken());
    let growth_kb = rss.iter().zip(&rss_before).map(|(now, before)| now - before).fold(0.0, f64::max);
    let allowed = allowed(connections, tunnels);
    ensure!(
        growth_kb * 1024.0 <= allowed as f64,
        "a daemon grew by {growth_kb} kB, more than the {} kB of {connections} streams in {tunnels} tunnel connections",
        allowed >> 10
    );
    // The blocked connection was alive: all bytes arrive once they are read.
    stuck.drain()?;
    stage.check(mode, before, taken as f64)?;
    stage.rest()?;
    Ok(Sample {
        value: growth_kb / 1024.0,
        rss_kb: Some(rss.into_iter().fold(0.0, f64::max)),
        taken: Some(taken as f64 / connections as f64),
        ..Sample::default()
    })
}

fn start(stage: &mut Stage) -> Result<Sample> {
    let daemon = stage.daemons.first_mut().context("no daemon")?;
    daemon.terminate()?;
    let begun = Instant::now();
    daemon.restart()?;
    let (value, rss_kb) = (begun.elapsed().as_secs_f64() * 1e3, proc::rss_kb(daemon.id())?);
    stage.settle()?;
    Ok(Sample { value, rss_kb: Some(rss_kb), ..Sample::default() })
}

fn change(stage: &mut Stage) -> Result<Sample> {
    let value = stage.change_one()?.as_secs_f64() * 1e3;
    let daemon = stage.daemons.first().context("no daemon")?;
    Ok(Sample { value, rss_kb: Some(proc::rss_kb(daemon.id())?), ..Sample::default() })
}
