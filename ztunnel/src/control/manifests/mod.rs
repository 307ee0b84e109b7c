//! Kubernetes manifests to the daemon's model. Pure: texts go in, workloads, services and problems come out.
//!
//! Two steps. [`read`] takes one file's text and gives its objects, with what is wrong inside them and which of them can't be read,
//! so that the caller can keep what those said before. [`assemble`] [joins](super::join) the objects of all files, since what a
//! Pod means depends on its Namespace and what a Service leads to depends on the Pods.
//!
//! What an object says is read by [`objects`](super::objects), as for every other source of Kubernetes objects; here stands
//! how a text is cut into objects, and where in the text a field of an object is.

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
pub use self::error::{Fault, FileError, PoliciesIn};
pub(in crate::control) use self::error::{Hides, Subject};
pub use self::parse::{FileContent, parse, read};
pub(in crate::control) use self::parse::{Known, read_again, valid_texts};
pub(in crate::control) use self::used::typed;
