//! A Node: the locality of its pods, unless a pod's own label says otherwise, and the node's addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use super::address::usable_address;
use super::intern::Interner;
use crate::model::locality::Locality;

pub(super) const REGION: &str = "topology.kubernetes.io/region";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const SUBZONE: &str = "topology.istio.io/subzone";
/// Labels of a Pod with `region.zone.subzone`, since the value of a label can't contain slashes. The first one present
/// counts.
pub(super) const OF_POD: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];

/// The facts of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::control) struct NodeManifest {
    pub(in crate::control) locality: Locality,
    /// Its own addresses, canonical.
    pub(in crate::control) addresses: Vec<IpAddr>,
}

pub(super) fn read(node: Node, texts: &mut Interner) -> NodeManifest {
    let labels = node.metadata.labels.unwrap_or_default();
    let mut label = |key| texts.text(labels.get(key).map(String::as_str).unwrap_or_default());
    let locality = Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) };
    let addresses = node.status.and_then(|status| status.addresses).into_iter().flatten();
    // The list also contains host names.
    let addresses = addresses.filter_map(|entry| usable_address(&entry.address).ok()).collect();
    NodeManifest { locality, addresses }
}

/// The locality in a pod's own labels.
pub(super) fn of_pod(labels: &BTreeMap<String, String>) -> Option<Locality> {
    let text = OF_POD.iter().find_map(|key| labels.get(*key)).filter(|text| !text.is_empty())?;
    Some(if text.contains('/') { Locality::parse(text) } else { Locality::parse(&text.replace('.', "/")) })
}
