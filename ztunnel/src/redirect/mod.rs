//! Steers the connections of pods to this daemon. The only user of BPF and netlink.
//!
//! A pod is identified by the cookie of its network namespace. [`load`] loads the programs into the kernel. `hooks`
//! attaches the programs of the node, and `captured` those of a pod, among them the [guards](guard) of its devices.
//! [`pins`] keeps the programs after the end of the daemon, and `held` while it runs. [`foreign`] finds other
//! installations. [`maps`] has the facts about pods that the programs need, [`routes`] leads marked packets to the
//! loopback interface, [`sysctl`] makes answers carry the mark, [`record`] keeps the former state of the namespace, and
//! [`controller`] does all of it in an order that never leaves a pod half enrolled.

mod captured;
pub mod cgroup;
pub mod controller;
pub mod foreign;
pub mod guard;
mod held;
mod hooks;
pub mod kubelet;
pub mod link;
pub mod load;
pub mod logs;
pub mod maps;
mod node_mounts;
pub mod node_sockets;
pub mod pins;
pub mod probe;
mod proc_sys;
pub mod record;
pub mod routes;
mod sock_diag;
pub mod survey;
mod syns;
mod sys;
pub mod sysctl;

pub use controller::{Controller, EnrolError, Enrolment};
pub use foreign::ForeignError;
pub use link::{NetnsFacts, NetnsLink};
pub use node_sockets::NodeSockets;
