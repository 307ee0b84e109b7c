//! A Service: the content of the object itself. Its endpoints are determined when objects are joined.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{self as core, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::address::usable_address;
use super::annotations::{self, Annotations};
use super::intern::Interner;
use super::port::{is_tcp, port_number};
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::labels::Labels;
use crate::model::locality::Distribution;
use crate::model::service::{Addressing, Families, ServicePort, TargetPort, Visibility};
use crate::model::workload::NamespacedName;

/// A service without its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct ServiceManifest {
    pub(in crate::control) addressing: Addressing,
    pub(in crate::control) vips: Vec<IpAddr>,
    /// Addresses that lead to the service from outside.
    pub(in crate::control) external: Vec<External>,
    /// The ports of nodes that lead to the service.
    pub(in crate::control) node_ports: Vec<u16>,
    /// `sessionAffinity: ClientIP`.
    pub(in crate::control) is_sticky: bool,
    pub(in crate::control) ports: Arc<[ServicePort]>,
    pub(in crate::control) selector: Labels,
    /// The families of pod addresses that count when endpoints are derived from the selector.
    pub(in crate::control) families: Families,
    /// `publishNotReadyAddresses`: every endpoint counts as ready.
    pub(in crate::control) every_endpoint_ready: bool,
    /// The preferred endpoints; `None`: as the namespace says.
    pub(in crate::control) distribution: Option<Distribution>,
    /// The namespaces whose pods see the service; `None`: as the mesh's settings say.
    pub(in crate::control) visibility: Option<Visibility>,
}

/// An address that leads to a service from outside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct External {
    pub(in crate::control) address: IpAddr,
    /// The address is of a load balancer and set by the cluster. Otherwise it is one of `externalIPs`, set by the
    /// author.
    pub(in crate::control) is_balancer: bool,
}

/// The most ports of a Service. Kubernetes itself gives at most 100 ports to an EndpointSlice; each endpoint may have each of them.
const MOST_PORTS: usize = 1000;

pub(super) fn read(
    name: &NamespacedName,
    service: core::Service,
    texts: &mut Interner,
    report: &mut Report,
) -> ServiceManifest {
    let spec = service.spec.unwrap_or_default();
    let annotations = service.metadata.annotations.unwrap_or_default();
    let mut annotations = Annotations { values: &annotations, report };
    let annotated = annotations.distribution();
    let visibility = annotations.visibility(&name.namespace);
    let distribution = distribution(&spec, report).or(annotated);
    // A Service of type ExternalName is an alias in DNS: it has no address, and Kubernetes ignores its selector.
    let external = spec.type_.as_deref() == Some("ExternalName");
    let vips = if external { Vec::new() } else { vips(&spec, report) };
    let addressing = addressing(&spec, &vips, external);
    let balancer = service.status.and_then(|status| status.load_balancer);
    let others = if external { Vec::new() } else { others(&spec, balancer.as_ref(), report) };
    let node_ports = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let node_ports = node_ports.filter_map(|port| port_number(port.node_port?)).collect();
    let families = families(&spec, &vips);
    let given = spec.ports.iter().flatten().take(MOST_PORTS).enumerate();
    if let Some(all) = spec.ports.as_ref().map(Vec::len).filter(|all| *all > MOST_PORTS) {
        report.error_at(
            FieldPath::of("spec.ports"),
            format!(
                "spec.ports: there are {all}, of which only the first {MOST_PORTS} have an effect: connections to the \
                 others fail; divide them among several Services"
            ),
        );
    }
    let ports = given.filter_map(|(index, port)| service_port(index, port, texts, report)).collect();
    let is_sticky = is_sticky(&spec, report);
    ServiceManifest {
        ports,
        selector: if external { Labels::default() } else { texts.labels(&spec.selector.unwrap_or_default()) },
        families,
        every_endpoint_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        addressing,
        vips,
        external: others,
        node_ports,
        is_sticky,
        distribution,
        visibility,
    }
}

fn addressing(spec: &ServiceSpec, vips: &[IpAddr], is_alias: bool) -> Addressing {
    let given = || spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter(|text| !text.is_empty());
    let alias = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.');
    match () {
        () if is_alias => Addressing::Alias(alias.to_ascii_lowercase().into()),
        () if !vips.is_empty() => Addressing::Given,
        () if given().any(|text| text == "None") => Addressing::Headless,
        () => Addressing::Unknown,
    }
}

fn is_sticky(spec: &ServiceSpec, report: &mut Report) -> bool {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => true,
        None | Some("" | "None") => false,
        Some(other) => {
            report.error_at(
                FieldPath::of("spec.sessionAffinity"),
                format!("spec.sessionAffinity: {other:?} is not ClientIP or None; it is treated as None"),
            );
            false
        }
    }
}

/// The addresses through which nodes lead outside clients to the service. A node may also check where a client comes
/// from, or leave an address to the load balancer. That is not done here: such an address does not count as the
/// service's.
fn others(spec: &ServiceSpec, balancer: Option<&core::LoadBalancerStatus>, report: &mut Report) -> Vec<External> {
    let mut others: Vec<External> = Vec::new();
    let ranges =
        spec.load_balancer_source_ranges.iter().flatten().any(|range| !matches!(range.trim(), "0.0.0.0/0" | "::/0"));
    for (index, ingress) in balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten().enumerate() {
        let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let field = FieldPath::of("status.loadBalancer.ingress").index(index).key("ip");
        let left = match ingress.ip_mode.as_deref() {
            Some("Proxy") => Some("its ipMode is Proxy, so that the balancer gets the connections"),
            _ if ranges => Some("spec.loadBalancerSourceRanges are checked by the nodes"),
            _ => None,
        };
        match (usable_address(text), left) {
            (Ok(address), None) => others.push(External { address, is_balancer: true }),
            (Ok(address), Some(why)) => report.info_at(
                field,
                format!(
                    "status.loadBalancer.ingress: connections to {address} are left to the node, in plaintext: {why}"
                ),
            ),
            (Err(error), _) => {
                report.error_at(field, format!("status.loadBalancer.ingress: {error}; the address is ignored"));
            }
        }
    }
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        match usable_address(text) {
            Ok(address) if others.iter().any(|known| known.address == address) => {}
            Ok(address) => others.push(External { address, is_balancer: false }),
            Err(error) => report.error_at(
                FieldPath::of("spec.externalIPs").index(index),
                format!("spec.externalIPs: {error}; the address is ignored"),
            ),
        }
    }
    others
}

fn distribution(spec: &ServiceSpec, report: &mut Report) -> Option<Distribution> {
    match spec.internal_traffic_policy.as_deref() {
        Some("Local") => return Some(Distribution::ONLY_SAME_NODE),
        None | Some("" | "Cluster") => {}
        Some(other) => {
            report.error_at(
                FieldPath::of("spec.internalTrafficPolicy"),
                format!("spec.internalTrafficPolicy: {other:?} is not Cluster or Local; it is treated as Cluster"),
            );
        }
    }
    let text = spec.traffic_distribution.as_deref().filter(|text| !text.is_empty())?;
    Some(annotations::distribution(text).unwrap_or_else(|error| {
        report.warn_at(
            FieldPath::of("spec.trafficDistribution"),
            format!("spec.trafficDistribution: {text:?} {error}; no endpoint is preferred"),
        );
        Distribution::Any
    }))
}

fn vips(spec: &ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().enumerate();
    let mut texts: Vec<(Option<usize>, &str)> = all.map(|(index, text)| (Some(index), text.as_str())).collect();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.as_deref().map(|text| (None, text)));
    }
    let (mut vips, mut seen) = (Vec::new(), HashSet::new());
    for (index, text) in texts.into_iter().filter(|(_, text)| !text.is_empty() && *text != "None") {
        match usable_address(text) {
            Ok(vip) => vips.extend(seen.insert(vip).then_some(vip)),
            Err(error) => {
                let entry = |index| FieldPath::of("spec.clusterIPs").index(index);
                let field = index.map_or_else(|| FieldPath::of("spec.clusterIP"), entry);
                report.error_at(field, format!("spec.clusterIPs: {error}; the address is ignored"));
            }
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

fn service_port(
    index: usize,
    port: &core::ServicePort,
    texts: &mut Interner,
    report: &mut Report,
) -> Option<ServicePort> {
    if !is_tcp(port.protocol.as_deref()) {
        return None;
    }
    let mut number = |field: &str, value: i32| {
        let number = port_number(value);
        if number.is_none() {
            report.error_at(
                FieldPath::of("spec.ports").index(index).key(field),
                format!("spec.ports.{field}: {value} is not a port from 1 to 65535; the service lacks this port"),
            );
        }
        number
    };
    let own = number("port", port.port)?;
    let target = match &port.target_port {
        // The API server takes 0 and an empty text as "the same port".
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(value)) => TargetPort::Number(number("targetPort", *value)?),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(own),
        Some(IntOrString::String(name)) => TargetPort::Name(texts.text(name)),
    };
    let name = port.name.as_deref().filter(|name| !name.is_empty()).map(|name| texts.text(name));
    Some(ServicePort { name, port: own, target })
}
