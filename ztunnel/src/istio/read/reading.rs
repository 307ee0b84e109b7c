//! The input of reading a resource, and its results.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::istio::discovery::Resource;

/// Why a resource can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// The resource is not a message of its type.
    #[error("the message cannot be decoded: {0}")]
    Undecodable(String),
    /// The resource is empty.
    #[error("the resource has no message")]
    Empty,
    /// The name and the content of the resource disagree.
    #[error("the resource is named {resource}, but its content is {content}")]
    OtherName {
        /// The resource's name.
        resource: String,
        /// The name that the content requires.
        content: String,
    },
    /// The resource is neither a workload nor a service.
    #[error("the address is neither a workload nor a service")]
    UnknownKind,
    /// A field has a value that cannot be used.
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

/// A result, and remarks on the parts that were left out: sentences for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<T> {
    /// The result.
    pub value: T,
    /// The parts that were left out, and why.
    pub remarks: Vec<String>,
}

/// The context in which resources are read.
pub struct Reader<'a> {
    /// This cluster, by the name that workloads use.
    pub cluster: &'a str,
    /// This node's network, by the name that addresses use.
    pub network: &'a str,
    /// Returns the shared copy of a text.
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
