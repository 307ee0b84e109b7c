//! Events of connections, for readers that ask for them while they happen.
//!
//! Without a reader an event costs one load of an atomic number. With readers, the data workers put events into one bounded ring and
//! never wait: a reader that is too slow loses the oldest events and learns how many.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast::{self, error::RecvError};

/// The events of this node. Clones share the readers.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    ring: broadcast::Sender<Arc<ConnectionEvent>>,
    readers: AtomicUsize,
    most_readers: usize,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("readers", &self.0.readers).finish_non_exhaustive()
    }
}

/// Reads the events that happen while it exists.
#[derive(Debug)]
pub struct EventReader {
    events: Events,
    ring: broadcast::Receiver<Arc<ConnectionEvent>>,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next event.
    Event(Arc<ConnectionEvent>),
    /// So many events were lost, because the reader was too slow.
    Lost(u64),
}

impl Events {
    /// Events for at most `most_readers` readers at a time, who may be `kept` events behind.
    #[must_use]
    pub fn new(kept: usize, most_readers: usize) -> Self {
        let (ring, _) = broadcast::channel(kept.max(1));
        Self(Arc::new(Shared { ring, readers: AtomicUsize::new(0), most_readers }))
    }

    /// Whether anybody reads.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.0.readers.load(Ordering::Relaxed) > 0
    }

    /// Passes an event to the readers.
    pub fn publish(&self, event: ConnectionEvent) {
        // Without a reader the event is dropped.
        let _readers = self.0.ring.send(Arc::new(event));
    }

    /// A new reader. `None`: there are as many as there may be.
    #[must_use]
    pub fn read(&self) -> Option<EventReader> {
        let most = self.0.most_readers;
        let one_more = |readers| (readers < most).then_some(readers + 1);
        self.0.readers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(EventReader { events: self.clone(), ring: self.0.ring.subscribe() })
    }
}

impl EventReader {
    /// The next event, or how many were lost. `None`: there will be no more.
    pub async fn next(&mut self) -> Option<Next> {
        match self.ring.recv().await {
            Ok(event) => Some(Next::Event(event)),
            Err(RecvError::Lagged(count)) => Some(Next::Lost(count)),
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        self.events.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Its destination has accepted it.
    #[default]
    Opened,
    /// It ended after its destination had accepted it.
    Closed,
    /// It ended before: it was refused, or failed.
    Refused,
}

impl EventKind {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Refused => "refused",
        }
    }
}

/// Something that happened to a connection of a pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionEvent {
    /// The time, as RFC 3339 with milliseconds.
    pub time: String,
    /// What happened.
    pub event: EventKind,
    /// `outbound`: a pod of this node connects; `inbound`: a pod of this node is connected to.
    pub direction: Cow<'static, str>,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The address and port that the client asked for.
    pub requested: String,
    /// The host name of the service that the client asked for.
    pub service: Option<String>,
    /// `HBONE` or `TCP`.
    pub protocol: Cow<'static, str>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// Milliseconds since the connection was accepted.
    pub duration_ms: u64,
    /// The close reason; `None` of a connection that was opened.
    pub reason: Option<Cow<'static, str>>,
    /// Why the connection failed.
    pub error: Option<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Its address and port.
    pub address: String,
    /// The namespace of its pod.
    pub namespace: Option<String>,
    /// The name of its pod.
    pub pod: Option<String>,
    /// The identity that it has proved, or must prove.
    pub identity: Option<String>,
}

impl ConnectionEvent {
    /// Whether it tells of a connection that policy has denied.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.reason.as_deref(), Some("denied" | "policy_changed"))
    }
}

/// A time as RFC 3339, with milliseconds.
#[must_use]
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i128::try_from(since.as_millis()).unwrap_or_default();
    let time = OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000);
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    // The format ends with the year 9999.
    text.unwrap_or_else(|| format!("{millis} ms after 1970"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{ConnectionEvent, Events, Next, timestamp};

    fn event(requested: &str) -> ConnectionEvent {
        ConnectionEvent { requested: requested.to_owned(), ..ConnectionEvent::default() }
    }

    #[tokio::test]
    async fn every_reader_gets_the_events_from_its_beginning_on() {
        let events = Events::new(8, 2);
        assert!(!events.is_read());
        events.publish(event("nobody reads this"));
        let mut one = events.read().unwrap();
        events.publish(event("a"));
        let mut other = events.read().unwrap();
        events.publish(event("b"));
        for expected in ["a", "b"] {
            assert_eq!(one.next().await, Some(Next::Event(event(expected).into())));
        }
        assert_eq!(other.next().await, Some(Next::Event(event("b").into())));
        assert!(events.is_read());
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_many_events_it_has_lost() {
        let events = Events::new(4, 1);
        let mut slow = events.read().unwrap();
        for number in 0..10 {
            events.publish(event(&number.to_string()));
        }
        assert_eq!(slow.next().await, Some(Next::Lost(6)));
        assert_eq!(slow.next().await, Some(Next::Event(event("6").into())));
    }

    #[test]
    fn readers_are_limited_and_make_room_when_they_end() {
        let events = Events::new(1, 2);
        let (one, _other) = (events.read().unwrap(), events.read().unwrap());
        assert!(events.read().is_none());
        drop(one);
        let _third = events.read().unwrap();
        assert!(events.read().is_none() && events.is_read());
    }

    #[test]
    fn times_have_milliseconds() {
        let text = |millis| timestamp(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(text(951_827_696_250), "2000-02-29T12:34:56.25Z");
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert!(text(253_402_300_800_000).contains("after 1970"), "the format ends with the year 9999");
    }
}
