//! The parts that answer calls, and the limits for callers.

use std::time::Duration;

use crate::plane::{
    callers::Callers, certificates::Certificates, describe::Streams, metrics::PlaneMetrics, pod_events::PodEvents,
    publish::Resources, serving::Serving,
};

/// The limits for callers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are open at once.
    pub connections: usize,
    /// Connections of one address that are open at once.
    pub connections_per_address: usize,
    /// Streams of resources that a node may have open at once: the old and the new streams of a daemon that is
    /// replaced.
    pub streams_per_node: usize,
    /// Streams of resources that a node may open at once, and the time after which it may open one more.
    pub stream_quota: (u32, Duration),
    /// Calls that are open at once on one connection.
    pub calls_per_connection: u32,
    /// Bytes of a request for resources. It states the versions of all resources that the node has.
    pub request: usize,
    /// A request of this number of bytes or more is large; the number of large requests that may be read at once.
    pub large_requests: (usize, usize),
    /// Bytes of a request for a certificate.
    pub certificate_request: usize,
    /// Bytes of a report of pods.
    pub pod_report: usize,
    /// A response of this number of bytes or more is large; the number of large responses that may be sent at once.
    pub large_responses: (usize, usize),
    /// How long a request may take to arrive.
    pub request_within: Duration,
    /// How long a node may take to answer a response.
    pub answer_within: Duration,
    /// How long a node may take to read a short response. Long responses have more time.
    pub read_within: Duration,
    /// A connection without a call is closed after this time.
    pub idle: Duration,
    /// The time between pings. A peer has the same time to answer a ping.
    pub ping: Duration,
    /// Streams are ended over this time when the control plane stops, so that not all nodes connect elsewhere at once.
    pub spread: Duration,
}

/// The parts that answer calls.
#[derive(Debug)]
pub struct Server {
    /// The resources.
    pub resources: Resources,
    /// Finds the node of a call.
    pub nodes: Callers,
    /// Signs certificates.
    pub certificates: Certificates,
    /// Writes Events on pods that nodes refuse; `None`: there is no Kubernetes API.
    pub pod_events: Option<PodEvents>,
    /// The open streams of the nodes.
    pub streams: Streams,
    /// The server's side of TLS.
    pub tls: Serving,
    /// Counters.
    pub metrics: PlaneMetrics,
    /// The limits.
    pub limits: Limits,
}
