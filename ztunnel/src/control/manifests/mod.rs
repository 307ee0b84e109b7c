//! Kubernetes manifests to the daemon's model. Pure: texts go in, workloads, services and problems come out.
//!
//! Two steps. [`parse`] takes one file's text and either fails as a whole, so that the caller can keep what the file
//! said before, or gives its objects together with what is wrong inside them. [`assemble`] [joins](super::join) the objects of
//! all files, since what a Pod means depends on its Namespace and what a Service leads to depends on the Pods.
//!
//! What an object says is read by [`objects`](super::objects), as for every other source of Kubernetes objects; here stands
//! how a text is cut into objects, and where in the text a field of an object is.

mod assemble;
#[cfg(any(test, fuzzing))]
pub mod check;
mod document;
mod error;
mod parse;
#[cfg(test)]
pub(crate) mod tests;
mod unread;

pub use self::assemble::{Assembled, assemble};
pub use self::error::FileError;
pub use self::parse::{FileContent, parse};
pub use self::unread::{PoliciesIn, policies_in};
