//! Whether a workload is behind a service, and the ports to which the service leads.

use crate::model::service::{Service, TargetPort};
use crate::model::workload::Workload;
use crate::store::selectors::lacking;

/// Ports of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// All of them.
    All,
    /// These: ascending, without duplicates.
    These(Vec<u16>),
    /// All ports, because some ports can't be resolved; these are the resolved ones.
    Unclear(Vec<u16>),
}

impl Ports {
    /// Whether the port is one of them.
    #[must_use]
    pub fn include(&self, port: u16) -> bool {
        match self {
            Self::All | Self::Unclear(_) => true,
            Self::These(ports) => ports.binary_search(&port).is_ok(),
        }
    }

    /// Whether the port is certainly one of them. A policy that denies applies to uncertain ports as well; a policy that allows
    /// does not.
    #[must_use]
    pub fn surely_include(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::These(ports) | Self::Unclear(ports) => ports.binary_search(&port).is_ok(),
        }
    }
}

/// The ports of a workload at which the policies of a service protect it. `None`: they do not protect it. They protect a
/// workload of the service's namespace that is one of the endpoints, ready or not, or has the labels of the selector. A
/// workload of another namespace may be among the endpoints, because any author may write an EndpointSlice in their own
/// namespace; no policy of that namespace applies to it. If a port can't be resolved, the policies apply to all ports, because
/// an unknown port name must not end the protection.
#[must_use]
pub fn ports_behind(service: &Service, workload: &Workload) -> Option<Ports> {
    if service.name.namespace != workload.name.namespace {
        return None;
    }
    let addresses = workload.own_addresses().iter();
    let listed = addresses.flat_map(|address| service.endpoints_at(*address));
    let endpoints: Vec<_> = listed.filter(|endpoint| endpoint.workload.as_ref() == Some(&workload.name)).collect();
    let is_selected = !service.selector.is_empty() && lacking(&service.selector, &workload.labels).is_none();
    if endpoints.is_empty() && !is_selected {
        return None;
    }
    let mut ports: Vec<u16> = endpoints.iter().flat_map(|endpoint| endpoint.ports.targets()).collect();
    let mut is_unclear = false;
    for port in &*service.ports {
        let target = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => workload.port_named(name),
        };
        match target {
            Some(number) => ports.push(number),
            None if endpoints.iter().any(|endpoint| endpoint.ports.serves(port.port)) => {}
            None => is_unclear = true,
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Some(match () {
        () if is_unclear => Ports::Unclear(ports),
        () if ports.is_empty() => Ports::All,
        () => Ports::These(ports),
    })
}
