//! Istio's ServiceEntry: services outside the cluster, or in addition to the cluster's own services.
//!
//! Every host becomes one service. This version does not resolve host names: where an entry asks for that, connections
//! to its addresses keep their original destination.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::address::usable_address;
use super::annotations::{Annotations, visibility};
use super::intern::Interner;
use super::port::port_number;
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::endpoint_ports::EndpointPorts;
use crate::model::identity::SpiffeId;
use crate::model::labels::Labels;
use crate::model::locality::{Distribution, Locality};
use crate::model::service::{Endpoint, Health, Resolution, ServicePort, TargetPort, Visibility};
use crate::model::workload::NamespacedName;

/// The object. Fields without meaning here are not listed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::control) struct ServiceEntry {
    #[expect(dead_code, reason = "checked by being read")]
    api_version: ApiVersion,
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    spec: Option<Spec>,
}

/// The versions of Istio's group `networking.istio.io`. They have the same meaning.
#[derive(Deserialize)]
pub(super) enum ApiVersion {
    #[serde(rename = "networking.istio.io/v1")]
    V1,
    #[serde(rename = "networking.istio.io/v1beta1")]
    V1Beta1,
    #[serde(rename = "networking.istio.io/v1alpha3")]
    V1Alpha3,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    hosts: Option<Vec<String>>,
    addresses: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    resolution: Option<EntryResolution>,
    endpoints: Option<Vec<GivenEndpoint>>,
    workload_selector: Option<Selector>,
    export_to: Option<Vec<String>>,
    subject_alt_names: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    number: u32,
    protocol: Option<String>,
    name: Option<String>,
    target_port: Option<u32>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum EntryResolution {
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

#[derive(Deserialize)]
struct GivenEndpoint {
    address: Option<String>,
    ports: Option<BTreeMap<String, u32>>,
    locality: Option<String>,
    weight: Option<u32>,
}

#[derive(Deserialize)]
struct Selector {
    labels: Option<BTreeMap<String, String>>,
}

/// An entry without the pods that its selector matches.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct EntryManifest {
    pub(in crate::control) hosts: Vec<Arc<str>>,
    pub(in crate::control) vips: Vec<IpAddr>,
    pub(in crate::control) ranges: Vec<IpNet>,
    pub(in crate::control) ports: Arc<[ServicePort]>,
    pub(in crate::control) resolution: Resolution,
    /// The endpoints given in the entry; their workloads are not known yet.
    pub(in crate::control) endpoints: Vec<Endpoint>,
    pub(in crate::control) selector: Labels,
    pub(in crate::control) distribution: Option<Distribution>,
    /// The namespaces whose pods see the entry; `None`: as the mesh's settings say.
    pub(in crate::control) visibility: Option<Visibility>,
    pub(in crate::control) identities: Arc<[SpiffeId]>,
}

pub(super) fn read(
    name: &NamespacedName,
    entry: ServiceEntry,
    texts: &mut Interner,
    report: &mut Report,
) -> EntryManifest {
    let mut spec = entry.spec.unwrap_or_default();
    limit(&mut spec, report);
    let annotations = entry.metadata.annotations.unwrap_or_default();
    let distribution = Annotations { values: &annotations, report }.distribution();
    let resolution = resolution(&spec, report);
    let hosts = hosts(&spec, report);
    let (vips, ranges) = addresses(&spec, report);
    let ports = ports(&spec, texts, report);
    let given = spec.endpoints.unwrap_or_default();
    let selector = spec.workload_selector.and_then(|selector| selector.labels).unwrap_or_default();
    let (mut endpoints, mut selected) = (Vec::new(), BTreeMap::new());
    match resolution {
        Resolution::Passthrough => {}
        Resolution::Endpoints if given.is_empty() && selector.is_empty() => {
            report.error_at(
                FieldPath::of("spec.resolution"),
                "spec: resolution is STATIC, but there are neither endpoints nor a workloadSelector: connections to \
                 the entry fail",
            );
        }
        Resolution::Endpoints if given.is_empty() => selected = selector,
        Resolution::Endpoints => {
            if !selector.is_empty() {
                report.error_at(
                    FieldPath::of("spec.workloadSelector"),
                    "spec: workloadSelector has no effect together with endpoints: write one of them",
                );
            }
            endpoints = endpoints_of(&given, &ports, report);
        }
    }
    let exported = spec.export_to.as_deref().filter(|entries| !entries.is_empty()).map(|entries| {
        let (visibility, wrong) = visibility(entries.iter().map(String::as_str), &name.namespace);
        for message in wrong {
            report.error_at(FieldPath::of("spec.exportTo"), format!("spec.exportTo: {message}"));
        }
        visibility
    });
    let identities = identities(spec.subject_alt_names.as_deref().unwrap_or_default(), report);
    let selector = texts.labels(&selected);
    EntryManifest {
        hosts,
        vips,
        ranges,
        ports: ports.into(),
        resolution,
        endpoints,
        selector,
        distribution,
        visibility: exported,
        identities: identities.into(),
    }
}

/// The most hosts, addresses, ports and identities, far more than anyone writes by hand. Every host becomes a service.
const MOST: usize = 256;
/// The most endpoints.
const MOST_ENDPOINTS: usize = 4096;
/// The most ports of all endpoints with ports of their own, each counted for each endpoint: 16 for each of the most
/// endpoints. The other endpoints of an entry share their ports.
const MOST_OWN_PORTS: usize = 16 * MOST_ENDPOINTS;

/// Cuts the lists: an author of entries must not be able to fill the memory of every node.
fn limit(spec: &mut Spec, report: &mut Report) {
    cut("hosts", &mut spec.hosts, MOST, report);
    cut("addresses", &mut spec.addresses, MOST, report);
    cut("ports", &mut spec.ports, MOST, report);
    cut("subjectAltNames", &mut spec.subject_alt_names, MOST, report);
    cut("endpoints", &mut spec.endpoints, MOST_ENDPOINTS, report);
}

fn cut<T>(field: &str, list: &mut Option<Vec<T>>, most: usize, report: &mut Report) {
    if let Some(list) = list.as_mut().filter(|list| list.len() > most) {
        report.error_at(
            FieldPath::of("spec").key(field),
            format!("spec.{field}: there are {}, of which only the first {most} count", list.len()),
        );
        list.truncate(most);
    }
}

fn resolution(spec: &Spec, report: &mut Report) -> Resolution {
    match spec.resolution.unwrap_or(EntryResolution::None) {
        EntryResolution::Static => return Resolution::Endpoints,
        EntryResolution::None => {
            if spec.endpoints.as_ref().is_some_and(|endpoints| !endpoints.is_empty()) {
                report.error_at(
                    FieldPath::of("spec.endpoints"),
                    "spec.endpoints: they have no effect with resolution NONE: write resolution STATIC",
                );
            }
        }
        EntryResolution::Dns | EntryResolution::DnsRoundRobin | EntryResolution::DynamicDns => report.warn_at(
            FieldPath::of("spec.resolution"),
            "spec.resolution: this version does not resolve host names: connections to the entry's addresses are \
             passed on to these addresses, and its endpoints have no effect",
        ),
    }
    Resolution::Passthrough
}

fn hosts(spec: &Spec, report: &mut Report) -> Vec<Arc<str>> {
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (index, text) in spec.hosts.iter().flatten().enumerate() {
        let host = text.to_ascii_lowercase();
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
        let name = host.strip_prefix("*.").unwrap_or(&host);
        if host.len() > 253 || name.is_empty() || !name.chars().all(allowed) {
            let message = format!("spec.hosts: {text:?} is not a host name; it is ignored");
            report.error_at(FieldPath::of("spec.hosts").index(index), message);
        } else if !hosts.iter().any(|known| **known == *host) {
            hosts.push(host.into());
        }
    }
    if hosts.is_empty() {
        report
            .error_at(FieldPath::of("spec.hosts"), "spec.hosts: there is no valid host name: the entry has no effect");
    }
    hosts
}

/// Single addresses and IP blocks. A block of one address counts as that address.
fn addresses(spec: &Spec, report: &mut Report) -> (Vec<IpAddr>, Vec<IpNet>) {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for (index, text) in spec.addresses.iter().flatten().enumerate() {
        match address(text.trim()) {
            Ok(range) if range.prefix_len() == range.max_prefix_len() => {
                if !vips.contains(&range.addr()) {
                    vips.push(range.addr());
                }
            }
            Ok(range) if ranges.contains(&range) => {}
            Ok(range) => ranges.push(range),
            Err(error) => report.error_at(
                FieldPath::of("spec.addresses").index(index),
                format!("spec.addresses: {error}; the address is ignored"),
            ),
        }
    }
    (vips, ranges)
}

fn address(text: &str) -> Result<IpNet, String> {
    if !text.contains('/') {
        return usable_address(text).map(IpNet::from);
    }
    let wrong = || format!("{text:?} is not an IP address or IP block");
    let mut range: IpNet = text.parse().map_err(|_| wrong())?;
    if let (IpAddr::V4(v4), Some(length)) = (range.addr().to_canonical(), range.prefix_len().checked_sub(96))
        && matches!(range, IpNet::V6(_))
    {
        range = IpNet::new(IpAddr::V4(v4), length).map_err(|_| wrong())?;
    }
    if range.prefix_len() == range.max_prefix_len() {
        return usable_address(&range.addr().to_string()).map(IpNet::from);
    }
    Ok(range.trunc())
}

fn ports(spec: &Spec, texts: &mut Interner, report: &mut Report) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        // Istio treats an unknown protocol as TCP. Only UDP is not carried over TCP.
        if port.protocol.as_deref().is_some_and(|protocol| protocol.eq_ignore_ascii_case("UDP")) {
            continue;
        }
        let mut number = |field: &str, value: u32| {
            let number = port_number(value);
            if number.is_none() {
                report.error_at(
                    FieldPath::of("spec.ports").index(index).key(field),
                    format!("spec.ports.{field}: {value} is not a port from 1 to 65535; the entry lacks this port"),
                );
            }
            number
        };
        let Some(own) = number("number", port.number) else { continue };
        let target = match port.target_port {
            None | Some(0) => Some(own),
            Some(target) => number("targetPort", target),
        };
        let Some(target) = target else { continue };
        if !ports.iter().any(|known| known.port == own) {
            let name = port.name.as_deref().filter(|name| !name.is_empty()).map(|name| texts.text(name));
            ports.push(ServicePort { name, port: own, target: TargetPort::Number(target) });
        }
    }
    ports
}

/// The endpoints, ordered by address.
fn endpoints_of(given: &[GivenEndpoint], ports: &[ServicePort], report: &mut Report) -> Vec<Endpoint> {
    let shared = targets(None, ports).0;
    let mut own_ports = 0;
    let mut endpoints = Vec::new();
    for (index, given) in given.iter().enumerate() {
        let has_own = given.ports.as_ref().is_some_and(|ports| !ports.is_empty());
        own_ports += if has_own { ports.len() } else { 0 };
        if has_own && own_ports > MOST_OWN_PORTS {
            report.error_at(
                FieldPath::of("spec.endpoints").index(index).key("ports"),
                format!(
                    "spec.endpoints.ports: the ports of this and earlier endpoints with own ports are more than \
                     {MOST_OWN_PORTS}: this and later endpoints are ignored; split the entry"
                ),
            );
            break;
        }
        endpoints.extend(endpoint(index, given, ports, &shared, report));
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints
}

/// The ports of an endpoint that gives its own number to some port names, and the ports of the entry that it lacks.
fn targets(own: Option<&BTreeMap<String, u32>>, ports: &[ServicePort]) -> (EndpointPorts, Vec<u16>) {
    let mut lacking = Vec::new();
    let target = |port: &ServicePort| {
        let named = port.name.as_ref().and_then(|name| own?.get(&**name));
        let target = match (named, &port.target) {
            (Some(number), _) => port_number(*number),
            (None, TargetPort::Number(number)) => Some(*number),
            (None, TargetPort::Name(_)) => None,
        };
        if target.is_none() {
            lacking.push(port.port);
        }
        Some((port.port, target?))
    };
    let found = ports.iter().filter_map(target).collect();
    (found, lacking)
}

/// `shared`: the ports of all endpoints that give no own numbers.
fn endpoint(
    index: usize,
    given: &GivenEndpoint,
    ports: &[ServicePort],
    shared: &EndpointPorts,
    report: &mut Report,
) -> Option<Endpoint> {
    let path = |field| FieldPath::of("spec.endpoints").index(index).key(field);
    let text = given.address.as_deref().unwrap_or_default();
    let address = match usable_address(text) {
        Ok(address) => address,
        Err(error) => {
            let error = match text {
                unix if unix.starts_with("unix://") => format!("{text:?} is a Unix socket, which is not TCP"),
                _ => error,
            };
            report.error_at(path("address"), format!("spec.endpoints.address: {error}; the endpoint is ignored"));
            return None;
        }
    };
    let (found, lacking) = match given.ports.as_ref().filter(|own| !own.is_empty()) {
        Some(own) => targets(Some(own), ports),
        None => (shared.clone(), Vec::new()),
    };
    for port in lacking {
        report
            .error_at(path("ports"), format!("spec.endpoints.ports: {address} has no port from 1 to 65535 for {port}"));
    }
    Some(Endpoint {
        address,
        ports: found,
        health: Health::Ready,
        workload: None,
        // As in Istio, a weight of 0 counts as not set.
        weight: given.weight.filter(|weight| *weight > 0).unwrap_or(1),
        node: None,
        locality: given.locality.as_deref().map(Locality::parse).unwrap_or_default(),
    })
}

fn identities(names: &[String], report: &mut Report) -> Vec<SpiffeId> {
    let mut identities = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match name.parse() {
            Ok(identity) => identities.push(identity),
            Err(error) => report.error_at(
                FieldPath::of("spec.subjectAltNames").index(index),
                format!("spec.subjectAltNames: {error}; it is ignored"),
            ),
        }
    }
    identities
}
