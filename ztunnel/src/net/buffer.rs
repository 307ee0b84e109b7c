//! Buffers of one worker, used again and again: whoever waits holds none. Large ones move much with few system calls; of
//! small ones many can be in use, one for each of many short messages, without new memory for each.

use std::{cell::RefCell, rc::Rc};

use bytes::Buf;

/// Buffers of one worker.
#[derive(Clone, Debug)]
pub struct BufferPool(Rc<Pool>);

#[derive(Debug)]
struct Pool {
    large: Class,
    small: Class,
}

#[derive(Debug)]
struct Class {
    size: usize,
    keep: usize,
    free: RefCell<Vec<Box<[u8]>>>,
}

impl Class {
    fn new(size: usize, keep: usize) -> Self {
        Self { size, keep, free: RefCell::default() }
    }

    fn take(&self) -> Box<[u8]> {
        self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; self.size].into_boxed_slice())
    }

    fn put_back(&self, bytes: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < self.keep {
            free.push(bytes);
        }
    }
}

/// Bytes of a small buffer: a TLS record, and more than most messages.
const SMALL: usize = 16 << 10;
/// As many times as many of them are kept as of the large ones.
const MORE_SMALL: usize = 8;

/// How large a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For a message that is likely to be short.
    Small,
    /// For one of many.
    Large,
}

impl Size {
    /// What should be taken after a read: a buffer that was filled was too small, one filled by less than a small one too
    /// large.
    #[must_use]
    pub fn after(self, read: usize, room: usize) -> Self {
        match self {
            Self::Small if read >= room => Self::Large,
            Self::Large if read < SMALL => Self::Small,
            same => same,
        }
    }
}

impl BufferPool {
    /// Large buffers have `size` bytes; at most `keep` of them are kept for later, and small ones of half as many bytes.
    #[must_use]
    pub fn new(size: usize, keep: usize) -> Self {
        let small = Class::new(SMALL.min(size), keep.saturating_mul(MORE_SMALL));
        Self(Rc::new(Pool { large: Class::new(size, keep), small }))
    }

    /// Bytes of a buffer.
    #[must_use]
    pub fn bytes(&self, size: Size) -> usize {
        self.0.class(size).size
    }

    /// A buffer, which goes back when it is dropped. What is in it is left from its last use.
    #[must_use]
    pub fn borrow(&self, size: Size) -> Borrowed {
        Borrowed { bytes: self.0.class(size).take(), size, pool: Rc::clone(&self.0) }
    }
}

impl Pool {
    fn class(&self, size: Size) -> &Class {
        match size {
            Size::Small => &self.small,
            Size::Large => &self.large,
        }
    }
}

/// A buffer of the pool.
#[derive(Debug)]
pub struct Borrowed {
    bytes: Box<[u8]>,
    size: Size,
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
        self.pool.class(self.size).put_back(std::mem::take(&mut self.bytes));
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
    use super::{BufferPool, Chunk, SMALL, Size};
    use bytes::Buf as _;

    #[test]
    fn a_chunk_is_read_to_its_end_and_its_buffer_goes_back() {
        let pool = BufferPool::new(8, 1);
        let free = |pool: &BufferPool| pool.0.large.free.borrow().len();
        let mut buffer = pool.borrow(Size::Large);
        buffer.bytes_mut()[..3].copy_from_slice(b"abc");
        let mut chunk = buffer.into_chunk(3);
        assert_eq!((chunk.remaining(), chunk.chunk()), (3, &b"abc"[..]));
        chunk.advance(2);
        assert_eq!((chunk.chunk(), free(&pool)), (&b"c"[..], 0));
        chunk.advance(1);
        assert_eq!((chunk.remaining(), chunk.chunk(), free(&pool)), (0, &b""[..], 1));
        assert_eq!((Chunk::default().remaining(), pool.bytes(Size::Large)), (0, 8));
        drop((pool.borrow(Size::Large), pool.borrow(Size::Large)));
        assert_eq!(free(&pool), 1, "no more are kept than told");
    }

    #[test]
    fn small_buffers_are_kept_apart_and_what_fills_one_gets_a_large_one() {
        let pool = BufferPool::new(4 * SMALL, 1);
        let small = pool.borrow(Size::Small);
        assert_eq!((small.bytes().len(), pool.bytes(Size::Small)), (SMALL, SMALL));
        drop((small, pool.borrow(Size::Small)));
        assert_eq!((pool.0.small.free.borrow().len(), pool.0.large.free.borrow().len()), (2, 0));
        assert_eq!(Size::Small.after(SMALL, SMALL), Size::Large);
        assert_eq!(Size::Small.after(SMALL - 1, SMALL), Size::Small);
        assert_eq!(Size::Large.after(SMALL, 4 * SMALL), Size::Large);
        assert_eq!(Size::Large.after(1, 4 * SMALL), Size::Small);
    }
}
