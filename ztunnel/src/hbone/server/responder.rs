//! The answer to one CONNECT.

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use h2::{Reason, RecvStream, server::SendResponse};
use thiserror::Error;

use crate::{
    hbone::{
        outbox::Outgoing,
        settings::Settings,
        stream::{HboneStream, Link},
    },
    wire::connect::ConnectResponse,
};

/// The peer reset the stream before it was answered, or the connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the peer reset the stream before it was answered")]
pub struct Gone;

/// The shared state of the streams of one connection.
pub(super) struct Streams {
    /// Requests and streams that still have a task. h2's own count leaves out those that have ended on the wire, for example by
    /// a reset of the peer.
    live: Cell<usize>,
    most: usize,
    given_up: Cell<u32>,
    send_buffer: usize,
    link: Rc<Link>,
}

impl Streams {
    pub(super) fn new(settings: &Settings, link: Rc<Link>) -> Self {
        let most = (settings.max_streams as usize).saturating_mul(2);
        Self { live: Cell::new(0), most, given_up: Cell::new(0), send_buffer: settings.send_buffer, link }
    }

    /// The state that the streams share with their connection.
    pub(super) fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Whether no request or stream has a task.
    pub(super) fn are_over(&self) -> bool {
        self.live.get() == 0
    }

    /// The number of streams that the peer has reset unanswered since the last call.
    pub(super) fn take_given_up(&self) -> u32 {
        self.given_up.take()
    }

    fn one_given_up(&self) {
        self.given_up.set(self.given_up.get().saturating_add(1));
    }
}

/// One counted request or stream.
struct Live(Rc<Streams>);

impl Live {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.live.set(streams.live.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
    }
}

/// Answers a request. Dropping it without an answer cancels the stream.
pub struct Responder {
    respond: SendResponse<Outgoing>,
    body: Option<RecvStream>,
    live: Option<Live>,
    streams: Rc<Streams>,
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("stream", &self.respond.stream_id()).finish_non_exhaustive()
    }
}

impl Responder {
    /// `None`: too many requests have a task, and the peer has reset most of them; this request is refused.
    pub(super) fn new(mut respond: SendResponse<Outgoing>, body: RecvStream, streams: &Rc<Streams>) -> Option<Self> {
        if streams.live.get() >= streams.most {
            streams.one_given_up();
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        Some(Self { respond, body: Some(body), live: Some(Live::new(streams)), streams: Rc::clone(streams) })
    }

    /// Waits until the peer resets the stream, or the connection is gone.
    pub async fn gone(&mut self) -> Gone {
        poll_fn(|cx| self.respond.poll_reset(cx).map(|_how| Gone)).await
    }

    /// Accepts the stream.
    ///
    /// # Errors
    /// If the peer has reset the stream, or the connection is gone.
    pub fn accept(mut self, response: &ConnectResponse) -> Result<HboneStream, Gone> {
        let (Some(body), Some(live)) = (self.body.take(), self.live.take()) else {
            return Err(Gone);
        };
        let send = self.respond.send_response(response.to_http(), false).map_err(|_closed| Gone)?;
        let mut tunnel = HboneStream::new(send, body, self.streams.send_buffer, &self.streams.link);
        tunnel.hold(live);
        Ok(tunnel)
    }

    /// Refuses the stream: the headers of the response end it, and RST_STREAM(NO_ERROR) tells the peer to send no more.
    ///
    /// # Errors
    /// If the peer has reset the stream, or the connection is gone.
    pub fn refuse(mut self, response: &ConnectResponse) -> Result<(), Gone> {
        // h2 itself sends the reset when the stream is dropped after its end was sent.
        self.respond.send_response(response.to_http(), true).map(|_sent| ()).map_err(|_closed| Gone)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let reset = self.respond.poll_reset(&mut Context::from_waker(Waker::noop()));
        if matches!(reset, Poll::Ready(Ok(_))) {
            self.streams.one_given_up();
        }
    }
}
