//! The pods of one node, as the cluster has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::local::LocalPod;
use super::workload::{NamespacedName, Workload};

/// The pods of one node at one moment, and whether that moment is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    /// The pods; `None`: they have never been told completely.
    pub pods: Option<BTreeMap<NamespacedName, NodePod>>,
    /// Why they may be others by now.
    pub problem: Option<Arc<str>>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// What it says of itself. Its membership is what the labels of the pod and its Namespace say.
    pub workload: Arc<Workload>,
    /// What its manifest says for its own node. Of its network namespace it says nothing that counts.
    pub local: Arc<LocalPod>,
}
