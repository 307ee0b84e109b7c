//! The state of each pod of this node.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::{
    lifecycle::tasks::TaskSet,
    pods::{kernel::Kernel, pod::Pod, reconcile::Wanted},
};

/// A pod that could not be enrolled.
pub(super) struct Refused {
    pub(super) reason: String,
    /// The state that was wanted for the pod.
    pub(super) wanted: Wanted,
    pub(super) retry: Option<(Instant, Duration)>,
    /// Another pod claims its network namespace or one of its addresses. Any change of the mesh may end that.
    pub(super) is_claimed: bool,
}

/// A pod that is enrolled, and the task that waits for changes in its namespace.
pub(super) struct Enrolled<K: Kernel> {
    pub(super) pod: Pod<K>,
    /// Ends with the pod.
    pub(super) following: TaskSet,
    /// The pod's current addresses, for the task that waits for changes.
    pub(super) addresses: Arc<ArcSwap<Vec<IpAddr>>>,
}
