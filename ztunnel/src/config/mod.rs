//! Settings: flags and environment variables, read once and checked as a whole.

pub mod args;
pub mod cni;
pub mod colours;
pub mod commands;
pub mod control_plane;
pub mod defaults;
pub mod live;
pub mod log;
mod names;
pub mod remote;
pub mod units;
pub mod version;

pub use args::{Args, Command, RunArgs};
pub use control_plane::ControlPlaneArgs;
