//! Workloads, services and connections, in the shape that Istio's tools read.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ebpf_common::HBONE_PORT;
use serde::Serialize;

use super::ConfigInfo;
use crate::{
    istio::write::uid,
    model::{
        gateway::{Gateway, GatewayLocation},
        locality::{Distribution, Scope},
        policy::{AuthorizationPolicy, Scope as PolicyScope},
        service::{Endpoint, Families, Health, Resolution, Service, ServiceKind, TargetPort, Visibility},
        workload::{Membership, NamespacedName, Workload},
    },
    pods::describe::{ConnectionInfo, PodInfo, PodState},
    store::snapshot::Snapshot,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadInfo<'a> {
    uid: String,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<WaypointInfo>,
    /// `HBONE`: a pod of the mesh; `TCP`: any other.
    protocol: &'static str,
    network_mode: &'static str,
    name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
    workload_name: &'a str,
    workload_type: &'static str,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    cluster_id: &'a str,
    trust_domain: String,
    locality: LocalityInfo<'a>,
    node: &'a str,
    network: &'static str,
    status: &'static str,
    hostname: &'static str,
    capacity: u32,
    native_tunnel: bool,
    /// The policies that select it by labels, or by a service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
    /// The services in front of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
}

#[derive(Serialize)]
struct LocalityInfo<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

/// A waypoint or gateway.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaypointInfo {
    destination: String,
    hbone_mtls_port: u16,
}

impl WaypointInfo {
    fn of(gateway: &Gateway) -> Self {
        let destination = match &gateway.place {
            GatewayLocation::Hostname { namespace, hostname } => format!("{namespace}/{hostname}"),
            GatewayLocation::Address { network, address } => format!("{network}/{address}"),
        };
        Self { destination, hbone_mtls_port: gateway.port }
    }
}

impl<'a> WorkloadInfo<'a> {
    pub(super) fn of(workload: &'a Workload, mesh: &Snapshot, config: &'a ConfigInfo) -> Self {
        let is_in_mesh = matches!(workload.membership, Membership::InMesh);
        let protecting = mesh.policies().protecting(workload, mesh);
        let selects = |policy: &&Arc<AuthorizationPolicy>| {
            matches!(policy.scope, PolicyScope::Selector { .. } | PolicyScope::Services(_))
        };
        let selecting = protecting.iter().flat_map(|protection| protection.group.policies()).filter(selects);
        let mut policies: Vec<_> = selecting.map(|policy| policy.name.to_string()).collect();
        policies.sort_unstable();
        policies.dedup();
        Self {
            uid: uid_of(workload, config),
            workload_ips: &workload.addresses,
            waypoint: workload.waypoint.as_deref().map(WaypointInfo::of),
            protocol: if is_in_mesh { "HBONE" } else { "TCP" },
            network_mode: if workload.host_network { "HostNetwork" } else { "Standard" },
            name: &workload.name.name,
            namespace: &workload.name.namespace,
            service_account: &workload.identity.service_account,
            workload_name: &workload.controller.name,
            workload_type: workload.controller.kind.name(),
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            cluster_id: &config.cluster_id,
            trust_domain: workload.identity.trust_domain.to_string(),
            locality: LocalityInfo {
                region: &workload.locality.region,
                zone: &workload.locality.zone,
                subzone: &workload.locality.subzone,
            },
            node: workload.node.as_deref().unwrap_or_default(),
            network: "",
            status: if workload.ready { "Healthy" } else { "Unhealthy" },
            hostname: "",
            capacity: 1,
            native_tunnel: workload.native_tunnel,
            authorization_policies: policies,
            services: mesh.services_of(&workload.name).map(|service| key(service)).collect(),
        }
    }
}

/// The name of a service for Istio's tools.
fn key(service: &Service) -> String {
    format!("{}/{}", service.name.namespace, service.hostname)
}

/// The uid, which a control plane that speaks Istio's protocols has given, or that of a pod.
fn uid_of(workload: &Workload, config: &ConfigInfo) -> String {
    if workload.uid.is_empty() { uid(&config.cluster_id, &workload.name) } else { workload.uid.to_string() }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceInfo<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    /// `NETWORK/ADDRESS`; the network is empty.
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<String>,
    /// From ports to the ports of endpoints; 0: the port has a name, and each endpoint its own number.
    ports: BTreeMap<String, u16>,
    endpoints: BTreeMap<String, EndpointInfo>,
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<WaypointInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancerInfo>,
    ip_families: &'static str,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointInfo {
    workload_uid: String,
    service: String,
    address: String,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerInfo {
    mode: &'static str,
    routing_preferences: Vec<&'static str>,
    health_policy: &'static str,
}

impl<'a> ServiceInfo<'a> {
    pub(super) fn of(service: &'a Service, mesh: &Snapshot, config: &ConfigInfo) -> Self {
        let target = |target: &TargetPort| match target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(_) => 0,
        };
        let mut endpoints = BTreeMap::new();
        for endpoint in service.endpoints.iter() {
            let (key, info) = endpoint_of(endpoint, service, mesh, config);
            endpoints.entry(key).or_insert(info);
        }
        Self {
            name: &service.name.name,
            namespace: &service.name.namespace,
            hostname: &service.hostname,
            vips: service.vips.iter().map(|vip| format!("/{vip}")).collect(),
            cidr_vips: service.ranges.iter().map(|range| format!("/{range}")).collect(),
            ports: service.ports.iter().map(|port| (port.port.to_string(), target(&port.target))).collect(),
            endpoints,
            subject_alt_names: service.identities.iter().map(ToString::to_string).collect(),
            waypoint: service.waypoint.as_deref().map(WaypointInfo::of),
            load_balancer: balancing(service),
            ip_families: match service.families {
                Families { v4: true, v6: false } => "IPv4",
                Families { v4: false, v6: true } => "IPv6",
                Families { v4: true, v6: true } | Families { v4: false, v6: false } => "Dual",
            },
            canonical: service.kind == ServiceKind::Kubernetes,
            visibility: match &service.visibility {
                Visibility::Everyone => "Public",
                Visibility::Namespaces(_) => "Namespace",
            },
        }
    }
}

/// An endpoint by the uid of its workload: `istioctl` counts those as healthy whose workload is.
fn endpoint_of(endpoint: &Endpoint, service: &Service, mesh: &Snapshot, config: &ConfigInfo) -> (String, EndpointInfo) {
    let address = endpoint.address.to_string();
    let workload = endpoint.workload.as_ref();
    let workload_uid = workload.map(|name| match mesh.workload(name) {
        Some(workload) => uid_of(workload, config),
        None => uid(&config.cluster_id, name),
    });
    let info = EndpointInfo {
        workload_uid: workload_uid.clone().unwrap_or_default(),
        service: key(service),
        port: endpoint.ports.iter().collect(),
        status: match endpoint.health {
            Health::Ready => "Healthy",
            Health::Draining | Health::Unready => "Unhealthy",
        },
        address,
    };
    (workload_uid.unwrap_or_else(|| info.address.clone()), info)
}

fn balancing(service: &Service) -> Option<LoadBalancerInfo> {
    let (mode, scopes) = match (service.resolution, service.distribution) {
        (Resolution::Passthrough, _) => ("Passthrough", None),
        (Resolution::Endpoints, Distribution::Any) => return None,
        (Resolution::Endpoints, Distribution::Prefer(scopes)) => ("Failover", Some(scopes)),
        (Resolution::Endpoints, Distribution::Require(scopes)) => ("Strict", Some(scopes)),
    };
    let name = |scope| match scope {
        Scope::Region => "Region",
        Scope::Zone => "Zone",
        Scope::Subzone => "Subzone",
        Scope::Node => "Node",
    };
    let routing_preferences = scopes.iter().flat_map(|scopes| scopes.iter()).map(name).collect();
    Some(LoadBalancerInfo { mode, routing_preferences, health_policy: "OnlyHealthy" })
}

/// A pod of this node, with its connections.
#[derive(Serialize)]
pub(super) struct StateInfo<'a> {
    /// `Up` or `Pending`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    info: PodIdentity<'a>,
    connections: StateConnections<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodIdentity<'a> {
    name: &'a str,
    namespace: &'a str,
    trust_domain: String,
    service_account: String,
}

#[derive(Serialize)]
struct StateConnections<'a> {
    inbound: Vec<StateConnection<'a>>,
    outbound: Vec<StateConnection<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateConnection<'a> {
    src: &'a str,
    /// Of an outbound connection: the address that the application asked for. Of an inbound one: the host name of the service.
    original_dst: Option<&'a str>,
    actual_dst: String,
    protocol: &'a str,
}

impl<'a> StateConnection<'a> {
    fn outbound(connection: &'a ConnectionInfo) -> Self {
        let actual = connection.actual_dst.as_deref().unwrap_or(&connection.dst);
        // Istio names the socket of the peer's node.
        let actual_dst = match (connection.protocol == "HBONE", actual.rsplit_once(':')) {
            (true, Some((address, _))) => format!("{address}:{HBONE_PORT}"),
            _ => actual.to_owned(),
        };
        Self { src: &connection.src, original_dst: Some(&connection.dst), actual_dst, protocol: &connection.protocol }
    }

    fn inbound(connection: &'a ConnectionInfo) -> Self {
        let actual_dst = connection.actual_dst.clone().unwrap_or_else(|| connection.dst.clone());
        Self { src: &connection.src, original_dst: None, actual_dst, protocol: &connection.protocol }
    }
}

impl<'a> StateInfo<'a> {
    /// All pods, by the uids of their workloads.
    pub(super) fn of_all(pods: &'a [PodInfo], mesh: &Snapshot, config: &ConfigInfo) -> BTreeMap<String, Self> {
        let one = |pod: &'a PodInfo| {
            let name = NamespacedName::new(pod.namespace.as_str(), pod.name.as_str());
            let workload = mesh.workload(&name);
            let uid = workload.map_or_else(|| uid(&config.cluster_id, &name), |workload| uid_of(workload, config));
            (uid, Self::of(pod, workload.map(|workload| &**workload), config))
        };
        pods.iter().map(one).collect()
    }

    fn of(pod: &'a PodInfo, workload: Option<&Workload>, config: &ConfigInfo) -> Self {
        let (outbound, inbound): (Vec<_>, Vec<_>) =
            pod.connections.iter().partition(|connection| connection.direction == "outbound");
        let identity = workload.map(|workload| &workload.identity);
        Self {
            state: match pod.state {
                PodState::Enrolled => "Up",
                PodState::Refused => "Pending",
            },
            reason: pod.reason.as_deref(),
            info: PodIdentity {
                name: &pod.name,
                namespace: &pod.namespace,
                trust_domain: identity.map_or(&config.trust_domain, |identity| &identity.trust_domain).to_string(),
                service_account: identity.map(|identity| identity.service_account.to_string()).unwrap_or_default(),
            },
            connections: StateConnections {
                inbound: inbound.into_iter().map(StateConnection::inbound).collect(),
                outbound: outbound.into_iter().map(StateConnection::outbound).collect(),
            },
        }
    }
}
