//! Mutual TLS between workloads: version 1.3 only, ALPN `h2`, and both ends prove a SPIFFE ID. This folder is the only user of
//! `rustls`.
//!
//! An [`Endpoint`] is the end of one pod. It makes a [`TlsStream`] of a connection and returns the peer, or the reason of the
//! failure after the peer was told by an alert. [`verify`] has the checks of a peer's certificate, and [`trust`] decides how
//! long a peer stays trusted.

pub mod config;
pub mod endpoint;
pub mod error;
mod hello;
mod inbound;
pub mod key_log;
pub mod named;
mod proof;
mod provider;
pub mod stream;
#[cfg(test)]
pub(crate) mod test_ca;
pub mod trust;
pub mod verify;

pub use config::Settings;
pub use endpoint::{Endpoint, Peer};
pub use error::{AcceptError, Alert, ConnectError, PeerFault};
pub use key_log::KeyLog;
pub use named::{NamedClient, NamedError, NamedServer, NamedStream};
pub use proof::{Distrust, Proof};
pub use stream::{Fault, TlsStream};
