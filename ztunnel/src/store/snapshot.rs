//! One consistent state of the mesh with the indexes that decisions need. Built once, then only looked at.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{Membership, NamespacedName, Workload};

/// An immutable state of the mesh. The default one is empty and has version 0: no mesh has been read yet.
#[derive(Debug, Default)]
pub struct Snapshot {
    version: u64,
    partial: bool,
    workloads: BTreeMap<NamespacedName, Arc<Workload>>,
    workloads_by_address: HashMap<IpAddr, Arc<Workload>>,
    workloads_by_node: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    services: BTreeMap<NamespacedName, Arc<Service>>,
    services_by_vip: HashMap<IpAddr, Arc<Service>>,
    problems: Vec<Problem>,
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

impl Snapshot {
    /// Indexes a mesh. An address that more than one claims (see [`contested_addresses`]) leads to nobody, so that
    /// neither has the other's identity. Of two objects with one name the first counts.
    pub fn build(version: u64, workloads: Vec<Workload>, services: Vec<Service>, problems: Vec<Problem>) -> Self {
        let mut snapshot = Self { version, problems, ..Self::default() };
        for workload in workloads {
            snapshot.workloads.entry(workload.name.clone()).or_insert_with(|| Arc::new(workload));
        }
        for service in services {
            snapshot.services.entry(service.name.clone()).or_insert_with(|| Arc::new(service));
        }
        let contested = contested_addresses(
            snapshot.workloads.values().map(AsRef::as_ref),
            snapshot.services.values().map(AsRef::as_ref),
        );
        for workload in snapshot.workloads.values() {
            if let Some(node) = &workload.node {
                snapshot.workloads_by_node.entry(Arc::clone(node)).or_default().push(Arc::clone(workload));
            }
            for address in workload.own_addresses().iter().filter(|address| !contested.contains_key(address)) {
                snapshot.workloads_by_address.insert(*address, Arc::clone(workload));
            }
        }
        for service in snapshot.services.values() {
            for vip in service.vips.iter().filter(|vip| !contested.contains_key(vip)) {
                snapshot.services_by_vip.insert(*vip, Arc::clone(service));
            }
        }
        snapshot
    }

    /// Says that a source exists that could never be read: absence from this snapshot is then no proof of absence,
    /// and what an earlier daemon captured must not be released because of it.
    #[must_use]
    pub fn with_partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// The number of this state; later states have higher ones. 0: no mesh has been read yet.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether something is missing; see [`Snapshot::with_partial`]. A snapshot of version 0 always is partial.
    pub fn is_partial(&self) -> bool {
        self.partial || self.version == 0
    }

    /// The workload whose own address this is. A v4-mapped address counts as the IPv4 one.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&address.to_canonical())
    }

    /// The workload of this name.
    pub fn workload(&self, name: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.get(name)
    }

    /// All workloads, by name.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The service whose address this is. A v4-mapped address counts as the IPv4 one.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_vip.get(&address.to_canonical())
    }

    /// The service of this name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
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
        let in_mesh = self.workloads.values().filter(|workload| workload.membership == Membership::InMesh).count();
        Counts {
            workloads: self.workloads.len(),
            in_mesh,
            services: self.services.len(),
            problems: self.problems.len(),
        }
    }
}

/// Who claims an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimant {
    /// A pod.
    Pod(NamespacedName),
    /// A service.
    Service(NamespacedName),
}

impl std::fmt::Display for Claimant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
        }
    }
}

/// The addresses with more than one claimant, each with all of them. Pods that have finished or are on their node's
/// network claim none. Names are expected to be unique.
pub fn contested_addresses<'a>(
    workloads: impl IntoIterator<Item = &'a Workload>,
    services: impl IntoIterator<Item = &'a Service>,
) -> BTreeMap<IpAddr, Vec<Claimant>> {
    let of_pods = workloads.into_iter().flat_map(|workload| {
        workload.own_addresses().iter().map(|address| (*address, Claimant::Pod(workload.name.clone())))
    });
    let of_services = services
        .into_iter()
        .flat_map(|service| service.vips.iter().map(|vip| (*vip, Claimant::Service(service.name.clone()))));
    let mut claims: BTreeMap<IpAddr, Vec<Claimant>> = BTreeMap::new();
    for (address, claimant) in of_pods.chain(of_services) {
        let claimants = claims.entry(address).or_default();
        if claimants.last() != Some(&claimant) {
            claimants.push(claimant);
        }
    }
    claims.retain(|_, claimants| claimants.len() > 1);
    claims
}

#[cfg(test)]
mod tests;
