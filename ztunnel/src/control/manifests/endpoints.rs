//! What stands behind a service: given by slices or entries, or the pods that a selector leads to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::control::objects::{ServiceManifest, SliceEndpoint, SliceManifest};
use crate::model::locality::Locality;
use crate::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::claims::Claimant;

/// The pods in the ways services look for them.
pub(super) struct Pods<'a> {
    by_namespace: HashMap<&'a str, Vec<&'a Workload>>,
    by_name: HashMap<&'a NamespacedName, &'a Workload>,
    by_address: HashMap<IpAddr, &'a Workload>,
    draining: HashSet<&'a NamespacedName>,
    nodes: &'a HashMap<&'a str, &'a Locality>,
}

impl<'a> Pods<'a> {
    /// `draining` are the pods that are ending and still serve.
    pub(super) fn index(
        workloads: &'a [Workload],
        draining: HashSet<&'a NamespacedName>,
        nodes: &'a HashMap<&'a str, &'a Locality>,
        contested: &BTreeMap<IpAddr, Vec<Claimant>>,
    ) -> Self {
        let (by_namespace, by_name, by_address) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut pods = Self { by_namespace, by_name, by_address, draining, nodes };
        for workload in workloads.iter().filter(|workload| !workload.finished) {
            pods.by_namespace.entry(&workload.name.namespace).or_default().push(workload);
            pods.by_name.insert(&workload.name, workload);
            for address in workload.own_addresses().iter().filter(|address| !contested.contains_key(address)) {
                pods.by_address.insert(*address, workload);
            }
        }
        pods
    }

    /// The workload at an address. An address on a node's network is shared, so there the slice's word is needed.
    fn at(&self, address: IpAddr, named: Option<&NamespacedName>) -> Option<&'a Workload> {
        let on_host = || {
            let pod = *self.by_name.get(named?)?;
            (pod.host_network && pod.addresses.contains(&address)).then_some(pod)
        };
        self.owner(address).or_else(on_host)
    }

    /// Where an endpoint without a pod runs, as far as its slice tells.
    fn locality(&self, endpoint: &SliceEndpoint) -> Locality {
        let node = endpoint.node.as_ref().and_then(|node| self.nodes.get(&**node)).copied();
        let mut locality = node.cloned().unwrap_or_default();
        if let Some(zone) = &endpoint.zone {
            locality.zone = zone.clone();
        }
        locality
    }

    /// The endpoints that slices give. Slices that name one address differ in ports, so these add up.
    pub(super) fn given(&self, service: &ServiceManifest, slices: &[&SliceManifest]) -> Arc<[Endpoint]> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for slice in slices {
            let ports = ports_given(service, slice);
            for given in &slice.endpoints {
                let health = if service.every_endpoint_ready { Health::Ready } else { given.health };
                for address in &given.addresses {
                    let endpoint = endpoints.entry(*address).or_insert_with(|| {
                        let (node, locality) = (given.node.clone(), self.locality(given));
                        placed(*address, Health::Unready, self.at(*address, given.pod.as_ref()), node, locality)
                    });
                    endpoint.health = endpoint.health.min(health);
                    endpoint.ports.extend(ports.iter().copied());
                }
            }
        }
        endpoints.into_values().collect()
    }

    /// The endpoints that a selector leads to.
    pub(super) fn selected(&self, service: &Service, every_endpoint_ready: bool) -> Arc<[Endpoint]> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        // In Kubernetes an empty selector selects nothing here.
        let candidates = self.by_namespace.get(&*service.name.namespace).into_iter().flatten();
        let selects = |pod: &&&Workload| !service.selector.is_empty() && pod.labels.include(&service.selector);
        for pod in candidates.filter(selects) {
            let health = match () {
                () if pod.ready || every_endpoint_ready => Health::Ready,
                () if self.draining.contains(&pod.name) => Health::Draining,
                () => Health::Unready,
            };
            for address in pod.addresses.iter().filter(|address| service.families.include(**address)) {
                endpoints.entry(*address).or_insert_with(|| Endpoint {
                    ports: service.ports.iter().filter_map(|port| port_of_pod(port, pod)).collect(),
                    node: pod.node.clone(),
                    locality: pod.locality.clone(),
                    ..placed(*address, health, self.at(*address, Some(&pod.name)), None, Locality::default())
                });
            }
        }
        endpoints.into_values().collect()
    }

    /// The endpoints of a service entry: those that it gives, or those that its selector leads to.
    pub(super) fn of_entry(&self, entry: &Service, given: &[Endpoint]) -> Arc<[Endpoint]> {
        match entry.selector.is_empty() {
            true => given.iter().map(|endpoint| self.recognised(endpoint.clone())).collect(),
            false => self.selected(entry, false),
        }
    }

    /// An endpoint as a service entry gives it, with the pod whose address it is.
    fn recognised(&self, endpoint: Endpoint) -> Endpoint {
        let Some(workload) = self.owner(endpoint.address) else { return endpoint };
        let (workload, node, locality) = (workload.name.clone(), workload.node.clone(), workload.locality.clone());
        Endpoint { workload: Some(workload), node, locality, ..endpoint }
    }

    /// The pod whose own address this is.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&'a Workload> {
        self.by_address.get(&address).copied()
    }
}

/// An endpoint without ports. Where its pod runs is known better than where it is said to run.
fn placed(
    address: IpAddr,
    health: Health,
    workload: Option<&Workload>,
    node: Option<Arc<str>>,
    locality: Locality,
) -> Endpoint {
    Endpoint {
        address,
        ports: BTreeMap::new(),
        health,
        workload: workload.map(|workload| workload.name.clone()),
        weight: 1,
        node: workload.map_or(node, |workload| workload.node.clone()),
        locality: workload.map_or(locality, |workload| workload.locality.clone()),
    }
}

fn port_of_pod(port: &ServicePort, pod: &Workload) -> Option<(u16, u16)> {
    match &port.target {
        TargetPort::Number(number) => Some((port.port, *number)),
        TargetPort::Name(name) => Some((port.port, pod.port_named(name)?)),
    }
}

/// From the service's ports to those that a slice gives under the same names; of one name the first counts.
fn ports_given(service: &ServiceManifest, slice: &SliceManifest) -> Vec<(u16, u16)> {
    let by_name: HashMap<&str, Option<u16>> =
        slice.ports.iter().rev().map(|(name, number)| (&**name, *number)).collect();
    let target = |port: &ServicePort| {
        let number = by_name.get(port.name.as_deref().unwrap_or_default())?;
        Some((port.port, number.unwrap_or(port.port)))
    };
    service.ports.iter().filter_map(target).collect()
}
