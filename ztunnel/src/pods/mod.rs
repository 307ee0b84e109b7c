//! The pods of this node: which of them are enrolled, and how they are enrolled and released.
//!
//! The mesh says which pods run on this node. A [`local`] source has their network namespaces: from the annotations of
//! manifests, or, in [`kubernetes`], from the processes of the pods ([`proc`]). [`reconcile`] compares both with the
//! enrolled pods, and [`claims`] decides to which pod a network namespace belongs that several pods name. [`manager`]
//! acts on the difference: it owns the redirection ([`kernel`]) and every enrolled [`pod`], and only the manager talks
//! to the [`worker`]s, on which the connections are. [`dispatch`] distributes the HBONE connections over the workers, and
//! [`syns`] the connects that are held.
//! [`node_name`] checks that the mesh knows the node's name. [`describe`] is the manager's answer to a question about
//! the pods, [`status`] its report of each second. With [`handover`], another daemon of the node takes over the pods.

pub mod arrivals;
pub mod claims;
pub mod describe;
pub mod dispatch;
pub mod handle;
pub mod handover;
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
pub mod syns;
pub mod worker;

#[cfg(test)]
mod tests;
