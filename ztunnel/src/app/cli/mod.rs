//! The commands, one file each.

pub mod ca;
pub mod check;
pub mod cleanup;
pub mod run;
