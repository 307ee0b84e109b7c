//! Tasks and their end: the only place that spawns, and the signal to drain.

pub mod drain;
mod poll_when_woken;
pub mod tasks;

pub use poll_when_woken::poll_when_woken;
