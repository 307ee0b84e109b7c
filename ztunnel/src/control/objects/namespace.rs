//! A Namespace: its settings for the objects in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;

use super::annotations::Annotations;
use super::pod::MODE_LABEL;
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::locality::Distribution;

/// Linkerd's annotation of a namespace that has sidecars injected into its pods.
pub(super) const LINKERD_INJECT: &str = "linkerd.io/inject";

/// The settings of a namespace for the objects in it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::control) struct NamespaceManifest {
    /// The label of the namespace puts its pods into the mesh.
    pub(in crate::control) labelled: bool,
    /// The endpoints that its services prefer.
    pub(in crate::control) distribution: Option<Distribution>,
}

pub(super) fn read(namespace: Namespace, report: &mut Report) -> NamespaceManifest {
    let labels = namespace.metadata.labels.unwrap_or_default();
    let annotations = namespace.metadata.annotations.unwrap_or_default();
    let labelled = labels.get(MODE_LABEL).is_some_and(|mode| mode == "ambient");
    if labelled {
        injections(&labels, &annotations, report);
    }
    NamespaceManifest { labelled, distribution: Annotations { values: &annotations, report }.distribution() }
}

/// Reports a label or annotation that has sidecars added to the pods of a namespace of the mesh: such pods are not
/// enrolled.
fn injections(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>, report: &mut Report) {
    let istio = labels.get_key_value("istio-injection").filter(|(_, value)| *value == "enabled");
    let linkerd = annotations.get_key_value(LINKERD_INJECT);
    let linkerd = linkerd.filter(|(_, value)| matches!(value.as_str(), "enabled" | "ingress"));
    for (map, given) in [("labels", istio), ("annotations", linkerd)] {
        let Some((key, value)) = given else { continue };
        report.warn_at(
            FieldPath::of("metadata").key(map).key(key),
            format!(
                "{key}: {value} is set together with {MODE_LABEL}: ambient: pods to which a sidecar is added are not \
                 enrolled, and connections to them use plaintext: remove one of the two"
            ),
        );
    }
}
