//! The objects that a question means, and the errors of the resolution.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::model::identity::IdentityError;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};

/// Why a question can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// `from` can't be parsed.
    #[error(
        "from: {text:?} is not a client: write NAMESPACE/POD, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, \
         an IP address, or the host name of a service"
    )]
    From {
        /// The beginning of the text.
        text: String,
    },
    /// `from` is not a valid identity.
    #[error("from: {0}")]
    Identity(#[from] IdentityError),
    /// `to` can't be parsed.
    #[error(
        "to: {text:?} is not a destination: write NAMESPACE/POD, NAMESPACE/SERVICE, pod:NAMESPACE/NAME, \
         service:NAMESPACE/NAME, an IP address, or the host name of a service"
    )]
    To {
        /// The beginning of the text.
        text: String,
    },
    /// The port is not a valid number or name.
    #[error("port: write a TCP port, 1 to 65535, or the name of a port")]
    Port,
    /// The destination has no port with this name.
    #[error("port: {title} has no TCP port named {name:?}{known}")]
    PortName {
        /// The destination.
        title: String,
        /// The name.
        name: String,
        /// The existing ports; begins with a separator.
        known: String,
    },
    /// No service has this host name.
    #[error("{side}: no service of the mesh has the host name {host:?}{known}")]
    Host {
        /// `from` or `to`.
        side: &'static str,
        /// The name.
        host: String,
        /// The consequence; begins with a separator.
        known: String,
    },
    /// The host name matches several services.
    #[error("{side}: {host:?} may mean {first} or {other}: write the name with its namespace")]
    AmbiguousHost {
        /// `from` or `to`.
        side: &'static str,
        /// The name.
        host: String,
        /// One of the services.
        first: NamespacedName,
        /// Another one.
        other: NamespacedName,
    },
    /// The mesh has not been read yet.
    #[error("the mesh has not been read yet: see /config_dump for what is wrong with its folder, or try again")]
    NoMesh,
    /// The object does not exist.
    #[error("{side}: the mesh has no {what} {name}{known}")]
    Unknown {
        /// `from` or `to`.
        side: &'static str,
        /// Its kind.
        what: &'static str,
        /// Its name.
        name: NamespacedName,
        /// The existing objects; begins with a separator.
        known: String,
    },
    /// There is a Pod and a Service with this name.
    #[error("to: {name} is a Pod and a Service: write pod:{name} or service:{name}")]
    Ambiguous {
        /// Their name.
        name: NamespacedName,
    },
    /// The object has no address for a connection.
    #[error("{side}: {what}, so that there is no connection to explain")]
    NoAddress {
        /// `from` or `to`.
        side: &'static str,
        /// The object and the reason.
        what: String,
    },
}

/// The object that `to` means.
#[derive(Clone, Copy, Debug)]
pub(in crate::explain) enum Meant<'a> {
    Pod(&'a Arc<Workload>),
    Service(&'a Arc<Service>),
    Address(IpAddr),
}
