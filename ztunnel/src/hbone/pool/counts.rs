//! Counts of what lives.

use std::{cell::Cell, rc::Rc};

/// How many there are, for [`Stats`](super::Stats).
#[derive(Clone, Default)]
pub(super) struct Counts {
    pub(super) connections: Rc<Cell<usize>>,
    pub(super) streams: Rc<Cell<usize>>,
}

/// One of those counted.
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
