//! The state of the pods of a node at its daemon, which is not in any manifest.

use std::collections::BTreeMap;

use crate::model::workload::{Membership, NamespacedName, Workload};

/// The pods of one node, in the state that its daemon reports.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The node.
    pub node: String,
    /// Its labelled pods, by name. A pod that is missing waits for its enrolment.
    pub pods: BTreeMap<NamespacedName, PodState>,
}

/// The state of a labelled pod at the daemon of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// It is captured and served.
    Enrolled,
    /// It is not captured, for this reason.
    Refused(String),
    /// It is captured but not served, for this reason. Its connections fail.
    Closed(String),
    /// It is not captured yet.
    Pending,
}

impl NodeState {
    /// The state of a pod of the mesh, if it is on this node.
    #[must_use]
    pub fn of(&self, pod: &Workload) -> Option<PodState> {
        let is_here = pod.node.as_deref() == Some(self.node.as_str()) && pod.membership == Membership::InMesh;
        is_here.then(|| self.pods.get(&pod.name).cloned().unwrap_or(PodState::Pending))
    }
}

impl PodState {
    /// Why the pod is not captured. `None`: it is captured.
    pub(super) fn why_open(&self) -> Option<String> {
        match self {
            Self::Enrolled | Self::Closed(_) => None,
            Self::Refused(why) => Some(format!("its node refuses it: {why}")),
            Self::Pending => Some("its node has not enrolled it yet".to_owned()),
        }
    }

    /// Why the pod accepts no HBONE connections. `None`: it accepts them.
    pub(super) fn why_no_tunnel(&self) -> Option<String> {
        self.why_open().or_else(|| self.why_closed())
    }

    /// Why all of its connections fail. `None`: they do not.
    pub(super) fn why_closed(&self) -> Option<String> {
        match self {
            Self::Closed(why) => Some(format!("its node has closed it, so that all its connections fail: {why}")),
            Self::Enrolled | Self::Refused(_) | Self::Pending => None,
        }
    }
}
