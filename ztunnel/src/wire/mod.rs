//! The headers of an HBONE CONNECT, which nodes exchange: pure, total parsers and writers.
//!
//! They are written like the headers of Istio's ztunnel (names, order, quoting), and parsed as tolerantly as there, if that
//! does no harm. The input comes from an authenticated but possibly hostile peer: no parser panics, no parser takes more time
//! than is proportional to the length of its input, and every result is short and printable. Each parser has a fuzz target in
//! `ztunnel/fuzz`, whose seeds the unit tests replay.

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
