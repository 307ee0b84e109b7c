//! The control plane: serves a mesh to the daemons of its nodes, and certificates to the pods on them, by Istio's protocols.
//!
//! It has the mesh from a [source](crate::control::source), as the daemon of a single machine has; nothing here is part of the
//! path of a connection between pods.
//!
//! A change of the mesh goes this way: [`Publish`](publish::Publish) takes a batch of changes and the two snapshots around it,
//! [`translate`] makes Istio's messages of the objects that are concerned, and the [`Catalogue`](catalogue::Catalogue) keeps
//! each message once, encoded, in the order of changes. A [`Session`](session::Session) is what one stream of a node has asked
//! for and has: it says what to send next and is pure. [`grpc`] carries the messages, [`serve`] accepts connections,
//! [`nodes`] says whose they are, and [`certificates`] signs.

pub mod catalogue;
pub mod certificates;
pub mod describe;
pub mod grpc;
pub mod metrics;
pub mod nodes;
pub mod publish;
pub mod quota;
pub mod serve;
pub mod serving;
pub mod session;
mod subscriber;
pub mod translate;

#[cfg(test)]
mod tests;
