//! When a peer was last heard of.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

/// The time of the last bytes received from a peer: written by whoever reads from the socket, read by whoever has to tell
/// a silent peer from a dead one. Cheap to clone; every clone is the same clock hand.
#[derive(Clone, Debug)]
pub struct Activity(Rc<Cell<Instant>>);

impl Activity {
    /// Heard of just now.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// Bytes have arrived.
    pub fn touch(&self) {
        self.0.set(Instant::now());
    }

    /// When bytes arrived last.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.0.get()
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Rc<Cell<Instant>>> for Activity {
    fn from(last: Rc<Cell<Instant>>) -> Self {
        Self(last)
    }
}
