//! Workloads and services: `istio.workload`.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::standard::{Any, UInt32Value};

/// A resource of the type [`ADDRESS`](super::discovery::ADDRESS): whoever may have an address.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// What it is; absent if it is of a kind that this program does not know.
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

/// One endpoint: a pod, a machine outside of the cluster, an address of a ServiceEntry.
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
    /// The network that its addresses belong to; empty is the default one.
    #[prost(string, tag = "4")]
    pub network: String,
    /// How connections to it are made.
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Trust domain of its identity; empty means `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Service account of its identity; empty means `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// The waypoint that connections to it pass through.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// The node that it runs on.
    #[prost(string, tag = "9")]
    pub node: String,
    /// What telemetry calls its service.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// What telemetry calls its version.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// Kind of the object that made it.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Name of the object that made it.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// It speaks HBONE itself: no daemon captures it.
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
    /// The gateway by which other networks reach it.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// What it is known by: `CLUSTER//Pod/NAMESPACE/NAME` for a pod.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// A host name to be resolved, when it has no addresses.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// The services that it stands behind, by `NAMESPACE/HOSTNAME`, with its ports.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// How its application wants its connections.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// Whose network it is on.
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// What a control plane adds that others ignore.
    #[prost(message, repeated, tag = "26")]
    pub extensions: Vec<Extension>,
    /// Its share among the endpoints of a service; absent means 1, with 0 it gets nothing.
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<UInt32Value>,
}

/// Stable addresses in front of workloads. Which workloads, the workloads say.
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
    /// Its own addresses and ranges.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Its ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// SPIFFE IDs that its endpoints may have beside their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint that connections to it pass through.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How an endpoint is chosen; absent means any.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// Families that its endpoints may have.
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// What a control plane adds that others ignore.
    #[prost(message, repeated, tag = "10")]
    pub extensions: Vec<Extension>,
    /// Of several services with this host name, this one counts.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Ingress gateways pass through the waypoint as well.
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    /// Several waypoints that share the connections.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Whose pods know it.
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// The address of a gateway or waypoint.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GatewayAddress {
    /// Where it is; absent in a message that is broken.
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    /// The port of its tunnels.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// Where a gateway is.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Destination {
    /// A service or workload by name.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// An address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// A host name as a namespace has it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamespacedHostname {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// An address or a range of addresses on a network.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NetworkAddress {
    /// The network; empty is the default one.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Bits of the prefix, when it is a range.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// One of several waypoints.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WeightedWaypoint {
    /// Where it is.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Its share.
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
    /// The workload's port; 0 in a service means that each workload says its own.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// What is spoken there.
    #[prost(enumeration = "AppProtocol", tag = "3")]
    pub app_protocol: i32,
}

/// How an application wants its connections.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ApplicationTunnel {
    /// What is sent before the first byte of the client.
    #[prost(enumeration = "TunnelKind", tag = "1")]
    pub protocol: i32,
    /// The port where the application takes them; 0: the port that the client asked for.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// Where a workload runs.
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
    /// The respects in which near endpoints are preferred, the most important first.
    #[prost(enumeration = "BalancingScope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// What the preference means.
    #[prost(enumeration = "BalancingMode", tag = "2")]
    pub mode: i32,
    /// Which endpoints count.
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

/// What a control plane adds to an object.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Extension {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it says.
    #[prost(message, optional, tag = "2")]
    pub config: Option<Any>,
}

/// How connections to a workload are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum TunnelProtocol {
    /// As they are: it is not in the mesh.
    None = 0,
    /// In HBONE.
    Hbone = 1,
    /// In mutual TLS of Istio's sidecars, which this program does not speak.
    LegacyIstioMtls = 2,
}

/// Kinds of objects that make workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment = 0,
    /// A CronJob.
    Cronjob = 1,
    /// A pod of its own.
    Pod = 2,
    /// A Job.
    Job = 3,
}

/// Whether a workload takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadStatus {
    /// It does.
    Healthy = 0,
    /// It does not.
    Unhealthy = 1,
}

/// Whose network a workload is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum NetworkMode {
    /// Its own.
    Standard = 0,
    /// Its node's: its addresses are not its own.
    HostNetwork = 1,
}

/// What is spoken at a port.
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

/// What precedes the bytes of a client towards an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum TunnelKind {
    /// Nothing.
    None = 0,
    /// A header of the PROXY protocol, version 2.
    Proxy = 1,
}

/// Respects in which a client and an endpoint may be near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum BalancingScope {
    /// None; a message with it is broken.
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

/// What a preference for near endpoints means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum BalancingMode {
    /// All endpoints are the same.
    Unspecified = 0,
    /// Only endpoints that are near in all respects.
    Strict = 1,
    /// The nearest endpoints.
    Failover = 2,
    /// No endpoint: connections go to the address that the client asked for.
    Passthrough = 3,
}

/// Which endpoints of a service count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum HealthPolicy {
    /// Those that are healthy.
    OnlyHealthy = 0,
    /// All.
    AllowAll = 1,
}

/// Families of the addresses of endpoints.
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

/// Whose pods know a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Visibility {
    /// Those of all namespaces.
    Public = 0,
    /// Those of its namespace.
    Namespace = 1,
}
