//! One consistent state of the mesh with the indexes that decisions need, made of the state before and a batch of changes. Then
//! it is only looked at.

mod apply;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::change::{Batch, Change, ServiceKey};
use super::claims::{Claims, Ranked, cluster_ip, meant, rank};
use super::holders::Holders;
use super::policies::{Policies, ServiceLookup};
use super::shared::SharedMap;
use crate::model::origin::Origin;
use crate::model::policy::PolicySet;
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{Membership, NamespacedName, Workload};

/// An immutable state of the mesh. The default one is empty and has version 0: no mesh has been read yet.
///
/// A clone costs as much as a handful of references; what a change does not concern is shared with the state before it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: u64,
    partial: bool,
    blind: bool,
    registry_only: bool,
    /// Those that a source describes.
    namespaces: Arc<BTreeSet<Arc<str>>>,
    /// Those that a source describes, with pods or without.
    described_nodes: Arc<BTreeSet<Arc<str>>>,
    workloads: SharedMap<NamespacedName, Arc<Workload>>,
    holders: Holders,
    nodes: SharedMap<Arc<str>, SharedMap<NamespacedName, Arc<Workload>>>,
    in_mesh: usize,
    services: SharedMap<ServiceKey, Arc<Service>>,
    /// The Kubernetes services among them.
    kubernetes_services: SharedMap<NamespacedName, ServiceKey>,
    services_by_hostname: SharedMap<Arc<str>, Ranked>,
    /// Only the keys: a service may be in front of thousands of workloads, and changes whenever one of them does.
    services_by_workload: SharedMap<NamespacedName, Arc<[ServiceKey]>>,
    /// What has changed since these lists were made: whether a service is in front of a workload.
    noted_behind: HashMap<NamespacedName, HashMap<ServiceKey, bool>>,
    claims: Claims,
    contested: SharedMap<IpAddr, Arc<[NamespacedName]>>,
    policies: Arc<Policies>,
    problems: Arc<[Problem]>,
    /// By kind, namespace and name.
    origins: Arc<HashMap<(&'static str, NamespacedName), Origin>>,
}

/// How much a snapshot holds.
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

/// Whose an address is, as a client sees it.
#[derive(Debug)]
pub enum Owner<'a> {
    /// A service's.
    Service(&'a Arc<Service>),
    /// A workload's own.
    Workload(&'a Arc<Workload>),
    /// That of several pods, so that nobody knows who would answer.
    Contested(&'a [NamespacedName]),
    /// That of a Kubernetes service which the client's namespace may not know.
    Hidden(&'a Arc<Service>),
    /// Nobody's.
    Unknown,
}

impl Snapshot {
    /// Indexes a mesh. An address that several pods claim (see [`Holders`]) leads to nobody, so that
    /// none has another's identity; no service has the address of a pod; services may share addresses. Of
    /// two workloads with one name, and of two services with one host name in a namespace, the first counts.
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

    /// The next state, after a batch of changes. Costs as much as the batch is long, however large the mesh is: policies that
    /// protect the same workloads as one that changes are indexed anew, and a list of problems replaces the last one.
    #[must_use]
    pub fn apply(&self, batch: Batch) -> Self {
        let mut next = self.clone();
        if batch.is_read {
            next.version += 1;
        }
        next.take(batch);
        next
    }

    /// Says that a source exists that could never be read; see [`Gaps::partial`](super::change::Gaps::partial).
    #[must_use]
    pub fn with_partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Says that there has never been a state in which nothing was missing; see [`Gaps::blind`](super::change::Gaps::blind).
    #[must_use]
    pub fn with_blind(mut self, blind: bool) -> Self {
        self.blind = blind;
        self
    }

    /// Says that destinations which are nobody's are not to be reached (`outboundTrafficPolicy: REGISTRY_ONLY`).
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

    /// Who may connect to whom. The same value as long as no policy changes, nor a service that a policy names.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Says which namespaces the sources describe.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: BTreeSet<Arc<str>>) -> Self {
        self.namespaces = Arc::new(namespaces);
        self
    }

    /// The namespaces that the sources describe.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter()
    }

    /// Says where objects come from, by kind and name: only for those who tell people of it.
    #[must_use]
    pub fn with_origins(mut self, origins: HashMap<(&'static str, NamespacedName), Origin>) -> Self {
        self.origins = Arc::new(origins);
        self
    }

    /// Where an object of this kind comes from, if that was kept; see [`Snapshot::with_origins`].
    pub fn origin(&self, kind: &'static str, name: &NamespacedName) -> Option<&Origin> {
        if self.origins.is_empty() { None } else { self.origins.get(&(kind, name.clone())) }
    }

    /// The number of this state; later states have higher ones. 0: no mesh has been read yet.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether something is missing; see [`Gaps::partial`](super::change::Gaps::partial). A snapshot of version 0 always is partial.
    pub fn is_partial(&self) -> bool {
        self.partial || self.version == 0
    }

    /// Whether the unknown may be in the mesh; see [`Gaps::blind`](super::change::Gaps::blind). A snapshot of version 0 is blind.
    pub fn is_blind(&self) -> bool {
        self.blind || self.version == 0
    }

    /// Whether it may be in the mesh, for all that is known: it is, or the label of its namespace is missing here.
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

    /// The workload whose own address this is. A v4-mapped address counts as the IPv4 one.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        self.holders.owner(address)
    }

    /// The workload of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.get(name)
    }

    /// All workloads, by name. Sorts them: not for what is asked often.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        by_name(&self.workloads)
    }

    /// Whose an address is, as pods of a namespace see it that want to reach this port of it.
    ///
    /// Before ranges come single addresses: those of pods, then services' own, then those that lead to services from outside; of ranges the longest prefix wins. Where several services claim an address,
    /// those that have the port come first, then those with endpoints, then those of the client's namespace, then those
    /// of Kubernetes, then by name. A service that the namespace may not know does not count.
    pub fn owner(&self, address: IpAddr, port: u16, namespace: &str) -> Owner<'_> {
        let address = address.to_canonical();
        if let Some(claimants) = self.contested.get(&address) {
            return Owner::Contested(claimants);
        }
        if let Some(workload) = self.holders.owner(address) {
            return Owner::Workload(workload);
        }
        let services = self.claims.single(address);
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

    /// The pods that claim an address, by name, where there are several.
    pub fn contested(&self, address: IpAddr) -> Option<&[NamespacedName]> {
        self.contested.get(&address.to_canonical()).map(|claimants| &**claimants)
    }

    /// The Kubernetes service whose single address this is, visible or not, if it is no pod's: the node's own load balancer may
    /// lead from there to any of its pods.
    pub fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        if self.holders.all(address).is_empty() { cluster_ip(self.claims.single(address)) } else { None }
    }

    /// All services: those of Kubernetes first, then by name. Sorts them: not for what is asked often.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        let mut all: Vec<&Arc<Service>> = self.services.values().collect();
        all.sort_by_cached_key(|service| rank(service));
        all.into_iter()
    }

    /// The service of a key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The Kubernetes service of a name.
    pub fn kubernetes_service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(self.kubernetes_services.get(name)?)
    }

    /// The services with a host name (without regard to case), each in another namespace; ordered as all are.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        let found = match self.services_by_hostname.get(hostname) {
            None if hostname.contains(|c: char| c.is_ascii_uppercase()) => {
                self.services_by_hostname.get(hostname.to_ascii_lowercase().as_str())
            }
            found => found,
        };
        found.map(|services| &**services).unwrap_or_default()
    }

    /// The services that a workload stands behind; ordered as all are.
    pub fn services_of(&self, workload: &NamespacedName) -> impl Iterator<Item = &Arc<Service>> + Clone {
        let keys = self.services_by_workload.get(workload).map(|keys| &**keys).unwrap_or_default();
        keys.iter().filter_map(|key| self.services.get(key))
    }

    /// The pods bound to a node, by name, in the mesh or not.
    pub fn pods_on(&self, node: &str) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.nodes.get(node).map(by_name).unwrap_or_default()
    }

    /// Whether a Node of this name is described, or a pod is bound to one.
    pub fn knows_node(&self, node: &str) -> bool {
        self.described_nodes.contains(node) || self.nodes.get(node).is_some()
    }

    /// The names of all nodes that are described or have pods.
    pub fn node_names(&self) -> BTreeSet<&Arc<str>> {
        self.described_nodes.iter().chain(self.nodes.keys()).collect()
    }

    /// Whether the pods bound to a node are the very same in another state: `false` may also be said of states in which they are
    /// equal. Looks at no pod.
    pub fn has_same_pods_on(&self, other: &Self, node: &str) -> bool {
        match (self.nodes.get(node), other.nodes.get(node)) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// What is wrong with the sources of this state.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How much there is.
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

#[cfg(test)]
mod tests;
