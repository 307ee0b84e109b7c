//! A Node's manifest: where its pods run. A pod's own label says otherwise.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::intern::Interner;
use crate::model::locality::Locality;

pub(super) const REGION: &str = "topology.kubernetes.io/region";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const SUBZONE: &str = "topology.istio.io/subzone";
/// Labels of a Pod with `region.zone.subzone`, since a label can't hold slashes. The first one wins.
pub(super) const OF_POD: [&str; 2] = ["topology.istio.io/locality", "istio-locality"];

pub(super) fn read(node: Node, texts: &mut Interner) -> Locality {
    let labels = node.metadata.labels.unwrap_or_default();
    let mut label = |key| texts.text(labels.get(key).map(String::as_str).unwrap_or_default());
    Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) }
}

/// What a pod's own labels say.
pub(super) fn of_pod(labels: &BTreeMap<String, String>) -> Option<Locality> {
    let text = OF_POD.iter().find_map(|key| labels.get(*key)).filter(|text| !text.is_empty())?;
    Some(if text.contains('/') { Locality::parse(text) } else { Locality::parse(&text.replace('.', "/")) })
}
