//! The pods of one node, as the cluster reports them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::local::LocalPod;
use super::workload::{NamespacedName, Workload};

/// The pods of one node at one moment, and whether the list is current.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    /// The pods. `None`: a complete list has never been received.
    pub pods: Option<BTreeMap<NamespacedName, NodePod>>,
    /// The Namespaces of the cluster that are known, and whether they have the label of the mesh.
    pub namespaces: Arc<BTreeMap<Arc<str>, bool>>,
    /// Why the list may be out of date. `None`: it is current.
    pub problem: Option<Arc<str>>,
}

impl NodePod {
    /// Whether the kubelet knows the pod by this UID. The UID of a static pod differs from that of its object.
    #[must_use]
    pub fn has_uid(&self, uid: &str) -> bool {
        !uid.is_empty() && (*self.workload.uid == *uid || self.local.cgroup_uid.as_deref() == Some(uid))
    }
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// The pod as all nodes see it. Its membership follows from the labels of the pod and its Namespace.
    pub workload: Arc<Workload>,
    /// The local facts of its manifest, without the network namespace.
    pub local: Arc<LocalPod>,
}
