//! Values that an operator may want to tune, each with its reason. Values that matter only to the program are next to the code
//! that uses them.

use std::time::Duration;

use crate::plane::{certificates::SigningLimits, serve::Limits};

/// The folder for records of enrolled pods. It is a host path in a DaemonSet, because the records must survive the daemon.
pub const STATE: &str = "/var/lib/ztunnel";
/// Where containerd and CRI-O look for CNI programs, unless their configuration says otherwise.
pub const CNI_PROGRAMS: &str = "/opt/cni/bin";
/// Where containerd and CRI-O look for their CNI configuration, unless theirs says otherwise.
pub const CNI_CONFIGURATION: &str = "/etc/cni/net.d";
/// The network and the DNS of the cluster, without which no daemon finds its control plane.
pub const CNI_EXCLUDED: &str = "kube-system";
/// A folder below the usual mount point of bpffs.
pub const BPF_PIN: &str = "/sys/fs/bpf/ztunnel";
/// Istio's admin port. Loopback only, because it shows which workloads communicate.
pub const ADMIN: &str = "127.0.0.1:15000";
/// Istio's stats port.
pub const METRICS: &str = "[::]:15020";
/// Istio's readiness port.
pub const READINESS: &str = "[::]:15021";
/// The default of Kubernetes.
pub const NAMESPACE: &str = "default";
/// Istio's default.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Istio's default.
pub const CLUSTER_ID: &str = "Kubernetes";
/// Where Istio's DaemonSet mounts the roots of the control plane.
pub const CONTROL_PLANE_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
/// Where Istio's DaemonSet mounts the token of the node's daemon.
pub const CONTROL_PLANE_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// The maximum number of concurrent first requests for certificates to a control plane. The same number of renewals may run in
/// addition, which makes 8 in flight, as in Istio.
pub const CONTROL_PLANE_REQUESTS: usize = 4;
/// One day, as Istio's `SECRET_TTL`: a stolen certificate can be used for a day at most.
pub const CERT_TTL_SECONDS: u64 = 86_400;
/// More than the kubelet's usual 110 pods, and than the 250 pods of large nodes.
pub const MAX_PODS: u32 = 512;
/// The average number of addresses, of excluded ports and of excluded IP blocks per pod.
pub const ENTRIES_PER_POD: u32 = 16;
/// The kernel's own default for net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// Each connection needs two descriptors. A pod with more open connections would take the descriptors of others.
pub const MAX_CONNECTIONS_PER_POD: usize = 30_000;
/// Istio's connect timeout.
pub const CONNECT_TIMEOUT_SECONDS: u64 = 10;
/// Kubernetes kills after 30 s, so there is time left to close.
pub const DRAIN_TIMEOUT_SECONDS: u64 = 20;
/// Most connections end within minutes; Envoy's hot restart gives them 15. Two daemons need their memory twice as long.
pub const LINGER_SECONDS: u64 = 600;
/// A peer that disappeared is detected after 60 + 3 x 10 s; Istio needs half an hour.
pub const KEEPALIVE_IDLE_SECONDS: u64 = 60;
/// The time between keepalive probes.
pub const KEEPALIVE_INTERVAL_SECONDS: u64 = 10;
/// The number of unanswered keepalive probes.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Four GSO super-packets: each read, write and task switch moves as many bytes as fit well into the second-level cache of a
/// core.
pub const BUFFER_BYTES: usize = 256 << 10;
/// The number of idle copy buffers that a worker keeps: 2 MiB.
pub const BUFFERS_KEPT: usize = 8;
/// The capacity of the listener map. The number of workers may change between starts.
pub const MAX_WORKERS: u16 = 32;
/// The maximum number of log lines that wait for standard output. Further lines are dropped and counted, so that connections
/// are not delayed.
pub const LOG_LINES: usize = 16_384;
/// Ten years, as for istiod's own CA.
pub const CA_TTL_DAYS: u32 = 3650;
/// Metrics of workloads without traffic for this time are dropped. It is several scrape intervals, and Istio's dashboards show
/// five minutes.
pub const SERIES_KEPT: Duration = Duration::from_secs(15 * 60);
/// Ten times the duration of a handshake on a busy machine. The peer does not limit the time itself.
pub const HANDSHAKE_TIMEOUT_SECONDS: u64 = 5;
/// Istio's value: the memory of this node that one slow reader can use.
pub const HBONE_STREAM_WINDOW: u32 = 4 << 20;
/// Istio's value.
pub const HBONE_CONNECTION_WINDOW: u32 = 16 << 20;
/// Istio's value.
pub const HBONE_FRAME_SIZE: u32 = 1 << 20;
/// Istio's value.
pub const HBONE_MAX_STREAMS: u32 = 200;
/// Istio's value. It is less than a peer announces, so that no stream is refused before the announcement is read.
pub const HBONE_STREAMS_PER_CONNECTION: u32 = 100;
/// Istio's value.
pub const HBONE_PING_INTERVAL_SECONDS: u64 = 10;
/// With the interval, a dead peer is detected within 20 s; Istio needs 30 s.
pub const HBONE_PING_TIMEOUT_SECONDS: u64 = 10;
/// Istio's POOL_UNUSED_RELEASE_TIMEOUT.
pub const HBONE_IDLE_SECONDS: u64 = 300;
/// With 200 streams each this is far more than the number of connections that a pod may have open.
pub const HBONE_MAX_CONNECTIONS: u32 = 1024;
/// 12,800 streams from one pod, because a pod opens 100 on each HBONE connection.
pub const HBONE_MAX_CONNECTIONS_PER_PEER: u32 = 128;
/// Each costs tens of kilobytes during the handshake.
pub const HBONE_MAX_HANDSHAKES: u32 = 256;
/// So that one peer can't use all of them.
pub const HBONE_MAX_HANDSHAKES_PER_PEER: u32 = 32;
/// Buffers and windows get the daemon's memory divided by this. The rest is for the kernel's socket buffers, the mesh, and
/// tasks.
pub const MEMORY_PART: usize = 2;
/// The sockets of one pod get the kernel's TCP memory below its pressure threshold (or the memory budget, if that is smaller),
/// divided by this.
pub const SOCKET_MEMORY_PART: usize = 4;
/// istiod's port for delta xDS and certificates.
pub const CONTROL_PLANE_LISTEN: &str = "[::]:15012";
/// The name by which Istio's clients know a control plane.
pub const SERVING_NAME: &str = "istiod.istio-system.svc";
/// The namespace of the control plane in a cluster, as in Istio.
pub const SYSTEM_NAMESPACE: &str = "istio-system";
/// The ConfigMap in which Istio's ztunnel, among others, expects the roots.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// The service account of the node daemon, as in Istio.
pub const NODE_SERVICE_ACCOUNT: &str = "istio-system/ztunnel";
/// The audiences of the tokens of nodes: Istio's, and this project's own.
pub const TOKEN_AUDIENCES: [&str; 2] = ["istio-ca", "ztunnel"];
/// istiod's monitoring port.
pub const CONTROL_PLANE_METRICS: &str = "[::]:15014";
/// Next to istiod's other ports. It differs from the daemon's port, so that both can run on one machine.
pub const CONTROL_PLANE_READINESS: &str = "[::]:15022";
/// Loopback only, because it shows the nodes.
pub const CONTROL_PLANE_ADMIN: &str = "127.0.0.1:15013";
/// 5,000 nodes, each with an old and a new daemon.
pub const CONTROL_PLANE_CONNECTIONS: u32 = 10_000;
/// For nodes behind one address translation; one node needs two connections.
pub const CONTROL_PLANE_CONNECTIONS_PER_ADDRESS: u32 = 256;
/// A daemon processes a mesh of 100,000 workloads within seconds, even on a busy node.
pub const ANSWER_TIMEOUT_SECONDS: u64 = 60;
/// Kubernetes kills after 30 s.
pub const CONTROL_PLANE_DRAIN_SECONDS: u64 = 20;
/// The limits for callers of a control plane, in addition to those with flags.
pub const CONTROL_PLANE_LIMITS: Limits = Limits {
    connections: CONTROL_PLANE_CONNECTIONS as usize,
    connections_per_address: CONTROL_PLANE_CONNECTIONS_PER_ADDRESS as usize,
    // The old and the new daemon of a node, each with an additional stream whose loss was not noticed.
    streams_per_node: 4,
    // A daemon that reconnects backs off up to 15 s.
    stream_quota: (30, Duration::from_secs(2)),
    // One stream of resources, and Istio's 8 concurrent certificate requests.
    calls_per_connection: 32,
    // The versions of 300,000 resources.
    request: 64 << 20,
    large_requests: (1 << 20, 8),
    certificate_request: 64 << 10,
    // 256 pods with reasons of 1 KiB.
    pod_report: 384 << 10,
    // Each response has a reference of 32 bytes to each resource: 3 MiB for 100,000.
    large_responses: (1 << 20, 64),
    request_within: Duration::from_secs(30),
    answer_within: Duration::from_secs(ANSWER_TIMEOUT_SECONDS),
    read_within: Duration::from_secs(30),
    idle: Duration::from_secs(60),
    ping: Duration::from_secs(20),
    spread: Duration::from_secs(CONTROL_PLANE_DRAIN_SECONDS),
};
/// All pods of a node at the same time, after the CA was replaced, and then 5 per second.
pub const SIGNING_LIMITS: SigningLimits =
    SigningLimits { burst: 1024, every: Duration::from_millis(200), at_once: 256 };

/// The processes of the node. In a container these are the container's own processes, unless it shares the node's PID
/// namespace.
pub const PROC: &str = "/proc";

/// Connection events that a reader of `/events` may be behind. An event takes about 1 KiB, so all readers together take 4 MiB at most: they
/// share the events.
pub const EVENTS_KEPT: usize = 4096;
/// Readers of `/events` at a time. Each takes some CPU for every connection.
pub const EVENT_READERS: usize = 8;
