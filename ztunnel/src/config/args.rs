//! The command line; every flag of `run` can be given as a `ZTUNNEL_*` variable as well.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::defaults;
use crate::{net::socket::Keepalive, pods::pod::PodSettings, redirect::load::MapSizes};

/// Carries the TCP of this node's labelled pods in a zero-trust mesh, steered by BPF.
#[derive(Debug, Parser)]
#[command(name = "ztunnel", version, disable_help_subcommand = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon of a node
    Run(Box<RunArgs>),
    /// Show what this machine has of what the daemon needs, and what is lost without it
    Check(CheckArgs),
    /// Release every pod that a daemon captured, when none is running any more
    Cleanup(CleanupArgs),
    /// Show the version
    Version,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What happens to connections that a pod had before it was enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Existing {
    /// They stay as they are, outside the mesh, and are counted.
    Keep,
    /// They are reset, so that they are made again, inside the mesh.
    Cut,
}

/// Flags of `run`.
#[derive(Clone, Debug, ClapArgs)]
pub struct RunArgs {
    /// Name of this node, as pods have it in spec.nodeName
    #[arg(long, env = "ZTUNNEL_NODE")]
    pub node: String,
    /// Folder of Kubernetes manifests that make the mesh; it is watched
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR")]
    pub mesh: PathBuf,
    /// Where what must survive the daemon is kept
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE)]
    pub state: PathBuf,
    /// Where BPF programs and maps are pinned; a bpffs is mounted where there is none
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
    /// Address of the admin endpoints /healthz/ready, /metrics and /config_dump
    #[arg(long, env = "ZTUNNEL_ADMIN", value_name = "ADDR", default_value = defaults::ADMIN)]
    pub admin: SocketAddr,
    /// What is logged, for example `info` or `warn,access=info`
    #[arg(long, env = "ZTUNNEL_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "ZTUNNEL_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Have the BPF programs log every decision (target ztunnel_ebpf; slow)
    #[arg(long, env = "ZTUNNEL_BPF_LOG")]
    pub bpf_log: bool,
    /// Data workers; the default follows the CPU quota
    #[arg(long, env = "ZTUNNEL_WORKERS", value_parser = clap::value_parser!(u16).range(1..=i64::from(defaults::MAX_WORKERS)))]
    pub workers: Option<u16>,
    /// Pods that can be enrolled at once; sizes the BPF maps
    #[arg(long, env = "ZTUNNEL_MAX_PODS", default_value_t = defaults::MAX_PODS, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_pods: u32,
    /// Addresses, excluded ports and excluded CIDRs, each, that a pod has on the average; sizes the BPF maps
    #[arg(long, env = "ZTUNNEL_ENTRIES_PER_POD", default_value_t = defaults::ENTRIES_PER_POD, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub entries_per_pod: u32,
    /// Connections that one pod may have open; more wait to be accepted
    #[arg(long, env = "ZTUNNEL_MAX_CONNECTIONS_PER_POD", default_value_t = defaults::MAX_CONNECTIONS_PER_POD)]
    pub max_connections_per_pod: usize,
    /// Connections of a pod from before its enrolment
    #[arg(long, env = "ZTUNNEL_EXISTING_CONNECTIONS", value_enum, default_value = "keep")]
    pub existing_connections: Existing,
    /// Seconds after which a connect fails
    #[arg(long, env = "ZTUNNEL_CONNECT_TIMEOUT", default_value_t = defaults::CONNECT_TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub connect_timeout: u64,
    /// Seconds that open connections get to end when the daemon is told to stop
    #[arg(long, env = "ZTUNNEL_DRAIN_TIMEOUT", default_value_t = defaults::DRAIN_TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub drain_timeout: u64,
    /// Seconds of silence before a peer is probed
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_IDLE", default_value_t = defaults::KEEPALIVE_IDLE_SECONDS, value_parser = clap::value_parser!(u64).range(1..=32_767))]
    pub keepalive_idle: u64,
    /// Seconds between probes
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_INTERVAL", default_value_t = defaults::KEEPALIVE_INTERVAL_SECONDS, value_parser = clap::value_parser!(u64).range(1..=32_767))]
    pub keepalive_interval: u64,
    /// Probes without an answer after which a peer is given up
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_PROBES", default_value_t = defaults::KEEPALIVE_PROBES, value_parser = clap::value_parser!(u32).range(1..=127))]
    pub keepalive_probes: u32,
    /// Bytes of a copy buffer
    #[arg(long, env = "ZTUNNEL_BUFFER_BYTES", default_value_t = defaults::BUFFER_BYTES)]
    pub buffer_bytes: usize,
}

/// Flags of `check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Where BPF programs and maps would be pinned
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
}

/// Flags of `cleanup`.
#[derive(Debug, ClapArgs)]
pub struct CleanupArgs {
    /// As the daemon had it
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE)]
    pub state: PathBuf,
    /// As the daemon had it
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
}

impl RunArgs {
    /// How many data workers: as told, or as many as the CPU quota has.
    #[must_use]
    pub fn worker_count(&self) -> u16 {
        let quota =
            || std::thread::available_parallelism().map_or(1, |cpus| u16::try_from(cpus.get()).unwrap_or(u16::MAX));
        self.workers.unwrap_or_else(quota).clamp(1, defaults::MAX_WORKERS)
    }

    /// Sizes of the BPF maps.
    #[must_use]
    pub fn map_sizes(&self) -> MapSizes {
        MapSizes { pods: self.max_pods, per_pod: self.entries_per_pod, workers: u32::from(defaults::MAX_WORKERS) }
    }

    /// When a silent peer is given up.
    #[must_use]
    pub fn keepalive(&self) -> Keepalive {
        Keepalive {
            idle: Duration::from_secs(self.keepalive_idle),
            interval: Duration::from_secs(self.keepalive_interval),
            probes: self.keepalive_probes,
        }
    }

    /// How pods are set up.
    #[must_use]
    pub fn pod_settings(&self) -> PodSettings {
        PodSettings {
            connect_timeout: Duration::from_secs(self.connect_timeout),
            keepalive: self.keepalive(),
            backlog: defaults::BACKLOG,
            connections: self.max_connections_per_pod.max(1),
            cut_existing: self.existing_connections == Existing::Cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Command};
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_has_its_variable() {
        let command = Args::command();
        let run = command.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
            let expected = format!("ZTUNNEL_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in ["--workers=0", "--workers=33", "--max-pods=0", "--connect-timeout=0", "--admin=nowhere"] {
            let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", bad]);
            assert!(args.is_err(), "{bad}");
        }
        let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m"]).unwrap();
        assert!(matches!(args.command, Command::Run(run) if run.worker_count() >= 1));
    }
}
