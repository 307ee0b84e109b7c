//! One consistent state of the mesh with the indexes that decisions need. Built once, then only looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{Claimant, Claims, contested_addresses};
use super::policies::Policies;
use crate::model::origin::Origin;
use crate::model::policy::PolicySet;
use crate::model::problem::Problem;
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{Membership, NamespacedName, Workload};

/// An immutable state of the mesh. The default one is empty and has version 0: no mesh has been read yet.
#[derive(Debug, Default)]
pub struct Snapshot {
    version: u64,
    partial: bool,
    blind: bool,
    registry_only: bool,
    /// Those that a source describes.
    namespaces: BTreeSet<Arc<str>>,
    /// By name.
    workloads: Vec<Arc<Workload>>,
    workloads_by_name: HashMap<NamespacedName, Arc<Workload>>,
    workloads_by_address: HashMap<IpAddr, Arc<Workload>>,
    workloads_by_node: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    /// In the order in which they win over each other: see [`Snapshot::services`].
    services: Vec<Arc<Service>>,
    services_by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    services_by_workload: HashMap<NamespacedName, Vec<Arc<Service>>>,
    claims: Claims,
    contested: BTreeMap<IpAddr, Vec<Claimant>>,
    policies: Policies,
    problems: Vec<Problem>,
    /// By kind, namespace and name.
    origins: HashMap<(&'static str, NamespacedName), Origin>,
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
    /// That of several, so that nobody knows who would answer.
    Contested(&'a [Claimant]),
    /// That of a Kubernetes service which the client's namespace may not know.
    Hidden(&'a Arc<Service>),
    /// Nobody's.
    Unknown,
}

impl Snapshot {
    /// Indexes a mesh. An address that a pod and another claim (see [`contested_addresses`]) leads to nobody, so that
    /// neither has the other's identity; a ServiceEntry never has the address of a pod; services may share addresses. Of
    /// two workloads with one name, and of two services with one host name in a namespace, the first counts.
    pub fn build(version: u64, workloads: Vec<Workload>, services: Vec<Service>, problems: Vec<Problem>) -> Self {
        let mut snapshot = Self { version, problems, ..Self::default() };
        let contested = contested_addresses(&workloads, &services);
        snapshot.add_workloads(workloads, &contested);
        snapshot.add_services(services, &contested);
        snapshot.contested = contested;
        snapshot
    }

    fn add_workloads(&mut self, workloads: Vec<Workload>, contested: &BTreeMap<IpAddr, Vec<Claimant>>) {
        for workload in workloads {
            self.workloads_by_name.entry(workload.name.clone()).or_insert_with(|| Arc::new(workload));
        }
        self.workloads = self.workloads_by_name.values().cloned().collect();
        self.workloads.sort_by(|one, other| one.name.cmp(&other.name));
        for workload in &self.workloads {
            if let Some(node) = &workload.node {
                self.workloads_by_node.entry(Arc::clone(node)).or_default().push(Arc::clone(workload));
            }
            for address in workload.own_addresses().iter().filter(|address| !contested.contains_key(address)) {
                self.workloads_by_address.insert(*address, Arc::clone(workload));
            }
        }
    }

    fn add_services(&mut self, services: Vec<Service>, contested: &BTreeMap<IpAddr, Vec<Claimant>>) {
        let mut services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
        fn order(service: &Service) -> (&str, &str, ServiceKind, &str) {
            (&service.name.namespace, &service.hostname, service.kind, &service.name.name)
        }
        services.sort_by(|one, other| order(one).cmp(&order(other)));
        services.dedup_by(|later, first| {
            (&later.name.namespace, &later.hostname) == (&first.name.namespace, &first.hostname)
        });
        services.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
        for service in &services {
            self.services_by_hostname.entry(Arc::clone(&service.hostname)).or_default().push(Arc::clone(service));
            for workload in service.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref()) {
                let known = self.services_by_workload.entry(workload.clone()).or_default();
                if !known.last().is_some_and(|last| Arc::ptr_eq(last, service)) {
                    known.push(Arc::clone(service));
                }
            }
            let of_pods = &self.workloads_by_address;
            self.claims.add(service, |address| {
                let is_pods = service.kind == ServiceKind::Entry && of_pods.contains_key(address);
                !is_pods && !contested.contains_key(address)
            });
        }
        self.services = services;
    }

    /// Says that a source exists that could never be read: absence from this snapshot is then no proof of absence,
    /// and what an earlier daemon captured must not be released because of it.
    #[must_use]
    pub fn with_partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Says that there has never been a state in which nothing was missing: what this one does not know may well be in the
    /// mesh. What comes later and makes no sense does not blind; there is a last good state then, which goes on counting.
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

    /// Adds the policies: the last thing to do, since whom they protect depends on the services.
    #[must_use]
    pub fn with_policies(mut self, policies: PolicySet) -> Self {
        self.policies = Policies::index(policies, &self);
        self
    }

    /// Who may connect to whom.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Says which namespaces the sources describe.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: BTreeSet<Arc<str>>) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// The namespaces that the sources describe.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter()
    }

    /// Says where objects come from, by kind and name: only for those who tell people of it.
    #[must_use]
    pub fn with_origins(mut self, origins: HashMap<(&'static str, NamespacedName), Origin>) -> Self {
        self.origins = origins;
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

    /// Whether something is missing; see [`Snapshot::with_partial`]. A snapshot of version 0 always is partial.
    pub fn is_partial(&self) -> bool {
        self.partial || self.version == 0
    }

    /// Whether the unknown may be in the mesh; see [`Snapshot::with_blind`]. A snapshot of version 0 is blind.
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
        self.workloads_by_address.get(&address.to_canonical())
    }

    /// The workload of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads_by_name.get(name)
    }

    /// All workloads, by name.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Whose an address is, as pods of a namespace see it that want to reach this port of it.
    ///
    /// Before ranges come single addresses; of ranges the longest prefix wins. Where several services claim an address,
    /// those that have the port come first, then those with endpoints, then those of the client's namespace, then those
    /// of Kubernetes, then by name. A service that the namespace may not know does not count.
    pub fn owner(&self, address: IpAddr, port: u16, namespace: &str) -> Owner<'_> {
        let address = address.to_canonical();
        if let Some(claimants) = self.contested.get(&address) {
            return Owner::Contested(claimants);
        }
        if let Some(service) = self.claims.at(address, port, namespace) {
            return Owner::Service(service);
        }
        if let Some(service) = self.claims.cluster_ip(address) {
            return Owner::Hidden(service);
        }
        if let Some(workload) = self.workloads_by_address.get(&address) {
            return Owner::Workload(workload);
        }
        self.claims.around(address, port, namespace).map_or(Owner::Unknown, Owner::Service)
    }

    /// The claimants of an address that a pod and somebody else claim.
    pub fn contested(&self, address: IpAddr) -> Option<&[Claimant]> {
        self.contested.get(&address.to_canonical()).map(Vec::as_slice)
    }

    /// The Kubernetes service whose single address this is, visible or not: the node's own load balancer may lead from
    /// there to any of its pods.
    pub fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.claims.cluster_ip(address.to_canonical())
    }

    /// All services: those of Kubernetes first, then by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The services with a host name (without regard to case), each in another namespace; ordered as all are.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        let found = match self.services_by_hostname.get(hostname) {
            None if hostname.contains(|c: char| c.is_ascii_uppercase()) => {
                self.services_by_hostname.get(hostname.to_ascii_lowercase().as_str())
            }
            found => found,
        };
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// The services that a workload stands behind; ordered as all are.
    pub fn services_of(&self, workload: &NamespacedName) -> &[Arc<Service>] {
        self.services_by_workload.get(workload).map(Vec::as_slice).unwrap_or_default()
    }

    /// The pods bound to a node, by name, in the mesh or not.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.workloads_by_node.get(node).into_iter().flatten()
    }

    /// What is wrong with the sources of this state.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        let in_mesh = self.workloads.iter().filter(|workload| workload.membership == Membership::InMesh).count();
        Counts {
            workloads: self.workloads.len(),
            in_mesh,
            services: self.services.len(),
            problems: self.problems.len(),
        }
    }
}

#[cfg(test)]
mod tests;
