//! HBONE: TCP connections as CONNECT streams of an HTTP/2 connection. The only user of `h2`.
//!
//! [`client`] and [`server`] each drive one end of an HBONE connection and create [`stream::HboneStream`]s on it. [`relay`]
//! copies between a stream and an application. [`pool`] shares a client's HBONE connections among all streams to the same
//! destination. In this folder a *connection* is an HBONE connection, unless it is named as the application's.
//!
//! How the end of an application's connection and the end of its stream correspond:
//!
//! | application | stream |
//! |---|---|
//! | FIN | END_STREAM |
//! | RST | RST_STREAM(CONNECT_ERROR) when sent; any RST_STREAM when received |
//! | - | the HBONE connection is lost, or this side cut it ([`Cut`]): `ConnectionAborted`, and the application gets an RST |
//!
//! One exception: RST_STREAM(NO_ERROR) after END_STREAM says that the peer needs no more bytes (RFC 9113, 8.1), and is a
//! regular end. Istio's ztunnel treats RST_STREAM(CANCEL) as a regular end as well, which hides missing bytes; here it is a
//! reset.

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
