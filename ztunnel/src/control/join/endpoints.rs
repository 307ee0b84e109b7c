//! The endpoints of a service: from slices or entries, or the pods that a selector matches.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Joiner;
use crate::control::objects::{ServiceManifest, SliceEndpoint, SliceManifest};
use crate::model::endpoint_ports::EndpointPorts;
use crate::model::locality::Locality;
use crate::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use crate::model::workload::{NamespacedName, Workload};

impl Joiner {
    /// The pod that alone owns an address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.holders.owner(address)
    }

    /// The workload at an address. An address on a node's network is shared, and a WorkloadEntry may name any address.
    /// There the name of the selected workload (`named`) decides.
    fn at(&self, address: IpAddr, named: Option<&NamespacedName>) -> Option<&Arc<Workload>> {
        let on_host = || {
            let pod = &self.pods_joined.get(named?)?.workload;
            (pod.has_shared_addresses() && !pod.finished && pod.addresses.contains(&address)).then_some(pod)
        };
        self.owner(address).or_else(on_host)
    }

    /// Whether an address that a pod claims belongs to another pod that is not leaving: connections to the first pod
    /// must not reach the second.
    fn has_lost(&self, pod: &NamespacedName, address: IpAddr) -> bool {
        let is_other = |owner: &Arc<Workload>| owner.name != *pod;
        self.owner(address).is_some_and(is_other) && self.holders.has_claim(address, pod)
    }

    /// The locality of an endpoint without a pod, as far as its slice says it.
    fn locality(&self, endpoint: &SliceEndpoint) -> Locality {
        let node = endpoint.node.as_ref().and_then(|node| self.node(node));
        let mut locality = node.cloned().unwrap_or_default();
        if let Some(zone) = &endpoint.zone {
            locality.zone = zone.clone();
        }
        locality
    }

    /// The endpoints of slices. Where several slices name one address, their ports are joined.
    pub(super) fn given<'s>(
        &self,
        service: &ServiceManifest,
        slices: impl Iterator<Item = &'s SliceManifest>,
    ) -> Arc<[Endpoint]> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        let mut ports = EndpointPorts::default();
        for slice in slices {
            // Slices with the same ports share them.
            let given = ports_given(service, slice);
            if ports != given {
                ports = given;
            }
            for given in &slice.endpoints {
                let health = if service.every_endpoint_ready { Health::Ready } else { given.health };
                let is_lost = |address: &&IpAddr| given.pod.as_ref().is_some_and(|pod| self.has_lost(pod, **address));
                for address in given.addresses.iter().filter(|address| !is_lost(address)) {
                    let endpoint = endpoints.entry(*address).or_insert_with(|| {
                        let (node, locality) = (given.node.clone(), self.locality(given));
                        let workload = self.at(*address, given.pod.as_ref());
                        placed(*address, Health::Unready, workload.map(|workload| &**workload), node, locality)
                    });
                    endpoint.health = endpoint.health.min(health);
                    endpoint.ports = endpoint.ports.and(&ports);
                }
            }
        }
        endpoints.into_values().collect()
    }

    /// The pods that a selector matches, as endpoints. An empty selector matches nothing, as in Kubernetes.
    pub(super) fn selected(&self, service: &Service, every_endpoint_ready: bool) -> Arc<[Endpoint]> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        let mut ports_of_pods = PortsOfPods::of(&service.ports);
        for joined in self.members(&service.name.namespace, &service.selector) {
            let pod = &joined.workload;
            let health = match () {
                () if pod.ready || every_endpoint_ready => Health::Ready,
                () if joined.draining => Health::Draining,
                () => Health::Unready,
            };
            let addresses = pod.addresses.iter().filter(|address| service.families.include(**address));
            for address in addresses.filter(|address| !self.has_lost(&pod.name, **address)) {
                endpoints.entry(*address).or_insert_with(|| {
                    let workload = self.at(*address, Some(&pod.name));
                    Endpoint {
                        weight: joined.weight,
                        ports: ports_of_pods.of_pod(pod),
                        node: pod.node.clone(),
                        locality: pod.locality.clone(),
                        ..placed(*address, health, workload.map(|workload| &**workload), None, Locality::default())
                    }
                });
            }
        }
        endpoints.into_values().collect()
    }

    /// Adds the pod that owns the endpoint's address, if there is one, to an endpoint of a ServiceEntry.
    pub(super) fn recognised(&self, endpoint: Endpoint) -> Endpoint {
        let Some(workload) = self.owner(endpoint.address) else { return endpoint };
        let (workload, node, locality) = (workload.name.clone(), workload.node.clone(), workload.locality.clone());
        Endpoint { workload: Some(workload), node, locality, ..endpoint }
    }
}

/// An endpoint without ports. The node and locality of its pod, if known, replace the given ones.
fn placed(
    address: IpAddr,
    health: Health,
    workload: Option<&Workload>,
    node: Option<Arc<str>>,
    locality: Locality,
) -> Endpoint {
    Endpoint {
        address,
        ports: EndpointPorts::default(),
        health,
        workload: workload.map(|workload| workload.name.clone()),
        weight: 1,
        node: workload.map_or(node, |workload| workload.node.clone()),
        locality: workload.map_or(locality, |workload| workload.locality.clone()),
    }
}

/// The ports of the pods behind a service. Pods with the same ports share them.
struct PortsOfPods<'s> {
    ports: &'s [ServicePort],
    /// The ports of all pods, WorkloadEntries excepted, if the target ports are numbers.
    of_all: Option<EndpointPorts>,
    /// The ports of the pod before.
    last: EndpointPorts,
}

impl<'s> PortsOfPods<'s> {
    fn of(ports: &'s [ServicePort]) -> Self {
        let number = |port: &ServicePort| match port.target {
            TargetPort::Number(number) => Some((port.port, number)),
            TargetPort::Name(_) => None,
        };
        let of_all = ports.iter().all(|port| number(port).is_some());
        let of_all = of_all.then(|| ports.iter().filter_map(number).collect());
        Self { ports, of_all, last: EndpointPorts::default() }
    }

    fn of_pod(&mut self, pod: &Workload) -> EndpointPorts {
        if let Some(of_all) = self.of_all.as_ref().filter(|_| !pod.is_entry) {
            return of_all.clone();
        }
        let found = self.ports.iter().filter_map(|port| port_of_pod(port, pod)).collect();
        if self.last != found {
            self.last = found;
        }
        self.last.clone()
    }
}

/// The service's port and the pod's. In a WorkloadEntry the names of service ports are mapped to its own port numbers.
fn port_of_pod(port: &ServicePort, pod: &Workload) -> Option<(u16, u16)> {
    let named = port.name.as_deref().filter(|_| pod.is_entry).and_then(|name| pod.port_named(name));
    if let Some(number) = named {
        return Some((port.port, number));
    }
    match &port.target {
        TargetPort::Number(number) => Some((port.port, *number)),
        TargetPort::Name(name) => Some((port.port, pod.port_named(name)?)),
    }
}

/// The service's ports and the numbers that a slice gives to the ports of the same names. Of several with one name the
/// first counts.
fn ports_given(service: &ServiceManifest, slice: &SliceManifest) -> EndpointPorts {
    let by_name: HashMap<&str, Option<u16>> =
        slice.ports.iter().rev().map(|(name, number)| (&**name, *number)).collect();
    let target = |port: &ServicePort| {
        let number = by_name.get(port.name.as_deref().unwrap_or_default())?;
        Some((port.port, number.unwrap_or(port.port)))
    };
    service.ports.iter().filter_map(target).collect()
}
