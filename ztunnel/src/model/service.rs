//! A service: stable addresses in front of workloads. Only TCP ports are kept, since only TCP is carried.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::workload::NamespacedName;

/// One Kubernetes service with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its own addresses, canonical; none when it is headless.
    pub vips: Vec<IpAddr>,
    /// Its TCP ports, in the manifest's order.
    pub ports: Vec<ServicePort>,
    /// What stands behind it, ordered by address.
    pub endpoints: Vec<Endpoint>,
    /// The labels a pod must have to stand behind it; empty when its endpoints are given otherwise.
    pub selector: Arc<BTreeMap<String, String>>,
}

impl Service {
    /// The port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

/// One TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, which a service of a single port may lack.
    pub name: Option<Arc<str>>,
    /// The number clients use.
    pub port: u16,
    /// Where it leads in a pod.
    pub target: TargetPort,
}

/// The port of a pod that a service's port leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number in every pod.
    Number(u16),
    /// Each pod's container port of this name.
    Name(Arc<str>),
}

/// One address behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address, canonical.
    pub address: IpAddr,
    /// From the service's port to the port at this address. A port that this endpoint doesn't serve is missing.
    pub ports: BTreeMap<u16, u16>,
    /// It takes connections.
    pub ready: bool,
    /// The workload that has this address, when one is known and nobody contests it.
    pub workload: Option<NamespacedName>,
}
