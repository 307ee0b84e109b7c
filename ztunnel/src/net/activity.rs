//! The time of the last bytes from a peer.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

/// The time of the last bytes from a peer. The reader of the socket writes it, and the code that has to distinguish a silent
/// peer from a dead one reads it. Cheap to clone; all clones share the time.
#[derive(Clone, Debug)]
pub struct Activity(Rc<Cell<Instant>>);

impl Activity {
    /// The last bytes arrived now.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// Bytes have arrived.
    pub fn touch(&self) {
        self.0.set(Instant::now());
    }

    /// The time of the last bytes.
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
