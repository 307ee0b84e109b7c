//! Services as resources.

use std::{net::IpAddr, sync::Arc};

use super::encode;
use crate::{
    istio::{
        read::ServiceFacts,
        write::{self, Writer},
    },
    model::service::{Health, Service, Visibility},
    plane::catalogue::Resource,
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// The name of a service's resource.
pub(super) fn name(key: &ServiceKey) -> String {
    format!("{}/{}", key.namespace, key.hostname)
}

/// Whether a message can tell of it. A service that no namespace knows is one that clients are not to find.
pub(super) fn is_served(service: &Service) -> bool {
    service.visibility != Visibility::Namespaces(Vec::new())
}

/// The resource of a service.
pub(super) fn resource(service: &Arc<Service>, mesh: &Snapshot, writer: Writer<'_>) -> Resource {
    let facts = ServiceFacts { service: Arc::clone(service), every_endpoint_ready: takes_all(service, mesh) };
    let aliases = service.vips.iter().map(|vip| alias(writer.network, *vip)).collect();
    encode::resource(write::service(&facts, writer), aliases, Vec::new())
}

/// The name by which an address is asked for.
pub(super) fn alias(network: &str, address: IpAddr) -> Arc<str> {
    format!("{network}/{address}").into()
}

/// Whether it counts pods as ready that are not (`publishNotReadyAddresses`).
fn takes_all(service: &Service, mesh: &Snapshot) -> bool {
    service.endpoints.iter().filter(|endpoint| endpoint.health == Health::Ready).any(|endpoint| {
        let workload = endpoint.workload.as_ref().and_then(|name| mesh.workload(name));
        workload.is_some_and(|workload| !workload.ready)
    })
}
