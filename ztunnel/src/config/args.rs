//! The command line; every flag of `run` can be given as a `ZTUNNEL_*` variable as well.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser};

use super::defaults;
use crate::{
    flow::admission::Limits,
    hbone,
    model::{
        identity::{SpiffeId, TrustDomain},
        name::check_name,
    },
    net::{memory::Budget, open::Resources, socket::Keepalive},
    pods::pod::PodSettings,
    redirect::{kubelet::KubeletCgroup, load::MapSizes},
    tls,
};

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
    /// Make, show or use the certificate authority of a directory
    #[command(subcommand)]
    Ca(CaCommand),
    /// Explain where a connection would go, whether it may, and what would change that: exit code 0 if it may, 3 if it may
    /// not, 2 if that can't be told
    Explain(ExplainArgs),
    /// Find what is wrong, or likely not meant, in a folder of manifests: exit code 1 if something is an error
    Analyze(AnalyzeArgs),
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

/// What happens to connections in a tunnel when a certificate of its two ends expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpiredPeers {
    /// They come to their end; the tunnel takes no more.
    Drain,
    /// They are reset.
    Cut,
}

/// Flags of `run`.
#[derive(Clone, Debug, ClapArgs)]
pub struct RunArgs {
    /// Name of this node, as pods have it in spec.nodeName
    #[arg(long, env = "ZTUNNEL_NODE", value_parser = node_name)]
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
    /// Accept a --bpf-pin on a BPF file system that only this daemon has mounted: captured pods are open when it ends
    #[arg(long, env = "ZTUNNEL_BPF_PIN_PRIVATE")]
    pub bpf_pin_private: bool,
    /// Folder of the certificate authority, in the layout of Istio's secret `cacerts`; made when it is empty. The nodes of a
    /// mesh share one. The default is `ca` in the state directory, which only this node trusts
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR", conflicts_with = "cert_dir")]
    pub ca_dir: Option<PathBuf>,
    /// Folder of ready certificates, instead of an authority
    #[arg(long, env = "ZTUNNEL_CERT_DIR", value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Cgroup of the kubelet, from the root of cgroup v2, for example /system.slice/kubelet.service: whose probes get through
    /// whatever policy says, if it has uid 0. The default is every cgroup that is not that of a pod or another container
    #[arg(long, env = "ZTUNNEL_KUBELET_CGROUP", value_name = "PATH")]
    pub kubelet_cgroup: Option<KubeletCgroup>,
    /// Trust domain of the mesh's identities
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Name of this cluster, in telemetry and towards peers
    #[arg(long, env = "ZTUNNEL_CLUSTER_ID", value_name = "NAME", default_value = defaults::CLUSTER_ID)]
    pub cluster_id: String,
    /// Seconds that a workload's certificate is valid; it is renewed at half of that
    #[arg(long, env = "ZTUNNEL_CERT_TTL", value_name = "SECONDS", default_value_t = defaults::CERT_TTL_SECONDS, value_parser = clap::value_parser!(u64).range(2..=31_536_000))]
    pub cert_ttl: u64,
    /// Connections in a tunnel when a certificate of its two ends expires
    #[arg(long, env = "ZTUNNEL_EXPIRED_PEERS", value_enum, default_value = "drain")]
    pub expired_peers: ExpiredPeers,
    /// Address of /metrics for Prometheus; every address of the node, unless told otherwise
    #[arg(long, env = "ZTUNNEL_METRICS", value_name = "ADDR", default_value = defaults::METRICS)]
    pub metrics: SocketAddr,
    /// Address of /healthz/ready for the kubelet
    #[arg(long, env = "ZTUNNEL_READINESS", value_name = "ADDR", default_value = defaults::READINESS)]
    pub readiness: SocketAddr,
    /// Address of the admin endpoints: /config_dump, and the others as well
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
    #[arg(long, env = "ZTUNNEL_MAX_CONNECTIONS_PER_POD", default_value_t = defaults::MAX_CONNECTIONS_PER_POD, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576))]
    pub max_connections_per_pod: usize,
    /// Bytes that buffers and the windows of tunnels may take, over all pods; the default is half of what the daemon's cgroup,
    /// or else the machine, has
    #[arg(long, env = "ZTUNNEL_MEMORY_BUDGET", value_name = "BYTES", value_parser = RangedU64ValueParser::<usize>::new().range(16_777_216..))]
    pub memory_budget: Option<usize>,
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
    #[arg(long, env = "ZTUNNEL_BUFFER_BYTES", default_value_t = defaults::BUFFER_BYTES, value_parser = RangedU64ValueParser::<usize>::new().range(1_024..=16_777_216))]
    pub buffer_bytes: usize,
    /// Seconds that a TLS handshake may take
    #[arg(long, env = "ZTUNNEL_HANDSHAKE_TIMEOUT", value_name = "SECONDS", default_value_t = defaults::HANDSHAKE_TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub handshake_timeout: u64,
    /// INSECURE: append the keys of every TLS connection to this file, so that captured traffic can be decrypted
    #[arg(long, env = "ZTUNNEL_TLS_KEY_LOG", value_name = "FILE")]
    pub tls_key_log: Option<PathBuf>,
    /// HTTP/2: bytes that a stream may have unread
    #[arg(long, env = "ZTUNNEL_HBONE_STREAM_WINDOW", value_name = "BYTES", default_value_t = defaults::HBONE_STREAM_WINDOW, value_parser = clap::value_parser!(u32).range(65_535..=MAX_WINDOW))]
    pub hbone_stream_window: u32,
    /// HTTP/2: bytes that a connection may have unread, over all of its streams
    #[arg(long, env = "ZTUNNEL_HBONE_CONNECTION_WINDOW", value_name = "BYTES", default_value_t = defaults::HBONE_CONNECTION_WINDOW, value_parser = clap::value_parser!(u32).range(65_535..=MAX_WINDOW))]
    pub hbone_connection_window: u32,
    /// HTTP/2: bytes of the largest frame that is taken
    #[arg(long, env = "ZTUNNEL_HBONE_FRAME_SIZE", value_name = "BYTES", default_value_t = defaults::HBONE_FRAME_SIZE, value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    pub hbone_frame_size: u32,
    /// HTTP/2: streams that a peer may have open on one connection
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_STREAMS", value_name = "N", default_value_t = defaults::HBONE_MAX_STREAMS, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hbone_max_streams: u32,
    /// Streams that this node opens on one connection before it makes another
    #[arg(long, env = "ZTUNNEL_HBONE_STREAMS_PER_CONNECTION", value_name = "N", default_value_t = defaults::HBONE_STREAMS_PER_CONNECTION, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub hbone_streams_per_connection: u32,
    /// Seconds of silence before a tunnel's peer is pinged
    #[arg(long, env = "ZTUNNEL_HBONE_PING_INTERVAL", value_name = "SECONDS", default_value_t = defaults::HBONE_PING_INTERVAL_SECONDS, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub hbone_ping_interval: u64,
    /// Seconds after a ping without an answer when the peer is given up
    #[arg(long, env = "ZTUNNEL_HBONE_PING_TIMEOUT", value_name = "SECONDS", default_value_t = defaults::HBONE_PING_TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub hbone_ping_timeout: u64,
    /// Seconds after which a tunnel without a stream is closed
    #[arg(long, env = "ZTUNNEL_HBONE_IDLE", value_name = "SECONDS", default_value_t = defaults::HBONE_IDLE_SECONDS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub hbone_idle: u64,
    /// Tunnels to one pod that may be open; more are refused
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_CONNECTIONS", value_name = "N", default_value_t = defaults::HBONE_MAX_CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..))]
    pub hbone_max_connections: u32,
    /// Of them, those from one client address
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_CONNECTIONS_PER_PEER", value_name = "N", default_value_t = defaults::HBONE_MAX_CONNECTIONS_PER_PEER, value_parser = clap::value_parser!(u32).range(1..))]
    pub hbone_max_connections_per_peer: u32,
    /// Handshakes with one pod that may be pending; more are refused
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_HANDSHAKES", value_name = "N", default_value_t = defaults::HBONE_MAX_HANDSHAKES, value_parser = clap::value_parser!(u32).range(1..))]
    pub hbone_max_handshakes: u32,
    /// Of them, those from one client address
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_HANDSHAKES_PER_PEER", value_name = "N", default_value_t = defaults::HBONE_MAX_HANDSHAKES_PER_PEER, value_parser = clap::value_parser!(u32).range(1..))]
    pub hbone_max_handshakes_per_peer: u32,
}

/// A daemon whose name no node can have would be ready, and capture nothing.
fn node_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| {
        format!("{error}; set --node to the name of this node as `kubectl get nodes` shows it and pods have it in spec.nodeName")
    })
}

/// The largest window of HTTP/2.
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Flags of `check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Name of this node, to be looked up in the mesh
    #[arg(long, env = "ZTUNNEL_NODE", value_parser = node_name)]
    pub node: Option<String>,
    /// Folder of Kubernetes manifests that make the mesh
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
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

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of `explain`.
#[derive(Debug, ClapArgs)]
pub struct ExplainArgs {
    /// Folder of Kubernetes manifests that make the mesh
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR", required_unless_present = "admin")]
    pub mesh: Option<PathBuf>,
    /// Ask the daemon whose admin endpoints are there, instead of reading manifests
    #[arg(long, value_name = "ADDR", conflicts_with = "mesh")]
    pub admin: Option<SocketAddr>,
    /// Who connects: a pod, an identity (spiffe://…), or an address
    #[arg(long, value_name = "NAMESPACE/POD|SPIFFE-ID|IP")]
    pub from: String,
    /// Where to: a pod, a service, or an address; `pod:` or `service:` before it tells two of one name apart
    #[arg(long, value_name = "NAMESPACE/POD|NAMESPACE/SERVICE|IP")]
    pub to: String,
    /// To which TCP port of it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Trust domain of the mesh's identities, where manifests are read
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// How it is printed
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `analyze`.
#[derive(Debug, ClapArgs)]
pub struct AnalyzeArgs {
    /// Folder of Kubernetes manifests that make the mesh
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR")]
    pub mesh: PathBuf,
    /// Trust domain of the mesh's identities
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// How it is printed
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// What to do with a CA.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a CA in a directory that is empty or not there yet
    Init(CaInitArgs),
    /// Show the CA, and what is wrong with it
    Show(CaShowArgs),
    /// Sign a certificate for one identity, with a new key
    Issue(CaIssueArgs),
}

/// Flags of `ca init`.
#[derive(Debug, ClapArgs)]
pub struct CaInitArgs {
    /// Directory of the CA, laid out as Istio's secret `cacerts`
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Whose workloads it will sign; it becomes part of the CA's name
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// Days that the CA is valid
    #[arg(long, value_name = "N", default_value_t = defaults::CA_TTL_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub ttl_days: u32,
}

/// Flags of `ca show`.
#[derive(Debug, ClapArgs)]
pub struct CaShowArgs {
    /// Directory of the CA
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
}

/// Flags of `ca issue`.
#[derive(Debug, ClapArgs)]
pub struct CaIssueArgs {
    /// Directory of the CA
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Whose certificate: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
    #[arg(long, value_name = "SPIFFE-ID")]
    pub identity: SpiffeId,
    /// Where cert-chain.pem, key.pem and root-cert.pem go, as --cert-dir wants them; the default is standard output
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seconds that the certificate is valid, unless the CA ends before
    #[arg(long, value_name = "SECONDS", default_value_t = defaults::CERT_TTL_SECONDS, value_parser = clap::value_parser!(u64).range(1..=315_360_000))]
    pub ttl: u64,
    /// Replace files that are there
    #[arg(long, requires = "out")]
    pub force: bool,
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

    /// HTTP/2 of the tunnels.
    #[must_use]
    pub fn hbone_settings(&self) -> hbone::Settings {
        hbone::Settings {
            stream_window: self.hbone_stream_window,
            connection_window: self.hbone_connection_window,
            frame_size: self.hbone_frame_size,
            max_streams: self.hbone_max_streams,
            streams_per_connection: self.hbone_streams_per_connection as usize,
            ping_interval: Duration::from_secs(self.hbone_ping_interval),
            ping_timeout: Duration::from_secs(self.hbone_ping_timeout),
            idle_release: Duration::from_secs(self.hbone_idle),
            // The peer may need as long for its application as this node for one of its own.
            response_timeout: Duration::from_secs(self.connect_timeout + 5),
            ..hbone::Settings::default()
        }
    }

    /// How many tunnels a pod takes.
    #[must_use]
    pub fn tunnel_limits(&self) -> Limits {
        Limits {
            connections: self.hbone_max_connections,
            connections_per_peer: self.hbone_max_connections_per_peer,
            handshakes: self.hbone_max_handshakes,
            handshakes_per_peer: self.hbone_max_handshakes_per_peer,
        }
    }

    /// How pods are set up, given how tunnels are secured, and what memory, descriptors and sockets there are.
    #[must_use]
    pub fn pod_settings(&self, tls: tls::Settings, memory: Budget, open: Resources) -> PodSettings {
        let most = u32::try_from(open.connections).unwrap_or(u32::MAX);
        let tunnels = self.tunnel_limits();
        PodSettings {
            connect_timeout: Duration::from_secs(self.connect_timeout),
            backlog: defaults::BACKLOG,
            open,
            cut_existing: self.existing_connections == Existing::Cut,
            // Each has a descriptor.
            tunnels: Limits {
                connections: tunnels.connections.min(most),
                handshakes: tunnels.handshakes.min(most.div_ceil(2)),
                ..tunnels
            },
            tls,
            memory,
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
    fn be_ready_under_a_name_that_no_node_can_have() {
        for bad in ["", "nodeA", "node_a", "-node", "node/a", "node a"] {
            let error =
                Args::try_parse_from(["ztunnel", "run", "--mesh=m", &format!("--node={bad}")]).unwrap_err().to_string();
            assert!(error.contains("--node") && error.contains("spec.nodeName"), "{bad:?}: {error}");
        }
        for good in ["node-a", "ip-10-0-0-1.eu.internal", "7"] {
            assert!(Args::try_parse_from(["ztunnel", "run", "--mesh=m", "--node", good]).is_ok(), "{good}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in [
            "--workers=0",
            "--workers=33",
            "--max-pods=0",
            "--connect-timeout=0",
            "--admin=nowhere",
            "--max-connections-per-pod=0",
            "--buffer-bytes=0",
            "--memory-budget=1000",
            // Allocating it would panic in a worker.
            "--buffer-bytes=18446744073709551615",
            "--hbone-max-handshakes=0",
            "--hbone-stream-window=65534",
            "--trust-domain=no_domain/",
            "--kubelet-cgroup=kubelet",
        ] {
            let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", bad]);
            assert!(args.is_err(), "{bad}");
        }
        let both = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", "--ca-dir=a", "--cert-dir=b"]);
        assert!(both.is_err());
        let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m"]).unwrap();
        assert!(matches!(args.command, Command::Run(run) if run.worker_count() >= 1));
    }
}
