//! Settings: flags and environment, read once, checked as a whole.

pub mod args;
pub mod defaults;
pub mod units;
pub mod version;

pub use args::{Args, Command, RunArgs};
