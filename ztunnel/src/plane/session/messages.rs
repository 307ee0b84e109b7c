//! What is asked for and what is sent, apart from how it is encoded.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;

use crate::plane::catalogue::Kind;

/// Names that a stream may ask for one by one.
pub const MOST_NAMES: usize = 50_000;
/// Bytes of a name that may be asked for: a SPIFFE ID has at most 2048, names of resources are shorter.
pub const LONGEST_NAME: usize = 1024;
/// Stands for all names.
pub(super) const ALL: &str = "*";

/// A request of a node.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names that are wanted from now on; `*` stands for all.
    pub subscribe: Vec<String>,
    /// Names that are wanted no more.
    pub unsubscribe: Vec<String>,
    /// What the node has from an earlier stream: versions by name.
    pub known: BTreeMap<String, String>,
    /// The response that this answers; empty if none.
    pub nonce: String,
    /// Why the response could not be used.
    pub error: Option<String>,
}

/// A response that is due.
#[derive(Debug)]
pub struct Response {
    /// Its type.
    pub kind: Kind,
    /// Its name in the node's answer.
    pub nonce: String,
    /// The catalogue's version.
    pub version: u64,
    /// Fields `resources`.
    pub resources: Vec<Bytes>,
    /// Names of resources that are gone.
    pub removed: Vec<Arc<str>>,
}

/// How a node has answered a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response's type.
    pub kind: Kind,
    /// The response's version.
    pub version: u64,
    /// When it was sent.
    pub sent: Instant,
    /// Why it could not be used; `None`: it could.
    pub error: Option<String>,
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// Too many names.
    #[error("the stream asks for more than {MOST_NAMES} names one by one: subscribe to all (*) instead")]
    TooManyNames,
    /// A name that no resource has.
    #[error("the stream asks for a name of {0} bytes; no resource has a name of more than {LONGEST_NAME}")]
    LongName(usize),
    /// It was away for so long that it cannot be told what is gone.
    #[error(
        "the stream has not been told of removals of {0} resources for so long that they are not remembered any more: connect again and state initial_resource_versions"
    )]
    Behind(Kind),
}

/// What is asked for by names, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// All resources.
    Everything,
    /// Those of so many names.
    Names(usize),
}

/// What a response says.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) resources: Vec<Bytes>,
    pub(super) removed: Vec<Arc<str>>,
    /// It is sent even if it is empty.
    pub(super) is_first: bool,
    /// What came later than this version waits for the answer.
    pub(super) holds: Option<u64>,
}

impl Content {
    /// Whether it is sent.
    pub(super) fn is_due(&self) -> bool {
        self.is_first || !self.resources.is_empty() || !self.removed.is_empty()
    }
}

/// The version of a resource, as text.
#[must_use]
pub fn version_of(content: u64) -> String {
    format!("{content:016x}")
}

/// What a version says of the content; `None`: nothing.
pub(super) fn content_of(version: &str) -> Option<u64> {
    if version.len() == 16 { u64::from_str_radix(version, 16).ok() } else { None }
}
