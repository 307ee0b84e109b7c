//! An EndpointSlice, or the older Endpoints: the addresses that they give to a service.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, ObjectReference};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::address::usable_address;
use super::intern::Interner;
use super::port::{is_tcp, port_number};
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::service::Health;
use crate::model::workload::NamespacedName;

/// Label of an EndpointSlice: the name of its service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Endpoints that were written by hand or by a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct SliceManifest {
    /// The service of the endpoints.
    pub(in crate::control) service: NamespacedName,
    /// TCP ports: name (empty if there is none) and number; without a number the service's own port counts.
    pub(in crate::control) ports: Vec<(Arc<str>, Option<u16>)>,
    pub(in crate::control) endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct SliceEndpoint {
    pub(in crate::control) addresses: Vec<IpAddr>,
    pub(in crate::control) health: Health,
    pub(in crate::control) pod: Option<NamespacedName>,
    pub(in crate::control) node: Option<Arc<str>>,
    pub(in crate::control) zone: Option<Arc<str>>,
}

/// Reads a slice; `None` if it belongs to no service or gives no addresses, which is reported.
pub(super) fn read(
    name: &NamespacedName,
    slice: EndpointSlice,
    texts: &mut Interner,
    report: &mut Report,
) -> Option<SliceManifest> {
    let labels = slice.metadata.labels.unwrap_or_default();
    let Some(service) = labels.get(SERVICE_NAME) else {
        report.warn_at(
            FieldPath::of("metadata.labels"),
            format!("label {SERVICE_NAME} is missing: the slice belongs to no service and is ignored"),
        );
        return None;
    };
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        report.warn_at(
            FieldPath::of("addressType"),
            format!("addressType {:?} is not IPv4 or IPv6: it is ignored", slice.address_type),
        );
        return None;
    }
    let ports = slice.ports.iter().flatten().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()));
    let ports = ports.filter_map(|(index, port)| {
        let name = texts.text(port.name.as_deref().unwrap_or_default());
        let Some(value) = port.port else { return Some((name, None)) };
        let number = port_number(value);
        if number.is_none() {
            report.error_at(
                FieldPath::of("ports").index(index).key("port"),
                format!("ports.port: {value} is not a port from 1 to 65535; it is ignored"),
            );
        }
        number.map(|number| (name, Some(number)))
    });
    let ports = ports.collect();
    let endpoints = slice.endpoints.into_iter().enumerate();
    let endpoints = endpoints.map(|(index, endpoint)| slice_endpoint(name, index, endpoint, texts, report)).collect();
    Some(SliceManifest {
        service: NamespacedName::new(Arc::clone(&name.namespace), texts.text(service)),
        ports,
        endpoints,
    })
}

/// An Endpoints object of core/v1: each subset corresponds to a slice.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct EndpointsManifest {
    pub(in crate::control) subsets: Vec<SliceManifest>,
}

/// Reads the Endpoints of the service with the same name.
pub(super) fn read_endpoints(
    name: &NamespacedName,
    endpoints: Endpoints,
    texts: &mut Interner,
    report: &mut Report,
) -> EndpointsManifest {
    let subsets = endpoints.subsets.into_iter().flatten().enumerate();
    EndpointsManifest {
        subsets: subsets.map(|(index, subset)| read_subset(name, index, subset, texts, report)).collect(),
    }
}

fn read_subset(
    name: &NamespacedName,
    index: usize,
    subset: EndpointSubset,
    texts: &mut Interner,
    report: &mut Report,
) -> SliceManifest {
    let path = || FieldPath::of("subsets").index(index);
    let mut ports = Vec::new();
    for (number, port) in subset.ports.iter().flatten().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()))
    {
        match port_number(port.port) {
            Some(value) => ports.push((texts.text(port.name.as_deref().unwrap_or_default()), Some(value))),
            None => report.error_at(
                path().key("ports").index(number).key("port"),
                format!("subsets.ports.port: {} is not a port from 1 to 65535; it is ignored", port.port),
            ),
        }
    }
    let mut endpoints = Vec::new();
    let lists = [
        ("addresses", subset.addresses, Health::Ready),
        ("notReadyAddresses", subset.not_ready_addresses, Health::Unready),
    ];
    for (list, addresses, health) in lists {
        for (number, given) in addresses.into_iter().flatten().enumerate() {
            match usable_address(&given.ip) {
                Ok(address) => endpoints.push(SliceEndpoint {
                    addresses: vec![address],
                    health,
                    pod: pod_of(name, given.target_ref, texts),
                    node: given.node_name.map(|node| texts.text(&node)),
                    zone: None,
                }),
                Err(error) => report.error_at(
                    path().key(list).index(number).key("ip"),
                    format!("subsets.{list}: {error}; it is ignored"),
                ),
            }
        }
    }
    SliceManifest { service: name.clone(), ports, endpoints }
}

/// The pod that an endpoint names.
fn pod_of(name: &NamespacedName, target: Option<ObjectReference>, texts: &mut Interner) -> Option<NamespacedName> {
    let target = target.filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.map_or_else(|| Arc::clone(&name.namespace), |namespace| texts.text(&namespace));
    Some(NamespacedName::new(namespace, texts.text(&target.name?)))
}

fn slice_endpoint(
    name: &NamespacedName,
    index: usize,
    endpoint: Endpoint,
    texts: &mut Interner,
    report: &mut Report,
) -> SliceEndpoint {
    let mut addresses = Vec::new();
    for (number, text) in endpoint.addresses.iter().enumerate() {
        match usable_address(text) {
            Ok(address) => addresses.push(address),
            Err(error) => report.error_at(
                FieldPath::of("endpoints").index(index).key("addresses").index(number),
                format!("endpoints.addresses: {error}; it is ignored"),
            ),
        }
    }
    addresses.shrink_to_fit();
    let pod = pod_of(name, endpoint.target_ref, texts);
    let conditions = endpoint.conditions.unwrap_or_default();
    // In Kubernetes a missing `ready` or `serving` counts as true, a missing `terminating` as false.
    let health = match conditions {
        conditions if conditions.ready.unwrap_or(true) => Health::Ready,
        conditions if conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false) => Health::Draining,
        _ => Health::Unready,
    };
    SliceEndpoint {
        addresses,
        health,
        pod,
        node: endpoint.node_name.map(|node| texts.text(&node)),
        zone: endpoint.zone.filter(|zone| !zone.is_empty()).map(|zone| texts.text(&zone)),
    }
}
