//! What calls are answered with, and the bounds of what callers may take.

use std::time::Duration;

use crate::plane::{
    callers::Callers, certificates::Certificates, describe::Streams, metrics::PlaneMetrics, pod_events::PodEvents,
    publish::Resources, serving::Serving,
};

/// Bounds of what callers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are open at once.
    pub connections: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// Streams of resources that a node has open at once: the old and the new ones of a daemon that is replaced.
    pub streams_per_node: usize,
    /// Streams of resources that a node may open at once, and the time after which it may open one more.
    pub stream_quota: (u32, Duration),
    /// Calls that are open on one connection.
    pub calls_per_connection: u32,
    /// Bytes of a request for resources: it states the versions of all that the node has.
    pub request: usize,
    /// Bytes from which on a request counts as large, and how many of those may be read at once.
    pub large_requests: (usize, usize),
    /// Bytes of a request for a certificate.
    pub certificate_request: usize,
    /// Bytes of a report of pods.
    pub pod_report: usize,
    /// Bytes from which on a response counts as large, and how many of those may be sent at once.
    pub large_responses: (usize, usize),
    /// How long a request may take to arrive.
    pub request_within: Duration,
    /// How long a node may take to answer a response.
    pub answer_within: Duration,
    /// How long a node may take to read a response of no length; longer ones have more.
    pub read_within: Duration,
    /// A connection without a call is closed after this.
    pub idle: Duration,
    /// A silent peer is asked for a sign of life after this, and must give it within the same.
    pub ping: Duration,
    /// Streams are ended over this time when the control plane stops, so that not all nodes connect elsewhere at once.
    pub spread: Duration,
}

/// What calls are answered with.
#[derive(Debug)]
pub struct Server {
    /// The resources.
    pub resources: Resources,
    /// Whose calls they are.
    pub nodes: Callers,
    /// Signs certificates.
    pub certificates: Certificates,
    /// Writes Events on pods that nodes refuse; `None`: there is no Kubernetes API to write to.
    pub pod_events: Option<PodEvents>,
    /// Who is connected.
    pub streams: Streams,
    /// The server's end of TLS.
    pub tls: Serving,
    /// Counters.
    pub metrics: PlaneMetrics,
    /// Bounds.
    pub limits: Limits,
}
