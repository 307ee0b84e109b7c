//! Bytes that wait to be sent, counted by the size of their buffers. h2 counts only the bytes, which is far too little for
//! 1-byte messages to a peer that does not read.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

use bytes::Buf;

use crate::net::buffer::Chunk;

/// Bytes that wait to be sent. When they are written, the buffer returns to its worker, and its size no longer counts for the
/// stream.
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

/// The buffers of one stream that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: Cell<usize>,
    waiter: RefCell<Option<Waker>>,
}

impl Ledger {
    /// The size of the waiting buffers in bytes.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// Whether one more buffer of this size is within the limit. A single buffer always is.
    pub(super) fn has_room(&self, size: usize, limit: usize) -> bool {
        self.held() == 0 || self.held().saturating_add(size) <= limit
    }

    /// Wakes this task when a buffer has been written.
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
