//! Tasks and their end: the only place that spawns, and the signal to drain.

mod aside;
pub mod drain;
pub mod tasks;

pub use aside::aside;
