//! Whom a question means, and why that can't be told.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::model::identity::IdentityError;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};

/// Why a question can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// `from` is nothing of the kind.
    #[error(
        "from: {text:?} is no client: write NAMESPACE/POD, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, an IP address, or the host name of a service"
    )]
    From {
        /// Its beginning.
        text: String,
    },
    /// `from` is no identity.
    #[error("from: {0}")]
    Identity(#[from] IdentityError),
    /// `to` is nothing of the kind.
    #[error(
        "to: {text:?} is no destination: write NAMESPACE/POD, NAMESPACE/SERVICE, pod:NAMESPACE/NAME, service:NAMESPACE/NAME, an IP address, or the host name of a service"
    )]
    To {
        /// Its beginning.
        text: String,
    },
    /// No port has this number.
    #[error("port: write a TCP port, 1 to 65535, or the name of a port")]
    Port,
    /// The destination has no port of this name.
    #[error("port: {title} has no TCP port named {name:?}{known}")]
    PortName {
        /// The destination.
        title: String,
        /// The name.
        name: String,
        /// What there is instead; begins with a separator.
        known: String,
    },
    /// No service has this host name.
    #[error("{side}: no service of the mesh has the host name {host:?}{known}")]
    Host {
        /// `from` or `to`.
        side: &'static str,
        /// The name.
        host: String,
        /// What follows from that; begins with a separator.
        known: String,
    },
    /// Several services may be meant.
    #[error("{side}: {host:?} may mean {first} or {other}: write the name with its namespace")]
    AmbiguousHost {
        /// `from` or `to`.
        side: &'static str,
        /// The name.
        host: String,
        /// One that may be meant.
        first: NamespacedName,
        /// Another.
        other: NamespacedName,
    },
    /// The mesh has not been read yet.
    #[error("the mesh has not been read yet: see /config_dump for what is wrong with its folder, or try again")]
    NoMesh,
    /// There is no such object.
    #[error("{side}: the mesh has no {what} {name}{known}")]
    Unknown {
        /// `from` or `to`.
        side: &'static str,
        /// Its kind.
        what: &'static str,
        /// Its name.
        name: NamespacedName,
        /// What there is instead; begins with a separator.
        known: String,
    },
    /// There are two.
    #[error("to: {name} is a Pod and a Service: write pod:{name} or service:{name}")]
    Ambiguous {
        /// Their name.
        name: NamespacedName,
    },
    /// It can't connect, nor be connected to.
    #[error("{side}: {what}, so that there is no connection to explain")]
    NoAddress {
        /// `from` or `to`.
        side: &'static str,
        /// Which object, and why.
        what: String,
    },
}

/// Whom a question means by `to`.
#[derive(Clone, Copy, Debug)]
pub(in crate::explain) enum Meant<'a> {
    Pod(&'a Arc<Workload>),
    Service(&'a Arc<Service>),
    Address(IpAddr),
}
