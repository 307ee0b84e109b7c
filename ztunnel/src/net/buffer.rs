//! Buffers of one worker, used again and again: whoever waits holds none.

use std::{cell::RefCell, rc::Rc};

use bytes::Buf;

/// Buffers of one worker.
#[derive(Clone, Debug)]
pub struct BufferPool(Rc<Pool>);

#[derive(Debug)]
struct Pool {
    size: usize,
    keep: usize,
    free: RefCell<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// Buffers of `size` bytes; at most `keep` of them are kept for later.
    #[must_use]
    pub fn new(size: usize, keep: usize) -> Self {
        Self(Rc::new(Pool { size, keep, free: RefCell::default() }))
    }

    /// Bytes of a buffer.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// A buffer, which goes back when it is dropped. What is in it is left from its last use.
    #[must_use]
    pub fn borrow(&self) -> Borrowed {
        let bytes = self.0.free.borrow_mut().pop().unwrap_or_else(|| vec![0; self.0.size].into_boxed_slice());
        Borrowed { bytes, pool: Rc::clone(&self.0) }
    }
}

/// A buffer of the pool.
#[derive(Debug)]
pub struct Borrowed {
    bytes: Box<[u8]>,
    pool: Rc<Pool>,
}

impl Borrowed {
    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its first `length` bytes, to be sent; the buffer goes back when they are dropped.
    #[must_use]
    pub fn into_chunk(self, length: usize) -> Chunk {
        let end = length.min(self.bytes.len());
        Chunk { bytes: Some(self), start: 0, end }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut free = self.pool.free.borrow_mut();
        if free.len() < self.pool.keep {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Bytes in a buffer of the pool, on their way out.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Option<Borrowed>,
    start: usize,
    end: usize,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.as_ref().and_then(|borrowed| borrowed.bytes.get(self.start..self.end)).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        // The contract of `Buf` is to panic here; a caller that counts wrong must not send bytes of the buffer's last use.
        assert!(count <= self.remaining(), "advanced past the end of a chunk");
        self.start += count;
        if self.start == self.end {
            self.bytes = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BufferPool, Chunk};
    use bytes::Buf as _;

    #[test]
    fn a_chunk_is_read_to_its_end_and_its_buffer_goes_back() {
        let pool = BufferPool::new(8, 1);
        let mut buffer = pool.borrow();
        buffer.bytes_mut()[..3].copy_from_slice(b"abc");
        let mut chunk = buffer.into_chunk(3);
        assert_eq!((chunk.remaining(), chunk.chunk()), (3, &b"abc"[..]));
        chunk.advance(2);
        assert_eq!((chunk.chunk(), pool.0.free.borrow().len()), (&b"c"[..], 0));
        chunk.advance(1);
        assert_eq!((chunk.remaining(), chunk.chunk(), pool.0.free.borrow().len()), (0, &b""[..], 1));
        assert_eq!((Chunk::default().remaining(), pool.size()), (0, 8));
        drop((pool.borrow(), pool.borrow()));
        assert_eq!(pool.0.free.borrow().len(), 1, "no more are kept than told");
    }
}
