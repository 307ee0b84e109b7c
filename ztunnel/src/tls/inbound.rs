//! Ciphertext between the socket and TLS. A buffer is held only while it contains bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::net::buffer::{Borrowed, BufferPool, Size};

/// Received bytes that TLS has not taken yet.
#[derive(Debug)]
pub(super) struct Inbound {
    pool: BufferPool,
    held: Option<Borrowed>,
    start: usize,
    end: usize,
}

impl Inbound {
    pub(super) fn new(pool: &BufferPool) -> Self {
        Self { pool: pool.clone(), held: None, start: 0, end: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.held.as_ref().and_then(|held| held.bytes().get(self.start..self.end)).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// Removes the first `count` bytes, and returns the buffer after the last.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count);
        if self.start >= self.end {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        (self.held, self.start, self.end) = (None, 0, 0);
    }

    /// Reads once, as much as fits; to be called when empty. 0: the peer has closed its side.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut borrowed = self.pool.borrow(Size::Large);
        let mut buffer = ReadBuf::new(borrowed.bytes_mut());
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        if count > 0 {
            (self.held, self.start, self.end) = (Some(borrowed), 0, count);
        }
        Poll::Ready(Ok(count))
    }
}
