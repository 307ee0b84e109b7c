//! A Namespace: what it says to what is in it.

use k8s_openapi::api::core::v1::Namespace;

use super::annotations::Annotations;
use super::pod::MODE_LABEL;
use super::report::Report;
use crate::model::locality::Distribution;

/// What a namespace says to what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::control) struct NamespaceManifest {
    /// Its pods are in the mesh.
    pub(in crate::control) labelled: bool,
    /// Which endpoints its services prefer.
    pub(in crate::control) distribution: Option<Distribution>,
}

pub(super) fn read(namespace: Namespace, report: &mut Report) -> NamespaceManifest {
    let labels = namespace.metadata.labels.unwrap_or_default();
    let annotations = namespace.metadata.annotations.unwrap_or_default();
    NamespaceManifest {
        labelled: labels.get(MODE_LABEL).is_some_and(|mode| mode == "ambient"),
        distribution: Annotations { values: &annotations, report }.distribution(),
    }
}
