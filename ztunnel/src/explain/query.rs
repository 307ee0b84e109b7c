//! What is asked: who connects, where to, at which port. And whom of the mesh that means.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::model::identity::{IdentityError, SpiffeId};
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::Snapshot;

/// Longer texts are no names: SPIFFE allows 2048 bytes for an identity, the longest of them.
const LONGEST: usize = 2048;
/// Names that are told beside one that is not known.
const NAMED: usize = 8;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(super) from: From,
    pub(super) to: To,
    pub(super) port: u16,
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    Pod(NamespacedName),
    Identity(SpiffeId),
    Address(IpAddr),
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum To {
    Pod(NamespacedName),
    Service(NamespacedName),
    Either(NamespacedName),
    Address(IpAddr),
}

/// Why a question can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// `from` is nothing of the kind.
    #[error(
        "from: {text:?} is no client: write NAMESPACE/POD, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, or an IP address"
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
        "to: {text:?} is no destination: write NAMESPACE/POD, NAMESPACE/SERVICE, pod:NAMESPACE/NAME, service:NAMESPACE/NAME, or an IP address"
    )]
    To {
        /// Its beginning.
        text: String,
    },
    /// No port has this number.
    #[error("port: write a TCP port, 1 to 65535")]
    Port,
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

impl Query {
    /// Reads a question: `from` is `NAMESPACE/POD`, `spiffe://…` or an address; `to` is `NAMESPACE/POD`, `NAMESPACE/SERVICE`,
    /// either with `pod:` or `service:` before it, or an address.
    ///
    /// # Errors
    /// When it is none; names that part.
    pub fn parse(from: &str, to: &str, port: u16) -> Result<Self, QueryError> {
        if port == 0 {
            return Err(QueryError::Port);
        }
        Ok(Self { from: client(from)?, to: server(to)?, port })
    }
}

fn client(text: &str) -> Result<From, QueryError> {
    if text.starts_with("spiffe://") {
        return Ok(From::Identity(text.parse()?));
    }
    let found = address(text).map(From::Address).or_else(|| name(text).map(From::Pod));
    found.ok_or_else(|| QueryError::From { text: excerpt(text) })
}

fn server(text: &str) -> Result<To, QueryError> {
    let found = match (text.strip_prefix("pod:"), text.strip_prefix("service:")) {
        (Some(pod), _) => name(pod).map(To::Pod),
        (_, Some(service)) => name(service).map(To::Service),
        (None, None) => address(text).map(To::Address).or_else(|| name(text).map(To::Either)),
    };
    found.ok_or_else(|| QueryError::To { text: excerpt(text) })
}

fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    Some(address.to_canonical())
}

/// `namespace/name` in Kubernetes' alphabet.
fn name(text: &str) -> Option<NamespacedName> {
    let (namespace, name) = text.split_once('/')?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let good = |part: &str| !part.is_empty() && part.chars().all(allowed);
    (text.len() <= LONGEST && good(namespace) && good(name)).then(|| NamespacedName::new(namespace, name))
}

fn excerpt(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Whom a question means by `to`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meant<'a> {
    Pod(&'a Arc<Workload>),
    Service(&'a Arc<Service>),
    Address(IpAddr),
}

impl Query {
    /// Whom `to` means.
    pub(super) fn meant<'a>(&self, snapshot: &'a Snapshot) -> Result<Meant<'a>, QueryError> {
        let pod = |name| snapshot.workload(name);
        let service = |name| service_named(snapshot, name, self.port);
        let unknown = |what, name: &NamespacedName| QueryError::Unknown {
            side: "to",
            what,
            name: name.clone(),
            known: known(snapshot, name, what != "Pod", what != "Service"),
        };
        match &self.to {
            To::Address(address) => Ok(Meant::Address(*address)),
            To::Pod(name) => pod(name).map(Meant::Pod).ok_or_else(|| unknown("Pod", name)),
            To::Service(name) => service(name).map(Meant::Service).ok_or_else(|| unknown("Service", name)),
            To::Either(name) => match (pod(name), service(name)) {
                (Some(_), Some(_)) => Err(QueryError::Ambiguous { name: name.clone() }),
                (Some(pod), None) => Ok(Meant::Pod(pod)),
                (None, Some(service)) => Ok(Meant::Service(service)),
                (None, None) => Err(unknown("Pod or Service", name)),
            },
        }
    }
}

/// The pod of this name that connects.
pub(super) fn client_pod<'a>(snapshot: &'a Snapshot, name: &NamespacedName) -> Result<&'a Arc<Workload>, QueryError> {
    snapshot.workload(name).ok_or_else(|| QueryError::Unknown {
        side: "from",
        what: "Pod",
        name: name.clone(),
        known: known(snapshot, name, false, true),
    })
}

/// Of the services of one ServiceEntry the first that has the port.
fn service_named<'a>(snapshot: &'a Snapshot, name: &NamespacedName, port: u16) -> Option<&'a Arc<Service>> {
    let mut named = snapshot.services().filter(|service| service.name == *name);
    let first = named.next()?;
    if first.port(port).is_some() {
        return Some(first);
    }
    named.find(|service| service.port(port).is_some()).or(Some(first))
}

/// What could have been meant.
fn known(snapshot: &Snapshot, asked: &NamespacedName, services: bool, pods: bool) -> String {
    let of_pods = snapshot.workloads().filter(|_| pods).map(|workload| &workload.name);
    let of_services = snapshot.services().filter(|_| services).map(|service| &service.name);
    let mut here: Vec<&NamespacedName> =
        of_pods.chain(of_services).filter(|name| name.namespace == asked.namespace).collect();
    here.sort();
    here.dedup();
    if here.is_empty() {
        let namespace = &asked.namespace;
        return format!(
            ", nor anything in namespace {namespace}: is that the right namespace, and the right mesh folder or node?"
        );
    }
    let mut text = format!("; namespace {} has ", asked.namespace);
    for (index, name) in here.iter().take(NAMED).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Writing to a String can't fail.
        let _written = write!(text, "{separator}{}", name.name);
    }
    match here.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
