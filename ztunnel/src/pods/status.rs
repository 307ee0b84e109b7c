//! The manager's last report of the pods and the BPF maps, for a reader that does not wait for the manager: metrics.

use std::sync::Arc;

use ebpf_common::Verdict;
use tokio::time::Instant;

use super::describe::{MapInfo, PodState};
use crate::model::workload::NamespacedName;

/// The state of this node's pods at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The time of the report.
    pub at: Instant,
    /// The labelled pods of this node.
    pub pods: Vec<PodStatus>,
    /// The BPF maps.
    pub maps: Vec<MapInfo>,
    /// Number of BPF links that somebody had removed, and that were restored.
    pub links_restored: u64,
}

impl Status {
    /// The status before the first report.
    #[must_use]
    pub fn unknown() -> Self {
        Self { at: Instant::now(), pods: Vec::new(), maps: Vec::new(), links_restored: 0 }
    }
}

/// A labelled pod of this node.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Its name.
    pub name: NamespacedName,
    /// Whether it is enrolled.
    pub state: PodState,
    /// Why it is refused; `None`: it is enrolled, or the reason needs no action, for example because the pod has ended.
    pub reason: Option<Arc<str>>,
    /// Connections that it had before it was enrolled, and which the mesh does not carry.
    pub connections_before_enrolment: usize,
    /// The number of decisions of the BPF programs, by verdict. Empty for a pod that is not enrolled.
    pub verdicts: Vec<(Verdict, u64)>,
}
