//! The services that claim an address: several services may claim one address, and a service may claim IP blocks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::change::ServiceKey;
use super::effort;
use super::shared::SharedMap;
use crate::model::service::{Resolution, Service, ServiceKind};

/// Services in order of precedence.
pub(super) type Ranked = Arc<[Arc<Service>]>;

/// The services at every address and IP block.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    single: SharedMap<IpAddr, Ranked>,
    /// By external addresses.
    external: SharedMap<IpAddr, Ranked>,
    /// Longest prefixes first. There is one map for each length in use, so a look-up takes as many steps as there are lengths.
    ranges: BTreeMap<Reverse<u8>, SharedMap<IpNet, Ranked>>,
    /// The changes since the lists were made.
    noted: HashMap<IpNet, Noted>,
}

/// Services that exist now, or (`None`) do not exist any more.
type Changed = HashMap<ServiceKey, Option<Arc<Service>>>;

/// The changes at an address, and at the IP block that contains only this address.
#[derive(Debug, Clone, Default)]
struct Noted {
    single: Changed,
    external: Changed,
    ranges: Changed,
}

/// A list after changes. `None`: it is empty.
fn merged(list: Option<&Ranked>, changed: Changed) -> Option<Ranked> {
    let others = list.into_iter().flat_map(|list| list.iter());
    let others = others.filter(|service| !changed.contains_key(&ServiceKey::of(service)));
    let mut all: Vec<Arc<Service>> = others.cloned().collect();
    all.extend(changed.into_values().flatten());
    effort::count(all.len());
    all.sort_by_cached_key(|service| rank(service));
    (!all.is_empty()).then(|| all.into())
}

/// The order of services: Kubernetes services first, then by name.
pub(super) fn rank(service: &Service) -> impl Ord + use<> {
    (service.kind, service.name.clone(), Arc::clone(&service.hostname))
}

/// A list with a service added; it replaces the service with the same key.
pub(super) fn with(list: Option<&Ranked>, service: &Arc<Service>) -> Ranked {
    let key = ServiceKey::of(service);
    let others = list.into_iter().flat_map(|list| list.iter()).filter(|other| ServiceKey::of(other) != key);
    let mut all: Vec<Arc<Service>> = others.chain([service]).cloned().collect();
    all.sort_by_cached_key(|service| rank(service));
    all.into()
}

/// A list without the service of a key. `None`: it is empty.
pub(super) fn without(list: Option<&Ranked>, key: &ServiceKey) -> Option<Ranked> {
    let left: Vec<Arc<Service>> = list?.iter().filter(|other| ServiceKey::of(other) != *key).cloned().collect();
    (!left.is_empty()).then(|| left.into())
}

impl Claims {
    /// Notes that a service was added, replaced or removed. The change takes effect with [`Claims::settle`].
    pub(super) fn note(&mut self, key: &ServiceKey, before: Option<&Service>, after: Option<&Arc<Service>>) {
        let both = || before.into_iter().chain(after.map(|after| &**after));
        for vip in both().flat_map(|service| &service.vips) {
            let now = after.filter(|after| after.vips.contains(vip));
            self.noted.entry(IpNet::from(*vip)).or_default().single.insert(key.clone(), now.cloned());
        }
        for address in both().flat_map(|service| &service.external).map(|external| external.address) {
            let leads = |after: &&Arc<Service>| after.external.iter().any(|external| external.address == address);
            let now = after.filter(leads);
            self.noted.entry(IpNet::from(address)).or_default().external.insert(key.clone(), now.cloned());
        }
        for range in both().flat_map(|service| &service.ranges) {
            let now = after.filter(|after| after.ranges.contains(range));
            self.noted.entry(range.trunc()).or_default().ranges.insert(key.clone(), now.cloned());
        }
    }

    /// Makes the list of each noted address and IP block, once for all changes: any number of services may claim one address.
    pub(super) fn settle(&mut self) {
        for (place, Noted { single, external, ranges }) in std::mem::take(&mut self.noted) {
            if !single.is_empty() {
                let address = place.addr();
                self.single.set(address, merged(self.single.get(&address), single));
            }
            if !external.is_empty() {
                let address = place.addr();
                self.external.set(address, merged(self.external.get(&address), external));
            }
            if !ranges.is_empty() {
                let length = Reverse(place.prefix_len());
                let of_length = self.ranges.entry(length).or_default();
                of_length.set(place, merged(of_length.get(&place), ranges));
                if of_length.is_empty() {
                    self.ranges.remove(&length);
                }
            }
        }
    }

    /// The services that have an address as one of their own.
    pub(super) fn single(&self, address: IpAddr) -> &[Arc<Service>] {
        self.single.get(&address).map(|services| &**services).unwrap_or_default()
    }

    /// The service to which an external address leads pods of a namespace, if it has the port.
    pub(super) fn external(&self, address: IpAddr, port: u16, namespace: &str) -> Option<&Arc<Service>> {
        let services = self.external.get(&address)?.iter();
        let leads = |service: &&Arc<Service>| service.is_led_to_by(address, namespace) && service.port(port).is_some();
        best(services.filter(leads), port, namespace)
    }

    /// The service with the smallest IP block around an address, among services with the port, or else among all.
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

/// The service to which an address leads a client, among the services with this address, which [`unclear`] has not found to
/// be unclear.
pub(super) fn meant<'a>(services: &'a [Arc<Service>], port: u16, namespace: &str) -> Option<&'a Arc<Service>> {
    let own =
        |service: &&Arc<Service>| service.kind == ServiceKind::Kubernetes && *service.name.namespace == *namespace;
    if are_of_several_namespaces(kubernetes(services)) {
        return best(services.iter().filter(own), port, namespace);
    }
    best(services.iter(), port, namespace)
}

/// The Kubernetes services with an address, if they are of several namespaces and none is of the client's. Anyone who may
/// write a Service in a folder of manifests may write the address of another namespace's Service.
pub(super) fn unclear<'a>(services: &'a [Arc<Service>], namespace: &str) -> Option<&'a [Arc<Service>]> {
    let services = kubernetes(services);
    let is_own = |service: &Arc<Service>| *service.name.namespace == *namespace;
    (are_of_several_namespaces(services) && !services.iter().any(is_own)).then_some(services)
}

/// The Kubernetes services among ranked services.
fn kubernetes(services: &[Arc<Service>]) -> &[Arc<Service>] {
    let count = services.partition_point(|service| service.kind == ServiceKind::Kubernetes);
    services.get(..count).unwrap_or_default()
}

/// Ranked services are ordered by namespace.
fn are_of_several_namespaces(services: &[Arc<Service>]) -> bool {
    let (first, last) = (services.first(), services.last());
    first.zip(last).is_some_and(|(first, last)| first.name.namespace != last.name.namespace)
}

/// The Kubernetes service among the services with an address, even if the client's namespace does not know it.
pub(super) fn cluster_ip(services: &[Arc<Service>]) -> Option<&Arc<Service>> {
    services.iter().find(|service| service.kind == ServiceKind::Kubernetes)
}

fn best<'a>(services: impl Iterator<Item = &'a Arc<Service>>, port: u16, namespace: &str) -> Option<&'a Arc<Service>> {
    // A service with passthrough must not take an address from a service with known endpoints.
    services.filter(|service| service.is_visible_to(namespace)).min_by_key(|service| {
        let passes = service.resolution == Resolution::Passthrough;
        (service.port(port).is_none(), passes, *service.name.namespace != *namespace)
    })
}
