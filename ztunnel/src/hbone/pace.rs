//! Limits the worker time that the peer of one connection uses. A worker is one thread: a peer that keeps it busy delays all
//! other connections.
//!
//! - **A turn** of a connection's task is limited by frames, bytes and time. h2 reads as long as there are bytes, so the limit
//!   is below h2: [`Paced`] passes bytes to h2 in small pieces, and none after the end of the turn.
//! - **Frames that carry nothing** (PRIORITY, PING, SETTINGS, WINDOW_UPDATE, empty or padded DATA, unknown types, resets) have
//!   an allowance, which grows with time, with the bytes of DATA, and with what this side sends. A peer that uses it up gets a
//!   GOAWAY(ENHANCE_YOUR_CALM), and the connection ends. For a server h2 sends the
//!   GOAWAY. A client of h2 can't send one, so [`Paced`] does: it writes the GOAWAY where h2 has flushed a whole frame, and
//!   reports the end of the connection to h2.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

/// A turn ends at the first of these limits. A frame costs h2 100 to 500 ns.
const TURN_FRAMES: usize = 2048;
const TURN_BYTES: usize = 1 << 20;
const TURN_TIME: Duration = Duration::from_millis(1);
/// The time of a turn is measured only after this many frames or bytes. They take a few dozen microseconds, and most turns end
/// before, without reading the clock.
const UNTIMED_FRAMES: usize = 16;
const UNTIMED_BYTES: usize = 32 << 10;
/// The number of bytes passed to h2 at once where frame headers may begin: at most 910 frames.
const PIECE: usize = 8 << 10;

/// The allowed burst of frames that carry nothing. It is larger than the number of WINDOW_UPDATEs for a connection's whole
/// window.
const BURST: u32 = 20_000;
/// The allowed steady rate of these frames per second.
const PER_SECOND: u32 = 1000;
/// Every this many bytes of a frame that carries nothing count as one more frame.
const BYTES_PER_FRAME: usize = 256;
/// HEADERS add this many frames to the allowance: the peer may reset the stream.
const PER_HEADERS: u32 = 1;
/// DATA adds one frame to the allowance for each this many bytes. A frame of a few bytes adds nothing: a peer could otherwise
/// send a frame that carries nothing after each byte, without end.
const BYTES_PER_USELESS: usize = 1024;
/// Bytes that this side sends allow WINDOW_UPDATEs: two for a message, and one for each this many bytes.
const BYTES_PER_UPDATE: usize = 256;

/// The length of a client's preface before its first frame (RFC 9113, 3.4).
pub(super) const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// The remaining allowance of a connection's peer, and facts from the frames that the peer has sent.
#[derive(Debug)]
pub(super) struct Pace {
    turn: RefCell<Turn>,
    allowance: RefCell<Allowance>,
    exhausted: Cell<bool>,
    heard: Cell<u64>,
    left: Cell<bool>,
    leaving: Notify,
}

#[derive(Debug, Default)]
struct Turn {
    /// Uses the machine's clock, which also runs in tests that pause tokio's clock. `None`: the turn is still short.
    timed_since: Option<std::time::Instant>,
    frames: usize,
    bytes: usize,
}

impl Turn {
    fn is_over(&mut self) -> bool {
        if self.frames < UNTIMED_FRAMES && self.bytes < UNTIMED_BYTES {
            return false;
        }
        let is_late = match self.timed_since {
            Some(since) => since.elapsed() >= TURN_TIME,
            None => {
                self.timed_since = Some(std::time::Instant::now());
                false
            }
        };
        is_late || self.frames >= TURN_FRAMES || self.bytes >= TURN_BYTES
    }
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    left: u32,
    filled: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: BURST, filled: Instant::now() }
    }

    fn earn(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(BURST);
    }

    /// Whether the allowance was large enough for the cost.
    fn spend(&mut self, cost: u32) -> bool {
        if self.left < cost {
            let now = Instant::now();
            let passed = now.saturating_duration_since(self.filled).as_millis();
            self.filled = now;
            self.earn(u32::try_from(passed.saturating_mul(PER_SECOND.into()) / 1000).unwrap_or(BURST));
        }
        let enough = self.left >= cost;
        self.left = self.left.saturating_sub(cost);
        enough
    }
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            turn: RefCell::default(),
            allowance: RefCell::new(Allowance::new()),
            exhausted: Cell::new(false),
            heard: Cell::new(0),
            left: Cell::new(false),
            leaving: Notify::new(),
        }
    }

    /// Starts a turn of the connection's task.
    pub(super) fn begin_turn(&self) {
        self.turn.take();
    }

    /// The number of bytes in the DATA frames whose headers have arrived.
    pub(super) fn heard(&self) -> u64 {
        self.heard.get()
    }

    /// Whether the peer has sent more frames that carry nothing than allowed.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted.get()
    }

    /// Waits until the peer has sent a GOAWAY: it takes no new streams.
    pub(super) async fn left(&self) {
        while !self.left.get() {
            self.leaving.notified().await;
        }
    }

    /// Records that a message of this length was sent, for which the peer will send WINDOW_UPDATEs.
    pub(super) fn sent(&self, length: usize) {
        let updates = u32::try_from(length / BYTES_PER_UPDATE).unwrap_or(BURST);
        self.allowance.borrow_mut().earn(updates.saturating_add(2));
    }

    fn is_turn_over(&self) -> bool {
        self.turn.borrow_mut().is_over()
    }

    fn received(&self, bytes: usize) {
        let mut turn = self.turn.borrow_mut();
        turn.bytes = turn.bytes.saturating_add(bytes);
    }

    fn frame(&self, frame: Head) {
        let mut turn = self.turn.borrow_mut();
        turn.frames = turn.frames.saturating_add(1);
        if frame.kind == DATA {
            self.heard.set(self.heard.get().saturating_add(frame.length as u64));
        }
        if frame.is_useful() {
            return self.allowance.borrow_mut().earn(frame.earns());
        }
        if frame.kind == GOAWAY && !self.left.replace(true) {
            self.leaving.notify_waiters();
        }
        let cost = u32::try_from(frame.length / BYTES_PER_FRAME).unwrap_or(BURST).saturating_add(1);
        if frame.kind != DATA || frame.flags & END_STREAM == 0 {
            let enough = self.allowance.borrow_mut().spend(cost);
            self.exhausted.set(self.exhausted.get() || !enough);
        }
    }
}

/// The header of a frame (RFC 9113, 4.1).
#[derive(Clone, Copy, Debug)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
}

impl Head {
    fn is_useful(self) -> bool {
        match self.kind {
            DATA => self.length > 0 && self.flags & PADDED == 0,
            HEADERS | CONTINUATION => self.length > 0,
            _ => false,
        }
    }

    /// How many frames that carry nothing a useful frame allows.
    fn earns(self) -> u32 {
        match self.kind {
            DATA => u32::try_from(self.length / BYTES_PER_USELESS).unwrap_or(BURST),
            HEADERS => PER_HEADERS,
            _ => 0,
        }
    }
}

const HEAD: usize = 9;

/// Finds the beginning of each frame in the peer's bytes.
#[derive(Debug)]
struct Scan {
    /// The number of bytes until the next header.
    skip: usize,
    /// Whether these bytes are the payload of a DATA frame.
    payload: bool,
    head: [u8; HEAD],
    have: usize,
}

impl Scan {
    fn take(&mut self, mut bytes: &[u8], pace: &Pace) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let taken = (HEAD - self.have).min(bytes.len());
            let (head, rest) = bytes.split_at(taken);
            if let Some(into) = self.head.get_mut(self.have..self.have + taken) {
                into.copy_from_slice(head);
            }
            self.have += taken;
            bytes = rest;
            if self.have == HEAD {
                let [long, middle, short, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, long, middle, short]) as usize;
                (self.have, self.skip, self.payload) = (0, length, kind == DATA);
                pace.frame(Head { length, kind, flags });
            }
        }
    }

    /// The number of bytes until the next header, or until the current header is complete.
    fn left(&self) -> usize {
        if self.have > 0 { HEAD - self.have } else { self.skip }
    }

    /// The number of bytes that may be passed to h2 at once.
    fn piece(&self) -> usize {
        if self.payload { self.skip.saturating_add(PIECE) } else { PIECE }
    }
}

/// The frame that a client sends to a server that floods it: GOAWAY with last stream 0 and ENHANCE_YOUR_CALM (RFC 9113, 6.8).
const CALM_DOWN: &[u8] = &[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// A connection whose peer is limited.
#[derive(Debug)]
pub(super) struct Paced<S> {
    io: S,
    scan: Scan,
    pace: Rc<Pace>,
    /// The unsent bytes of the client's GOAWAY. Empty for a server, where h2 sends it.
    farewell: &'static [u8],
    is_client: bool,
    /// This side has finished: further bytes are not inspected.
    finished: bool,
}

impl<S> Paced<S> {
    /// A client's connection to a server.
    pub(super) fn to_server(io: S, pace: &Rc<Pace>) -> Self {
        Self { farewell: CALM_DOWN, is_client: true, ..Self::to_client(io, 0, pace) }
    }

    /// A server's connection to a client, whose frames begin after a preface of this many bytes.
    pub(super) fn to_client(io: S, preface: usize, pace: &Rc<Pace>) -> Self {
        let scan = Scan { skip: preface, payload: false, head: [0; HEAD], have: 0 };
        Self { io, scan, pace: Rc::clone(pace), farewell: &[], is_client: false, finished: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, scan, pace, is_client, finished, .. } = self.get_mut();
        if *finished {
            return Pin::new(io).poll_read(cx, into);
        }
        let piece = match (pace.is_exhausted(), *is_client) {
            (false, _) if !pace.is_turn_over() => scan.piece(),
            // After the frame that has begun, h2 gets an end of file, as if the peer had sent it: h2 ends all streams, flushes
            // and closes.
            (true, true) if scan.left() == 0 => return Poll::Ready(Ok(())),
            (true, true) => scan.left(),
            (true, false) | (false, _) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        let mut piece = into.take(piece);
        ready!(Pin::new(io).poll_read(cx, &mut piece))?;
        scan.take(piece.filled(), pace);
        let count = piece.filled().len();
        pace.received(count);
        // SAFETY: `piece` was the beginning of the unfilled part of `into`, and its first `count` bytes have been filled.
        unsafe { into.assume_init(count) };
        into.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.farewell.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, self.farewell))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.farewell = self.farewell.get(written..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }

    /// Completes a GOAWAY that is partly written: no other frame may come between its bytes.
    fn poll_rest_of_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.len() == CALM_DOWN.len() { Poll::Ready(Ok(())) } else { self.poll_farewell(cx) }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest_of_farewell(cx))?;
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest_of_farewell(cx))?;
        Pin::new(&mut this.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // h2 flushes after it has written whole frames.
        if this.pace.is_exhausted() {
            ready!(this.poll_farewell(cx))?;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, finished, .. } = self.get_mut();
        *finished = true;
        Pin::new(io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
