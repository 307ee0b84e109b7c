//! Mutual TLS between workloads: version 1.3 only, ALPN `h2`, both ends proved by a SPIFFE ID. The only user of `rustls`.
//!
//! An [`Endpoint`] is one pod's end. It makes a [`TlsStream`] of a connection, and says who is at the other end; or why
//! not, after the peer was told by an alert. What is checked of a peer's certificate stands in [`verify`], and how long
//! that is believed in [`trust`].

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
