//! What nodes tell each other in the headers of an HBONE CONNECT: pure, total parsers and writers.
//!
//! Written as Istio's ztunnel writes it (names, order, quoting), read as tolerantly as it reads where that does no harm.
//! Everything here takes what an authenticated but possibly hostile peer sent: nothing panics, nothing takes longer than
//! its input is long, and what comes out is short and printable. Each parser has a fuzz target in `ztunnel/fuzz`, whose
//! seeds the unit tests replay.

pub mod authority;
pub mod baggage;
#[cfg(any(test, fuzzing))]
pub mod check;
pub mod connect;
pub mod forwarded;
pub mod refusal;
pub mod trace;

#[cfg(test)]
mod tests;
