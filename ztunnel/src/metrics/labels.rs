//! The label set of Istio's traffic metrics.

use std::{fmt, sync::Arc};

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};

use super::facts::{Facts, Protocol};
use crate::model::{
    flow::Direction,
    identity::SpiffeId,
    workload::{NamespacedName, Workload},
};

/// Istio's value for an unknown label.
const UNKNOWN: &str = "unknown";

/// Istio's name for the side that reports.
pub(super) const fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

/// All labels but `response_flags`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Labels {
    reporter: &'static str,
    source: Party,
    service: Option<(Arc<str>, NamespacedName)>,
    destination: Party,
    is_mutual_tls: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Party {
    workload: Option<Arc<str>>,
    canonical_service: Option<Arc<str>>,
    canonical_revision: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    principal: Option<SpiffeId>,
    cluster: Option<Arc<str>>,
    region: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

impl Labels {
    /// `cluster` is the name of this cluster, to which every known workload belongs.
    pub(super) fn of(facts: &Facts, cluster: &Arc<str>) -> Self {
        let mut source = Party::of(facts.source.as_deref(), cluster);
        // Istio names a source only by the identity that TLS has proved, and a destination by all that is known about it.
        source.principal.clone_from(&facts.source_identity);
        if let (None, Some(identity)) = (&source.namespace, &facts.source_identity) {
            source.namespace = Some(Arc::clone(&identity.namespace));
        }
        let mut destination = Party::of(facts.destination.as_deref(), cluster);
        destination.principal = facts
            .destination_identity
            .clone()
            .or_else(|| facts.destination.as_ref().map(|workload| workload.identity.clone()));
        Self {
            reporter: reporter(facts.direction),
            source,
            service: facts.service.as_ref().map(|service| (Arc::clone(&service.hostname), service.name.clone())),
            destination,
            is_mutual_tls: facts.protocol() == Protocol::Hbone,
        }
    }
}

impl Party {
    fn of(workload: Option<&Workload>, cluster: &Arc<str>) -> Self {
        let Some(workload) = workload else { return Self::default() };
        let known = |text: &Arc<str>| (!text.is_empty()).then(|| Arc::clone(text));
        Self {
            workload: known(&workload.controller.name),
            canonical_service: known(&workload.canonical_name),
            canonical_revision: known(&workload.canonical_revision),
            namespace: known(&workload.name.namespace),
            principal: None,
            cluster: known(cluster),
            region: known(&workload.locality.region),
            zone: known(&workload.locality.zone),
        }
    }
}

/// The whole label set.
pub(super) struct WithFlags<'a> {
    pub(super) labels: &'a Labels,
    pub(super) flags: &'static str,
}

impl EncodeLabelSet for WithFlags<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Labels { reporter, source, service, destination, is_mutual_tls } = self.labels;
        let principal = |party: &Party| party.principal.as_ref().map(ToString::to_string);
        let (source_principal, destination_principal) = (principal(source), principal(destination));
        let name = service.as_ref().map(|(_, name)| name);
        for (key, value) in [
            ("reporter", Some(*reporter)),
            ("source_workload", source.workload.as_deref()),
            ("source_canonical_service", source.canonical_service.as_deref()),
            ("source_canonical_revision", source.canonical_revision.as_deref()),
            ("source_workload_namespace", source.namespace.as_deref()),
            ("source_principal", source_principal.as_deref()),
            ("source_app", source.canonical_service.as_deref()),
            ("source_version", source.canonical_revision.as_deref()),
            ("source_cluster", source.cluster.as_deref()),
            ("destination_service", service.as_ref().map(|(hostname, _)| &**hostname)),
            ("destination_service_namespace", name.map(|name| &*name.namespace)),
            ("destination_service_name", name.map(|name| &*name.name)),
            ("destination_workload", destination.workload.as_deref()),
            ("destination_canonical_service", destination.canonical_service.as_deref()),
            ("destination_canonical_revision", destination.canonical_revision.as_deref()),
            ("destination_workload_namespace", destination.namespace.as_deref()),
            ("destination_principal", destination_principal.as_deref()),
            ("destination_app", destination.canonical_service.as_deref()),
            ("destination_version", destination.canonical_revision.as_deref()),
            ("destination_cluster", destination.cluster.as_deref()),
            ("request_protocol", Some("tcp")),
            ("response_flags", Some(self.flags)),
            ("connection_security_policy", is_mutual_tls.then_some("mutual_tls")),
            ("source_region", source.region.as_deref()),
            ("source_zone", source.zone.as_deref()),
            ("destination_region", destination.region.as_deref()),
            ("destination_zone", destination.zone.as_deref()),
        ] {
            (key, value.unwrap_or(UNKNOWN)).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
