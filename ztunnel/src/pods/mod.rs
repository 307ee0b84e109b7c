//! The pods of this node: which are enrolled, and how they come and go.
//!
//! [`reconcile`] compares, [`manager`] acts: it owns the redirect controller and every enrolled [`pod`], and it alone talks
//! to the [`worker`]s, on which the connections live; [`spread`] gives each its part of the tunnels. [`describe`] is what it tells of them.

pub mod describe;
pub mod manager;
pub mod pod;
pub mod reconcile;
pub mod spread;
pub mod worker;
