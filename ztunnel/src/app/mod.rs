//! The program: puts the parts together and runs them. The only folder that knows every module.

pub mod admin;
pub mod build;
pub mod cli;
pub mod control_plane;
pub mod exposition;
pub mod issuer;
pub mod lock;
pub mod log;
pub mod memory;
pub mod process;
pub mod reference;
