//! Tasks and their end: this folder has the only `spawn`, and the drain signal.

pub mod drain;
pub mod keeps;
mod poll_when_woken;
pub mod tasks;

pub use poll_when_woken::poll_when_woken;
