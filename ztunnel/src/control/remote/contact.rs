//! Whether the control plane can be used, for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether the control plane can be used. Clones share the state; the source of the mesh sets it.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<AtomicBool>);

impl Contact {
    /// Whether the control plane cannot be used, so that its last mesh stays in force.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(super) fn set_lost(&self, is_lost: bool) {
        self.0.store(is_lost, Relaxed);
    }
}
