//! Sockets: how they are made, in which network namespace, and how bytes are copied between them.
//!
//! This folder does not depend on pods, meshes or policies.

pub mod activity;
pub mod buffer;
pub mod copy;
pub mod dial;
pub mod listen;
pub mod memory;
pub mod netns;
pub mod node;
pub mod open;
pub mod packed;
pub mod socket;
pub mod syn;
