//! A pod as the checks see it: a running pod, or the pods that a template will create.

use std::ops::Deref;

use super::declared::Template;
use crate::model::local::LocalPod;
use crate::model::origin::Origin;
use crate::model::workload::{Membership, RefuseReason, Workload};

/// A pod, or the pods that a template will create.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) workload: &'a Workload,
    /// Its local facts, if they are known.
    pub(super) local: Option<&'a LocalPod>,
    template: Option<&'a Template>,
    /// Whether the label of its namespace is known.
    has_namespace: bool,
}

impl Deref for Pod<'_> {
    type Target = Workload;

    fn deref(&self) -> &Workload {
        self.workload
    }
}

impl<'a> Pod<'a> {
    pub(super) fn real(workload: &'a Workload, local: Option<&'a LocalPod>) -> Self {
        Self { workload, local, template: None, has_namespace: true }
    }

    /// `has_namespace`: its Namespace is among the manifests.
    pub(super) fn planned(template: &'a Template, has_namespace: bool) -> Self {
        let Template { workload, local, .. } = template;
        Self { workload, local: Some(local), template: Some(template), has_namespace }
    }

    /// The kind of the object that describes it.
    pub(super) fn kind(&self) -> &'a str {
        self.template.map_or("Pod", |template| &template.kind)
    }

    /// File and line of the template.
    pub(super) fn template_origin(&self) -> Option<&'a Origin> {
        self.template.map(|template| &template.origin)
    }

    pub(super) fn is_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether the pod has no node yet, as in a manifest that was written by hand.
    pub(super) fn is_planned(&self) -> bool {
        self.is_template() || (self.node.is_none() && self.addresses.is_empty() && !self.finished)
    }

    /// Whether the mesh carries the pod's traffic, or will carry it.
    pub(super) fn is_inside(&self) -> bool {
        let is_awaited = self.is_planned() && self.membership == Membership::Refused(RefuseReason::NoAddress);
        !self.finished && (self.membership == Membership::InMesh || is_awaited)
    }

    /// Why the mesh enforces nothing for the pod. `None` for pods in the mesh, for pods that have ended or have no
    /// address yet, and for pods of templates whose Namespace is not known.
    pub(super) fn outside(&self) -> Option<Outside> {
        if self.finished {
            return None;
        }
        match self.membership {
            Membership::InMesh | Membership::Refused(RefuseReason::Finished | RefuseReason::NoAddress) => None,
            Membership::NotLabelled if self.host_network => Some(Outside::HostNetwork),
            Membership::NotLabelled => self.has_namespace.then_some(Outside::NotLabelled),
            Membership::OptedOut => Some(Outside::OptedOut),
            Membership::Refused(RefuseReason::HostNetwork) => Some(Outside::HostNetwork),
            Membership::Refused(RefuseReason::Sidecar(_)) => Some(Outside::Sidecar),
        }
    }
}

/// Why a pod is outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outside {
    NotLabelled,
    HostNetwork,
    Sidecar,
    OptedOut,
}

impl Outside {
    /// The reason in words.
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::NotLabelled => "not labelled",
            Self::HostNetwork => "hostNetwork",
            Self::Sidecar => "with a sidecar proxy of its own",
            Self::OptedOut => "labelled istio.io/dataplane-mode: none",
        }
    }

    /// What to do about it.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::NotLabelled => "label the namespace, or the pod, istio.io/dataplane-mode: ambient",
            Self::HostNetwork => "run it without hostNetwork, or protect it by other means",
            Self::Sidecar => "turn the injection of the sidecar off and create the pod anew",
            Self::OptedOut => "remove the label, or protect it by other means",
        }
    }

    /// Whether someone decided so on purpose, for this pod.
    pub(super) fn is_wanted(self) -> bool {
        matches!(self, Self::HostNetwork | Self::OptedOut)
    }
}
