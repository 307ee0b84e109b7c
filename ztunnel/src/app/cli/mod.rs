//! The commands, one file each.

pub mod check;
pub mod cleanup;
pub mod run;
