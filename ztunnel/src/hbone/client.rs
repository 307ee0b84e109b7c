//! The client's side of a connection: a handle that opens streams, and a driver that a task has to run.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use h2::{Reason, client::SendRequest};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep, timeout},
};

use super::{
    keepalive::Keepalive,
    linger::Linger,
    outbox::Outgoing,
    pace::Paced,
    settings::Settings,
    stream::{Cut, HboneStream, Link},
    windows::Windows,
};
use crate::{
    lifecycle::poll_when_woken,
    model::close::CloseReason,
    net::activity::Activity,
    wire::connect::{ConnectRequest, ConnectResponse},
};

/// Opens streams on a connection. When all handles are dropped and all streams have ended, the connection is closed in order.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Outgoing>,
    send_buffer: usize,
    link: Rc<Link>,
}

/// Reads and writes the connection's bytes; dropping the driver breaks the connection.
pub struct Driver<S> {
    connection: h2::client::Connection<Linger<Paced<S>>, Outgoing>,
    keepalive: Keepalive,
    windows: Windows,
    silence: Duration,
    /// The deadline for the close of a connection whose peer has sent too many frames.
    flooded: Option<Pin<Box<Sleep>>>,
    link: Rc<Link>,
}

/// How long the close of a connection may take after its peer has sent too many frames.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: it was not needed any more, or the peer closed it.
    Closed,
    /// The peer sent no byte for this long, although it was sent a PING.
    Dead(Duration),
    /// The peer sent too many frames that carry nothing.
    Flooded,
    /// The connection broke, or the peer violated the protocol.
    Failed(String),
    /// This side cut the connection.
    Cut(Cut),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Flooded => f.write_str("the peer sends frames without data at a high rate"),
            End::Closed => f.write_str("closed"),
            End::Dead(silence) => {
                write!(f, "the peer does not answer: no data was received from the peer for {} s", silence.as_secs())
            }
            End::Failed(why) => f.write_str(why),
            End::Cut(cut) => cut.fmt(f),
        }
    }
}

impl End {
    /// The abuse for which this side ended the connection, as the value of a metric label.
    #[must_use]
    pub fn abuse(&self) -> Option<&'static str> {
        (*self == End::Flooded).then_some("useless_frames")
    }

    /// The close reason of the streams that end with the connection.
    fn reason(&self) -> CloseReason {
        match self {
            End::Cut(cut) => cut.reason,
            End::Closed | End::Dead(_) | End::Flooded | End::Failed(_) => CloseReason::TunnelLost,
        }
    }
}

/// Why a CONNECT opened no stream.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The peer answered, but not with 200.
    #[error("the peer refused the CONNECT with {}{}", .0.status, said(.0))]
    Refused(ConnectResponse),
    /// The peer did not answer.
    #[error("the peer did not answer the CONNECT within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The peer says, or it is certain, that the peer has not processed the request: it may be repeated on another connection.
    #[error("the peer did not process the CONNECT")]
    Unprocessed(#[source] h2::Error),
    /// The peer reset the stream instead of answering.
    #[error("the peer reset the stream of the CONNECT")]
    Reset(#[source] h2::Error),
    /// The peer violated HTTP/2.
    #[error("the peer violates HTTP/2")]
    Protocol(#[source] h2::Error),
    /// The connection broke before an answer came.
    #[error("the HBONE connection was lost before the peer answered the CONNECT: {why}")]
    Lost {
        /// The cause.
        why: String,
    },
}

fn said(response: &ConnectResponse) -> String {
    match &response.refusal {
        Some(refusal) if refusal.detail.is_empty() => format!(" ({})", refusal.reason),
        Some(refusal) => format!(" ({}: {})", refusal.reason, refusal.detail),
        None => String::new(),
    }
}

/// Starts HTTP/2 on a connection. The memory of the windows is returned when the driver is dropped.
///
/// # Errors
/// If the connection breaks at once; the driver returns later errors.
pub async fn handshake<S>(
    io: S,
    activity: Activity,
    settings: &Settings,
    windows: Windows,
) -> Result<(Client, Driver<S>), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let link = Rc::new(Link::new(windows.account()));
    let io = Linger::new(Paced::to_server(io, &link.pace));
    let (send, mut connection) = windows.of(settings).client().handshake(io).await?;
    let keepalive = Keepalive::new(connection.ping_pong(), activity, settings);
    let client = Client { send, send_buffer: settings.send_buffer, link: Rc::clone(&link) };
    let silence = settings.ping_interval + settings.ping_timeout;
    Ok((client, Driver { connection, keepalive, windows, silence, flooded: None, link }))
}

impl<S> Driver<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Runs until the connection ends.
    pub async fn run(self) -> End {
        self.run_until(pending()).await
    }

    /// Runs until the connection ends, or until `cut` is ready, which breaks it.
    pub async fn run_until(mut self, cut: impl Future<Output = Cut>) -> End {
        let mut cut = pin!(poll_when_woken(cut));
        let end = poll_fn(|cx| match cut.as_mut().poll(cx) {
            Poll::Ready(cut) => Poll::Ready(End::Cut(cut)),
            Poll::Pending => self.poll(cx),
        })
        .await;
        // Before the connection is dropped, so that its streams can report the reason.
        self.link.ended(end.reason(), &end);
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.link.pace.begin_turn();
        let ended = Pin::new(&mut self.connection).poll(cx);
        if self.link.pace.is_exhausted() {
            return self.poll_flooded(cx, ended.is_ready());
        }
        if let Poll::Ready(result) = ended {
            return Poll::Ready(result.map_or_else(|error| End::Failed(error.to_string()), |()| End::Closed));
        }
        if self.link.is_idle() && self.windows.is_outgrown() {
            self.link.is_outgrown();
        }
        if let Some(window) = self.windows.adjust(self.link.seen()) {
            self.connection.set_target_window_size(window);
        }
        self.windows.announce(|window| self.connection.set_initial_window_size(window).is_ok());
        self.keepalive.poll_dead(cx).map(|()| End::Dead(self.silence))
    }

    /// Closes the connection of a peer that has sent too many frames. The streams end at once; the peer has a few seconds to
    /// receive the reason.
    fn poll_flooded(&mut self, cx: &mut Context<'_>, has_ended: bool) -> Poll<End> {
        self.link.ended(End::Flooded.reason(), &End::Flooded);
        if has_ended {
            return Poll::Ready(End::Flooded);
        }
        let timer = match &mut self.flooded {
            Some(timer) => timer,
            None => {
                // h2 waits for bytes. It has to read again, to notice that no more bytes will come.
                cx.waker().wake_by_ref();
                self.flooded.insert(Box::pin(sleep(CLOSE_WITHIN)))
            }
        };
        timer.as_mut().poll(cx).map(|()| End::Flooded)
    }
}

impl Client {
    /// Whether new streams can be opened: the peer has not sent a GOAWAY, and the connection is not broken.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let ready = self.send.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Err(_))) && self.link.end().is_none()
    }

    /// The number of streams that wait for an application that does not read.
    #[must_use]
    pub fn stalled(&self) -> usize {
        self.link.stalls.count()
    }

    /// Waits until this time has passed since the peer sent a GOAWAY. After that, the peer may never answer an open CONNECT,
    /// although it has to.
    pub fn deserted(&self, after: Duration) -> impl Future<Output = ()> + use<> {
        let link = Rc::clone(&self.link);
        async move {
            link.pace.left().await;
            sleep(after).await;
        }
    }

    /// Waits until memory is short while no stream is open, and the windows of the connection are larger than at its start:
    /// then it should be closed.
    pub fn outgrown(&self) -> impl Future<Output = ()> + use<> {
        let link = Rc::clone(&self.link);
        async move { link.outgrown().await }
    }

    /// Why the connection has ended. `None`: it has not ended.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.link.end()
    }

    /// The number of streams that the peer allows. Before its SETTINGS have arrived: the number of streams that this side opens
    /// on one connection.
    #[must_use]
    pub fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Opens a stream. Dropping the future ends it with RST_STREAM(CANCEL).
    ///
    /// # Errors
    /// If the peer does not answer with 200 in time.
    pub async fn connect(
        &self,
        request: &ConnectRequest,
        deadline: Duration,
    ) -> Result<(HboneStream, ConnectResponse), OpenError> {
        let mut send = self.send.clone();
        poll_fn(|cx| send.poll_ready(cx)).await.map_err(OpenError::Unprocessed)?;
        let (response, stream) = send.send_request(request.to_http(), false).map_err(OpenError::Unprocessed)?;
        // Dropped now, because it would count as a user of the connection until the answer arrives.
        drop(send);
        let response = match timeout(deadline, response).await {
            Ok(response) => response.map_err(|error| self.unopened(error))?,
            Err(_elapsed) => return Err(OpenError::TimedOut(deadline)),
        };
        let (parts, body) = response.into_parts();
        let response = ConnectResponse::from_http(&parts);
        if !response.is_ok() {
            return Err(OpenError::Refused(response));
        }
        Ok((HboneStream::new(stream, body, self.send_buffer, &self.link), response))
    }

    fn unopened(&self, error: h2::Error) -> OpenError {
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => OpenError::Unprocessed(error),
            // A stream gets the peer's GOAWAY as its error only if its number is above the last stream that the peer processes.
            Some(_) if error.is_go_away() && error.is_remote() => OpenError::Unprocessed(error),
            Some(_) if error.is_reset() && error.is_remote() => OpenError::Reset(error),
            Some(_) => OpenError::Protocol(error),
            None => OpenError::Lost { why: self.link.end().unwrap_or_else(|| error.to_string()) },
        }
    }
}
