//! Sockets: how they are made, in which network namespace, and how bytes go from one to the other.
//!
//! Nothing here knows of pods, meshes or policies.

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
