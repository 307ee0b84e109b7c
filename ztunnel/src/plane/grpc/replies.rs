//! Messages that are sent to a caller.

use std::{future::poll_fn, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::status::Status;

/// Bytes that are copied together before they are sent: small parts must not become small frames.
const CHUNK: usize = 32 << 10;
/// Bytes a second. The stream of a reader that takes a message more slowly is reset.
const SLOWEST: u64 = 512 << 10;

/// Why a message could not be sent.
#[derive(Debug, Error)]
pub enum Stalled {
    /// The caller does not read.
    #[error("the caller read {sent} of {length} bytes of a message within {} s", within.as_secs())]
    Slow {
        /// Bytes that the caller has read.
        sent: usize,
        /// Bytes of the message.
        length: usize,
        /// The time that the caller had.
        within: Duration,
    },
    /// The caller has gone.
    #[error("the caller ended the call: {0}")]
    Gone(String),
}

/// The answer to one call.
#[derive(Debug)]
pub struct Replies {
    stream: SendStream<Bytes>,
    /// The time that the reader has for a message in any case. Long messages have more.
    timeout: Duration,
}

/// Ends a call before its first message.
///
/// # Errors
/// The caller has gone.
pub(in crate::plane) fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) -> Result<(), h2::Error> {
    let mut response = head();
    status.put(response.headers_mut());
    respond.send_response(response, true).map(drop)
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Replies {
    /// Begins the answer. The reader has the time `timeout` for each message, and more for a long message.
    ///
    /// # Errors
    /// The caller has gone.
    pub fn begin(respond: &mut SendResponse<Bytes>, timeout: Duration) -> Result<Self, Stalled> {
        let stream = respond.send_response(head(), false).map_err(gone)?;
        Ok(Self { stream, timeout })
    }

    /// Sends one message, made of these parts.
    ///
    /// # Errors
    /// The reader takes too long, or has gone. The call cannot be used after that.
    pub async fn send(&mut self, parts: &[Bytes]) -> Result<(), Stalled> {
        let length = parts.iter().map(Bytes::len).sum::<usize>();
        let within = self.timeout + Duration::from_secs(length as u64 / SLOWEST);
        let until = Instant::now() + within;
        let mut chunk = BytesMut::with_capacity(CHUNK.min(length + 5));
        chunk.put_u8(0);
        chunk.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        let mut sent = 0;
        for part in parts {
            let mut part = part.clone();
            while !part.is_empty() {
                let taken = part.split_to(part.len().min(CHUNK.saturating_sub(chunk.len())));
                chunk.extend_from_slice(&taken);
                if chunk.len() >= CHUNK {
                    sent += chunk.len();
                    let full = std::mem::replace(&mut chunk, BytesMut::with_capacity(CHUNK));
                    self.put(full.freeze(), until).await.map_err(|stalled| stalled.or(sent, length, within))?;
                }
            }
        }
        self.put(chunk.freeze(), until).await.map_err(|stalled| stalled.or(sent, length, within))
    }

    async fn put(&mut self, mut chunk: Bytes, until: Instant) -> Result<(), Wait> {
        while !chunk.is_empty() {
            self.stream.reserve_capacity(chunk.len());
            let granted = match self.stream.capacity() {
                0 => self.granted(until).await?,
                granted => granted,
            };
            let part = chunk.split_to(granted.min(chunk.len()));
            self.stream.send_data(part, false).map_err(Wait::of)?;
        }
        Ok(())
    }

    async fn granted(&mut self, until: Instant) -> Result<usize, Wait> {
        loop {
            let granted = timeout_at(until, poll_fn(|cx| self.stream.poll_capacity(cx))).await;
            match granted.map_err(|_| Wait::Slow)? {
                Some(Ok(0)) => {}
                Some(Ok(granted)) => return Ok(granted),
                Some(Err(error)) => return Err(Wait::of(error)),
                None => return Err(Wait::Gone("the stream is closed".to_owned())),
            }
        }
    }

    /// Ends the call.
    pub fn finish(mut self, status: &Status) {
        let mut trailers = HeaderMap::new();
        status.put(&mut trailers);
        if self.stream.send_trailers(trailers).is_err() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }

    /// Resets the stream of the call without a status: a reader that does not read would not read the status.
    pub fn cut(mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }

    /// Waits until the caller resets the stream of the call.
    pub async fn abandoned(&mut self) {
        let _reason = poll_fn(|cx| self.stream.poll_reset(cx)).await;
    }
}

enum Wait {
    Slow,
    Gone(String),
}

impl Wait {
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    fn of(error: h2::Error) -> Self {
        Self::Gone(error.to_string())
    }

    fn or(self, sent: usize, length: usize, within: Duration) -> Stalled {
        match self {
            Self::Slow => Stalled::Slow { sent, length, within },
            Self::Gone(why) => Stalled::Gone(why),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn gone(error: h2::Error) -> Stalled {
    Stalled::Gone(error.to_string())
}
