//! The control plane: serves a mesh to the daemons of its nodes, and certificates to the pods on them, by Istio's protocols.
//!
//! It gets the mesh from a [source](crate::control::source), as the daemon of a single machine does. Nothing here is
//! part of the path of a connection between pods.
//!
//! A change of the mesh goes this way: [`Publish`](publish::Publish) takes a batch of changes and the snapshots before
//! and after it. [`translate`] makes Istio's messages of the objects that are concerned, and the
//! [`Catalogue`](catalogue::Catalogue) keeps each message once, encoded, in the order of changes. A
//! [`Session`](session::Session) is the state of one stream of a node: the resources for which the node has asked, and
//! those that it has. It decides what to send next and is pure. [`grpc`] carries the messages, [`serve`] accepts
//! connections, and [`callers`] finds the node of each call, by tokens in a directory ([`nodes`]) or by tokens of
//! service accounts ([`reviewed`]). [`certificates`] signs, with an authority in a directory or in a Secret
//! ([`secret_ca`]), whose [`roots`] are published.

pub mod caller;
pub mod callers;
pub mod catalogue;
pub mod certificates;
pub mod describe;
pub mod grpc;
pub mod metrics;
pub mod nodes;
pub mod pod_events;
pub mod policy_status;
pub mod publish;
pub mod quota;
pub mod reviewed;
pub mod roots;
pub mod secret_ca;
pub mod serve;
pub mod serving;
pub mod session;
mod subscriber;
pub mod translate;
mod unproved;

#[cfg(test)]
mod tests;
