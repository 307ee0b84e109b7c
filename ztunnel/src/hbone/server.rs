//! The server's side of a connection: accepts CONNECT requests and passes each on with a [`Responder`] for its answer.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Reason, RecvStream, server::SendResponse};
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    keepalive::Keepalive,
    outbox::Outgoing,
    pace::{PREFACE, Paced},
    settings::Settings,
    stream::{Cut, Link},
    windows::Windows,
};
use crate::{
    lifecycle::{drain::DrainWatch, poll_when_woken},
    model::close::CloseReason,
    net::activity::Activity,
    wire::connect::{ConnectRequest, RequestError},
};

mod reset_budget;
mod responder;

use reset_budget::ResetBudget;
use responder::Streams;
pub use responder::{Gone, Responder};

/// How long the close of a connection may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// The same for a connection without streams when this side closes it in order, for example in a drain.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
/// If many streams wait for their applications longer than this, they block their connection.
const STALLED_FOR: Duration = Duration::from_secs(1);
/// The number of streams that are accepted before the worker's other tasks get their turn.
const FAIR_SHARE: usize = 64;

/// A request of a peer.
#[derive(Debug)]
pub struct Incoming {
    /// The CONNECT request, or why the request is invalid.
    pub request: Result<ConnectRequest, RequestError>,
    /// Answers the request.
    pub responder: Responder,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed it in order.
    PeerClosed,
    /// It had no stream for the idle time.
    Idle,
    /// No stream was opened on it in time.
    Unused,
    /// The daemon is stopping, and the last stream has ended.
    Drained,
    /// The peer sent no byte for this long, although it was sent a PING.
    Dead(Duration),
    /// The peer reset too many streams that it had just opened.
    Abused,
    /// The peer sent too many frames that carry nothing.
    Flooded,
    /// Applications that do not read had filled its window, so it took no new streams, and its last stream has ended.
    Stalled,
    /// Memory was short, the connection had no stream, and its windows were larger than at its start.
    Outgrown,
    /// The peer sent no HTTP/2 preface in time.
    NoPreface,
    /// The connection broke, or the peer violated the protocol.
    Failed(String),
    /// This side cut the connection.
    Cut(Cut),
}

impl End {
    /// The abuse for which the peer got ENHANCE_YOUR_CALM, as the value of a metric label.
    #[must_use]
    pub fn abuse(&self) -> Option<&'static str> {
        match self {
            End::Abused => Some("resets"),
            End::Flooded => Some("useless_frames"),
            _ => None,
        }
    }

    /// The close reason of the streams that end with the connection.
    fn reason(&self) -> CloseReason {
        match self {
            End::Cut(cut) => cut.reason,
            _ => CloseReason::TunnelLost,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::PeerClosed => f.write_str("closed by the peer"),
            End::Idle => f.write_str("closed because it was idle"),
            End::Unused => f.write_str("closed because no stream was opened on it"),
            End::Drained => f.write_str("drained"),
            End::Dead(silence) => {
                write!(f, "the peer does not answer: no data was received from the peer for {} s", silence.as_secs())
            }
            End::Abused => f.write_str("the peer opens and resets streams at a high rate"),
            End::Flooded => f.write_str("the peer sends frames without data at a high rate"),
            End::Stalled => f.write_str("closed because its window was full of data that applications do not read"),
            End::Outgrown => {
                f.write_str("closed because memory is short, and no stream used the memory of the connection")
            }
            End::NoPreface => f.write_str("the peer sent no HTTP/2 preface"),
            End::Failed(why) => f.write_str(why),
            End::Cut(cut) => cut.fmt(f),
        }
    }
}

/// Serves a connection until its end. Dropping the future breaks the connection and all its streams.
///
/// When the drain starts, the peer is told to open no more streams; the connection ends with its last stream. When `cut` is
/// ready, the connection ends at once, and its streams can report the reason. The memory of the windows is returned at the end.
/// `on_request` is called once for each stream and should not take long: it starts a task, or answers.
pub async fn serve<S>(
    io: S,
    activity: Activity,
    (settings, windows): (&Settings, Windows),
    mut drain: DrainWatch,
    cut: impl Future<Output = Cut>,
    on_request: impl FnMut(Incoming),
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut cut = pin!(poll_when_woken(cut));
    let link = Rc::new(Link::new(windows.account()));
    let mut handshake = pin!(windows.of(settings).server().handshake(Paced::to_client(io, PREFACE, &link.pace)));
    let handshake = poll_fn(|cx| {
        link.pace.begin_turn();
        handshake.as_mut().poll(cx)
    });
    let begun = tokio::select! {
        biased;
        cut = &mut cut => return End::Cut(cut),
        begun = timeout(settings.preface_timeout, handshake) => begun,
        () = drain.started() => return End::Drained,
    };
    let mut connection = match begun {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return End::Failed(error.to_string()),
        Err(_elapsed) => return End::NoPreface,
    };
    let mut serving = Serving {
        keepalive: Keepalive::new(connection.ping_pong(), activity, settings),
        connection,
        streams: Rc::new(Streams::new(settings, Rc::clone(&link))),
        resets: ResetBudget::new(),
        windows,
        silence: settings.ping_interval + settings.ping_timeout,
        idle: settings.server_idle(),
        stalls: settings.stalls(),
        stalled: None,
        quiet: true,
        timer: Box::pin(sleep(settings.first_stream_timeout)),
        used: false,
        ending: None,
        farewell: None,
        on_request,
    };
    let mut draining = pin!(poll_when_woken(drain.started()));
    let mut drained = false;
    let end = poll_fn(|cx| {
        if let Poll::Ready(cut) = cut.as_mut().poll(cx) {
            return Poll::Ready(End::Cut(cut));
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            serving.leave(End::Drained);
        }
        serving.poll(cx)
    })
    .await;
    // Before the connection is dropped, so that its streams can report the reason.
    link.ended(end.reason(), &end);
    end
}

struct Serving<S, F> {
    connection: h2::server::Connection<Paced<S>, Outgoing>,
    streams: Rc<Streams>,
    keepalive: Keepalive,
    resets: ResetBudget,
    windows: Windows,
    silence: Duration,
    idle: Duration,
    /// The number of stalled streams from which the connection counts as blocked.
    stalls: usize,
    /// A timer that runs while at least this many streams are stalled.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The connection has no stream, and the timer runs.
    quiet: bool,
    /// The deadline for the first stream; later the end of the idle time; at the end the deadline for the close.
    timer: Pin<Box<Sleep>>,
    used: bool,
    ending: Option<End>,
    /// When the GOAWAY was sent.
    farewell: Option<Instant>,
    on_request: F,
}

impl<S, F> Serving<S, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Incoming),
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.streams.link().pace.begin_turn();
        for accepted in 0.. {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.admit(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    // Both sides may have closed at the same time; without streams no byte is lost.
                    let closed = error.is_io() && self.streams.are_over();
                    let end = if closed { End::PeerClosed } else { End::Failed(error.to_string()) };
                    return Poll::Ready(self.ending.take().unwrap_or(end));
                }
                Poll::Ready(None) => return Poll::Ready(self.ending.take().unwrap_or(End::PeerClosed)),
                Poll::Pending => break,
            }
            if accepted >= FAIR_SHARE {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if !self.is_abused()
            && let Some(abuse) = self.abuse()
        {
            self.close(abuse);
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            cx.waker().wake_by_ref();
        }
        if self.ending.is_none() && self.used && !self.connection.has_streams() && self.windows.is_outgrown() {
            self.leave(End::Outgrown);
            cx.waker().wake_by_ref();
        }
        if let Some(window) = self.windows.adjust(self.streams.link().seen()) {
            self.connection.set_target_window_size(window);
        }
        self.windows.announce(|window| self.connection.set_initial_window_size(window).is_ok());
        self.poll_stalled(cx);
        if self.keepalive.poll_dead(cx).is_ready() {
            return Poll::Ready(End::Dead(self.silence));
        }
        self.poll_quiet(cx)
    }

    fn is_abused(&self) -> bool {
        self.ending.as_ref().is_some_and(|end| end.abuse().is_some())
    }

    /// The abuse by the peer, if there is one.
    fn abuse(&mut self) -> Option<End> {
        if self.streams.link().pace.is_exhausted() {
            return Some(End::Flooded);
        }
        let given_up = self.streams.take_given_up();
        (given_up > 0 && self.resets.is_over(given_up, Instant::now())).then_some(End::Abused)
    }

    /// Tells the peer to open new streams on another connection if stalled streams block this one. No event of its own calls
    /// this; the peer's next frames do, at the latest its PING.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) {
        let stalls = &self.streams.link().stalls;
        if self.ending.is_some() || stalls.count() < self.stalls {
            self.stalled = None;
            return;
        }
        let timer = self.stalled.get_or_insert_with(|| {
            stalls.since_last_look();
            Box::pin(sleep(STALLED_FOR))
        });
        while timer.as_mut().poll(cx).is_ready() {
            if stalls.since_last_look() >= self.stalls {
                self.leave(End::Stalled);
                return cx.waker().wake_by_ref();
            }
            timer.as_mut().reset(Instant::now() + STALLED_FOR);
        }
    }

    fn admit(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Outgoing>) {
        if self.farewell.is_some_and(|farewell| farewell.elapsed() > CLOSE_WITHIN) {
            // The peer has had time to receive the GOAWAY. h2 itself refuses streams only after the peer has answered a PING.
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        self.used = true;
        self.quiet = false;
        let (parts, body) = request.into_parts();
        if let Some(responder) = Responder::new(respond, body, &self.streams) {
            (self.on_request)(Incoming { request: ConnectRequest::from_http(&parts), responder });
        }
    }

    /// Ends the connection if it has had no stream for too long.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // A stream that the peer opened before it received the GOAWAY is served as well.
        if self.connection.has_streams() && !self.is_abused() {
            self.quiet = false;
            return Poll::Pending;
        }
        if !self.quiet {
            self.quiet = true;
            // The last bytes of the last stream may still be on their way to the peer, and its answer on its way back.
            let limit = if self.ending.is_some() { CLOSE_WITHIN } else { self.idle };
            self.timer.as_mut().reset(Instant::now() + limit);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(end) = self.ending.take() {
            return Poll::Ready(end);
        }
        self.close(if self.used { End::Idle } else { End::Unused });
        self.connection.graceful_shutdown();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn close(&mut self, why: End) {
        self.ending = Some(why);
        let now = Instant::now();
        self.farewell = Some(now);
        self.quiet = true;
        self.timer.as_mut().reset(now + CLOSE_WITHIN);
    }

    /// Tells the peer to open no more streams; open streams continue.
    fn leave(&mut self, why: End) {
        if self.ending.is_none() {
            self.close(why);
            if !self.connection.has_streams() {
                self.timer.as_mut().reset(Instant::now() + DRAINED_WITHIN);
            }
            self.connection.graceful_shutdown();
        }
    }
}
