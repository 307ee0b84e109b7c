//! Services as resources.

use std::{net::IpAddr, sync::Arc};

use super::{encode, exact};
use crate::{
    istio::{
        read::ServiceFacts,
        write::{self, Writer},
    },
    model::service::{Health, Service},
    plane::catalogue::Resource,
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// The name of a service's resource.
pub(super) fn name(key: &ServiceKey) -> String {
    format!("{}/{}", key.namespace, key.hostname)
}

/// The resource of a service.
pub(super) fn resource(service: &Arc<Service>, mesh: &Snapshot, writer: Writer<'_>) -> Resource {
    let aliases = service.vips.iter().map(|vip| alias(writer.network, *vip)).collect();
    let network: Arc<str> = writer.network.into();
    let ranges = service.ranges.iter().map(|range| (Arc::clone(&network), *range)).collect();
    Resource { ranges, ..encode::resource(write::service(&facts(service, mesh), writer), aliases, Vec::new()) }
}

/// The facts of which the message of a service is made.
pub(super) fn facts(service: &Arc<Service>, mesh: &Snapshot) -> ServiceFacts {
    let exactly = Some(Box::new(exact::service(service, mesh)));
    let every_endpoint_ready = takes_all(service, mesh);
    ServiceFacts { service: Arc::clone(service), every_endpoint_ready, exactly }
}

/// The name by which nodes ask for an address.
pub(super) fn alias(network: &str, address: IpAddr) -> Arc<str> {
    format!("{network}/{address}").into()
}

/// Whether the service has endpoints that are ready although their pods are not (`publishNotReadyAddresses`).
fn takes_all(service: &Service, mesh: &Snapshot) -> bool {
    service.endpoints.iter().filter(|endpoint| endpoint.health == Health::Ready).any(|endpoint| {
        let workload = endpoint.workload.as_ref().and_then(|name| mesh.workload(name));
        workload.is_some_and(|workload| !workload.ready)
    })
}
