//! From Kubernetes manifests to the daemon's model. Pure: the input is texts, the output is workloads, services and
//! problems.
//!
//! There are two steps. [`read`] parses the text of one file and returns its objects, the problems inside them, and the
//! objects that can't be read, so that the caller can keep the last valid version of those. [`assemble`]
//! [joins](super::join) the objects of all files, since the meaning of a Pod depends on its Namespace, and the
//! endpoints of a Service depend on Pods.
//!
//! The content of an object is read by [`objects`](super::objects), as for every other source of Kubernetes objects.
//! This module splits a text into objects, and finds the place of an object's field in the text.

mod addresses;
mod assemble;
#[cfg(any(test, fuzzing))]
pub mod check;
mod document;
mod error;
mod parse;
mod split;
mod template;
#[cfg(test)]
pub(crate) mod tests;
mod used;

pub use self::assemble::{Assembled, assemble};
pub(in crate::control) use self::error::{AddressesIn, Hides, Subject};
pub use self::error::{Fault, FileError, PoliciesIn};
pub use self::parse::{FileContent, parse, read};
pub(in crate::control) use self::parse::{Known, read_again, valid_texts};
pub(in crate::control) use self::used::typed;
