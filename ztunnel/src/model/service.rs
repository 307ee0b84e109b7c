//! A service: stable addresses in front of workloads. Only TCP ports are kept, since only TCP is carried.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::gateway::Gateway;
use super::identity::SpiffeId;
use super::labels::Labels;
use super::locality::{Distribution, Locality};
use super::workload::NamespacedName;

/// One Kubernetes Service, or one host of an Istio ServiceEntry, with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name of the object. A ServiceEntry of several hosts makes several services of one name.
    pub name: NamespacedName,
    /// Its host name, such as `web.demo.svc.cluster.local`, or a ServiceEntry's host.
    pub hostname: Arc<str>,
    /// What kind of object says so.
    pub kind: ServiceKind,
    /// What is known of its own addresses.
    pub addressing: Addressing,
    /// Its own addresses, canonical.
    pub vips: Vec<IpAddr>,
    /// Other addresses that lead to it, canonical. One that a pod, another service or a node has is not its own.
    pub external: Vec<ExternalAddress>,
    /// Address ranges that are its own, canonical, without host bits; only a ServiceEntry has some.
    pub ranges: Vec<IpNet>,
    /// Its TCP ports, in the manifest's order.
    pub ports: Vec<ServicePort>,
    /// Where its connections go.
    pub resolution: Resolution,
    /// What stands behind it, ordered by address. The services of one ServiceEntry share theirs.
    pub endpoints: Arc<[Endpoint]>,
    /// The labels a pod must have to stand behind it; empty when its endpoints are given otherwise.
    pub selector: Labels,
    /// Families of addresses its endpoints may have.
    pub families: Families,
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// A client stays at one of the endpoints as long as these stay the same (`sessionAffinity: ClientIP`).
    pub is_sticky: bool,
    /// Whose pods know it.
    pub visibility: Visibility,
    /// Identities that its endpoints may have beside their workloads' own (`subjectAltNames`).
    pub identities: Vec<SpiffeId>,
    /// The waypoint that connections to it pass through.
    pub waypoint: Option<Arc<Gateway>>,
}

impl Service {
    /// A Kubernetes service with nothing but a name.
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
            ports: Vec::new(),
            resolution: Resolution::Endpoints,
            endpoints: Arc::default(),
            selector: Labels::default(),
            families: Families::default(),
            distribution: Distribution::Any,
            is_sticky: false,
            visibility: Visibility::Everyone,
            identities: Vec::new(),
            waypoint: None,
        }
    }

    /// The port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether pods of a namespace are led to it by an address that is not its own.
    pub fn is_led_to_by(&self, address: IpAddr, namespace: &str) -> bool {
        let is_own = *self.name.namespace == *namespace;
        let leads = |external: &ExternalAddress| external.address == address && (external.leads_everyone || is_own);
        self.external.iter().any(leads)
    }

    /// The endpoints at an address: a ServiceEntry may name one twice.
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

/// What is known of a service's own addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// It has those that stand in `vips` and `ranges`.
    Given,
    /// It has none: `clusterIP: None`. Clients connect to its endpoints themselves.
    Headless,
    /// It has some, which its manifest does not tell: the manifest is as people write it, before a cluster has filled it in.
    Unknown,
    /// It is another name of this host (`type: ExternalName`): clients connect to whatever address that has.
    Alias(Arc<str>),
}

/// An address beside a service's own that leads to it: of a load balancer, or one of `externalIPs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalAddress {
    /// The address.
    pub address: IpAddr,
    /// Pods of all namespaces are led by it, and not only those of the service's own. Whoever may write a Service may write any
    /// address into `externalIPs`; that of a load balancer is the cluster's word.
    pub leads_everyone: bool,
}

/// What kind of object a service comes from. Earlier ones win where two claim one address.
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
    /// To the very address that the client asked for: the mesh knows of the destination, not what is behind it.
    Passthrough,
}

/// Families of addresses. The default is both.
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
    /// Whether the address is of one of them.
    #[must_use]
    pub fn include(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Whose pods know a service (`exportTo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// All.
    Everyone,
    /// Those of these namespaces; nobody, when there are none.
    Namespaces(Vec<Arc<str>>),
}

/// One TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, which a service of a single port may lack.
    pub name: Option<Arc<str>>,
    /// The number clients use.
    pub port: u16,
    /// Where it leads in a pod.
    pub target: TargetPort,
}

/// The port of a pod that a service's port leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number in every pod.
    Number(u16),
    /// Each pod's container port of this name.
    Name(Arc<str>),
}

/// One address behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address, canonical.
    pub address: IpAddr,
    /// From the service's port to the port at this address. A port that this endpoint doesn't serve is missing.
    pub ports: BTreeMap<u16, u16>,
    /// Whether it takes connections.
    pub health: Health,
    /// The workload that has this address, when one is known and nobody contests it.
    pub workload: Option<NamespacedName>,
    /// Its share among its equals; 0: none.
    pub weight: u32,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Where that is.
    pub locality: Locality,
}

/// Whether an endpoint takes connections. The better come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It does.
    Ready,
    /// It is ending and still serves: taken when nobody is ready, as Kubernetes does.
    Draining,
    /// It does not.
    Unready,
}
