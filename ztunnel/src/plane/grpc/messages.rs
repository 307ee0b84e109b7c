//! Messages that a caller sends.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::status::{Code, Status};

/// Bytes of the prefix of a message: the flag for compression, and the length.
const PREFIX: usize = 5;

/// Limits the large messages of all callers together: each of them holds memory until it is handled.
#[derive(Clone, Debug)]
pub struct LargeMessages {
    places: Arc<Semaphore>,
    /// A message of this length or more is large.
    from: usize,
    /// The greatest length of a message.
    most: usize,
    /// The time in which a large message has to get its place and to arrive.
    within: Duration,
}

impl LargeMessages {
    /// Allows `places` messages of `from` up to `most` bytes at once. Each has to be complete `within` that time.
    #[must_use]
    pub fn new(places: usize, from: usize, most: usize, within: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), from, most, within }
    }

    /// The same limits, for callers that never need to send more than `most` bytes.
    #[must_use]
    pub fn at_most(&self, most: usize) -> Self {
        Self { most: most.min(self.most), ..self.clone() }
    }
}

/// The messages of one call, in their order.
#[derive(Debug)]
pub struct Messages {
    body: RecvStream,
    buffer: BytesMut,
    large: LargeMessages,
    /// Held for a large message until the next one is asked for.
    place: Option<OwnedSemaphorePermit>,
    /// The time at which the first bytes of the incomplete message arrived.
    began: Option<Instant>,
}

impl Messages {
    /// The messages of a request's body.
    #[must_use]
    pub fn new(body: RecvStream, large: LargeMessages) -> Self {
        Self { body, buffer: BytesMut::new(), large, place: None, began: None }
    }

    /// The next message; `None` when the caller has ended its side of the call. The future may be dropped while it
    /// waits, and `next` called again.
    ///
    /// # Errors
    /// The status with which the call has to end: the message is compressed, too long, too slow, or not complete.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if self.began.is_none() {
            self.place = None;
        }
        loop {
            let length = if self.buffer.len() < PREFIX { None } else { Some(self.length()?) };
            if let Some(length) = length.filter(|length| self.buffer.len() >= PREFIX + length) {
                self.buffer.advance(PREFIX);
                self.began = None;
                return Ok(Some(self.buffer.split_to(length).freeze()));
            }
            if self.buffer.is_empty() {
                if !self.read().await? {
                    return Ok(None);
                }
                continue;
            }
            let within = self.large.within;
            let began = *self.began.get_or_insert_with(Instant::now);
            let is_large = length.is_some_and(|length| length >= self.large.from);
            let more = timeout_at(began + within, async {
                if is_large && self.place.is_none() {
                    // The semaphore is never closed.
                    self.place = Arc::clone(&self.large.places).acquire_owned().await.ok();
                }
                self.read().await
            });
            let late = |_| {
                Status::new(Code::DeadlineExceeded, format!("a message did not arrive within {} s", within.as_secs()))
            };
            if !more.await.map_err(late)?? {
                return Err(Status::new(Code::InvalidArgument, "the call ended before the end of a message"));
            }
        }
    }

    fn length(&self) -> Result<usize, Status> {
        let mut prefix = self.buffer.get(..PREFIX).unwrap_or_default();
        if prefix.get_u8() != 0 {
            return Err(Status::new(
                Code::Unimplemented,
                "compressed messages are not accepted: send identity encoding",
            ));
        }
        let length = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        if length > self.large.most {
            let most = self.large.most;
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("a message of {length} bytes is longer than the {most} bytes that are accepted"),
            ));
        }
        Ok(length)
    }

    /// Reads more of the body; `false`: the body is at its end.
    async fn read(&mut self) -> Result<bool, Status> {
        let Some(data) = self.body.data().await else { return Ok(false) };
        let data = data.map_err(|error| {
            Status::new(
                Code::Unavailable,
                format!(
                    "the call was interrupted: \
             {error}"
                ),
            )
        })?;
        // The window is given back at once, because the length of a message is limited elsewhere.
        let _closed = self.body.flow_control().release_capacity(data.len());
        self.buffer.extend_from_slice(&data);
        Ok(true)
    }
}
