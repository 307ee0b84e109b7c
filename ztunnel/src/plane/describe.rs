//! Who is connected, and what each node has: for `/debug/nodes`.

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

/// What is kept of the reason why a node could not use a response.
const LONGEST_REASON: usize = 1 << 10;

/// One stream of a node.
#[derive(Clone, Debug, Serialize)]
pub struct StreamShown {
    /// The node.
    pub node: String,
    /// Where the node connects from.
    pub peer: SocketAddr,
    /// What the node calls itself (`node.id` of its first request).
    pub client: String,
    /// Since when, as RFC 3339.
    pub since: String,
    /// What the node has of each type.
    pub types: BTreeMap<&'static str, TypeShown>,
}

/// What a node has of one type of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeShown {
    /// `all`, or the number of names that it asks for one by one.
    pub wants: String,
    /// Version of the last response.
    pub sent: Option<u64>,
    /// Version of the last response that the node has answered; the node could use it unless `rejected` has the same version.
    pub answered: Option<u64>,
    /// When that was, as RFC 3339.
    pub answered_at: Option<String>,
    /// The last response that the node could not use.
    pub rejected: Option<Rejected>,
}

/// A response that a node could not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its version.
    pub version: u64,
    /// When the node said so, as RFC 3339.
    pub at: String,
    /// Why, in the node's words.
    pub reason: String,
}

/// The streams of all nodes. Clones are the same.
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

    /// Adds a stream, unless the node has `most` of them.
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

    /// How many streams are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().streams.len()
    }

    /// Whether none is open.
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

    /// What the node calls itself.
    pub fn client(&self, id: &str) {
        self.with(|stream| stream.client = excerpt(id, 256));
    }

    /// What the node wants of a type.
    pub fn wants(&self, kind: Kind, wants: Wants) {
        let text = match wants {
            Wants::Everything => "all".to_owned(),
            Wants::Names(count) => format!("{count} names"),
        };
        self.with(|stream| stream.types.entry(kind.name()).or_default().wants = text);
    }

    /// That a response was sent.
    pub fn sent(&self, kind: Kind, version: u64) {
        self.with(|stream| stream.types.entry(kind.name()).or_default().sent = Some(version));
    }

    /// How the node has answered.
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
