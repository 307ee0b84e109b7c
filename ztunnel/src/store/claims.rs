//! Who claims which address: services that share one, ranges, and the addresses that are nobody's for being two pods'.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::change::ServiceKey;
use super::shared::SharedMap;
use crate::model::service::{Resolution, Service, ServiceKind};
use crate::model::workload::NamespacedName;

/// Services in the order in which they win over each other.
pub(super) type Ranked = Arc<[Arc<Service>]>;

/// The services at every address and range.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    single: SharedMap<IpAddr, Ranked>,
    /// The longest prefixes first. One map for each length in use, so that a lookup costs as many as there are lengths.
    ranges: BTreeMap<Reverse<u8>, SharedMap<IpNet, Ranked>>,
}

/// The order of services: those of Kubernetes first, then by name.
pub(super) fn rank(service: &Service) -> impl Ord + use<> {
    (service.kind, service.name.clone(), Arc::clone(&service.hostname))
}

/// A list with one service more, or with another in place of the one that had its key.
pub(super) fn with(list: Option<&Ranked>, service: &Arc<Service>) -> Ranked {
    let key = ServiceKey::of(service);
    let others = list.into_iter().flat_map(|list| list.iter()).filter(|other| ServiceKey::of(other) != key);
    let mut all: Vec<Arc<Service>> = others.chain([service]).cloned().collect();
    all.sort_by_cached_key(|service| rank(service));
    all.into()
}

/// A list without the service of a key; `None`: nothing is left.
pub(super) fn without(list: Option<&Ranked>, key: &ServiceKey) -> Option<Ranked> {
    let left: Vec<Arc<Service>> = list?.iter().filter(|other| ServiceKey::of(other) != *key).cloned().collect();
    (!left.is_empty()).then(|| left.into())
}

impl Claims {
    /// Adds a service, or replaces the one that was there under its key.
    pub(super) fn set(&mut self, service: &Arc<Service>, before: Option<&Service>) {
        let key = ServiceKey::of(service);
        for vip in before.iter().flat_map(|before| &before.vips).filter(|vip| !service.vips.contains(vip)) {
            self.single.set(*vip, without(self.single.get(vip), &key));
        }
        for range in before.iter().flat_map(|before| &before.ranges).filter(|range| !service.ranges.contains(range)) {
            self.leave(range, &key);
        }
        for vip in &service.vips {
            let list = with(self.single.get(vip), service);
            self.single.insert(*vip, list);
        }
        for range in &service.ranges {
            let of_length = self.ranges.entry(Reverse(range.prefix_len())).or_default();
            let list = with(of_length.get(&range.trunc()), service);
            of_length.insert(range.trunc(), list);
        }
    }

    /// Takes a service out.
    pub(super) fn remove(&mut self, service: &Service) {
        let key = ServiceKey::of(service);
        for vip in &service.vips {
            self.single.set(*vip, without(self.single.get(vip), &key));
        }
        for range in &service.ranges {
            self.leave(range, &key);
        }
    }

    fn leave(&mut self, range: &IpNet, key: &ServiceKey) {
        let length = Reverse(range.prefix_len());
        let Some(of_length) = self.ranges.get_mut(&length) else { return };
        of_length.set(range.trunc(), without(of_length.get(&range.trunc()), key));
        if of_length.is_empty() {
            self.ranges.remove(&length);
        }
    }

    /// The services at a single address.
    pub(super) fn single(&self, address: IpAddr) -> &[Arc<Service>] {
        self.single.get(&address).map(|services| &**services).unwrap_or_default()
    }

    /// The service that a client means by a single address. An address that is a pod's is no ServiceEntry's.
    pub(super) fn at(&self, address: IpAddr, port: u16, namespace: &str, is_pods: bool) -> Option<&Arc<Service>> {
        let services = self.single.get(&address)?.iter();
        best(services.filter(|service| !is_pods || service.kind == ServiceKind::Kubernetes), port, namespace)
    }

    /// The Kubernetes service at a single address, whoever may know it.
    pub(super) fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.single(address).iter().find(|service| service.kind == ServiceKind::Kubernetes)
    }

    /// The service with the smallest range around an address that has the port, or else with the smallest of all.
    pub(super) fn around(&self, address: IpAddr, port: u16, namespace: &str) -> Option<&Arc<Service>> {
        let mut smallest = None;
        for (Reverse(length), ranges) in &self.ranges {
            let Ok(range) = IpNet::new(address, *length) else { continue };
            let services = ranges.get(&range.trunc());
            let Some(found) = services.and_then(|services| best(services.iter(), port, namespace)) else {
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

fn best<'a>(services: impl Iterator<Item = &'a Arc<Service>>, port: u16, namespace: &str) -> Option<&'a Arc<Service>> {
    // What passes an address through must not take it from a service that knows its endpoints.
    services.filter(|service| service.is_visible_to(namespace)).min_by_key(|service| {
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

/// The claimants of an address, each once, where a pod and another pod or a Kubernetes service claim it: then it is nobody's.
/// Services may share an address with each other. A ServiceEntry is not asked: whoever writes one in a namespace of his own could
/// make any pod unreachable.
pub fn contested<'a>(
    pods: impl IntoIterator<Item = &'a NamespacedName>,
    services: impl IntoIterator<Item = &'a NamespacedName>,
) -> Option<Vec<Claimant>> {
    let mut claimants: Vec<Claimant> = pods.into_iter().cloned().map(Claimant::Pod).collect();
    if claimants.is_empty() {
        return None;
    }
    claimants.extend(services.into_iter().cloned().map(Claimant::Service));
    claimants.sort();
    claimants.dedup();
    (claimants.len() > 1).then_some(claimants)
}
