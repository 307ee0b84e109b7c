//! What waits to be sent, counted by the buffers it occupies: of a stream of 1-byte messages to a peer that does not read,
//! h2 would count the bytes.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

use bytes::Buf;

use crate::net::buffer::Chunk;

/// Bytes on their way out; the buffer goes back to its worker, and its room to the stream, when they are written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunk: Chunk,
    held: Option<Held>,
}

impl Outgoing {
    pub(super) fn new(chunk: Chunk, ledger: &Rc<Ledger>, size: usize) -> Self {
        ledger.held.set(ledger.held.get().saturating_add(size));
        Self { chunk, held: Some(Held { ledger: Rc::clone(ledger), size }) }
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.chunk.advance(count);
        if !self.chunk.has_remaining() {
            self.held = None;
        }
    }
}

/// What one stream has waiting.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: Cell<usize>,
    waiter: RefCell<Option<Waker>>,
}

impl Ledger {
    /// Bytes of buffers that wait.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// Whether there is room for one more buffer of that size under the limit; there always is for one.
    pub(super) fn has_room(&self, size: usize, limit: usize) -> bool {
        self.held() == 0 || self.held().saturating_add(size) <= limit
    }

    /// Wakes this one when something has been written.
    pub(super) fn wake_later(&self, waker: &Waker) {
        self.waiter.replace(Some(waker.clone()));
    }
}

#[derive(Debug)]
struct Held {
    ledger: Rc<Ledger>,
    size: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.held.set(self.ledger.held().saturating_sub(self.size));
        if let Some(waiter) = self.ledger.waiter.take() {
            waiter.wake();
        }
    }
}
