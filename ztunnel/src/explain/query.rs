//! The question: client, destination and port; and the objects of the mesh that it means.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::identity::SpiffeId;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::Snapshot;

mod hosts;
mod meaning;

pub use self::meaning::QueryError;

/// The maximum length of a text: SPIFFE allows 2048 bytes for an identity, which is the longest name.
const LONGEST: usize = 2048;
/// The maximum number of known names that are listed for an unknown name.
const NAMED: usize = 8;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(super) from: From,
    pub(super) to: To,
    pub(super) port: Port,
}

/// The port in a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Number(u16),
    /// The port of the service or of the pod with this name.
    Name(String),
}

/// The client in a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    Pod(NamespacedName),
    Identity(SpiffeId),
    Address(IpAddr),
    /// The pods behind the service with this host name.
    Host(String),
}

/// The destination in a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum To {
    Pod(NamespacedName),
    Service(NamespacedName),
    Either(NamespacedName),
    Address(IpAddr),
    /// The service, or the pod of a headless service, with this host name.
    Host(String),
}

impl Query {
    /// Parses a question. `from` is `NAMESPACE/POD`, `spiffe://…` or an address. `to` is `NAMESPACE/POD`, `NAMESPACE/SERVICE`,
    /// either with the prefix `pod:` or `service:`, or an address. Both may be host names of services. `port` is a number, or
    /// the name of a port.
    ///
    /// # Errors
    /// If a part can't be parsed; the error names the part.
    pub fn parse(from: &str, to: &str, port: &str) -> Result<Self, QueryError> {
        Ok(Self { from: client(from)?, to: server(to)?, port: port_of(port)? })
    }

    /// The destination, if it is an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self.to {
            To::Address(address) => Some(address),
            To::Pod(_) | To::Service(_) | To::Either(_) | To::Host(_) => None,
        }
    }

    /// The number of the port in the question.
    pub(super) fn port_number(&self, meant: &Meant<'_>) -> Result<u16, QueryError> {
        let name = match &self.port {
            Port::Number(number) => return Ok(*number),
            Port::Name(name) => name,
        };
        let (title, ports): (String, Vec<(&str, u16)>) = match meant {
            Meant::Service(service) => {
                let named = service.ports.iter().filter_map(|port| Some((&**port.name.as_ref()?, port.port)));
                (format!("{} {}", service.kind.name(), service.name), named.collect())
            }
            Meant::Pod(pod) => {
                let named = pod.ports.iter().map(|port| (&*port.name, port.number));
                (format!("Pod {}", pod.name), named.collect())
            }
            Meant::Address(address) => (address.to_string(), Vec::new()),
        };
        if let Some((_, number)) = ports.iter().find(|(known, _)| *known == name.as_str()) {
            return Ok(*number);
        }
        let names: Vec<&str> = ports.iter().map(|(known, _)| *known).take(NAMED).collect();
        let known = match names.as_slice() {
            [] => ": write its number".to_owned(),
            names => format!("; it has {}", names.join(", ")),
        };
        Err(QueryError::PortName { title, name: name.clone(), known })
    }
}

fn client(text: &str) -> Result<From, QueryError> {
    if text.starts_with("spiffe://") {
        return Ok(From::Identity(text.parse()?));
    }
    let found = address(text).map(From::Address).or_else(|| name(text).map(From::Pod));
    let found = found.or_else(|| host(text).map(From::Host));
    found.ok_or_else(|| QueryError::From { text: excerpt(text) })
}

fn server(text: &str) -> Result<To, QueryError> {
    let found = match (text.strip_prefix("pod:"), text.strip_prefix("service:")) {
        (Some(pod), _) => name(pod).map(To::Pod),
        (_, Some(service)) => name(service).map(To::Service),
        (None, None) => {
            let named = || name(text).map(To::Either).or_else(|| host(text).map(To::Host));
            address(text).map(To::Address).or_else(named)
        }
    };
    found.ok_or_else(|| QueryError::To { text: excerpt(text) })
}

/// Parses a port's number, or a valid name of a port (RFC 6335, and Kubernetes' rule).
fn port_of(text: &str) -> Result<Port, QueryError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|port| *port != 0).map(Port::Number).ok_or(QueryError::Port);
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name =
        (1..=63).contains(&text.len()) && text.chars().all(allowed) && text.contains(|c: char| c.is_ascii_lowercase());
    if is_name { Ok(Port::Name(text.to_owned())) } else { Err(QueryError::Port) }
}

/// Parses a host name and converts it to lower case, without the dot at the end of a fully qualified name.
fn host(text: &str) -> Option<String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(allowed);
    let has_letter = bare.contains(|c: char| c.is_ascii_alphabetic());
    (bare.len() <= 253 && has_letter && bare.split('.').all(is_label)).then(|| bare.to_ascii_lowercase())
}

fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    Some(address.to_canonical())
}

/// Parses `namespace/name` with the characters that Kubernetes allows.
fn name(text: &str) -> Option<NamespacedName> {
    let (namespace, name) = text.split_once('/')?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let good = |part: &str| !part.is_empty() && part.chars().all(allowed);
    (text.len() <= LONGEST && good(namespace) && good(name)).then(|| NamespacedName::new(namespace, name))
}

fn excerpt(text: &str) -> String {
    text.chars().take(128).collect()
}

pub(super) use self::hosts::behind;
pub(super) use self::meaning::Meant;

impl Query {
    /// Resolves `to`.
    ///
    /// `namespace`: the client's namespace, in which short host names are looked up first.
    pub(super) fn meant<'a>(&self, snapshot: &'a Snapshot, namespace: Option<&str>) -> Result<Meant<'a>, QueryError> {
        let pod = |name| snapshot.workload(name);
        let service = |name| service_named(snapshot, name, &self.port);
        let unknown = |what, name: &NamespacedName| QueryError::Unknown {
            side: "to",
            what,
            name: name.clone(),
            known: known(snapshot, name, what),
        };
        match &self.to {
            To::Address(address) => Ok(Meant::Address(*address)),
            To::Host(host) => hosts::find(snapshot, host, namespace, "to"),
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

/// The client pod with this name.
pub(super) fn client_pod<'a>(snapshot: &'a Snapshot, name: &NamespacedName) -> Result<&'a Arc<Workload>, QueryError> {
    snapshot.workload(name).ok_or_else(|| QueryError::Unknown {
        side: "from",
        what: "Pod",
        name: name.clone(),
        known: known(snapshot, name, "Pod"),
    })
}

/// The service with this name. A ServiceEntry may make several: the first of them with the port is used.
fn service_named<'a>(snapshot: &'a Snapshot, name: &NamespacedName, port: &Port) -> Option<&'a Arc<Service>> {
    let has_port = |service: &Service| match port {
        Port::Number(number) => service.port(*number).is_some(),
        Port::Name(name) => service.ports.iter().any(|port| port.name.as_deref() == Some(name.as_str())),
    };
    let mut named = snapshot.services().filter(|service| service.name == *name);
    let first = named.next()?;
    if has_port(first) {
        return Some(first);
    }
    named.find(|service| has_port(service)).or(Some(first))
}

/// The known names in the namespace, as suggestions.
fn known(snapshot: &Snapshot, asked: &NamespacedName, what: &str) -> String {
    let namespace = &asked.namespace;
    let is_here = |name: &&NamespacedName| name.namespace == *namespace;
    let pods = snapshot.workloads().map(|workload| &workload.name).filter(is_here);
    let services = snapshot.services().map(|service| &service.name).filter(is_here);
    let (mut here, others): (Vec<&NamespacedName>, usize) = match what {
        "Pod" => (pods.collect(), services.count()),
        "Service" => (services.collect(), pods.count()),
        _ => (pods.chain(services).collect(), 0),
    };
    here.sort();
    here.dedup();
    if here.is_empty() {
        let has = match (others, what) {
            (0, _) => format!(", nor anything in namespace {namespace}"),
            (count, "Pod") => format!("; services of namespace {namespace}: {count}, pods: none"),
            (count, _) => format!("; pods of namespace {namespace}: {count}, services: none"),
        };
        return format!("{has}: is that the right namespace, and the right mesh folder or node?");
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
