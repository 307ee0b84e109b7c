//! Manifests of a Service and of an EndpointSlice: what each says itself. They meet in `assemble`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{self as core, ServiceSpec};
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations::{self, Annotations};
use super::{Report, usable_address};
use crate::model::locality::Distribution;
use crate::model::service::{Families, Health, ServicePort, TargetPort, Visibility};
use crate::model::workload::NamespacedName;

/// Label of an EndpointSlice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A service without its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServiceManifest {
    pub(super) vips: Vec<IpAddr>,
    pub(super) ports: Vec<ServicePort>,
    pub(super) selector: Arc<BTreeMap<String, String>>,
    /// Which families of pod addresses stand behind it when endpoints are derived from the selector.
    pub(super) families: Families,
    /// `publishNotReadyAddresses`: every endpoint counts as ready.
    pub(super) every_endpoint_ready: bool,
    /// Which endpoints are preferred; `None`: as the namespace says.
    pub(super) distribution: Option<Distribution>,
    /// Whose pods know it; `None`: as the mesh says.
    pub(super) visibility: Option<Visibility>,
}

/// Endpoints given by hand or by a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceManifest {
    /// The service they belong to.
    pub(super) service: NamespacedName,
    /// TCP ports: name (empty for none) and number; no number means the service's own.
    pub(super) ports: Vec<(Arc<str>, Option<u16>)>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceEndpoint {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) health: Health,
    pub(super) pod: Option<NamespacedName>,
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
}

pub(super) fn read(
    name: &NamespacedName,
    service: core::Service,
    annotation_lines: &BTreeMap<String, u64>,
    report: &mut Report<'_>,
) -> ServiceManifest {
    let spec = service.spec.unwrap_or_default();
    let annotations = service.metadata.annotations.unwrap_or_default();
    let mut annotations = Annotations { values: &annotations, lines: annotation_lines, report };
    let annotated = annotations.distribution();
    let visibility = annotations.visibility(&name.namespace);
    let distribution = distribution(&spec, report).or(annotated);
    // An ExternalName service is an alias in DNS: it has no address, and Kubernetes ignores its selector.
    let external = spec.type_.as_deref() == Some("ExternalName");
    let vips = if external { Vec::new() } else { vips(&spec, report) };
    let families = families(&spec, &vips);
    ServiceManifest {
        ports: spec.ports.iter().flatten().filter_map(|port| service_port(port, report)).collect(),
        selector: Arc::new(if external { BTreeMap::new() } else { spec.selector.unwrap_or_default() }),
        families,
        every_endpoint_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        vips,
        distribution,
        visibility,
    }
}

fn distribution(spec: &ServiceSpec, report: &mut Report<'_>) -> Option<Distribution> {
    match spec.internal_traffic_policy.as_deref() {
        Some("Local") => return Some(Distribution::SameNode),
        None | Some("" | "Cluster") => {}
        Some(other) => {
            report
                .error(format!("spec.internalTrafficPolicy: {other:?} is not Cluster or Local; it counts as Cluster"));
        }
    }
    let text = spec.traffic_distribution.as_deref().filter(|text| !text.is_empty())?;
    Some(annotations::distribution(text).unwrap_or_else(|error| {
        report.warn(format!("spec.trafficDistribution: {text:?} {error}; all endpoints are the same"));
        Distribution::Any
    }))
}

fn vips(spec: &ServiceSpec, report: &mut Report<'_>) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten();
    let mut texts: Vec<&str> = all.map(String::as_str).collect();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.as_deref());
    }
    let (mut vips, mut seen) = (Vec::new(), HashSet::new());
    for text in texts.into_iter().filter(|text| !text.is_empty() && *text != "None") {
        match usable_address(text) {
            Ok(vip) => vips.extend(seen.insert(vip).then_some(vip)),
            Err(error) => report.error(format!("spec.clusterIPs: {error}; it is not taken as the service's")),
        }
    }
    vips
}

fn families(spec: &ServiceSpec, vips: &[IpAddr]) -> Families {
    let given: BTreeSet<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
    if !given.is_empty() {
        return Families { v4: given.contains("IPv4"), v6: given.contains("IPv6") };
    }
    Families {
        v4: vips.is_empty() || vips.iter().any(IpAddr::is_ipv4),
        v6: vips.is_empty() || vips.iter().any(IpAddr::is_ipv6),
    }
}

fn service_port(port: &core::ServicePort, report: &mut Report<'_>) -> Option<ServicePort> {
    if !is_tcp(port.protocol.as_deref()) {
        return None;
    }
    let mut number = |field: &str, value: i32| {
        let number = port_number(value);
        if number.is_none() {
            report.error(format!(
                "spec.ports.{field}: {value} is not a port from 1 to 65535; the service lacks this port"
            ));
        }
        number
    };
    let own = number("port", port.port)?;
    let target = match &port.target_port {
        // The API server reads 0 and an empty text as "the same port".
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(value)) => TargetPort::Number(number("targetPort", *value)?),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(own),
        Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
    };
    Some(ServicePort { name: port.name.as_deref().filter(|name| !name.is_empty()).map(Arc::from), port: own, target })
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}

fn port_number(value: i32) -> Option<u16> {
    u16::try_from(value).ok().filter(|port| *port != 0)
}

/// Reads a slice; `None` when it belongs to no service or gives no addresses, which is reported.
pub(super) fn read_slice(
    name: &NamespacedName,
    slice: EndpointSlice,
    report: &mut Report<'_>,
) -> Option<SliceManifest> {
    let labels = slice.metadata.labels.unwrap_or_default();
    let Some(service) = labels.get(SERVICE_NAME) else {
        report.warn(format!("label {SERVICE_NAME} is missing: it belongs to no service and is ignored"));
        return None;
    };
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        report.warn(format!("addressType {:?} is not IPv4 or IPv6: it is ignored", slice.address_type));
        return None;
    }
    let ports = slice.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let ports = ports.filter_map(|port| {
        let name = Arc::from(port.name.as_deref().unwrap_or_default());
        let Some(value) = port.port else { return Some((name, None)) };
        let number = port_number(value);
        if number.is_none() {
            report.error(format!("ports.port: {value} is not a port from 1 to 65535; it is ignored"));
        }
        number.map(|number| (name, Some(number)))
    });
    let ports = ports.collect();
    let endpoints = slice.endpoints.into_iter().map(|endpoint| slice_endpoint(name, endpoint, report)).collect();
    Some(SliceManifest {
        service: NamespacedName::new(Arc::clone(&name.namespace), service.as_str()),
        ports,
        endpoints,
    })
}

fn slice_endpoint(name: &NamespacedName, endpoint: discovery::Endpoint, report: &mut Report<'_>) -> SliceEndpoint {
    let mut addresses = Vec::new();
    for text in &endpoint.addresses {
        match usable_address(text) {
            Ok(address) => addresses.push(address),
            Err(error) => report.error(format!("endpoints.addresses: {error}; it is ignored")),
        }
    }
    let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
        let namespace = target.namespace.map_or_else(|| Arc::clone(&name.namespace), Arc::from);
        Some(NamespacedName::new(namespace, target.name?))
    });
    let conditions = endpoint.conditions.unwrap_or_default();
    // Kubernetes: of missing conditions, ready and serving are to be taken as true, terminating as false.
    let health = match conditions {
        conditions if conditions.ready.unwrap_or(true) => Health::Ready,
        conditions if conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false) => Health::Draining,
        _ => Health::Unready,
    };
    SliceEndpoint {
        addresses,
        health,
        pod,
        node: endpoint.node_name.map(Arc::from),
        zone: endpoint.zone.filter(|zone| !zone.is_empty()).map(Arc::from),
    }
}
