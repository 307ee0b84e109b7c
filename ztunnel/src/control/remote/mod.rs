//! A control plane as the source of the mesh and of certificates: the client's side of Istio's protocols.
//!
//! [`RemoteMesh`] follows the mesh over one stream of delta xDS, and [`RemoteAuthority`] gets certificate requests signed. Both
//! connect by gRPC over TLS: the control plane proves its name with a certificate, and the daemon identifies itself with a
//! token.
//!
//! Failures do not change the mesh: the last good state of every resource stays in force while there is no stream, and a daemon
//! that starts while the control plane is unavailable uses a copy on disk. Resources that the control plane removes are
//! removed.

mod authority;
mod connection;
mod contact;
mod join;
mod kept;
mod mesh;
mod on_demand;
mod plane;
mod problems;
mod reports;
mod resources;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod texts;

pub use self::authority::RemoteAuthority;
pub use self::contact::Contact;
pub use self::mesh::RemoteMesh;
pub use self::plane::{ControlPlane, Keepalive, PlaneUrl, Token, UrlError};
pub use self::reports::{PodStanding, report_pods};
