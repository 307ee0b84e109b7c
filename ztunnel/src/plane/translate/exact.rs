//! The details of workloads and services that Istio's messages lack. With them, daemons of this project have the mesh
//! exactly.

use std::{net::IpAddr, sync::Arc};

use super::served;
use crate::{
    istio::read::{Exactly, Fronting, ServiceExactly},
    model::{
        service::{Endpoint, Service},
        workload::Workload,
    },
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// The exact workload, and those of its endpoints that differ from its message.
pub(super) fn workload(workload: &Workload, fronting: &[Fronting], is_healthy: bool, mesh: &Snapshot) -> Exactly {
    let mut others = Vec::new();
    for service in mesh.services_of(&workload.name) {
        let key = ServiceKey::of(service);
        let found = fronting.iter().find(|fronting| fronting.service == key);
        let said = found.map(|found| Exactly::standard(workload, true, found, is_healthy, 1)).unwrap_or_default();
        let own: Vec<Endpoint> = endpoints(service, workload).cloned().collect();
        if own != said {
            others.push((key, own));
        }
    }
    Exactly { workload: Some(workload.clone()), endpoints: others, place: 0 }
}

/// The exact service, with the endpoints that no message of a workload contains.
pub(super) fn service(service: &Service, mesh: &Snapshot) -> ServiceExactly {
    let untold = service.endpoints.iter().filter(|endpoint| !is_told(service, endpoint, mesh)).cloned();
    ServiceExactly {
        endpoints: untold.collect(),
        service: Service { endpoints: Arc::default(), ..Service::clone(service) },
    }
}

/// The endpoints of a service that are this workload.
pub(super) fn endpoints<'a>(service: &'a Service, workload: &'a Workload) -> impl Iterator<Item = &'a Endpoint> {
    let addresses = workload.addresses.iter();
    let at = addresses.flat_map(|address| service.endpoints_at(*address));
    at.filter(|endpoint| endpoint.workload.as_ref() == Some(&workload.name))
}

/// Whether one or more pods have an address.
pub(super) fn is_of_pods(address: IpAddr, mesh: &Snapshot) -> bool {
    mesh.contested(address).is_some() || mesh.workload_at(address).is_some()
}

/// Whether a message of a workload contains an endpoint.
fn is_told(service: &Service, endpoint: &Endpoint, mesh: &Snapshot) -> bool {
    match endpoint.workload.as_ref().map(|name| mesh.workload(name)) {
        Some(Some(workload)) => served::workload(workload) && workload.addresses.contains(&endpoint.address),
        Some(None) => false,
        None => served::service(service) && !is_of_pods(endpoint.address, mesh),
    }
}
