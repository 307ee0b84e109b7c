//! The pods of this node: which of them are enrolled, and how they are enrolled and released.
//!
//! The mesh says which pods run on this node; a [`local`] source says how to get into them: the annotations
//! of manifests, or [`kubernetes`], which finds them by their processes ([`proc`]). [`reconcile`] compares both with
//! what is enrolled, and [`claims`] says whose a network namespace is that several pods name. [`manager`] acts on the difference: it owns the redirection ([`kernel`]) and every enrolled [`pod`], and it
//! alone talks to the [`worker`]s, on which the connections live. [`spread`] gives each worker its part of the tunnels.
//! [`node_name`] finds out whether the node has the name that it was given. [`describe`] is what the manager tells
//! of the pods when it is asked, [`status`] what it reports of them each second.

pub mod arrivals;
pub mod claims;
pub mod describe;
pub mod dispatch;
pub mod handle;
pub mod kernel;
pub mod kubernetes;
pub mod local;
pub mod manager;
pub mod node_name;
pub mod pod;
pub mod proc;
pub mod reconcile;
mod relapses;
pub mod status;
pub mod worker;

#[cfg(test)]
mod tests;
