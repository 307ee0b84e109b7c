//! How many tunnels of a connection wait for an application that does not read, here or over there.
//!
//! Each of them fills its own window, and all of them together that of the connection, on which then nothing moves any more.
//! Nobody can take the room back from them; but new tunnels need not be put on such a connection.

use std::{cell::Cell, rc::Rc};

/// The waits on one connection.
#[derive(Debug, Default)]
pub(super) struct Stalls(Rc<Cell<usize>>);

/// A tunnel that waits; over when it is dropped.
#[derive(Debug)]
pub(super) struct Stall(Rc<Cell<usize>>);

impl Stalls {
    /// A tunnel begins to wait.
    pub(super) fn begin(&self) -> Stall {
        self.0.set(self.0.get() + 1);
        Stall(Rc::clone(&self.0))
    }

    /// How many wait now. An application that is a little slower than the network does so most of the time.
    pub(super) fn count(&self) -> usize {
        self.0.get()
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
