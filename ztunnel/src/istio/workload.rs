//! Workloads and services: `istio.workload`.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::standard::{Any, UInt32Value};

/// A resource of the type [`ADDRESS`](super::discovery::ADDRESS): a workload or a service.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// The kind of the resource; absent if this program does not know the kind.
    #[prost(oneof = "AddressType", tags = "1, 2")]
    pub r#type: Option<AddressType>,
}

/// The kinds of an [`Address`].
#[derive(Clone, PartialEq, Oneof)]
pub enum AddressType {
    /// A workload. The resource's name is its [`uid`](Workload::uid).
    #[prost(message, tag = "1")]
    Workload(Box<Workload>),
    /// A service. The resource's name is `NAMESPACE/HOSTNAME`.
    #[prost(message, tag = "2")]
    Service(Box<Service>),
}

/// One endpoint: a pod, a machine outside the cluster, or an address of a ServiceEntry.
#[derive(Clone, PartialEq, Message)]
pub struct Workload {
    /// Name of the object, which is not unique: all addresses of one ServiceEntry share it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace of the object.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its addresses, each of 4 or 16 bytes.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    /// The network of its addresses; empty is the default network.
    #[prost(string, tag = "4")]
    pub network: String,
    /// The protocol of connections to it.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Trust domain of its identity; empty means `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Service account of its identity; empty means `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// The waypoint through which connections to it pass.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// The node on which it runs.
    #[prost(string, tag = "9")]
    pub node: String,
    /// The name of its service in telemetry.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// Its version in telemetry.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// Kind of the object that created it.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Name of the object that created it.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// It uses HBONE itself: no daemon captures it.
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    /// Names of the policies that select it by its labels, `NAMESPACE/NAME`.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    /// Whether it takes connections.
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    /// Name of its cluster; empty means `Kubernetes`.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    /// The gateway through which other networks reach it.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// Its unique identifier: `CLUSTER//Pod/NAMESPACE/NAME` for a pod.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// A host name to resolve, if it has no addresses.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// The services that it is behind, by `NAMESPACE/HOSTNAME`, with its ports.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// How connections are handed to its application.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Its locality.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// The network namespace that it uses.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// Additions of a control plane, which other clients ignore.
    #[prost(message, repeated, tag = "26")]
    pub extensions: Vec<Extension>,
    /// Its weight among the endpoints of a service; absent means 1, and with 0 it gets no connections.
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<UInt32Value>,
}

/// Stable addresses in front of workloads. Each workload names its services.
#[derive(Clone, PartialEq, Message)]
pub struct Service {
    /// Name of the object.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace of the object.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Host name, `NAME.NAMESPACE.svc.DOMAIN` for a Kubernetes Service.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Its own addresses and IP blocks.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Its ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// SPIFFE IDs that its endpoints may have in addition to their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint through which connections to it pass.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How an endpoint is chosen; absent means any endpoint.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// IP families of its endpoints.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// Additions of a control plane, which other clients ignore.
    #[prost(message, repeated, tag = "10")]
    pub extensions: Vec<Extension>,
    /// Of several services with this host name, this service counts.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Connections of ingress gateways pass through the waypoint as well.
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    /// Several waypoints, which share the connections.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// The namespaces whose pods see the service.
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// The address of a gateway or waypoint.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GatewayAddress {
    /// Its destination; absent in an invalid message.
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    /// The port of its HBONE connections.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// The destination of a gateway.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Destination {
    /// A service or workload by name.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// An address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// A host name in a namespace.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamespacedHostname {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// An address or an IP block on a network.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NetworkAddress {
    /// The network; empty is the default network.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Bits of the prefix, for an IP block.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// One of several waypoints.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WeightedWaypoint {
    /// Its address.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Its weight.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// Ports of a workload behind a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// One port of a service.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Port {
    /// The number that clients use.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// The workload's port; 0 in a service means that each workload gives its own.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// The application protocol at the port.
    #[prost(enumeration = "AppProtocol", tag = "3")]
    pub app_protocol: i32,
}

/// How connections are handed to an application.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ApplicationTunnel {
    /// The header that is sent before the first byte of the client.
    #[prost(enumeration = "TunnelKind", tag = "1")]
    pub protocol: i32,
    /// The port at which the application accepts such connections; 0: the port that the client asked for.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// The locality of a workload.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Locality {
    /// Region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// Zone of the region.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// Part of the zone.
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// How an endpoint of a service is chosen.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LoadBalancing {
    /// The scopes in which near endpoints are preferred, the most important first.
    #[prost(enumeration = "BalancingScope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// The effect of the preference.
    #[prost(enumeration = "BalancingMode", tag = "2")]
    pub mode: i32,
    /// The endpoints that count.
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

/// An addition of a control plane to an object.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Extension {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its content.
    #[prost(message, optional, tag = "2")]
    pub config: Option<Any>,
}

/// The protocol of connections to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum TunnelProtocol {
    /// Plaintext: the workload is not in the mesh.
    None = 0,
    /// HBONE.
    Hbone = 1,
    /// Mutual TLS of Istio's sidecars, which this program does not support.
    LegacyIstioMtls = 2,
}

/// Kinds of objects that create workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment = 0,
    /// A CronJob.
    Cronjob = 1,
    /// A pod that no other object created.
    Pod = 2,
    /// A Job.
    Job = 3,
}

/// Whether a workload takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadStatus {
    /// It takes connections.
    Healthy = 0,
    /// It does not take connections.
    Unhealthy = 1,
}

/// The network namespace of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum NetworkMode {
    /// Its own network namespace.
    Standard = 0,
    /// The network namespace of its node: its addresses are shared.
    HostNetwork = 1,
}

/// The application protocol at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum AppProtocol {
    /// Not known.
    Unknown = 0,
    /// HTTP/1.1.
    Http11 = 1,
    /// HTTP/2.
    Http2 = 2,
    /// gRPC.
    Grpc = 3,
}

/// The header before the bytes of a client, towards an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum TunnelKind {
    /// No header.
    None = 0,
    /// A header of the PROXY protocol, version 2.
    Proxy = 1,
}

/// Scopes in which a client and an endpoint may be near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum BalancingScope {
    /// No scope; a message with this value is invalid.
    Unspecified = 0,
    /// The same region.
    Region = 1,
    /// The same zone.
    Zone = 2,
    /// The same subzone.
    Subzone = 3,
    /// The same node.
    Node = 4,
    /// The same cluster.
    Cluster = 5,
    /// The same network.
    Network = 6,
}

/// The effect of a preference for near endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum BalancingMode {
    /// No preference.
    Unspecified = 0,
    /// Only endpoints that are near in all scopes.
    Strict = 1,
    /// The nearest endpoints first.
    Failover = 2,
    /// No endpoint: connections go to the address that the client asked for.
    Passthrough = 3,
}

/// The endpoints of a service that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum HealthPolicy {
    /// Only healthy endpoints.
    OnlyHealthy = 0,
    /// All endpoints.
    AllowAll = 1,
}

/// IP families of the addresses of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum IpFamilies {
    /// Both.
    Automatic = 0,
    /// IPv4.
    Ipv4Only = 1,
    /// IPv6.
    Ipv6Only = 2,
    /// Both.
    Dual = 3,
}

/// The namespaces whose pods see a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Visibility {
    /// All namespaces.
    Public = 0,
    /// The service's own namespace.
    Namespace = 1,
}
