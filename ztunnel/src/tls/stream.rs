//! A TLS connection as a stream of bytes that needs few system calls.
//!
//! **Reading**: one read takes as much ciphertext as a buffer of the worker's pool holds. Its records go through rustls one by
//! one, and the caller's buffer is filled with as many of them as fit. An idle connection holds no buffer of the pool.
//!
//! **Writing**: written bytes become records at once, and wait for [`poll_flush`](AsyncWrite::poll_flush) or until [`LIMIT`]
//! bytes wait. Then all of them are sent in one vectored write. A writer must flush, as h2 does.
//!
//! The last packet of a large write, which is not full, waits until the worker's other tasks had their turn, because one of
//! them may write more. Then it is sent; see `Tail`.

use std::{
    cell::OnceCell,
    io::{self, BufRead as _, IoSlice, Write as _},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::Connection;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{error::Alert, inbound::Inbound};
use crate::net::{activity::Activity, packed::Packed};

/// The fault that ended a stream early. The errors of its calls carry it.
#[derive(Clone, Debug, Error)]
pub enum Fault {
    /// The peer refused, possibly because of our certificate: it sees the certificate after our end of the handshake has
    /// finished.
    #[error("the peer ended the TLS connection with the alert {0}")]
    Alert(Alert),
    /// The received bytes are forged or violate the protocol.
    #[error("TLS: {0}")]
    Protocol(rustls::Error),
    /// The peer closed without close_notify: data may be missing.
    #[error("the peer closed the TLS connection without close_notify")]
    Truncated,
    /// The connection below failed.
    #[error("{text}")]
    Io {
        /// The kind of error.
        kind: io::ErrorKind,
        /// The error.
        text: Arc<str>,
    },
}

impl Fault {
    /// The fault that an error of the stream carries.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    fn to_error(&self) -> io::Error {
        let kind = match self {
            Fault::Alert(_) => io::ErrorKind::ConnectionAborted,
            Fault::Protocol(_) => io::ErrorKind::InvalidData,
            Fault::Truncated => io::ErrorKind::UnexpectedEof,
            Fault::Io { kind, .. } => *kind,
        };
        io::Error::new(kind, self.clone())
    }
}

impl From<rustls::Error> for Fault {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(alert.into()),
            other => Self::Protocol(other),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io { kind: error.kind(), text: error.to_string().into() }
    }
}

/// Plaintext of a full record, and the difference to its ciphertext: header, content type, tag.
const RECORD: usize = 16 << 10;
const OVERHEAD: usize = 5 + 1 + 16;
/// The maximum ciphertext that waits to be written: 16 full records, 256 KiB. rustls passes up to 64 records to one write.
pub const LIMIT: usize = 16 * (RECORD + OVERHEAD);
/// A write of this size is probably followed by others.
const BULK: usize = 64 << 10;
/// The ciphertext after which the worker's other tasks get their turn, even if more is there.
const TURN: usize = 1 << 20;
/// The factor for ciphertext without plaintext: empty records, tiny records and key updates take more time than their length
/// suggests.
const BARREN: usize = 32;
/// The factor is not applied to this much: it may be the start of a record whose plaintext follows.
const BEGUN: usize = 20 << 10;

/// A TLS connection.
#[derive(Debug)]
pub struct TlsStream<S> {
    io: S,
    tls: Box<Connection>,
    inbound: Inbound,
    activity: Activity,
    /// Approximate ciphertext that waits in rustls.
    queued: usize,
    turn: Turn,
    /// Whether rustls' buffer has grown since the connection was idle.
    grown: bool,
    /// Whether close_notify was sent.
    closed: bool,
    tail: Tail,
    fault: Rc<OnceCell<Fault>>,
}

/// The state of the end of the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    /// It has been sent.
    Sent,
    /// It may still wait in the kernel.
    Fresh,
    /// It may still wait in the kernel, and the other tasks have had their turn since.
    Old,
}

/// The bytes received since the worker's other tasks had their turn.
#[derive(Debug, Default)]
struct Turn {
    ciphertext: usize,
    plaintext: usize,
}

impl Turn {
    fn add(&mut self, ciphertext: usize, plaintext: usize) {
        self.ciphertext = self.ciphertext.saturating_add(ciphertext);
        self.plaintext = self.plaintext.saturating_add(plaintext);
    }

    fn is_over(&self) -> bool {
        let barren = self.ciphertext.saturating_sub(self.plaintext).saturating_sub(BEGUN);
        self.ciphertext.saturating_add(barren.saturating_mul(BARREN)) >= TURN
    }
}

/// The remaining plaintext.
#[derive(PartialEq, Eq)]
enum Plaintext {
    /// There may be more: the caller's buffer is full.
    Some,
    /// There is none yet.
    None,
    /// There is no more: the peer has closed.
    End,
    /// There is no more: the peer closed without close_notify.
    Truncated,
}

/// Why a handshake broke.
pub(super) enum Broken {
    Closed,
    Io(io::Error),
    Tls(rustls::Error),
}

impl<S> TlsStream<S> {
    /// The time of the last bytes from the peer; cheap to clone.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// The fault that ended the stream early. It is needed when the reader of the stream does not pass on the original error
    /// (h2 does not).
    #[must_use]
    pub fn fault(&self) -> Rc<OnceCell<Fault>> {
        Rc::clone(&self.fault)
    }

    /// The connection below.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The connection below, without TLS.
    pub(super) fn io_mut(&mut self) -> &mut S {
        &mut self.io
    }

    pub(super) fn tls(&self) -> &Connection {
        &self.tls
    }

    /// Keeps the first fault; every later call returns it.
    fn fail(&self, fault: Fault) -> io::Error {
        self.fault.get_or_init(|| fault).to_error()
    }

    fn check(&self) -> io::Result<()> {
        self.fault.get().map_or(Ok(()), |fault| Err(fault.to_error()))
    }
}

impl<S: AsyncRead + Packed + Unpin> TlsStream<S> {
    pub(super) fn new(io: S, mut tls: Connection, inbound: Inbound) -> Self {
        // The limit is enforced here, in whole records.
        tls.set_buffer_limit(None);
        Self {
            io,
            tls: Box::new(tls),
            inbound,
            activity: Activity::new(),
            queued: 0,
            turn: Turn::default(),
            grown: false,
            closed: false,
            tail: Tail::Sent,
            fault: Rc::default(),
        }
    }

    /// The handshake, until its last bytes are sent.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if let Err(error) = ready!(self.poll_drain(cx)) {
                return Poll::Ready(Err(self.last_words(cx).map_or(Broken::Io(error), Broken::Tls)));
            }
            ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(Broken::Io)?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.inbound.is_empty() && ready!(self.poll_fill(cx)).map_err(Broken::Io)? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
            self.feed().map_err(Broken::Tls)?;
        }
    }

    /// Sends the remaining output of rustls, and closes our side.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Makes the next flush send close_notify.
    pub(super) fn close(&mut self) {
        self.tls.send_close_notify();
        self.closed = true;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = self.inbound.poll_fill(&mut self.io, cx) else {
            self.turn = Turn::default();
            self.shrink();
            return Poll::Pending;
        };
        if matches!(result, Ok(1..)) {
            self.activity.touch();
        }
        Poll::Ready(result)
    }

    /// Passes ciphertext to rustls, about a record. The plaintext of the previous call must have been taken.
    fn feed(&mut self) -> Result<(), rustls::Error> {
        let mut bytes = self.inbound.bytes();
        let fed = self.tls.read_tls(&mut bytes).map_err(|error| rustls::Error::General(error.to_string()))?;
        self.grown = true;
        let state = self.tls.process_new_packets();
        if fed == 0 {
            // The peer had sent close_notify, so the rest is ignored.
            self.inbound.clear();
        } else {
            self.inbound.consume(fed);
        }
        self.turn.add(fed, state?.plaintext_bytes_to_read());
        Ok(())
    }

    /// The buffer of rustls grows to 18 KiB, and is made smaller only at the next read. There may be many idle connections.
    fn shrink(&mut self) {
        struct Dry;
        impl io::Read for Dry {
            fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
        if std::mem::take(&mut self.grown) {
            // The read fails on purpose, after the buffer has been made smaller.
            let _would_block = self.tls.read_tls(&mut Dry);
        }
    }

    fn take(&mut self, buffer: &mut ReadBuf<'_>) -> Plaintext {
        while buffer.remaining() > 0 {
            match self.tls.reader().into_first_chunk() {
                Ok([]) => return Plaintext::End,
                Ok(chunk) => {
                    let count = chunk.len().min(buffer.remaining());
                    buffer.put_slice(chunk.get(..count).unwrap_or_default());
                    self.tls.reader().consume(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Plaintext::None,
                Err(_) => return Plaintext::Truncated,
            }
        }
        Plaintext::Some
    }

    /// One write of as many bytes as the socket accepts.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let unfinished = self.queued >= BULK;
        let result = self.tls.write_tls(&mut Outbound { io: &mut self.io, cx, unfinished });
        match result {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(sent) => {
                self.queued = self.queued.saturating_sub(sent);
                self.tail = if unfinished { Tail::Fresh } else { Tail::Sent };
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        }
        if !self.tls.wants_write() {
            self.queued = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the tail when no task has more to add; the flushing task is woken for that.
    fn push(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.tail {
            Tail::Sent => {}
            Tail::Fresh => {
                self.tail = Tail::Old;
                cx.waker().wake_by_ref();
            }
            Tail::Old => {
                self.tail = Tail::Sent;
                self.io.push()?;
            }
        }
        Ok(())
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Called after a failed write: a peer that refuses sends an alert before it closes, which may not have been read yet.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Option<rustls::Error> {
        const TRIES: usize = 4;
        for _ in 0..TRIES {
            if self.inbound.is_empty() && !matches!(self.poll_fill(cx), Poll::Ready(Ok(1..))) {
                return None;
            }
            if let Err(error) = self.feed() {
                return matches!(error, rustls::Error::AlertReceived(_)).then_some(error);
            }
        }
        None
    }

    fn cut(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let fault = self.last_words(cx).map_or_else(|| error.into(), Fault::from);
        self.fail(fault)
    }

    /// Takes plaintext, in full records while there is enough of it.
    fn put(&mut self, slices: &[IoSlice<'_>], room: usize) -> io::Result<usize> {
        /// The maximum number of slices; h2 passes two.
        const SLICES: usize = 8;
        let mut kept = [IoSlice::new(&[]); SLICES];
        let (mut left, mut used) = (room, 0);
        for (kept, slice) in kept.iter_mut().zip(slices.iter().filter(|slice| !slice.is_empty())) {
            let taken = slice.len().min(left);
            *kept = IoSlice::new(slice.get(..taken).unwrap_or_default());
            left -= taken;
            used += 1;
        }
        let taken = self.tls.writer().write_vectored(kept.get(..used).unwrap_or_default())?;
        self.queued = self.queued.saturating_add(taken + taken.div_ceil(RECORD) * OVERHEAD);
        Ok(taken)
    }
}

/// The socket, in the form that rustls needs.
struct Outbound<'a, 'b, S> {
    io: &'a mut S,
    cx: &'a mut Context<'b>,
    unfinished: bool,
}

fn blocking(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<S: Packed + Unpin> io::Write for Outbound<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let io = Pin::new(&mut *self.io);
        blocking(match slices {
            _ if self.unfinished => io.poll_write_unfinished(self.cx, slices),
            // A system call that does less.
            [slice] => io.poll_write(self.cx, slice),
            slices => io.poll_write_vectored(self.cx, slices),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsyncRead + Packed + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            let plaintext = this.take(buffer);
            let has_some = buffer.filled().len() > before;
            if plaintext == Plaintext::Some {
                return Poll::Ready(Ok(()));
            }
            if plaintext == Plaintext::End {
                this.inbound.clear();
                return Poll::Ready(Ok(()));
            }
            // The bytes before a fault are valid.
            if has_some && (this.inbound.is_empty() || this.fault.get().is_some()) {
                return Poll::Ready(Ok(()));
            }
            this.check()?;
            if plaintext == Plaintext::Truncated {
                return Poll::Ready(Err(this.fail(Fault::Truncated)));
            }
            if this.inbound.is_empty() {
                match ready!(this.poll_fill(cx)) {
                    // rustls has to learn of the end, because it knows whether the peer had sent close_notify. It refuses the
                    // call if an incomplete message fills its buffer.
                    Ok(0) => {
                        if this.tls.read_tls(&mut io::empty()).is_err() {
                            return Poll::Ready(Err(this.fail(Fault::Truncated)));
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Err(this.fail(error.into()))),
                }
            } else if this.turn.is_over() {
                if has_some {
                    return Poll::Ready(Ok(()));
                }
                this.turn = Turn::default();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else if let Err(error) = this.feed() {
                this.fail(error.into());
                // Sends the alert with one attempt, because nobody waits for this connection any more.
                let _sent = this.poll_send(cx);
            }
        }
    }
}

impl<S: AsyncRead + Packed + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = loop {
            let records = LIMIT.saturating_sub(this.queued) / (RECORD + OVERHEAD);
            if records > 0 {
                break records * RECORD;
            }
            if let Err(error) = ready!(this.poll_send(cx)) {
                return Poll::Ready(Err(this.cut(cx, error)));
            }
        };
        Poll::Ready(this.put(slices, room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        if let Err(error) = ready!(this.poll_drain(cx)) {
            return Poll::Ready(Err(this.cut(cx, error)));
        }
        match ready!(Pin::new(&mut this.io).poll_flush(cx)).and_then(|()| this.push(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(this.cut(cx, error))),
        }
    }

    /// Sends close_notify, and closes the socket's write side. Bytes from the peer can still be read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.close();
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
