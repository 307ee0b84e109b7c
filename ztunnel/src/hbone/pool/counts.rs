//! The numbers of open connections and streams.

use std::{cell::Cell, rc::Rc};

/// The counts for [`Stats`](super::Stats).
#[derive(Clone, Default)]
pub(super) struct Counts {
    pub(super) connections: Rc<Cell<usize>>,
    pub(super) streams: Rc<Cell<usize>>,
}

/// One counted connection or stream; dropping it reduces the count.
pub(super) struct Counted(Rc<Cell<usize>>);

impl Counted {
    pub(super) fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
