//! How a resource is read: what is given, and what comes of it.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::istio::discovery::Resource;

/// Why a resource can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// It is no message of its type.
    #[error("the message cannot be decoded: {0}")]
    Undecodable(String),
    /// It is empty.
    #[error("the resource has no message")]
    Empty,
    /// Its name and its content disagree.
    #[error("the resource is named {resource}, but its content is {content}")]
    OtherName {
        /// The resource's name.
        resource: String,
        /// What the content is the resource of.
        content: String,
    },
    /// It is neither workload nor service.
    #[error("the address is neither a workload nor a service")]
    UnknownKind,
    /// A field has a value that can't be used.
    #[error("{field}: {why}")]
    Field {
        /// The field, as the protocol names it.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Flaw {
    pub(super) fn field(field: &'static str, why: impl Into<String>) -> Self {
        Self::Field { field, why: why.into() }
    }
}

/// Something that was read, and remarks on what was left out of it: sentences for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<T> {
    /// What was read.
    pub value: T,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

/// Where a mesh is read.
pub struct Reader<'a> {
    /// This cluster, as workloads name theirs.
    pub cluster: &'a str,
    /// This node's network, as addresses name theirs.
    pub network: &'a str,
    /// Gives the one copy of a text that repeats.
    pub texts: &'a mut dyn FnMut(&str) -> Arc<str>,
}

impl<T> Read<T> {
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> U) -> Read<U> {
        Read { value: map(self.value), remarks: self.remarks }
    }
}

pub(super) fn decode<M: prost::Message + Default>(resource: &Resource) -> Result<M, Flaw> {
    let content = resource.resource.as_ref().ok_or(Flaw::Empty)?;
    M::decode(Bytes::clone(&content.value)).map_err(|error| Flaw::Undecodable(error.to_string()))
}

pub(super) fn same_name(resource: &Resource, content: &str) -> Result<(), Flaw> {
    if resource.name == content {
        return Ok(());
    }
    Err(Flaw::OtherName { resource: resource.name.clone(), content: content.to_owned() })
}

pub(super) fn unknown(field: &'static str, value: i32) -> Flaw {
    Flaw::field(field, format!("{value} is not a value that this version knows: upgrade the daemon"))
}
