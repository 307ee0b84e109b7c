//! Which daemon of a node writes the copies of the mesh in the state directory. During a handover two daemons run.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether this daemon writes the copies. Clones share the state.
#[derive(Clone, Debug)]
pub struct Keeps(Arc<State>);

#[derive(Debug)]
struct State {
    is_keeping: AtomicBool,
    has_predecessor: bool,
}

impl Default for Keeps {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Keeps {
    /// The state of a daemon that starts. `has_predecessor`: another daemon runs.
    #[must_use]
    pub fn new(has_predecessor: bool) -> Self {
        Self(Arc::new(State { is_keeping: AtomicBool::new(true), has_predecessor }))
    }

    /// Whether this daemon writes the copies.
    #[must_use]
    pub fn is_so(&self) -> bool {
        self.0.is_keeping.load(Ordering::Acquire)
    }

    /// Whether another daemon ran at the start and may have files open.
    #[must_use]
    pub fn has_predecessor(&self) -> bool {
        self.0.has_predecessor
    }

    /// Leaves the copies to another daemon.
    pub fn leave(&self) {
        self.0.is_keeping.store(false, Ordering::Release);
    }
}
