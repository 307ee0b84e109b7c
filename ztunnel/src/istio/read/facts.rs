//! The results of reading workloads and services.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::endpoint_ports::EndpointPorts;
use crate::model::service::{Endpoint, Health, Service};
use crate::model::workload::Workload;
use crate::store::change::ServiceKey;

/// A workload, and the services that it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// The workload. If it is on another network than this node, it has no addresses: here they would be those of other
    /// hosts.
    pub workload: Arc<Workload>,
    /// The services.
    pub fronting: Vec<Fronting>,
    /// Its weight among the endpoints of a service.
    pub weight: u32,
    /// The policies that the workload names, by the names of their resources.
    pub policies: Vec<Arc<str>>,
    /// The workload as the control plane has it, if the message has details.
    pub exactly: Option<Box<Exactly>>,
}

/// A service in front of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fronting {
    /// The service.
    pub service: ServiceKey,
    /// The service's ports with the workload's port for each. A port that is missing here is given by the service.
    pub ports: Vec<(u16, u16)>,
}

/// A service, without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// The service.
    pub service: Arc<Service>,
    /// Endpoints that take no connections count as ready too.
    pub every_endpoint_ready: bool,
    /// The service as the control plane has it, if the message has details.
    pub exactly: Option<Box<ServiceExactly>>,
}

/// A workload exactly as the control plane has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exactly {
    /// The workload; `None`: the message stands for an endpoint of a service that is not a workload.
    pub workload: Option<Workload>,
    /// The endpoints that the workload provides, for services for which [`Exactly::standard`] is wrong.
    pub endpoints: Vec<(ServiceKey, Vec<Endpoint>)>,
    /// The position of this endpoint among several endpoints of a service at one address.
    pub place: u32,
}

impl Exactly {
    /// The endpoints of a service that the workload provides according to Istio's message.
    #[must_use]
    pub fn standard(
        of: &Workload,
        is_workload: bool,
        fronting: &Fronting,
        is_healthy: bool,
        weight: u32,
    ) -> Vec<Endpoint> {
        let ports: EndpointPorts = fronting.ports.iter().copied().collect();
        let endpoint = |address: &IpAddr| Endpoint {
            address: *address,
            ports: ports.clone(),
            health: if is_healthy { Health::Ready } else { Health::Unready },
            workload: is_workload.then(|| of.name.clone()),
            weight,
            node: of.node.clone(),
            locality: of.locality.clone(),
        };
        of.addresses.iter().map(endpoint).collect()
    }
}

/// A service exactly as the control plane has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceExactly {
    /// The service, without its endpoints.
    pub service: Service,
    /// Endpoints for which no message of a workload exists.
    pub endpoints: Vec<Endpoint>,
}
