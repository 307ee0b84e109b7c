//! The command line: the commands, and the flags of `run`. Every flag of `run` can also be given as a `ZTUNNEL_*` variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser};

pub use super::log::LogFormat;
use super::{
    cni::{InstallArgs, PluginArgs},
    commands::{AnalyzeArgs, CaCommand, CheckArgs, CleanupArgs, ExplainArgs, ReadyArgs, Shell, VersionArgs},
    control_plane::ControlPlaneArgs,
    defaults,
    live::LiveCommand,
    names::node_name,
    remote::RemoteArgs,
    units::{Bytes, Seconds, address, within},
    version,
};
use crate::{
    control::remote::ControlPlane,
    flow::admission::Limits,
    hbone,
    model::{identity::TrustDomain, local::ConnectMode},
    net::{listen::DeafPods, memory::Budget, open::Resources, socket::Keepalive},
    pods::pod::PodSettings,
    redirect::{kubelet::KubeletCgroup, load::MapSizes},
    tls,
};

/// The node daemon of a zero-trust mesh: BPF programs steer the TCP of labelled pods to it, and it carries their connections
/// in mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "ztunnel", version = version::SHORT, long_version = version::long(), disable_help_subcommand = true)]
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
    /// Run a control plane: serve a mesh to the daemons of its nodes, and certificates to the pods on them
    ControlPlane(Box<ControlPlaneArgs>),
    /// Check whether this machine meets the requirements of the daemon, and report the effect of each that is missing
    Check(CheckArgs),
    /// Release all pods that a daemon has captured; no daemon may be running
    Cleanup(CleanupArgs),
    /// Work as a CNI plugin, which a container runtime starts with the variables of the CNI specification
    ///
    /// A program with the name ztunnel-cni does this without a command. Exit code: 0 if the pod may start, 1 if it may not.
    Cni(PluginArgs),
    /// Tell whether the daemon of this container serves the node, for a startup probe
    ///
    /// Exit code: 0 if it does, 1 if it does not (yet) or if another one does. For the process of the daemon to be visible, the container
    /// shares the PID namespace of the node.
    Ready(ReadyArgs),
    /// Create, show or use a certificate authority
    #[command(subcommand)]
    Ca(CaCommand),
    /// Explain where a connection would go, whether it is allowed, and what would change that
    ///
    /// Exit code: 0 if the connection is allowed, 3 if it is denied or fails, 2 if the question cannot be answered.
    Explain(ExplainArgs),
    /// Find mistakes in Kubernetes manifests
    ///
    /// Reads the files that are given, and folders with all folders below them. Exit code: 0 if there is no finding as severe as
    /// --fail-on says, 1 if there is one, 2 if the manifests cannot be read or there are none.
    Analyze(AnalyzeArgs),
    /// A command that asks a running daemon, or a control plane.
    #[command(flatten)]
    Live(LiveCommand),
    /// Show version, commit and BPF layout
    Version(VersionArgs),
    /// Print a script that completes commands and flags in a shell
    ///
    /// For bash: `source <(ztunnel completions bash)`.
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// Directory for the pages; it is created if it does not exist
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// What happens to connections that a pod had before it was enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Existing {
    /// They stay as they are, outside of the mesh, and are counted.
    Keep,
    /// They are reset, so that the application opens them again, inside the mesh.
    Cut,
}

/// When the connect of an application in a pod succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Connect {
    /// At once; the connection is reset later if its destination can't be reached.
    Early,
    /// When the destination is reached; otherwise it fails as it would without the mesh.
    Held,
}

impl From<Connect> for ConnectMode {
    fn from(connect: Connect) -> Self {
        match connect {
            Connect::Early => Self::Early,
            Connect::Held => Self::Held,
        }
    }
}

/// What happens to the connections in a tunnel when a certificate of its two ends expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpiredPeers {
    /// They may end by themselves; the tunnel accepts no more.
    Drain,
    /// They are reset.
    Cut,
}

/// Flags of `run`.
#[derive(Clone, Debug, ClapArgs)]
pub struct RunArgs {
    /// Name of this node, as pods have it in spec.nodeName
    #[arg(long, env = "ZTUNNEL_NODE", value_name = "NAME", value_parser = node_name, help_heading = MESH)]
    pub node: String,
    /// Folder with the Kubernetes manifests of the mesh; the daemon watches it
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR", required_unless_present = "control_plane", help_heading = MESH)]
    pub mesh: Option<PathBuf>,
    /// Name of this cluster in telemetry and in the headers that peers receive
    #[arg(long, env = "ZTUNNEL_CLUSTER_ID", value_name = "NAME", default_value = defaults::CLUSTER_ID, help_heading = MESH)]
    pub cluster_id: String,
    /// Connections that a pod had before it was enrolled
    #[arg(long, env = "ZTUNNEL_EXISTING_CONNECTIONS", value_enum, default_value = "keep", help_heading = MESH)]
    pub existing_connections: Existing,
    /// When the connect of an application in a pod succeeds; a pod's annotation traffic.ambient.mesh/connect comes first. A kernel
    /// without BPF links to devices (Linux 6.6) cannot hold connects
    #[arg(long, env = "ZTUNNEL_CONNECT", value_enum, default_value = "early", help_heading = MESH)]
    pub connect: Connect,
    /// Cgroup of the kubelet, from the root of cgroup v2, for example /system.slice/kubelet.service: health probes of processes in
    /// it with uid 0 are accepted whatever the policies say. Default: every cgroup that belongs to no pod and no other container
    #[arg(long, env = "ZTUNNEL_KUBELET_CGROUP", value_name = "PATH", help_heading = MESH)]
    pub kubelet_cgroup: Option<KubeletCgroup>,

    /// Where mesh and certificates come from, in place of manifests.
    #[command(flatten)]
    pub plane: RemoteArgs,

    /// The CNI plugin.
    #[command(flatten)]
    pub cni: InstallArgs,

    /// Directory for state that must survive the daemon
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE, help_heading = FILES)]
    pub state: PathBuf,
    /// Directory in which BPF programs and maps are pinned; a BPF file system is mounted if there is none
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN, help_heading = FILES)]
    pub bpf_pin: PathBuf,
    /// Accept a --bpf-pin on a BPF file system that only this daemon has mounted: captured pods are open when the daemon ends
    #[arg(long, env = "ZTUNNEL_BPF_PIN_PRIVATE", help_heading = FILES)]
    pub bpf_pin_private: bool,

    /// Directory of the certificate authority, in the layout of Istio's secret cacerts; the authority is created if the directory
    /// is empty. All nodes of a mesh share one authority. Default: ca in the state directory, which only this node trusts
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR", conflicts_with = "cert_dir", help_heading = IDENTITY)]
    pub ca_dir: Option<PathBuf>,
    /// Directory of ready certificates, in place of an authority
    #[arg(long, env = "ZTUNNEL_CERT_DIR", value_name = "DIR", help_heading = IDENTITY)]
    pub cert_dir: Option<PathBuf>,
    /// Trust domain of the identities of the mesh
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN, help_heading = IDENTITY)]
    pub trust_domain: TrustDomain,
    /// How long a certificate of a workload is valid; it is renewed after half of this time
    #[arg(long, env = "ZTUNNEL_CERT_TTL", value_name = "DURATION", default_value_t = Seconds(defaults::CERT_TTL_SECONDS), value_parser = within(Seconds(2)..=Seconds(31_536_000)), help_heading = IDENTITY)]
    pub cert_ttl: Seconds,
    /// What to do with open connections when a certificate of their HBONE connection expires
    #[arg(long, env = "ZTUNNEL_EXPIRED_PEERS", value_enum, default_value = "drain", help_heading = IDENTITY)]
    pub expired_peers: ExpiredPeers,
    /// INSECURE: append the keys of every TLS connection to this file; the file lets its reader decrypt recorded traffic
    #[arg(long, env = "ZTUNNEL_TLS_KEY_LOG", value_name = "FILE", help_heading = IDENTITY)]
    pub tls_key_log: Option<PathBuf>,

    /// Address of the metrics, for Prometheus; the default is every address of the node
    #[arg(long, env = "ZTUNNEL_METRICS", value_name = "ADDR", default_value = defaults::METRICS, value_parser = address, help_heading = ENDPOINTS)]
    pub metrics: SocketAddr,
    /// Address of the readiness probe, for the kubelet
    #[arg(long, env = "ZTUNNEL_READINESS", value_name = "ADDR", default_value = defaults::READINESS, value_parser = address, help_heading = ENDPOINTS)]
    pub readiness: SocketAddr,
    /// Address of the admin endpoints, without authentication: state of the daemon, metrics, readiness and explain
    #[arg(long, env = "ZTUNNEL_ADMIN", value_name = "ADDR", default_value = defaults::ADMIN, value_parser = address, help_heading = ENDPOINTS)]
    pub admin: SocketAddr,

    /// Log levels, for example `info` or `warn,access=info`
    #[arg(long, env = "ZTUNNEL_LOG", value_name = "FILTER", default_value = "info", help_heading = LOG)]
    pub log: String,
    /// Format of the log lines
    #[arg(long, env = "ZTUNNEL_LOG_FORMAT", value_enum, default_value = "text", help_heading = LOG)]
    pub log_format: LogFormat,
    /// Log every decision of the BPF programs (target ztunnel_ebpf); slow
    #[arg(long, env = "ZTUNNEL_BPF_LOG", help_heading = LOG)]
    pub bpf_log: bool,

    /// Threads that carry connections. Default: as many as the CPU quota has
    #[arg(long, env = "ZTUNNEL_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(defaults::MAX_WORKERS)), help_heading = CAPACITY)]
    pub workers: Option<u16>,
    /// Pods that can be enrolled at the same time; sets the size of the BPF maps
    #[arg(long, env = "ZTUNNEL_MAX_PODS", value_name = "N", default_value_t = defaults::MAX_PODS, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = CAPACITY)]
    pub max_pods: u32,
    /// Average number of BPF map entries of a pod, for addresses, excluded ports and excluded IP blocks each; sets the size of the BPF maps
    #[arg(long, env = "ZTUNNEL_ENTRIES_PER_POD", value_name = "N", default_value_t = defaults::ENTRIES_PER_POD, value_parser = clap::value_parser!(u32).range(1..=4_096), help_heading = CAPACITY)]
    pub entries_per_pod: u32,
    /// Open connections of one pod in each direction; further connections wait to be accepted
    #[arg(long, env = "ZTUNNEL_MAX_CONNECTIONS_PER_POD", value_name = "N", default_value_t = defaults::MAX_CONNECTIONS_PER_POD, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576), help_heading = CAPACITY)]
    pub max_connections_per_pod: usize,
    /// Memory for copy buffers and for the windows of tunnels, over all pods; at least 16Mi. Default: half of the memory of the
    /// daemon's cgroup, or of the machine
    #[arg(long, env = "ZTUNNEL_MEMORY_BUDGET", value_name = "SIZE", value_parser = within(Bytes(16 << 20)..=Bytes(1 << 60)), help_heading = CAPACITY)]
    pub memory_budget: Option<Bytes>,
    /// Size of a copy buffer
    #[arg(long, env = "ZTUNNEL_BUFFER_BYTES", value_name = "SIZE", default_value_t = Bytes(defaults::BUFFER_BYTES as u64), value_parser = within(Bytes(1 << 10)..=Bytes(16 << 20)), help_heading = CAPACITY)]
    pub buffer_bytes: Bytes,

    /// How long a connect may take
    #[arg(long, env = "ZTUNNEL_CONNECT_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::CONNECT_TIMEOUT_SECONDS), value_parser = within(Seconds(1)..=Seconds(600)), help_heading = TIMES)]
    pub connect_timeout: Seconds,
    /// How long a TLS handshake may take
    #[arg(long, env = "ZTUNNEL_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::HANDSHAKE_TIMEOUT_SECONDS), value_parser = within(Seconds(1)..=Seconds(600)), help_heading = TIMES)]
    pub handshake_timeout: Seconds,
    /// How long open connections may go on after the daemon is told to stop and no other daemon has taken over; new connections are
    /// accepted meanwhile
    #[arg(long, env = "ZTUNNEL_DRAIN_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::DRAIN_TIMEOUT_SECONDS), value_parser = within(Seconds(0)..=Seconds(3_600)), help_heading = TIMES)]
    pub drain_timeout: Seconds,
    /// How long open connections may go on after another daemon has taken over
    #[arg(long, env = "ZTUNNEL_LINGER", value_name = "DURATION", default_value_t = Seconds(defaults::LINGER_SECONDS), value_parser = within(Seconds(0)..=Seconds(86_400)), help_heading = TIMES)]
    pub linger: Seconds,
    /// TCP keepalive: silence before a peer is probed
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_IDLE", value_name = "DURATION", default_value_t = Seconds(defaults::KEEPALIVE_IDLE_SECONDS), value_parser = within(Seconds(1)..=Seconds(32_767)), help_heading = TIMES)]
    pub keepalive_idle: Seconds,
    /// TCP keepalive: time between two probes
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value_t = Seconds(defaults::KEEPALIVE_INTERVAL_SECONDS), value_parser = within(Seconds(1)..=Seconds(32_767)), help_heading = TIMES)]
    pub keepalive_interval: Seconds,
    /// TCP keepalive: unanswered probes after which a connection is reset
    #[arg(long, env = "ZTUNNEL_KEEPALIVE_PROBES", value_name = "N", default_value_t = defaults::KEEPALIVE_PROBES, value_parser = clap::value_parser!(u32).range(1..=127), help_heading = TIMES)]
    pub keepalive_probes: u32,

    /// HTTP/2: bytes that one stream may have unread
    #[arg(long, env = "ZTUNNEL_HBONE_STREAM_WINDOW", value_name = "SIZE", default_value_t = Bytes(defaults::HBONE_STREAM_WINDOW.into()), value_parser = within(Bytes(65_535)..=MAX_WINDOW), help_heading = TUNNELS)]
    pub hbone_stream_window: Bytes,
    /// HTTP/2: bytes that all streams of a tunnel together may have unread
    #[arg(long, env = "ZTUNNEL_HBONE_CONNECTION_WINDOW", value_name = "SIZE", default_value_t = Bytes(defaults::HBONE_CONNECTION_WINDOW.into()), value_parser = within(Bytes(65_535)..=MAX_WINDOW), help_heading = TUNNELS)]
    pub hbone_connection_window: Bytes,
    /// HTTP/2: size of the largest frame that is accepted
    #[arg(long, env = "ZTUNNEL_HBONE_FRAME_SIZE", value_name = "SIZE", default_value_t = Bytes(defaults::HBONE_FRAME_SIZE.into()), value_parser = within(Bytes(16_384)..=Bytes(16_777_215)), help_heading = TUNNELS)]
    pub hbone_frame_size: Bytes,
    /// HTTP/2: streams that a peer may have open in one tunnel
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_STREAMS", value_name = "N", default_value_t = defaults::HBONE_MAX_STREAMS, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = TUNNELS)]
    pub hbone_max_streams: u32,
    /// Streams that this node opens in one tunnel before it opens another tunnel
    #[arg(long, env = "ZTUNNEL_HBONE_STREAMS_PER_CONNECTION", value_name = "N", default_value_t = defaults::HBONE_STREAMS_PER_CONNECTION, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = TUNNELS)]
    pub hbone_streams_per_connection: u32,
    /// Silence before the peer of a tunnel is pinged
    #[arg(long, env = "ZTUNNEL_HBONE_PING_INTERVAL", value_name = "DURATION", default_value_t = Seconds(defaults::HBONE_PING_INTERVAL_SECONDS), value_parser = within(Seconds(1)..=Seconds(3_600)), help_heading = TUNNELS)]
    pub hbone_ping_interval: Seconds,
    /// How long a ping may have no answer before the tunnel is closed
    #[arg(long, env = "ZTUNNEL_HBONE_PING_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::HBONE_PING_TIMEOUT_SECONDS), value_parser = within(Seconds(1)..=Seconds(3_600)), help_heading = TUNNELS)]
    pub hbone_ping_timeout: Seconds,
    /// How long a tunnel without streams stays open
    #[arg(long, env = "ZTUNNEL_HBONE_IDLE", value_name = "DURATION", default_value_t = Seconds(defaults::HBONE_IDLE_SECONDS), value_parser = within(Seconds(1)..=Seconds(86_400)), help_heading = TUNNELS)]
    pub hbone_idle: Seconds,
    /// Open tunnels to one pod of this node; further tunnels are refused
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_CONNECTIONS", value_name = "N", default_value_t = defaults::HBONE_MAX_CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..), help_heading = TUNNELS)]
    pub hbone_max_connections: u32,
    /// Open tunnels to one pod of this node from one client address
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_CONNECTIONS_PER_PEER", value_name = "N", default_value_t = defaults::HBONE_MAX_CONNECTIONS_PER_PEER, value_parser = clap::value_parser!(u32).range(1..), help_heading = TUNNELS)]
    pub hbone_max_connections_per_peer: u32,
    /// Unfinished TLS handshakes with one pod of this node; the oldest one is ended when there are more
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_HANDSHAKES", value_name = "N", default_value_t = defaults::HBONE_MAX_HANDSHAKES, value_parser = clap::value_parser!(u32).range(1..), help_heading = TUNNELS)]
    pub hbone_max_handshakes: u32,
    /// Unfinished TLS handshakes with one pod of this node from one client address
    #[arg(long, env = "ZTUNNEL_HBONE_MAX_HANDSHAKES_PER_PEER", value_name = "N", default_value_t = defaults::HBONE_MAX_HANDSHAKES_PER_PEER, value_parser = clap::value_parser!(u32).range(1..), help_heading = TUNNELS)]
    pub hbone_max_handshakes_per_peer: u32,
}

/// Groups of `run --help`.
const MESH: &str = "Node and mesh";
const FILES: &str = "State";
const IDENTITY: &str = "Identity and certificates";
const ENDPOINTS: &str = "Endpoints";
const LOG: &str = "Log";
const CAPACITY: &str = "Capacity";
const TIMES: &str = "Connections";
const TUNNELS: &str = "Tunnels between pods (HBONE)";

/// The time that a response may take longer than a connect.
const RESPONSE_SLACK: Duration = Duration::from_secs(5);
/// The largest window of HTTP/2.
const MAX_WINDOW: Bytes = Bytes(0x7fff_ffff);

impl RunArgs {
    /// The control plane, if any.
    #[must_use]
    pub fn control_plane(&self) -> Option<ControlPlane> {
        self.plane.settings(&self.node, &self.cluster_id)
    }

    /// The number of data workers: the flag, or the number of CPUs in the quota.
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

    /// The keepalive of TCP connections.
    #[must_use]
    pub fn keepalive(&self) -> Keepalive {
        Keepalive {
            idle: self.keepalive_idle.duration(),
            interval: self.keepalive_interval.duration(),
            probes: self.keepalive_probes,
        }
    }

    /// The HTTP/2 settings of HBONE connections.
    #[must_use]
    pub fn hbone_settings(&self) -> hbone::Settings {
        let size = |size: Bytes| u32::try_from(size.0).unwrap_or(u32::MAX);
        hbone::Settings {
            stream_window: size(self.hbone_stream_window),
            connection_window: size(self.hbone_connection_window),
            frame_size: size(self.hbone_frame_size),
            max_streams: self.hbone_max_streams,
            streams_per_connection: self.hbone_streams_per_connection as usize,
            ping_interval: self.hbone_ping_interval.duration(),
            ping_timeout: self.hbone_ping_timeout.duration(),
            idle_release: self.hbone_idle.duration(),
            // The peer may need as much time for its application as this node for its own.
            response_timeout: self.connect_timeout.duration() + RESPONSE_SLACK,
            ..hbone::Settings::default()
        }
    }

    /// The limits of HBONE connections and handshakes to one pod.
    #[must_use]
    pub fn tunnel_limits(&self) -> Limits {
        Limits {
            connections: self.hbone_max_connections,
            connections_per_peer: self.hbone_max_connections_per_peer,
            handshakes: self.hbone_max_handshakes,
            handshakes_per_peer: self.hbone_max_handshakes_per_peer,
        }
    }

    /// The settings of pods, for given TLS settings and given limits of memory, descriptors and sockets.
    #[must_use]
    pub fn pod_settings(&self, tls: tls::Settings, memory: Budget, open: Resources) -> PodSettings {
        let most = u32::try_from(open.connections).unwrap_or(u32::MAX);
        let tunnels = self.tunnel_limits();
        PodSettings {
            connect_timeout: self.connect_timeout.duration(),
            backlog: defaults::BACKLOG,
            open,
            cut_existing: self.existing_connections == Existing::Cut,
            connect: self.connect.into(),
            // Each HBONE connection has a descriptor.
            tunnels: Limits {
                connections: tunnels.connections.min(most),
                handshakes: tunnels.handshakes.min(most.div_ceil(2)),
                ..tunnels
            },
            tls,
            memory,
            deaf: DeafPods::default(),
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
        for name in ["run", "control-plane"] {
            let command = command.find_subcommand(name).unwrap();
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                assert!(name != "run" || arg.get_help_heading().is_some(), "{arg:?} is in no group");
                let expected = format!("ZTUNNEL_{}", arg.get_id().as_str().to_uppercase());
                assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
            }
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
    fn a_daemon_has_either_manifests_or_a_control_plane_and_the_pods_of_its_node() {
        for bad in [
            &["--node=n"][..],
            &["--node=n", "--mesh=m", "--control-plane=https://c", "--pods=p"],
            // Without network namespaces no pod could be captured.
            &["--node=n", "--control-plane=https://c"],
            &["--node=n", "--control-plane=http://c", "--pods=p"],
            &["--node=n", "--mesh=m", "--pods=p"],
            &["--node=n", "--mesh=m", "--control-plane-token=t"],
        ] {
            assert!(Args::try_parse_from(["ztunnel", "run"].iter().chain(bad)).is_err(), "{bad:?}");
        }
        let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--control-plane=c", "--pods=p"]).unwrap();
        let Command::Run(run) = args.command else { panic!() };
        let plane = run.control_plane().unwrap();
        assert_eq!((plane.url.to_string().as_str(), &*plane.network), ("https://c:15012", ""));
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
            "--memory-budget=15Mi",
            "--connect-timeout=11m",
            "--connect-timeout=500ms",
            "--hbone-stream-window=2Gi",
            // The allocation would panic in a worker.
            "--buffer-bytes=18446744073709551615",
            "--hbone-max-handshakes=0",
            "--hbone-stream-window=65534",
            "--trust-domain=no_domain/",
            "--kubelet-cgroup=kubelet",
        ] {
            let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", bad]);
            assert!(args.is_err(), "{bad}");
        }
        for good in [
            "--memory-budget=64Mi",
            "--connect-timeout=1m",
            "--connect-timeout=60",
            "--admin=localhost:15000",
            "--buffer-bytes=256Ki",
        ] {
            assert!(Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", good]).is_ok(), "{good}");
        }
        let both = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m", "--ca-dir=a", "--cert-dir=b"]);
        assert!(both.is_err());
        let args = Args::try_parse_from(["ztunnel", "run", "--node=n", "--mesh=m"]).unwrap();
        assert!(matches!(args.command, Command::Run(run) if run.worker_count() >= 1));
    }
}
