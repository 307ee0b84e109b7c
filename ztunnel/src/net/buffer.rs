//! The reusable buffers of one worker: a connection that waits holds none. Large buffers move many bytes with few system calls.
//! Many small buffers can be in use, one for each of many short messages, without new memory for each message.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Buf;

use super::memory::{Account, Budget, Claim};

/// The buffers of one worker, as one pod uses them.
#[derive(Clone, Debug)]
pub struct BufferPool {
    pool: Rc<Pool>,
    user: Rc<User>,
}

/// The memory of a pod's buffers, counted in its account. The account is shared by threads, so that not every buffer is counted
/// on its own.
#[derive(Debug)]
struct User {
    account: Account,
    used: Cell<usize>,
    counted: Cell<usize>,
    claim: RefCell<Claim>,
}

/// The maximum difference between the account and the actual use.
const STEP: usize = 1 << 20;

impl User {
    fn new(account: Account) -> Self {
        let claim = RefCell::new(account.count());
        Self { account, used: Cell::new(0), counted: Cell::new(0), claim }
    }

    fn change(&self, used: usize) {
        self.used.set(used);
        if used.abs_diff(self.counted.get()) >= STEP {
            self.counted.set(used);
            self.claim.borrow_mut().resize(used);
        }
    }
}

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

/// The size of a small buffer: a TLS record, and more than most messages.
const SMALL: usize = 16 << 10;
/// The pool keeps this many times more small buffers than large ones.
const MORE_SMALL: usize = 8;

/// The size of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For a message that is probably short.
    Small,
    /// For a part of a larger amount.
    Large,
}

impl Size {
    /// The size for the next read: a buffer that was filled was too small, and a buffer that was filled by less than a small
    /// one was too large.
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
    /// Large buffers have `size` bytes. At most `keep` of them are kept for later use, and eight times as many small ones.
    #[must_use]
    pub fn new(size: usize, keep: usize) -> Self {
        let small = Class::new(SMALL.min(size), keep.saturating_mul(MORE_SMALL));
        let pool = Rc::new(Pool { large: Class::new(size, keep), small });
        Self { pool, user: Rc::new(User::new(Budget::default().pod())) }
    }

    /// The same buffers, charged to the account of a pod. If the memory of the pod is tight, it gets small buffers only.
    #[must_use]
    pub fn of(&self, account: Account) -> Self {
        Self { pool: Rc::clone(&self.pool), user: Rc::new(User::new(account)) }
    }

    fn granted(&self, size: Size) -> Size {
        if size == Size::Large && self.user.account.is_tight() { Size::Small } else { size }
    }

    /// The number of bytes of a buffer.
    #[must_use]
    pub fn bytes(&self, size: Size) -> usize {
        self.pool.class(self.granted(size)).size
    }

    /// A buffer, which returns to the pool when it is dropped. It still contains the bytes of its last use.
    #[must_use]
    pub fn borrow(&self, size: Size) -> Borrowed {
        let size = self.granted(size);
        let bytes = self.pool.class(size).take();
        self.user.change(self.user.used.get().saturating_add(bytes.len()));
        Borrowed { bytes, size, pool: Rc::clone(&self.pool), user: Rc::clone(&self.user) }
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
    user: Rc<User>,
}

impl Borrowed {
    /// The whole buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The whole buffer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its first `length` bytes, to be sent. The buffer returns to the pool when they are dropped.
    #[must_use]
    pub fn into_chunk(self, length: usize) -> Chunk {
        let end = length.min(self.bytes.len());
        Chunk { bytes: Some(self), start: 0, end }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.user.change(self.user.used.get().saturating_sub(self.bytes.len()));
        self.pool.class(self.size).put_back(std::mem::take(&mut self.bytes));
    }
}

/// Bytes to be sent in a buffer of the pool.
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
        // The contract of `Buf` demands a panic here: a caller that counts wrong must not send bytes of the buffer's last use.
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
    use crate::net::memory::Budget;
    use bytes::Buf as _;

    #[test]
    fn a_chunk_is_read_to_its_end_and_its_buffer_goes_back() {
        let pool = BufferPool::new(8, 1);
        let free = |pool: &BufferPool| pool.pool.large.free.borrow().len();
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
        assert_eq!((pool.pool.small.free.borrow().len(), pool.pool.large.free.borrow().len()), (2, 0));
        assert_eq!(Size::Small.after(SMALL, SMALL), Size::Large);
        assert_eq!(Size::Small.after(SMALL - 1, SMALL), Size::Small);
        assert_eq!(Size::Large.after(SMALL, 4 * SMALL), Size::Large);
        assert_eq!(Size::Large.after(1, 4 * SMALL), Size::Small);
    }

    #[test]
    fn a_pod_that_holds_much_gets_small_buffers_and_others_do_not_notice() {
        let budget = Budget::new(64 << 20);
        let worker = BufferPool::new(256 << 10, 1);
        let (greedy, other) = (worker.of(budget.pod()), worker.of(budget.pod()));
        let held: Vec<_> = (0..3000).map(|_| greedy.borrow(Size::Large)).collect();
        let bytes: usize = held.iter().map(|buffer| buffer.bytes().len()).sum();
        assert!(bytes <= (32 << 20) + 3000 * SMALL, "{bytes} bytes");
        assert_eq!(greedy.bytes(Size::Large), SMALL);
        assert!(budget.used().abs_diff(bytes) <= super::STEP);
        drop(held);
        assert_eq!(other.borrow(Size::Large).bytes().len(), 256 << 10);
        assert!(budget.used() <= 2 * super::STEP);
        drop((greedy, other));
        assert_eq!(budget.used(), 0);
    }
}
