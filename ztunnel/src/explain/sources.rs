//! The input of an explanation.

use super::state::{NodeState, PodState};
use crate::model::local::{LocalPod, LocalPods};
use crate::model::workload::{NamespacedName, Workload};
use crate::policy::PodPolicies;
use crate::store::snapshot::Snapshot;

/// A mesh, and the known local facts of its pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) local: &'a LocalPods,
    /// The state of the daemon that is asked, if one is asked.
    pub(super) node: Option<&'a NodeState>,
}

impl<'a> Sources<'a> {
    /// The local facts of a pod. They are not known for pods of other nodes.
    pub(super) fn local(&self, pod: &NamespacedName) -> Option<&'a LocalPod> {
        self.local.get(pod)
    }

    /// The state of a pod at the daemon that is asked, if the pod is on its node.
    pub(super) fn state(&self, pod: &Workload) -> Option<PodState> {
        self.node?.of(pod)
    }

    /// The policies of a pod, according to its known local facts.
    pub(super) fn guard(&self, workload: &Workload) -> PodPolicies {
        let unknown = LocalPod::default();
        PodPolicies::of(self.snapshot, workload, self.local(&workload.name).unwrap_or(&unknown))
    }
}
