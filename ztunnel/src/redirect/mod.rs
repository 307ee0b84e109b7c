//! Steers pods' sockets to this daemon: the only user of BPF and netlink.
//!
//! A pod is named by the cookie of its network namespace. [`load`] puts the programs into the kernel; `hooks` attaches those of
//! the node, and `captured` those of a pod, among them the [guards](guard) of its devices. [`pins`] keeps them there when the
//! daemon is gone, and `held` while it runs. [`foreign`] looks for other installations. [`maps`] is what the programs know of a pod,
//! [`routes`] leads marked packets to the loopback interface, [`sysctl`] makes answers follow, [`record`] remembers how the
//! namespace was before, and [`controller`] does all of it in the one order that never leaves a pod half enrolled.

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
pub mod node_sockets;
pub mod pins;
pub mod probe;
pub mod record;
pub mod routes;
mod sock_diag;
pub mod survey;
mod sys;
pub mod sysctl;

pub use controller::{Controller, EnrolError, Enrolment};
pub use foreign::ForeignError;
pub use link::{NetnsFacts, NetnsLink};
pub use node_sockets::NodeSockets;
