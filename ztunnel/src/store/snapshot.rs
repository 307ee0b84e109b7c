//! One consistent state of the mesh, with the indexes that decisions need. It is made from the previous state and a batch of
//! changes, and is read-only afterwards.

mod apply;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::change::{Batch, Change, ServiceKey};
use super::claims::{Claims, Ranked, cluster_ip, meant, rank, unclear};
use super::holders::Holders;
use super::policies::{Policies, ServiceLookup};
use super::shared::SharedMap;
use crate::model::origin::Origin;
use crate::model::policy::PolicySet;
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{Membership, NamespacedName, Workload};

/// An immutable state of the mesh. The default is empty and has version 0: no mesh has been read yet.
///
/// A clone costs a few references; parts that a change does not concern are shared with the previous state.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: u64,
    partial: bool,
    blind: bool,
    /// See [`Gaps::addresses`](super::change::Gaps::addresses).
    unread_addresses: Arc<[IpNet]>,
    registry_only: bool,
    /// The namespaces that a source describes.
    namespaces: Arc<BTreeSet<Arc<str>>>,
    /// The nodes that a source describes, with or without pods.
    described_nodes: Arc<BTreeSet<Arc<str>>>,
    workloads: SharedMap<NamespacedName, Arc<Workload>>,
    holders: Holders,
    nodes: SharedMap<Arc<str>, SharedMap<NamespacedName, Arc<Workload>>>,
    in_mesh: usize,
    services: SharedMap<ServiceKey, Arc<Service>>,
    /// The Kubernetes services among them.
    kubernetes_services: SharedMap<NamespacedName, ServiceKey>,
    services_by_hostname: SharedMap<Arc<str>, Ranked>,
    /// Only the keys: a service may be in front of thousands of workloads, and changes whenever one of them changes.
    services_by_workload: SharedMap<NamespacedName, Arc<[ServiceKey]>>,
    /// Changes since these lists were made: whether a service is in front of a workload.
    noted_behind: HashMap<NamespacedName, HashMap<ServiceKey, bool>>,
    claims: Claims,
    contested: SharedMap<IpAddr, Arc<[NamespacedName]>>,
    policies: Arc<Policies>,
    problems: Arc<[Problem]>,
    /// By kind, namespace and name.
    origins: Arc<HashMap<(&'static str, NamespacedName), Origin>>,
}

/// The size of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Workloads, in the mesh or not.
    pub workloads: usize,
    /// Workloads in the mesh.
    pub in_mesh: usize,
    /// Services.
    pub services: usize,
    /// Problems.
    pub problems: usize,
}

/// The owner of an address, as a client sees it.
#[derive(Debug)]
pub enum Owner<'a> {
    /// A service has the address.
    Service(&'a Arc<Service>),
    /// A workload has the address as its own.
    Workload(&'a Arc<Workload>),
    /// Several pods claim the address, so that it is unclear which of them would answer.
    Contested(&'a [NamespacedName]),
    /// Kubernetes services of several namespaces have the address, and none of them is of the client's namespace.
    Unclear(&'a [Arc<Service>]),
    /// A Kubernetes service has the address, but the client's namespace must not know the service.
    Hidden(&'a Arc<Service>),
    /// No known object has the address.
    Unknown,
}

impl Snapshot {
    /// Indexes a mesh. An address that several pods claim (see [`Holders`]) belongs to no pod, so that no pod has another's
    /// identity. No service has the address of a pod, but services may share addresses. Of two workloads with one name, and of
    /// two services with one host name in a namespace, the first is used.
    pub fn build(version: u64, workloads: Vec<Workload>, services: Vec<Service>, problems: Vec<Problem>) -> Self {
        let mut services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
        services.sort_by_cached_key(|service| (ServiceKey::of(service), rank(service)));
        services.dedup_by(|later, first| ServiceKey::of(later) == ServiceKey::of(first));
        let workloads = workloads.into_iter().rev().map(|workload| Change::Workload(Arc::new(workload)));
        let changes = workloads.chain(services.into_iter().map(Change::Service)).collect();
        let mut snapshot = Self::default();
        snapshot.take(Batch { problems: Some(problems.into()), ..Batch::of(changes) });
        Self { version, ..snapshot }
    }

    /// The next state, after a batch of changes. The cost depends on the length of the batch and not on the size of the mesh.
    /// But all policies that protect the same workloads as a changed policy are indexed anew, and a new list of problems
    /// replaces the last one.
    #[must_use]
    pub fn apply(&self, batch: Batch) -> Self {
        let mut next = self.clone();
        if batch.is_read {
            next.version += 1;
        }
        next.take(batch);
        next
    }

    /// Sets that a source could never be read; see [`Gaps::partial`](super::change::Gaps::partial).
    #[must_use]
    pub fn with_partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Sets that there has never been a complete state; see [`Gaps::blind`](super::change::Gaps::blind).
    #[must_use]
    pub fn with_blind(mut self, blind: bool) -> Self {
        self.blind = blind;
        self
    }

    /// Sets addresses of objects that could never be read; see [`Gaps::addresses`](super::change::Gaps::addresses).
    #[must_use]
    pub fn with_unread_addresses(mut self, addresses: impl IntoIterator<Item = IpNet>) -> Self {
        self.unread_addresses = disjoint(&addresses.into_iter().collect::<Vec<_>>());
        self
    }

    /// Sets that unknown destinations are refused (`outboundTrafficPolicy: REGISTRY_ONLY`).
    #[must_use]
    pub fn with_registry_only(mut self, registry_only: bool) -> Self {
        self.registry_only = registry_only;
        self
    }

    /// Adds policies.
    #[must_use]
    pub fn with_policies(mut self, policies: PolicySet) -> Self {
        let PolicySet { authorization, authentication, unread } = policies;
        let authorization = authorization.into_iter().map(|policy| Change::Authorization(Arc::new(policy)));
        let authentication = authentication.into_iter().map(|policy| Change::Authentication(Arc::new(policy)));
        self.take(Batch::of(authorization.chain(authentication).collect()));
        Arc::make_mut(&mut self.policies).set_unread(unread);
        self
    }

    /// All policies. The value stays the same until a policy changes, or a service that a policy names.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Sets the namespaces that the sources describe.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: BTreeSet<Arc<str>>) -> Self {
        self.namespaces = Arc::new(namespaces);
        self
    }

    /// The namespaces that the sources describe.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter()
    }

    /// Sets the origins of objects, by kind and name. They are used only for messages.
    #[must_use]
    pub fn with_origins(mut self, origins: HashMap<(&'static str, NamespacedName), Origin>) -> Self {
        self.origins = Arc::new(origins);
        self
    }

    /// The origin of an object of this kind, if it is known; see [`Snapshot::with_origins`].
    pub fn origin(&self, kind: &'static str, name: &NamespacedName) -> Option<&Origin> {
        if self.origins.is_empty() { None } else { self.origins.get(&(kind, name.clone())) }
    }

    /// The version of this state; it increases with every state. 0: no mesh has been read yet.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether a part of the mesh is missing; see [`Gaps::partial`](super::change::Gaps::partial). A snapshot of version 0 is
    /// always partial.
    pub fn is_partial(&self) -> bool {
        self.partial || self.version == 0
    }

    /// Whether an unknown address may be in the mesh; see [`Gaps::blind`](super::change::Gaps::blind). A snapshot of version 0
    /// is blind.
    pub fn is_blind(&self) -> bool {
        self.blind || self.version == 0
    }

    /// Whether an address that the mesh does not know may be in it: any address if the mesh is blind, otherwise those of
    /// objects that could never be read.
    pub fn may_hide(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // One search, whatever the number of networks: an author of manifests may write any number of them.
        let above = self.unread_addresses.partition_point(|net| net.network() <= address);
        let below = above.checked_sub(1).and_then(|index| self.unread_addresses.get(index));
        self.is_blind() || below.is_some_and(|net| net.contains(&address))
    }

    /// Whether there is an address that the mesh does not know and that may be in it.
    pub fn hides_addresses(&self) -> bool {
        self.is_blind() || !self.unread_addresses.is_empty()
    }

    /// Whether the workload may be in the mesh: it is in the mesh, or the labels of its namespace are unknown.
    pub fn may_be_in_mesh(&self, workload: &Workload) -> bool {
        match workload.membership {
            Membership::InMesh => true,
            Membership::NotLabelled => {
                !workload.host_network && self.is_blind() && !self.namespaces.contains(&workload.name.namespace)
            }
            Membership::OptedOut | Membership::Refused(_) => false,
        }
    }

    /// See [`Snapshot::with_registry_only`].
    pub fn is_registry_only(&self) -> bool {
        self.registry_only
    }

    /// The workload that has this address as its own. An IPv4-mapped address is treated as IPv4.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        self.holders.owner(address)
    }

    /// The workload with this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.get(name)
    }

    /// All workloads, by name. It sorts them, so it must not be called often.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        by_name(&self.workloads)
    }

    /// The owner of an address, as seen by pods of a namespace that connect to this port of it.
    ///
    /// Single addresses have precedence over IP blocks. Among single addresses, the addresses of pods come first, then the
    /// services' own addresses, then external addresses of services. Among IP blocks, the longest prefix is used. If several
    /// services claim an address, services with the port come first, then services with endpoints, then services of the
    /// client's namespace, then Kubernetes services, then by name. A service that the namespace must not know is ignored.
    ///
    /// An address of Kubernetes services of several namespaces leads the pods of these namespaces to their own service, and
    /// all others nowhere.
    pub fn owner(&self, address: IpAddr, port: u16, namespace: &str) -> Owner<'_> {
        let address = address.to_canonical();
        if let Some(claimants) = self.contested.get(&address) {
            return Owner::Contested(claimants);
        }
        if let Some(workload) = self.holders.owner(address) {
            return Owner::Workload(workload);
        }
        let services = self.claims.single(address);
        if let Some(services) = unclear(services, namespace) {
            return Owner::Unclear(services);
        }
        if let Some(service) = meant(services, port, namespace) {
            return Owner::Service(service);
        }
        if let Some(service) = cluster_ip(services) {
            return Owner::Hidden(service);
        }
        if let Some(service) = self.claims.external(address, port, namespace) {
            return Owner::Service(service);
        }
        self.claims.around(address, port, namespace).map_or(Owner::Unknown, Owner::Service)
    }

    /// The pods that claim an address, by name, if there are several.
    pub fn contested(&self, address: IpAddr) -> Option<&[NamespacedName]> {
        self.contested.get(&address.to_canonical()).map(|claimants| &**claimants)
    }

    /// The Kubernetes service that has this address as its own, visible or not, unless a pod has the address. The node's own
    /// load balancer may forward connections from there to any of its pods.
    pub fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        if self.holders.all(address).is_empty() { cluster_ip(self.claims.single(address)) } else { None }
    }

    /// All services: Kubernetes services first, then by name. It sorts them, so it must not be called often.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        let mut all: Vec<&Arc<Service>> = self.services.values().collect();
        all.sort_by_cached_key(|service| rank(service));
        all.into_iter()
    }

    /// The service with this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The Kubernetes service with this name.
    pub fn kubernetes_service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(self.kubernetes_services.get(name)?)
    }

    /// The services with a host name (case-insensitive), each in another namespace; ordered like all services.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        let found = match self.services_by_hostname.get(hostname) {
            None if hostname.contains(|c: char| c.is_ascii_uppercase()) => {
                self.services_by_hostname.get(hostname.to_ascii_lowercase().as_str())
            }
            found => found,
        };
        found.map(|services| &**services).unwrap_or_default()
    }

    /// The services in front of a workload; ordered like all services.
    pub fn services_of(&self, workload: &NamespacedName) -> impl Iterator<Item = &Arc<Service>> + Clone {
        let keys = self.services_by_workload.get(workload).map(|keys| &**keys).unwrap_or_default();
        keys.iter().filter_map(|key| self.services.get(key))
    }

    /// The pods that are bound to a node, by name, in the mesh or not.
    pub fn pods_on(&self, node: &str) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.nodes.get(node).map(by_name).unwrap_or_default()
    }

    /// Whether a source describes a Node with this name, or a pod is bound to it.
    pub fn knows_node(&self, node: &str) -> bool {
        self.described_nodes.contains(node) || self.nodes.get(node).is_some()
    }

    /// The names of all nodes that are described or have pods.
    pub fn node_names(&self) -> BTreeSet<&Arc<str>> {
        self.described_nodes.iter().chain(self.nodes.keys()).collect()
    }

    /// Whether the pods that are bound to a node are unchanged in another state. The result may be `false` for equal pods. The
    /// pods are not compared one by one.
    pub fn has_same_pods_on(&self, other: &Self, node: &str) -> bool {
        match (self.nodes.get(node), other.nodes.get(node)) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The problems of the sources of this state.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The size of the snapshot.
    pub fn counts(&self) -> Counts {
        Counts {
            workloads: self.workloads.len(),
            in_mesh: self.in_mesh,
            services: self.services.len(),
            problems: self.problems.len(),
        }
    }
}

fn by_name(workloads: &SharedMap<NamespacedName, Arc<Workload>>) -> std::vec::IntoIter<&Arc<Workload>> {
    let mut all: Vec<&Arc<Workload>> = workloads.values().collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all.into_iter()
}

impl ServiceLookup for Snapshot {
    fn kubernetes_service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.kubernetes_service(name)
    }

    fn services_of(&self, workload: &NamespacedName) -> impl Iterator<Item = &Arc<Service>> {
        self.services_of(workload)
    }
}

/// The same addresses as networks that do not overlap, in the order of their addresses.
fn disjoint(addresses: &[IpNet]) -> Arc<[IpNet]> {
    let mut all = IpNet::aggregate(&addresses.to_vec());
    all.sort_unstable_by_key(IpNet::network);
    all.into()
}

#[cfg(test)]
mod tests;
