//! The program: combines the parts and runs them. Only this folder uses all modules.

pub mod admin;
pub mod build;
pub mod cli;
mod cni;
pub mod control_plane;
pub mod exposition;
pub mod handover;
pub mod issuer;
pub mod left;
pub mod lock;
pub mod log;
pub mod memory;
pub mod process;
pub mod reference;
mod sources;
pub mod standing;
