//! What a caller sends.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::status::{Code, Status};

/// The flag for compression, and the length.
const PREFIX: usize = 5;

/// Who may send a large message, over all callers: each holds memory until it is handled.
#[derive(Clone, Debug)]
pub struct LargeMessages {
    places: Arc<Semaphore>,
    /// From this length on a message counts as large.
    from: usize,
    /// No message may be longer.
    most: usize,
    /// How long a large message may wait for its place and take to arrive.
    within: Duration,
}

impl LargeMessages {
    /// So many at once, of `from` up to `most` bytes, each complete `within` that time.
    #[must_use]
    pub fn new(places: usize, from: usize, most: usize, within: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), from, most, within }
    }

    /// The same, for callers that have no business with more than so many bytes.
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
    /// When the first bytes of the message came that is not complete yet.
    began: Option<Instant>,
}

impl Messages {
    /// Those of a request's body.
    #[must_use]
    pub fn new(body: RecvStream, large: LargeMessages) -> Self {
        Self { body, buffer: BytesMut::new(), large, place: None, began: None }
    }

    /// The next message; `None` when the caller has said that there is none. May be dropped while it waits, and called again.
    ///
    /// # Errors
    /// How the call is to end: the message is compressed, too long, too slow, or not whole.
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
                return Err(Status::new(Code::InvalidArgument, "the call ends within a message"));
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

    /// Whether there was more.
    async fn read(&mut self) -> Result<bool, Status> {
        let Some(data) = self.body.data().await else { return Ok(false) };
        let data = data.map_err(|error| Status::new(Code::Unavailable, format!("the call was broken off: {error}")))?;
        // What was read makes room at once: the length of a message is bounded above.
        let _closed = self.body.flow_control().release_capacity(data.len());
        self.buffer.extend_from_slice(&data);
        Ok(true)
    }
}
