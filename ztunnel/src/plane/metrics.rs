//! Counters of the control plane.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::catalogue::Kind;

/// A type of resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// Its name.
    pub r#type: &'static str,
}

/// Why something was refused or cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The reason.
    pub reason: &'static str,
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// The result.
    pub result: &'static str,
}

/// All counters. Clones share them.
#[derive(Clone, Debug)]
pub struct PlaneMetrics {
    /// Responses sent.
    pub responses: Family<TypeLabel, Counter>,
    /// Bytes of the responses sent.
    pub bytes: Family<TypeLabel, Counter>,
    /// Responses that nodes could use.
    pub accepted: Family<TypeLabel, Counter>,
    /// Responses that nodes could not use.
    pub rejected: Family<TypeLabel, Counter>,
    /// Time from a response to the node's answer, in seconds.
    pub answer_seconds: Histogram,
    /// Certificates issued.
    pub issued: Counter,
    /// Requests for certificates that were refused.
    pub refused: Family<ReasonLabel, Counter>,
    /// Pods that nodes reported, and reports that were refused.
    pub reports: Family<ResultLabel, Counter>,
    /// Events on pods.
    pub events: Family<ResultLabel, Counter>,
    /// Streams and connections that the control plane has ended.
    pub cut: Family<ReasonLabel, Counter>,
}

impl PlaneMetrics {
    /// Registers all counters.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            responses: Family::default(),
            bytes: Family::default(),
            accepted: Family::default(),
            rejected: Family::default(),
            answer_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
            issued: Counter::default(),
            refused: Family::default(),
            reports: Family::default(),
            events: Family::default(),
            cut: Family::default(),
        };
        let register = |registry: &mut Registry, name: &str, help: &str, family: &Family<TypeLabel, Counter>| {
            registry.register(name, help, family.clone());
        };
        register(registry, "ztunnel_xds_responses", "Responses sent to nodes, by type", &metrics.responses);
        register(registry, "ztunnel_xds_response_bytes", "Bytes of responses sent to nodes, by type", &metrics.bytes);
        register(registry, "ztunnel_xds_accepted", "Responses that nodes could use (ACK), by type", &metrics.accepted);
        register(
            registry,
            "ztunnel_xds_rejected",
            "Responses that nodes could not use (NACK), by type",
            &metrics.rejected,
        );
        let help = "Time from a response to the answer of the node";
        registry.register("ztunnel_xds_answer_seconds", help, metrics.answer_seconds.clone());
        registry.register("ztunnel_certificates_issued", "Certificates issued to nodes", metrics.issued.clone());
        let help = "Certificate requests that were refused, by reason";
        registry.register("ztunnel_certificates_refused", help, metrics.refused.clone());
        let help = "Refused pods that nodes have reported, and reports that were rejected, by result";
        registry.register("ztunnel_pod_reports", help, metrics.reports.clone());
        let help = "Events about pods, by result";
        registry.register("ztunnel_pod_events", help, metrics.events.clone());
        let help = "Streams and connections that the control plane ended, by reason";
        registry.register("ztunnel_xds_cut", help, metrics.cut.clone());
        for kind in Kind::ALL {
            let label = TypeLabel { r#type: kind.name() };
            for family in [&metrics.responses, &metrics.bytes, &metrics.accepted, &metrics.rejected] {
                drop(family.get_or_create(&label));
            }
        }
        metrics
    }

    /// Counts a certificate request that was refused.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts pods of a report, or a report that was refused.
    pub fn reported(&self, result: &'static str, count: u32) {
        self.reports.get_or_create(&ResultLabel { result }).inc_by(count.into());
    }

    /// Counts an Event.
    pub fn event(&self, result: &'static str) {
        self.events.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a stream or a connection that was ended.
    pub fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&ReasonLabel { reason }).inc();
    }
}
