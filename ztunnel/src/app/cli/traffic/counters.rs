//! Istio's counters of connections, summed up by their ends.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::Serialize;

use crate::app::cli::samples::{Sample, quantile};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
/// The value of labels that are not known.
const UNKNOWN: &str = "unknown";
/// The flags of connections that ended well, and of those that policy has denied.
const FINE: &str = "-";
const DENY: &str = "DENY";

/// The two ends of connections, and how they are carried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Edge {
    /// `NAMESPACE/WORKLOAD`, or `unknown`.
    pub(super) source: String,
    pub(super) source_identity: String,
    /// `NAMESPACE/WORKLOAD`, else the service, else `unknown`.
    pub(super) destination: String,
    pub(super) destination_identity: String,
    /// The host name of the service that the client asked for.
    pub(super) service: String,
    /// `mTLS` or `plaintext`.
    pub(super) security: &'static str,
}

/// Numbers of connections and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub(super) opened: f64,
    /// Those that have not ended.
    pub(super) open: f64,
    /// Those that ended with a fault, or were denied.
    pub(super) failed: f64,
    /// Those that policy has denied.
    pub(super) denied: f64,
    /// Bytes from clients.
    pub(super) bytes_received: f64,
    /// Bytes to clients.
    pub(super) bytes_sent: f64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        let Self { opened, open, failed, denied, bytes_received, bytes_sent } = other;
        self.opened += opened;
        self.open += open;
        self.failed += failed;
        self.denied += denied;
        self.bytes_received += bytes_received;
        self.bytes_sent += bytes_sent;
    }
}

/// The side that has counted: the daemon of the client's node, or that of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(super) const fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// The counters by reporter and edge.
#[derive(Debug, Default)]
pub(super) struct Counters(BTreeMap<(Side, Edge), Totals>);

impl Counters {
    pub(super) fn of(samples: &[Sample]) -> Self {
        let mut counters = Self::default();
        for sample in samples {
            if let Some(totals) = totals_of(sample) {
                let side = if sample.label("reporter") == "source" { Side::Source } else { Side::Destination };
                *counters.0.entry((side, Edge::of(sample))).or_default() += totals;
            }
        }
        counters
    }

    /// Each edge once: if both of its ends are on this node, as the source has counted it.
    pub(super) fn edges(&self) -> Vec<(Edge, Totals)> {
        let both = self.0.iter().filter(|((side, edge), _)| *side == Side::Source || !self.has_source_of(edge));
        both.map(|((_, edge), totals)| (edge.clone(), *totals)).collect()
    }

    /// Whether the source of an edge has counted it as well. The two may differ in what they know of a failed connection.
    fn has_source_of(&self, edge: &Edge) -> bool {
        self.0.contains_key(&(Side::Source, edge.clone()))
    }

    /// An edge as [`Counters::edges`] has it.
    pub(super) fn of_edge(&self, edge: &Edge) -> Totals {
        let of = |side| self.0.get(&(side, edge.clone())).copied();
        of(Side::Source).or_else(|| of(Side::Destination)).unwrap_or_default()
    }

    /// The workloads of this node that a side has counted.
    pub(super) fn of_side(&self, side: Side) -> BTreeMap<String, Totals> {
        let mut workloads: BTreeMap<String, Totals> = BTreeMap::new();
        for ((_, edge), totals) in self.0.iter().filter(|((of, _), _)| *of == side) {
            let workload = if side == Side::Source { &edge.source } else { &edge.destination };
            *workloads.entry(workload.clone()).or_default() += *totals;
        }
        workloads
    }

    /// What the daemons of servers have counted.
    pub(super) fn at_destinations(&self) -> impl Iterator<Item = (&Edge, &Totals)> {
        let of = self.0.iter().filter(|((side, _), _)| *side == Side::Destination);
        of.map(|((_, edge), totals)| (edge, totals))
    }
}

fn totals_of(sample: &Sample) -> Option<Totals> {
    let value = sample.value;
    let none = Totals::default();
    Some(match sample.name.as_str() {
        OPENED => Totals { opened: value, open: value, ..none },
        CLOSED => {
            let flags = sample.label("response_flags");
            let failed = if flags == FINE { 0.0 } else { value };
            let denied = if flags == DENY { value } else { 0.0 };
            Totals { open: -value, failed, denied, ..none }
        }
        RECEIVED => Totals { bytes_received: value, ..none },
        SENT => Totals { bytes_sent: value, ..none },
        _ => return None,
    })
}

impl Edge {
    fn of(sample: &Sample) -> Self {
        let known = |label: &str| Some(sample.label(label)).filter(|value| !matches!(*value, "" | UNKNOWN));
        let workload = |namespace: &str, name: &str| Some(format!("{}/{}", known(namespace)?, known(name)?));
        let service = known("destination_service").unwrap_or_default();
        let destination = workload("destination_workload_namespace", "destination_workload");
        let identity = |label| known(label).unwrap_or_default().to_owned();
        Self {
            source: workload("source_workload_namespace", "source_workload").unwrap_or_else(|| UNKNOWN.to_owned()),
            source_identity: identity("source_principal"),
            destination: destination
                .unwrap_or_else(|| if service.is_empty() { UNKNOWN.to_owned() } else { service.to_owned() }),
            destination_identity: identity("destination_principal"),
            service: service.to_owned(),
            security: if sample.label("connection_security_policy") == "mutual_tls" { "mTLS" } else { "plaintext" },
        }
    }
}

/// Percentiles of a duration, in seconds, since the daemon started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Latencies {
    /// `connect` or `handshake`.
    pub(super) of: &'static str,
    pub(super) direction: String,
    /// `HBONE` or `TCP`; empty of handshakes.
    pub(super) carried: String,
    pub(super) count: f64,
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
}

impl Latencies {
    pub(super) fn all(samples: &[Sample]) -> Vec<Self> {
        let connects = Self::of(samples, "connect", "ztunnel_connect_duration_seconds_bucket");
        let handshakes = Self::of(samples, "handshake", "ztunnel_tls_handshake_duration_seconds_bucket");
        connects.into_iter().chain(handshakes).collect()
    }

    fn of(samples: &[Sample], of: &'static str, name: &str) -> Vec<Self> {
        let mut histograms: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
        for sample in samples.iter().filter(|sample| sample.name == name) {
            let key = (sample.label("direction").to_owned(), sample.label("protocol").to_owned());
            if let Ok(bound) = sample.label("le").parse::<f64>() {
                let buckets = histograms.entry(key).or_default();
                // Another daemon of this node that has handed over has its own.
                match buckets.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, count)) => *count += sample.value,
                    None => buckets.push((bound, sample.value)),
                }
            }
        }
        let latencies = |((direction, carried), mut buckets): (_, Vec<(f64, f64)>)| {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|part| quantile(part, &buckets));
            Self { of, direction, carried, count: buckets.last().map_or(0.0, |(_, count)| *count), p50, p90, p99 }
        };
        histograms.into_iter().map(latencies).collect()
    }
}
