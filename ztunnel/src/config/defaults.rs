//! Numbers that somebody who runs the daemon might tune, each with its reason. Numbers that only the program cares about stand beside
//! the code that they are for.

use std::time::Duration;

use crate::plane::{certificates::SigningLimits, serve::Limits};

/// Records of enrolled pods live here: a host path in a DaemonSet, because they must survive the daemon.
pub const STATE: &str = "/var/lib/ztunnel";
/// Below the usual mount point of bpffs.
pub const BPF_PIN: &str = "/sys/fs/bpf/ztunnel";
/// Istio's admin port, loopback only: it shows who talks to whom.
pub const ADMIN: &str = "127.0.0.1:15000";
/// Istio's stats port.
pub const METRICS: &str = "[::]:15020";
/// Istio's readiness port.
pub const READINESS: &str = "[::]:15021";
/// Kubernetes' own.
pub const NAMESPACE: &str = "default";
/// Istio's default.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Istio's default.
pub const CLUSTER_ID: &str = "Kubernetes";
/// Where Istio's DaemonSet mounts the roots of the control plane.
pub const CONTROL_PLANE_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
/// Where Istio's DaemonSet mounts the token of the node's daemon.
pub const CONTROL_PLANE_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// First certificates that are asked of a control plane at once, and as many renewals beside them: 8 in flight, as Istio.
pub const CONTROL_PLANE_REQUESTS: usize = 4;
/// A day, as Istio's `SECRET_TTL`: what is stolen is of use for a day at most.
pub const CERT_TTL_SECONDS: u64 = 86_400;
/// More than kubelet's usual 110 and the 250 that large nodes run.
pub const MAX_PODS: u32 = 512;
/// Addresses, excluded ports and excluded CIDRs, each, per pod on the average.
pub const ENTRIES_PER_POD: u32 = 16;
/// The kernel's own default for net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// Two descriptors each; a pod with more open connections would starve others of descriptors.
pub const MAX_CONNECTIONS_PER_POD: usize = 30_000;
/// Istio's connect timeout.
pub const CONNECT_TIMEOUT_SECONDS: u64 = 10;
/// Kubernetes kills after 30 s; leaves time to close.
pub const DRAIN_TIMEOUT_SECONDS: u64 = 20;
/// A peer that vanished is found after 60 + 3 x 10 s; Istio needs half an hour.
pub const KEEPALIVE_IDLE_SECONDS: u64 = 60;
/// Between keepalive probes.
pub const KEEPALIVE_INTERVAL_SECONDS: u64 = 10;
/// Unanswered keepalive probes.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Four GSO super-packets: each read, write and change of tasks moves as much as a core's second cache holds well.
pub const BUFFER_BYTES: usize = 256 << 10;
/// Idle copy buffers that a worker keeps: 2 MiB.
pub const BUFFERS_KEPT: usize = 8;
/// The listener map has room for this many workers, so that their number may change from start to start.
pub const MAX_WORKERS: u16 = 32;
/// Log lines that wait for standard output; beyond them lines are lost, and counted, rather than connections delayed.
pub const LOG_LINES: usize = 16_384;
/// Ten years, as istiod's own CA.
pub const CA_TTL_DAYS: u32 = 3650;
/// Metrics of workloads that carried nothing for so long are dropped: several scrapes, and Istio's dashboards look at five
/// minutes.
pub const SERIES_KEPT: Duration = Duration::from_secs(15 * 60);
/// Ten times what a handshake takes on a busy machine; the peer waits for ever.
pub const HANDSHAKE_TIMEOUT_SECONDS: u64 = 5;
/// As Istio announces it: what one slow reader can hold of this node's memory.
pub const HBONE_STREAM_WINDOW: u32 = 4 << 20;
/// As Istio announces it.
pub const HBONE_CONNECTION_WINDOW: u32 = 16 << 20;
/// As Istio announces it.
pub const HBONE_FRAME_SIZE: u32 = 1 << 20;
/// As Istio announces it.
pub const HBONE_MAX_STREAMS: u32 = 200;
/// As Istio opens them: less than a peer announces, so that none is refused before its announcement is read.
pub const HBONE_STREAMS_PER_CONNECTION: u32 = 100;
/// As Istio pings.
pub const HBONE_PING_INTERVAL_SECONDS: u64 = 10;
/// With the interval, a dead peer is found within 20 s; Istio needs 30.
pub const HBONE_PING_TIMEOUT_SECONDS: u64 = 10;
/// Istio's POOL_UNUSED_RELEASE_TIMEOUT.
pub const HBONE_IDLE_SECONDS: u64 = 300;
/// 200 streams each: far more than the connections that a pod may have open.
pub const HBONE_MAX_CONNECTIONS: u32 = 1024;
/// 12,800 streams from one pod, which opens 100 on each.
pub const HBONE_MAX_CONNECTIONS_PER_PEER: u32 = 128;
/// Each costs tens of kilobytes for as long as the handshake may take.
pub const HBONE_MAX_HANDSHAKES: u32 = 256;
/// No one takes them all.
pub const HBONE_MAX_HANDSHAKES_PER_PEER: u32 = 32;
/// Of the memory that the daemon may use, what buffers and windows get: the rest is the kernel's for the daemon's sockets, the
/// mesh, and tasks.
pub const MEMORY_PART: usize = 2;
/// Of the kernel's memory for TCP, from where it begins to press its sockets, what one pod's connections get.
pub const SOCKET_MEMORY_PART: usize = 4;
/// istiod's port for delta xDS and certificates.
pub const CONTROL_PLANE_LISTEN: &str = "[::]:15012";
/// The name by which Istio's clients know a control plane.
pub const SERVING_NAME: &str = "istiod.istio-system.svc";
/// Namespace of the control plane in a cluster, as Istio's.
pub const SYSTEM_NAMESPACE: &str = "istio-system";
/// Where Istio's ztunnel, and others, expect the roots.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// Service account of the node daemon, as Istio's.
pub const NODE_SERVICE_ACCOUNT: &str = "istio-system/ztunnel";
/// Audiences of the tokens of nodes: Istio's, and this project's.
pub const TOKEN_AUDIENCES: [&str; 2] = ["istio-ca", "ztunnel"];
/// istiod's monitoring port.
pub const CONTROL_PLANE_METRICS: &str = "[::]:15014";
/// Beside istiod's other ports; not the daemon's, so that both can run on one machine.
pub const CONTROL_PLANE_READINESS: &str = "[::]:15022";
/// Loopback only: it shows which nodes there are.
pub const CONTROL_PLANE_ADMIN: &str = "127.0.0.1:15013";
/// 5,000 nodes with an old and a new daemon each.
pub const CONTROL_PLANE_CONNECTIONS: u32 = 10_000;
/// Nodes behind one address translation; one node needs two.
pub const CONTROL_PLANE_CONNECTIONS_PER_ADDRESS: u32 = 256;
/// A daemon takes over a mesh of 100,000 workloads within seconds, on a busy node too.
pub const ANSWER_TIMEOUT_SECONDS: u64 = 60;
/// Kubernetes kills after 30 s.
pub const CONTROL_PLANE_DRAIN_SECONDS: u64 = 20;
/// What a caller may take of a control plane, besides what has flags.
pub const CONTROL_PLANE_LIMITS: Limits = Limits {
    connections: CONTROL_PLANE_CONNECTIONS as usize,
    connections_per_address: CONTROL_PLANE_CONNECTIONS_PER_ADDRESS as usize,
    // The old and the new daemon of a node, each with a stream that it has lost and does not know it.
    streams_per_node: 4,
    // A daemon that reconnects backs off to 15 s.
    stream_quota: (30, Duration::from_secs(2)),
    // One stream of resources, and Istio's 8 certificate requests at a time.
    calls_per_connection: 32,
    // The versions of 300,000 resources.
    request: 64 << 20,
    large_requests: (1 << 20, 8),
    certificate_request: 64 << 10,
    // Each is made of a reference of 32 bytes to each resource: 3 MiB for 100,000.
    large_responses: (1 << 20, 64),
    request_within: Duration::from_secs(30),
    answer_within: Duration::from_secs(ANSWER_TIMEOUT_SECONDS),
    read_within: Duration::from_secs(30),
    idle: Duration::from_secs(60),
    ping: Duration::from_secs(20),
    spread: Duration::from_secs(CONTROL_PLANE_DRAIN_SECONDS),
};
/// A node's pods all at once, after the CA was replaced, and then 5 in a second.
pub const SIGNING_LIMITS: SigningLimits =
    SigningLimits { burst: 1024, every: Duration::from_millis(200), at_once: 256 };

/// The processes of the node. In a container this is the container's own, unless it shares the node's PID namespace.
pub const PROC: &str = "/proc";
