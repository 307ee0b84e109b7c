//! Requests and responses, independent of their encoding.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;

use crate::plane::catalogue::Kind;

/// Names that a stream may ask for one by one.
pub const MOST_NAMES: usize = 50_000;
/// Bytes of a name that a stream may ask for. Names of resources are shorter.
pub const LONGEST_NAME: usize = 1024;
/// Stands for all names.
pub(super) const ALL: &str = "*";

/// A request of a node.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names that are wanted from now on; `*` stands for all.
    pub subscribe: Vec<String>,
    /// Names that are no longer wanted.
    pub unsubscribe: Vec<String>,
    /// The resources that the node has from an earlier stream: versions by name.
    pub known: BTreeMap<String, String>,
    /// The nonce of the response that this request answers; empty if it answers none.
    pub nonce: String,
    /// Why the node could not use the response.
    pub error: Option<String>,
}

/// A response that is due.
#[derive(Debug)]
pub struct Response {
    /// Its type.
    pub kind: Kind,
    /// The nonce by which the node's answer names it.
    pub nonce: String,
    /// The catalogue's version.
    pub version: u64,
    /// The encoded fields `resources`.
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
    /// Why the node could not use the response; `None`: it could.
    pub error: Option<String>,
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// Too many names.
    #[error("the stream asks for more than {MOST_NAMES} names one by one: subscribe to all (*) instead")]
    TooManyNames,
    /// A name is longer than the name of any resource.
    #[error("the stream asks for a name of {0} bytes; no resource has a name of more than {LONGEST_NAME}")]
    LongName(usize),
    /// The stream has lacked removals for so long that they have been forgotten.
    #[error(
        "the control plane does not store the removals of {0} resources any more that this stream has not \
         received: connect again and state initial_resource_versions"
    )]
    Behind(Kind),
}

/// The resources that a stream asks for, as `/debug/nodes` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// All resources.
    Everything,
    /// The resources of this number of names.
    Names(usize),
}

/// The content of a response.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) resources: Vec<Bytes>,
    pub(super) removed: Vec<Arc<str>>,
    /// It is the first response, and is sent even if it is empty.
    pub(super) is_first: bool,
    /// Workloads that changed later than this version wait for the answer to the response.
    pub(super) holds: Option<u64>,
}

impl Content {
    /// Whether the response has to be sent.
    pub(super) fn is_due(&self) -> bool {
        self.is_first || !self.resources.is_empty() || !self.removed.is_empty()
    }
}

/// The version of a resource, as text.
#[must_use]
pub fn version_of(content: u64) -> String {
    format!("{content:016x}")
}

/// The content to which a version belongs; `None`: this program did not write the version.
pub(super) fn content_of(version: &str) -> Option<u64> {
    if version.len() == 16 { u64::from_str_radix(version, 16).ok() } else { None }
}
