//! The mesh as one immutable value, and the way it reaches everyone who decides by it.

pub mod claims;
pub mod local;
pub mod policies;
pub mod publish;
pub mod snapshot;
