//! One stream: both directions of a CONNECT.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt, io,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Reason, RecvStream, SendStream};
use thiserror::Error;
use tokio::{sync::Notify, time::sleep};

use super::{
    inbox::Inbox,
    outbox::{Ledger, Outgoing},
    pace::Pace,
    stalls::{Stall, Stalls},
    windows::Seen,
};
use crate::{
    model::close::CloseReason,
    net::{buffer::Borrowed, memory::Account},
};

/// Bytes of buffers that may wait to be sent on one stream when memory is short.
const LITTLE: usize = 32 << 10;

/// Why this side resets a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The application reset its connection: CONNECT_ERROR (RFC 9113, 8.5).
    Application,
    /// Policy does not allow the connection any more: INADEQUATE_SECURITY. For another implementation this is a reset like any
    /// other.
    Denied,
    /// Anything else: CANCEL.
    Cancelled,
}

/// An order to break a connection with all its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The close reason of its streams.
    pub reason: CloseReason,
    /// Details for a person.
    pub why: String,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this node closed it: {}", self.why)
    }
}

/// Inside an [`io::Error`] of a stream: its connection has ended, or policy of the peer ended the stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the HBONE connection was lost: {why}")]
pub struct Lost {
    /// [`CloseReason::TunnelLost`], unless this side has cut the connection, or policy of the peer ended the stream.
    pub reason: CloseReason,
    why: String,
}

impl Lost {
    /// The `Lost` inside an error, if there is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// The shared state of a connection and its streams.
#[derive(Debug)]
pub(super) struct Link {
    /// How the connection ended; set by its driver.
    end: RefCell<Option<Lost>>,
    /// The streams that wait for an application; set by the streams.
    pub(super) stalls: Stalls,
    /// The limits of the peer's use of worker time.
    pub(super) pace: Rc<Pace>,
    /// The account of the memory that the streams use.
    memory: Account,
    /// The number of bytes that applications on this side have read from the streams.
    read: Cell<u64>,
    /// The number of open streams.
    tunnels: Cell<usize>,
    /// Notified when the connection holds more memory than it needs, and memory is short.
    outgrown: Notify,
}

impl Link {
    pub(super) fn new(memory: &Account) -> Self {
        let (memory, pace) = (memory.clone(), Rc::new(Pace::new()));
        Self {
            end: RefCell::default(),
            stalls: Stalls::default(),
            pace,
            memory,
            read: Cell::new(0),
            tunnels: Cell::new(0),
            outgrown: Notify::new(),
        }
    }

    /// The bytes that the streams have carried to this side.
    pub(super) fn seen(&self) -> Seen {
        Seen { heard: self.pace.heard(), read: self.read.get() }
    }

    /// Whether no stream is open.
    pub(super) fn is_idle(&self) -> bool {
        self.tunnels.get() == 0
    }

    /// Reports that the connection holds more memory than it needs.
    pub(super) fn is_outgrown(&self) {
        self.outgrown.notify_one();
    }

    /// Waits for this report.
    pub(super) async fn outgrown(&self) {
        self.outgrown.notified().await;
    }

    pub(super) fn ended(&self, reason: CloseReason, why: &impl fmt::Display) {
        self.end.borrow_mut().get_or_insert_with(|| Lost { reason, why: why.to_string() });
    }

    /// Why the connection ended. `None`: it has not ended.
    pub(super) fn end(&self) -> Option<String> {
        self.end.borrow().as_ref().map(|lost| lost.why.clone())
    }

    fn lost(&self, error: &h2::Error) -> Lost {
        let told = self.end.borrow().clone();
        told.unwrap_or_else(|| Lost { reason: CloseReason::TunnelLost, why: error.to_string() })
    }
}

/// Why a stream broke.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The peer reset the stream.
    Reset(Reason),
    /// The connection of the stream is gone.
    Lost(Lost),
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Reset(Reason::INADEQUATE_SECURITY) => {
                let why = "policy of the destination does not allow the connection any more".to_owned();
                Self::new(io::ErrorKind::ConnectionReset, Lost { reason: CloseReason::PolicyChanged, why })
            }
            Fault::Reset(reason) => {
                Self::new(io::ErrorKind::ConnectionReset, format!("the peer reset the stream ({reason:?})"))
            }
            Fault::Lost(lost) => Self::new(io::ErrorKind::ConnectionAborted, lost),
        }
    }
}

/// The state of the receiving direction.
#[derive(Clone, Debug)]
pub(super) enum Incoming {
    Open,
    Ended,
    Failed(Fault),
}

/// A stream of an HBONE connection. Dropping it before both directions have ended cancels the stream.
pub struct HboneStream {
    send: SendStream<Outgoing>,
    recv: RecvStream,
    pub(super) inbox: Inbox,
    incoming: Incoming,
    sent_end: bool,
    ledger: Rc<Ledger>,
    limit: usize,
    link: Rc<Link>,
    held: Vec<Box<dyn Any>>,
}

impl fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("stream", &self.send.stream_id())
            .field("incoming", &self.incoming)
            .field("waiting", &self.inbox.len())
            .field("unsent", &self.unsent())
            .finish_non_exhaustive()
    }
}

impl HboneStream {
    pub(super) fn new(send: SendStream<Outgoing>, recv: RecvStream, limit: usize, link: &Rc<Link>) -> Self {
        link.tunnels.set(link.tunnels.get() + 1);
        Self {
            send,
            recv,
            inbox: Inbox::default(),
            incoming: Incoming::Open,
            sent_end: false,
            ledger: Rc::default(),
            limit,
            link: Rc::clone(link),
            held: Vec::new(),
        }
    }

    /// Records that the stream waits for an application, until the value is dropped.
    pub(super) fn stall(&self) -> Stall {
        self.link.stalls.begin()
    }

    /// Keeps a value until the stream is dropped.
    pub(crate) fn hold(&mut self, what: impl Any) {
        self.held.push(Box::new(what));
    }

    /// The size of the buffers that wait to be sent, in bytes.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.ledger.held()
    }

    /// Resets the stream. Bytes that wait to be sent are lost.
    pub fn reset(&mut self, how: Reset) {
        self.send.send_reset(match how {
            Reset::Application => Reason::CONNECT_ERROR,
            Reset::Denied => Reason::INADEQUATE_SECURITY,
            Reset::Cancelled => Reason::CANCEL,
        });
    }

    /// Waits up to 255 ms until the waiting bytes are sent, because a reset would discard them.
    pub async fn flush(&self) {
        let mut pause = Duration::from_millis(1);
        while self.unsent() > 0 && pause <= Duration::from_millis(128) {
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// The number of bytes that may be sent now, in a buffer of this size. `None`: the stream takes no more bytes, see
    /// [`Self::poll_fault`].
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Option<usize>> {
        let limit = if self.link.memory.is_tight() { self.limit.min(LITTLE) } else { self.limit };
        if !self.ledger.has_room(size, limit) {
            // A reset empties the queue, which wakes the task as well.
            self.ledger.wake_later(cx.waker());
            return Poll::Pending;
        }
        self.send.reserve_capacity(size);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Some(room));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Poll::Ready(Some(room)),
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
    }

    /// Returns unused window to the connection's other streams.
    pub(super) fn release_room(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Sends the first `length` bytes of a buffer. `false`: the stream takes no more bytes, see [`Self::poll_fault`].
    pub(super) fn send(&mut self, buffer: Borrowed, length: usize) -> bool {
        let size = buffer.bytes().len();
        self.link.pace.sent(length);
        let outgoing = Outgoing::new(buffer.into_chunk(length), &self.ledger, size);
        self.send.send_data(outgoing, false).is_ok()
    }

    /// Ends the sending direction. `false`: as for [`Self::send`].
    pub(super) fn finish(&mut self) -> bool {
        self.sent_end = self.sent_end || self.send.send_data(Outgoing::default(), true).is_ok();
        self.sent_end
    }

    /// Moves received bytes to the inbox, until it has `enough` bytes. If the stream is open and the inbox has fewer bytes, the
    /// task is woken when more bytes arrive.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>, enough: usize) -> &Incoming {
        while matches!(self.incoming, Incoming::Open) && self.inbox.len() < enough {
            match self.recv.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => self.inbox.push(piece),
                Poll::Ready(Some(Err(error))) => self.incoming = Incoming::Failed(self.fault(&error)),
                Poll::Ready(None) => self.incoming = Incoming::Ended,
            }
        }
        &self.incoming
    }

    /// Lets the peer send `count` more bytes, because as many have been passed on.
    pub(super) fn release(&mut self, count: usize) {
        self.link.read.set(self.link.read.get().saturating_add(count as u64));
        // If the stream was reset meanwhile, there is nothing to release.
        let _reset = self.recv.flow_control().release_capacity(count);
    }

    /// Waits until the stream breaks. `None`: the peer has sent its end and needs no more bytes.
    pub(super) fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<Option<Fault>> {
        let reset = ready!(self.send.poll_reset(cx));
        // The reason alone does not distinguish a reset of the stream from the end of its connection. The receiving direction
        // does, after the bytes that arrived before.
        match (self.gather(cx, usize::MAX).clone(), reset) {
            (Incoming::Failed(fault), _) => Poll::Ready(Some(fault)),
            (Incoming::Open | Incoming::Ended, Err(error)) => Poll::Ready(Some(self.fault(&error))),
            (Incoming::Ended, Ok(reason)) => match self.recv.poll_data(cx) {
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(self.fault(&error))),
                _ if reason == Reason::NO_ERROR => Poll::Ready(None),
                _ => Poll::Ready(Some(Fault::Reset(reason))),
            },
            (Incoming::Open, Ok(reason)) => Poll::Ready(Some(Fault::Reset(reason))),
        }
    }

    fn fault(&self, error: &h2::Error) -> Fault {
        match error.reason().filter(|_| error.is_reset() && error.is_remote()) {
            Some(reason) => Fault::Reset(reason),
            None => Fault::Lost(self.link.lost(error)),
        }
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        self.link.tunnels.set(self.link.tunnels.get().saturating_sub(1));
        if !self.sent_end || !(matches!(self.incoming, Incoming::Ended) || self.recv.is_end_stream()) {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}
