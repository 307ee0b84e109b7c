//! The commands, one file each.

pub mod analyze;
pub mod ca;
pub mod check;
pub mod cleanup;
pub mod cni;
pub mod control_plane;
pub mod explain;
pub mod output;
pub mod ready;
pub mod run;
pub mod version;
