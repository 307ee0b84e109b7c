//! HBONE: TCP connections as CONNECT streams of an HTTP/2 connection. The only user of `h2`.
//!
//! [`client`] and [`server`] drive one connection each and make [`stream::Tunnel`]s on it; [`relay`] copies between a tunnel
//! and an application; [`pool`] shares a client's connections among all streams to one place.
//!
//! What ends how:
//!
//! | application | tunnel |
//! |---|---|
//! | FIN | END_STREAM |
//! | RST | RST_STREAM(CONNECT_ERROR) when sent; any RST_STREAM when received |
//! | - | the connection is lost, or cut by this side ([`Cut`]): `ConnectionAborted`, and the application gets an RST |
//!
//! One exception: RST_STREAM(NO_ERROR) after END_STREAM says that the peer has all it wants (RFC 9113, 8.1), and is an end.
//! Istio's ztunnel takes RST_STREAM(CANCEL) for an end as well, which hides that something is missing; here it is a reset.

pub mod client;
mod inbox;
mod keepalive;
mod linger;
mod outbox;
mod pace;
pub mod pool;
pub mod relay;
pub mod server;
pub mod settings;
mod stalls;
pub mod stream;
mod windows;

pub use settings::Settings;
pub use stream::Cut;
pub use windows::Windows;

#[cfg(test)]
pub(crate) mod tests;
