//! A control plane as the source of the mesh and of certificates: the client's end of Istio's protocols.
//!
//! [`RemoteMesh`] follows the mesh over one stream of delta xDS, and [`RemoteAuthority`] has certificate requests signed. Both
//! connect by gRPC over TLS: the control plane proves its name with a certificate, the daemon proves who it is with a token.
//!
//! What goes wrong changes nothing: the last good state of every resource stays in force while the stream is down, and a copy of
//! it on disk serves a daemon that starts while the control plane is away. What the control plane removes is removed.

mod authority;
mod connection;
mod join;
mod kept;
mod mesh;
mod on_demand;
mod plane;
mod problems;
mod resources;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod texts;

pub use self::authority::RemoteAuthority;
pub use self::mesh::RemoteMesh;
pub use self::plane::{ControlPlane, Keepalive, PlaneUrl, Token, UrlError};
