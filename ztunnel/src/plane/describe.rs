//! The connected nodes, and the state of each of them: for `/debug/nodes`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::Serialize;

use super::{
    catalogue::Kind,
    session::{Answer, Wants},
};
use crate::identity::certificate::rfc3339;

/// Characters that are kept of the reason why a node could not use a response.
const LONGEST_REASON: usize = 1 << 10;

/// One stream of a node.
#[derive(Clone, Debug, Serialize)]
pub struct StreamShown {
    /// The node.
    pub node: String,
    /// The address from which the node connects.
    pub peer: SocketAddr,
    /// The node's name for itself (`node.id` of its first request).
    pub client: String,
    /// The time at which the stream was opened, as RFC 3339.
    pub since: String,
    /// The node's state of each type of resources.
    pub types: BTreeMap<&'static str, TypeShown>,
}

/// A node's state of one type of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeShown {
    /// `all`, or the number of names that it asks for one by one.
    pub wants: String,
    /// Version of the last response.
    pub sent: Option<u64>,
    /// Version of the last response that the node has answered. The node could use it unless `rejected` has the same
    /// version.
    pub answered: Option<u64>,
    /// The time of that answer, as RFC 3339.
    pub answered_at: Option<String>,
    /// The last response that the node could not use.
    pub rejected: Option<Rejected>,
}

/// A response that a node could not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its version.
    pub version: u64,
    /// The time of the node's answer, as RFC 3339.
    pub at: String,
    /// The reason, in the node's words.
    pub reason: String,
}

/// The streams of all nodes. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    streams: BTreeMap<u64, StreamShown>,
}

/// One stream, for as long as it is open.
#[derive(Debug)]
pub struct Present {
    streams: Streams,
    id: u64,
}

impl Streams {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream, unless the node already has `most` streams.
    pub fn enter(&self, node: &str, peer: SocketAddr, most: usize) -> Option<Present> {
        let mut inner = self.inner();
        // There are some thousand streams, and few are opened in a second.
        if inner.streams.values().filter(|stream| stream.node == *node).count() >= most {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let shown = StreamShown {
            node: node.to_owned(),
            peer,
            client: String::new(),
            since: rfc3339(SystemTime::now()),
            types: BTreeMap::new(),
        };
        inner.streams.insert(id, shown);
        Some(Present { streams: self.clone(), id })
    }

    /// The number of open streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().streams.len()
    }

    /// Whether no stream is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All streams, by node.
    #[must_use]
    pub fn shown(&self) -> Vec<StreamShown> {
        let mut shown: Vec<_> = self.inner().streams.values().cloned().collect();
        shown.sort_by(|one, other| (&one.node, one.peer).cmp(&(&other.node, other.peer)));
        shown
    }
}

impl Present {
    fn with(&self, change: impl FnOnce(&mut StreamShown)) {
        if let Some(stream) = self.streams.inner().streams.get_mut(&self.id) {
            change(stream);
        }
    }

    /// Records the node's name for itself.
    pub fn client(&self, id: &str) {
        self.with(|stream| stream.client = excerpt(id, 256));
    }

    /// Records which resources of a type the node wants.
    pub fn wants(&self, kind: Kind, wants: Wants) {
        let text = match wants {
            Wants::Everything => "all".to_owned(),
            Wants::Names(count) => format!("{count} names"),
        };
        self.with(|stream| stream.types.entry(kind.name()).or_default().wants = text);
    }

    /// Records that a response was sent.
    pub fn sent(&self, kind: Kind, version: u64) {
        self.with(|stream| stream.types.entry(kind.name()).or_default().sent = Some(version));
    }

    /// Records the node's answer to a response.
    pub fn answered(&self, answer: &Answer) {
        let now = rfc3339(SystemTime::now());
        self.with(|stream| {
            let shown = stream.types.entry(answer.kind.name()).or_default();
            shown.answered = Some(answer.version);
            shown.answered_at = Some(now.clone());
            if let Some(error) = &answer.error {
                let reason = excerpt(error, LONGEST_REASON);
                shown.rejected = Some(Rejected { version: answer.version, at: now, reason });
            }
        });
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.streams.inner().streams.remove(&self.id);
    }
}

/// The beginning of a text that a node wrote.
pub(super) fn excerpt(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
