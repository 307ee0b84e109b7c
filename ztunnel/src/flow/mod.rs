//! One connection from accept to close: decide, dial, copy, record.
//!
//! All of it happens on the worker that accepted the connection.

pub mod context;
pub mod leg;
pub mod record;
pub mod serve;
pub mod table;

pub use context::PodContext;
