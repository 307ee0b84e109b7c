//! The mesh as one immutable value, the changes that lead from one such value to the next, and the way it reaches everyone who
//! decides by it.
//!
//! A source yields [batches of changes](change::Batch). [`Snapshot::apply`](snapshot::Snapshot::apply) makes the next snapshot of
//! the last one and a batch: the two share whatever the batch does not name. The [publisher](publish::Publisher) hands it on.

pub mod change;
pub mod claims;
pub mod demand;
pub mod holders;
pub mod local;
pub mod policies;
pub mod publish;
pub mod selectors;
pub mod shared;
pub mod snapshot;
