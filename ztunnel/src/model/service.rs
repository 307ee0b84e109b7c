//! A service: stable addresses in front of workloads. It has its TCP ports only, because only TCP is carried.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoint_ports::EndpointPorts;
use super::gateway::Gateway;
use super::identity::SpiffeId;
use super::labels::Labels;
use super::locality::{Distribution, Locality};
use super::workload::NamespacedName;

/// One Kubernetes Service, or one host of an Istio ServiceEntry, with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name of the object. A ServiceEntry with several hosts makes several services with the same name.
    pub name: NamespacedName,
    /// Its host name, such as `web.demo.svc.cluster.local`, or the host of a ServiceEntry.
    pub hostname: Arc<str>,
    /// The kind of the object that defines it.
    pub kind: ServiceKind,
    /// How its own addresses are known.
    pub addressing: Addressing,
    /// Its own addresses, canonical.
    pub vips: Vec<IpAddr>,
    /// Other addresses that lead to it, canonical. An address that a pod, another service or a node has does not lead to it.
    pub external: Vec<ExternalAddress>,
    /// Its own IP blocks, canonical, without host bits; only a ServiceEntry has some.
    pub ranges: Vec<IpNet>,
    /// Its TCP ports, in the manifest's order. The services of one ServiceEntry share the list.
    pub ports: Arc<[ServicePort]>,
    /// Where its connections go.
    pub resolution: Resolution,
    /// Its endpoints, ordered by address. The services of one ServiceEntry share the list.
    pub endpoints: Arc<[Endpoint]>,
    /// The labels by which pods become endpoints; empty if its endpoints are given in another way.
    pub selector: Labels,
    /// The address families that its endpoints may have.
    pub families: Families,
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// A client keeps its endpoint while the endpoints do not change (`sessionAffinity: ClientIP`).
    pub is_sticky: bool,
    /// The namespaces whose pods know it.
    pub visibility: Visibility,
    /// Identities that its endpoints may have in addition to the identities of their workloads (`subjectAltNames`).
    pub identities: Arc<[SpiffeId]>,
    /// The waypoint that connections to it pass through.
    pub waypoint: Option<Arc<Gateway>>,
}

impl Service {
    /// A Kubernetes service of which only the names are set.
    #[must_use]
    pub fn new(name: NamespacedName, hostname: impl Into<Arc<str>>) -> Self {
        Self {
            name,
            hostname: hostname.into(),
            kind: ServiceKind::Kubernetes,
            addressing: Addressing::Headless,
            vips: Vec::new(),
            external: Vec::new(),
            ranges: Vec::new(),
            ports: Arc::default(),
            resolution: Resolution::Endpoints,
            endpoints: Arc::default(),
            selector: Labels::default(),
            families: Families::default(),
            distribution: Distribution::Any,
            is_sticky: false,
            visibility: Visibility::Everyone,
            identities: Arc::default(),
            waypoint: None,
        }
    }

    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether an external address leads pods of a namespace to this service.
    pub fn is_led_to_by(&self, address: IpAddr, namespace: &str) -> bool {
        let is_own = *self.name.namespace == *namespace;
        let leads = |external: &ExternalAddress| external.address == address && (external.leads_everyone || is_own);
        self.external.iter().any(leads)
    }

    /// The endpoints with an address: a ServiceEntry may list an address twice.
    pub fn endpoints_at(&self, address: IpAddr) -> &[Endpoint] {
        let from = self.endpoints.partition_point(|endpoint| endpoint.address < address);
        let rest = self.endpoints.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|endpoint| endpoint.address == address)).unwrap_or_default()
    }

    /// Whether pods of a namespace know it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        match &self.visibility {
            Visibility::Everyone => true,
            Visibility::Namespaces(namespaces) => namespaces.iter().any(|known| **known == *namespace),
        }
    }
}

/// How a service's own addresses are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// They are in `vips` and `ranges`.
    Given,
    /// It has none (`clusterIP: None`). Clients connect to its endpoints directly.
    Headless,
    /// It has some, but its manifest does not contain them: no cluster has filled them in yet.
    Unknown,
    /// It is an alias of this host (`type: ExternalName`): clients connect to the addresses of that host.
    Alias(Arc<str>),
}

/// An address that leads to a service in addition to its own addresses: of a load balancer, or from `externalIPs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalAddress {
    /// The address.
    pub address: IpAddr,
    /// The address leads pods of all namespaces, not only pods of the service's namespace. Anyone who may write a Service may
    /// write any address into `externalIPs`, but the address of a load balancer is set by the cluster.
    pub leads_everyone: bool,
}

/// The kind of object that defines a service. If two kinds claim one address, the earlier kind in this list has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// A Kubernetes Service.
    Kubernetes,
    /// An Istio ServiceEntry.
    Entry,
}

impl ServiceKind {
    /// The kind as manifests write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "Service",
            Self::Entry => "ServiceEntry",
        }
    }
}

/// Where connections to a service go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// To one of its endpoints.
    Endpoints,
    /// To the address that the client requested: the mesh knows the destination, but not its endpoints.
    Passthrough,
}

/// Address families. The default is both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self { v4: true, v6: true }
    }
}

impl Families {
    /// Whether the address belongs to one of the families.
    #[must_use]
    pub fn include(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// The namespaces whose pods know a service (`exportTo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// All namespaces.
    Everyone,
    /// These namespaces; an empty list means no namespace.
    Namespaces(Vec<Arc<str>>),
}

/// One TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; a service with a single port may have none.
    pub name: Option<Arc<str>>,
    /// The number to which clients connect.
    pub port: u16,
    /// The port of the pod to which it leads.
    pub target: TargetPort,
}

/// The port of a pod to which a service's port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number in every pod.
    Number(u16),
    /// In each pod, the container port with this name.
    Name(Arc<str>),
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address, canonical.
    pub address: IpAddr,
    /// From the service's port to the port at this address. A port that this endpoint does not serve is missing.
    pub ports: EndpointPorts,
    /// Whether it takes connections.
    pub health: Health,
    /// The workload with this address, if one is known and no other claims the address.
    pub workload: Option<NamespacedName>,
    /// Its weight relative to equally near endpoints. 0: it gets no connections.
    pub weight: u32,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Its locality.
    pub locality: Locality,
}

/// Whether an endpoint takes connections. Better states come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It takes connections.
    Ready,
    /// It is terminating and still serves. It is used when no endpoint is ready, as in Kubernetes.
    Draining,
    /// It does not take connections.
    Unready,
}
