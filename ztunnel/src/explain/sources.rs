//! What an explanation is made from.

use super::state::{NodeState, PodState};
use crate::model::local::{LocalPod, LocalPods};
use crate::model::workload::{NamespacedName, Workload};
use crate::policy::PodPolicies;
use crate::store::snapshot::Snapshot;

/// A mesh, and what is known of the local facts of its pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) local: &'a LocalPods,
    /// The daemon that is asked, if one is.
    pub(super) node: Option<&'a NodeState>,
}

impl<'a> Sources<'a> {
    /// The local facts of a pod; none are known here of a pod of another node.
    pub(super) fn local(&self, pod: &NamespacedName) -> Option<&'a LocalPod> {
        self.local.get(pod)
    }

    /// What the daemon that is asked does with a pod, if it is one of its own.
    pub(super) fn state(&self, pod: &Workload) -> Option<PodState> {
        self.node?.of(pod)
    }

    /// The guard of a pod, as far as its local facts are known.
    pub(super) fn guard(&self, workload: &Workload) -> PodPolicies {
        let unknown = LocalPod::default();
        PodPolicies::of(self.snapshot, workload, self.local(&workload.name).unwrap_or(&unknown))
    }
}
