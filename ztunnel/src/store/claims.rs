//! Who claims which address: services that share one, ranges, and the addresses that are nobody's for being two pods'.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::service::{Resolution, Service, ServiceKind};
use crate::model::workload::{NamespacedName, Workload};

/// The services at every address and range. Each list has the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Claims {
    single: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// The longest prefixes first. One map for each length in use, so that a lookup costs as many as there are lengths.
    ranges: BTreeMap<Reverse<u8>, HashMap<IpNet, Vec<Arc<Service>>>>,
}

impl Claims {
    /// Adds a service's ranges, and those of its addresses that it may have.
    pub(super) fn add(&mut self, service: &Arc<Service>, may_have: impl Fn(&IpAddr) -> bool) {
        for vip in service.vips.iter().filter(|vip| may_have(vip)) {
            self.single.entry(*vip).or_default().push(Arc::clone(service));
        }
        for range in &service.ranges {
            let of_length = self.ranges.entry(Reverse(range.prefix_len())).or_default();
            of_length.entry(range.trunc()).or_default().push(Arc::clone(service));
        }
    }

    /// The service that a client means by a single address.
    pub(super) fn at(&self, address: IpAddr, port: u16, namespace: &str) -> Option<&Arc<Service>> {
        best(self.single.get(&address)?, port, namespace)
    }

    /// The Kubernetes service at a single address, whoever may know it.
    pub(super) fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.single.get(&address)?.iter().find(|service| service.kind == ServiceKind::Kubernetes)
    }

    /// The service with the smallest range around an address that has the port, or else with the smallest of all.
    pub(super) fn around(&self, address: IpAddr, port: u16, namespace: &str) -> Option<&Arc<Service>> {
        let mut smallest = None;
        for (Reverse(length), ranges) in &self.ranges {
            let Ok(range) = IpNet::new(address, *length) else { continue };
            let Some(found) = ranges.get(&range.trunc()).and_then(|services| best(services, port, namespace)) else {
                continue;
            };
            if found.port(port).is_some() {
                return Some(found);
            }
            smallest = smallest.or(Some(found));
        }
        smallest
    }
}

fn best<'a>(services: &'a [Arc<Service>], port: u16, namespace: &str) -> Option<&'a Arc<Service>> {
    // What passes an address through must not take it from a service that knows its endpoints.
    services.iter().filter(|service| service.is_visible_to(namespace)).min_by_key(|service| {
        let passes = service.resolution == Resolution::Passthrough;
        (service.port(port).is_none(), passes, *service.name.namespace != *namespace)
    })
}

/// Who claims an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimant {
    /// A pod.
    Pod(NamespacedName),
    /// A service.
    Service(NamespacedName),
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
        }
    }
}

/// The addresses that a pod and another pod or a Kubernetes service claim, each with all claimants. Pods that have finished
/// or are on their node's network claim none; services may share an address with each other. A ServiceEntry is not asked:
/// whoever writes one in a namespace of his own could make any pod unreachable. The pod keeps its address.
pub fn contested_addresses<'a>(
    workloads: impl IntoIterator<Item = &'a Workload>,
    services: impl IntoIterator<Item = &'a Service>,
) -> BTreeMap<IpAddr, Vec<Claimant>> {
    let mut claims: BTreeMap<IpAddr, Vec<Claimant>> = BTreeMap::new();
    let mut claim = |address: IpAddr, claimant: Claimant| {
        let claimants = claims.entry(address).or_default();
        // One object's claims come one after the other.
        if claimants.last() != Some(&claimant) {
            claimants.push(claimant);
        }
    };
    for workload in workloads {
        for address in workload.own_addresses() {
            claim(*address, Claimant::Pod(workload.name.clone()));
        }
    }
    for service in services.into_iter().filter(|service| service.kind == ServiceKind::Kubernetes) {
        for vip in &service.vips {
            claim(*vip, Claimant::Service(service.name.clone()));
        }
    }
    claims.retain(|_, claimants| claimants.len() > 1 && matches!(claimants.first(), Some(Claimant::Pod(_))));
    claims
}
