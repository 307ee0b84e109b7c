//! The mesh as one immutable value, the changes from one value to the next, and its publication to all who decide by it.
//!
//! A source yields [batches of changes](change::Batch). [`Snapshot::apply`](snapshot::Snapshot::apply) makes the next snapshot
//! from the last one and a batch; the two share all parts that the batch does not name. The [publisher](publish::Publisher)
//! publishes it.

pub mod change;
pub mod claims;
pub mod demand;
pub(crate) mod effort;
pub mod holders;
pub mod local;
pub mod policies;
pub mod publish;
pub mod selectors;
pub mod shared;
pub mod snapshot;
