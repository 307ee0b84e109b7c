//! Tasks and their end: the only place that spawns, and the signal to drain.

pub mod drain;
pub mod tasks;
