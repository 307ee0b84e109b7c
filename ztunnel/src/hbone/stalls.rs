//! Counts the streams of a connection that wait for an application that does not read, on this or on the other side.
//!
//! Each of these streams fills its own window. Together they can fill the window of the connection, which then blocks all its
//! streams. HTTP/2 can't take the space back from them. But a client can open new streams on another connection, and a server
//! can tell its peer to do so.

use std::{cell::Cell, rc::Rc};

/// The waiting streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Stalls(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The number of calls of [`Stalls::since_last_look`].
    looks: Cell<u64>,
    /// Waits that began before the last call.
    old: Cell<usize>,
    /// Waits that began after the last call.
    new: Cell<usize>,
}

/// A stream that waits; the wait ends when the value is dropped.
#[derive(Debug)]
pub(super) struct Stall {
    counts: Rc<Counts>,
    begun: u64,
}

impl Stalls {
    /// Records that a stream begins to wait.
    pub(super) fn begin(&self) -> Stall {
        self.0.new.set(self.0.new.get() + 1);
        Stall { counts: Rc::clone(&self.0), begun: self.0.looks.get() }
    }

    /// The number of streams that wait now. The stream of an application that is a little slower than the network waits most of
    /// the time.
    pub(super) fn count(&self) -> usize {
        self.0.old.get() + self.0.new.get()
    }

    /// The number of streams that have waited since the last call without the transfer of a byte.
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
