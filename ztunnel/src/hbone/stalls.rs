//! How many tunnels of a connection wait for an application that does not read, here or over there.
//!
//! Each of them fills its own window, and all of them together that of the connection, on which then nothing moves any more.
//! Nobody can take the room back from them; but new tunnels need not be put on such a connection, and a server can tell its
//! peer not to do so.

use std::{cell::Cell, rc::Rc};

/// The waits on one connection.
#[derive(Debug, Default)]
pub(super) struct Stalls(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Grows with each look.
    looks: Cell<u64>,
    /// Waits that were there at the last look.
    old: Cell<usize>,
    /// Waits from after it.
    new: Cell<usize>,
}

/// A tunnel that waits; over when it is dropped.
#[derive(Debug)]
pub(super) struct Stall {
    counts: Rc<Counts>,
    begun: u64,
}

impl Stalls {
    /// A tunnel begins to wait.
    pub(super) fn begin(&self) -> Stall {
        self.0.new.set(self.0.new.get() + 1);
        Stall { counts: Rc::clone(&self.0), begun: self.0.looks.get() }
    }

    /// How many wait now. An application that is a little slower than the network does so most of the time.
    pub(super) fn count(&self) -> usize {
        self.0.old.get() + self.0.new.get()
    }

    /// How many have waited since the last call, without a byte moved.
    pub(super) fn since_last_look(&self) -> usize {
        let old = self.0.old.get();
        self.0.old.set(old + self.0.new.take());
        self.0.looks.set(self.0.looks.get() + 1);
        old
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let is_old = self.begun < self.counts.looks.get();
        let count = if is_old { &self.counts.old } else { &self.counts.new };
        count.set(count.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::Stalls;

    #[test]
    fn only_waits_that_go_on_between_two_looks_are_told() {
        let stalls = Stalls::default();
        let (first, second) = (stalls.begin(), stalls.begin());
        assert_eq!((stalls.count(), stalls.since_last_look()), (2, 0));
        let third = stalls.begin();
        drop(second);
        assert_eq!((stalls.count(), stalls.since_last_look()), (2, 1));
        drop(first);
        assert_eq!((stalls.count(), stalls.since_last_look()), (1, 1));
        drop(third);
        assert_eq!((stalls.count(), stalls.since_last_look()), (0, 0));
    }
}
