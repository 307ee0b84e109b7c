//! Every number that someone might tune, with its reason.

/// Records of enrolled pods live here: a host path in a DaemonSet, because they must survive the daemon.
pub const STATE: &str = "/var/lib/ztunnel";
/// Below the usual mount point of bpffs.
pub const BPF_PIN: &str = "/sys/fs/bpf/ztunnel";
/// Istio's admin port, loopback only: it shows who talks to whom.
pub const ADMIN: &str = "127.0.0.1:15000";
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
/// The size of a GSO super-packet; larger ones did not copy faster.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Idle copy buffers that a worker keeps: 2 MiB.
pub const BUFFERS_KEPT: usize = 32;
/// The listener map has room for this many workers, so that their number may change from start to start.
pub const MAX_WORKERS: u16 = 32;
/// Log lines that wait for standard output; beyond them lines are lost, and counted, rather than connections delayed.
pub const LOG_LINES: usize = 16_384;
