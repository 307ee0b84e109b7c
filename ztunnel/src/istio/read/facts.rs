//! What is read of workloads and services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::service::{Endpoint, Health, Service};
use crate::model::workload::Workload;
use crate::store::change::ServiceKey;

/// A workload, and the services that it stands behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// The workload. On another network than this node it has no addresses: they would mean other hosts here.
    pub workload: Arc<Workload>,
    /// The services.
    pub fronting: Vec<Fronting>,
    /// Its share among the endpoints of a service.
    pub weight: u32,
    /// The policies that it names, by the names of their resources.
    pub policies: Vec<Arc<str>>,
    /// The workload as the control plane has it, if it says so.
    pub exactly: Option<Box<Exactly>>,
}

/// A service in front of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fronting {
    /// The service.
    pub service: ServiceKey,
    /// The workload's ports by the service's; of a port that is not among them the service tells.
    pub ports: Vec<(u16, u16)>,
}

/// A service, without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// The service.
    pub service: Arc<Service>,
    /// Endpoints that take no connections count as well.
    pub every_endpoint_ready: bool,
    /// The service as the control plane has it, if it says so.
    pub exactly: Option<Box<ServiceExactly>>,
}

/// A workload exactly as the control plane has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exactly {
    /// The workload; `None`: the message stands for an endpoint of a service, which is no workload.
    pub workload: Option<Workload>,
    /// Of services for which [`Exactly::standard`] is wrong, the endpoints that the workload is.
    pub endpoints: Vec<(ServiceKey, Vec<Endpoint>)>,
    /// Of several endpoints of a service at one address, the place of this one.
    pub place: u32,
}

impl Exactly {
    /// The endpoints of a service that Istio's message says that the workload is.
    #[must_use]
    pub fn standard(
        of: &Workload,
        is_workload: bool,
        fronting: &Fronting,
        is_healthy: bool,
        weight: u32,
    ) -> Vec<Endpoint> {
        let ports: BTreeMap<u16, u16> = fronting.ports.iter().copied().collect();
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
    /// Endpoints for which there is no message of a workload.
    pub endpoints: Vec<Endpoint>,
}
