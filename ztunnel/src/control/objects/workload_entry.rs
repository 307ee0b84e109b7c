//! Istio's WorkloadEntry: a host outside the cluster, as an endpoint of the services whose selectors match it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::address::usable_address;
use super::controller;
use super::entry::ApiVersion;
use super::intern::Interner;
use super::name::check_name;
use super::pod::PodManifest;
use super::port::port_number;
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::locality::Locality;
use crate::model::workload::{NamedPort, NamespacedName, Workload};

/// Label or annotation of a host that takes HBONE connections: a comma-separated list that contains `http`.
pub(super) const TUNNEL: &str = "networking.istio.io/tunnel";
/// The most ports; a service has the same limit.
const MOST_PORTS: usize = 256;

/// The object. Fields without meaning here are not listed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::control) struct WorkloadEntry {
    #[expect(dead_code, reason = "checked by being read")]
    api_version: ApiVersion,
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    address: Option<String>,
    ports: Option<BTreeMap<String, u32>>,
    labels: Option<BTreeMap<String, String>>,
    network: Option<String>,
    locality: Option<String>,
    weight: Option<u32>,
    service_account: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: Option<String>,
    status: Option<String>,
}

pub(super) fn read(
    name: &NamespacedName,
    entry: WorkloadEntry,
    texts: &mut Interner,
    report: &mut Report,
) -> PodManifest {
    let spec = entry.spec.unwrap_or_default();
    let annotations = entry.metadata.annotations.unwrap_or_default();
    let mut labels = entry.metadata.labels.unwrap_or_default();
    labels.extend(spec.labels.clone().unwrap_or_default());
    let takes_tunnels = [&labels, &annotations].into_iter().filter_map(|map| map.get(TUNNEL));
    let takes_tunnels = takes_tunnels.flat_map(|list| list.split(',')).any(|protocol| protocol.trim() == "http");
    if spec.network.as_ref().is_some_and(|network| !network.is_empty()) {
        report.warn_at(
            FieldPath::of("spec.network"),
            "spec.network: gateways between networks are not supported: connections go to the address itself",
        );
    }
    let controller = controller::controller(&name.name, &[], &labels, texts);
    let (canonical_name, canonical_revision) = controller::canonical(&controller, &labels, texts, report);
    let account = service_account(&spec, report).unwrap_or("default");
    let identity = SpiffeId::new(TrustDomain::default(), Arc::clone(&name.namespace), texts.text(account));
    let conditions = entry.status.and_then(|status| status.conditions).unwrap_or_default();
    let is_sick = |condition: &Condition| {
        condition.kind.as_deref() == Some("Healthy") && condition.status.as_deref() == Some("False")
    };
    let workload = Workload {
        uid: entry.metadata.uid.unwrap_or_default().into(),
        controller,
        canonical_name,
        canonical_revision,
        is_entry: true,
        addresses: address(&spec, report).into_iter().collect(),
        labels: texts.labels(&labels),
        ports: ports(&spec, texts, report),
        ready: !conditions.iter().any(is_sick),
        ..Workload::new(name.clone(), identity)
    };
    let locality = spec.locality.as_deref().filter(|text| !text.is_empty()).map(Locality::parse);
    // As in Istio, a weight of 0 counts as not set.
    let weight = spec.weight.filter(|weight| *weight > 0).unwrap_or(1);
    PodManifest::of_entry(workload, locality, takes_tunnels, weight)
}

fn address(spec: &Spec, report: &mut Report) -> Option<std::net::IpAddr> {
    let text = spec.address.as_deref().unwrap_or_default();
    let wrong = match text {
        "" => "is missing: an entry of another network cannot be reached".to_owned(),
        unix if unix.starts_with("unix://") => format!("{text:?} is a Unix socket, which is not TCP"),
        text => match usable_address(text) {
            Ok(address) => return Some(address),
            Err(error) => format!("{error}, and host names are not resolved"),
        },
    };
    report.error_at(
        FieldPath::of("spec.address"),
        format!("spec.address: {wrong}; no connection is routed to the entry"),
    );
    None
}

fn service_account<'a>(spec: &'a Spec, report: &mut Report) -> Option<&'a str> {
    let name = spec.service_account.as_deref().filter(|name| !name.is_empty())?;
    match check_name(name) {
        Ok(()) => Some(name),
        Err(error) => {
            let message = format!("spec.serviceAccount: {error}; the entry has the service account default");
            report.error_at(FieldPath::of("spec.serviceAccount"), message);
            None
        }
    }
}

/// The entry's own port numbers for the ports of services, by name.
fn ports(spec: &Spec, texts: &mut Interner, report: &mut Report) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    let given = spec.ports.iter().flatten();
    for (name, value) in given.take(MOST_PORTS) {
        match port_number(*value) {
            Some(number) => ports.push(NamedPort { name: texts.text(name), number }),
            None => report.error_at(
                FieldPath::of("spec.ports").key(name),
                format!("spec.ports: {value} is not a port from 1 to 65535; the port {name:?} is ignored"),
            ),
        }
    }
    ports
}
