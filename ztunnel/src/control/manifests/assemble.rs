//! Joins the objects of all files to workloads and services.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::pod::PodManifest;
use super::service::{ServiceManifest, SliceEndpoint, SliceManifest};
use super::{Body, FileContent, Object, title};
use crate::model::problem::Problem;
use crate::model::service::{Endpoint, Service, ServicePort, TargetPort};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::{Claimant, contested_addresses};

/// The mesh that a set of files describes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assembled {
    /// All pods, by name.
    pub workloads: Vec<Workload>,
    /// All services, by name.
    pub services: Vec<Service>,
    /// What is wrong, by file and line.
    pub problems: Vec<Problem>,
}

/// Joins files. They are to come in the order of their names: of two objects with one name the first stays.
pub fn assemble<'a>(files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>) -> Assembled {
    let mut problems = Vec::new();
    let objects = Objects::collect(files, &mut problems);
    let workloads: Vec<Workload> = objects
        .pods
        .values()
        .map(|(_, pod)| pod.workload(objects.namespaces.get(&pod.workload.name.namespace).copied().unwrap_or(false)))
        .collect();
    let mut services: Vec<Service> = objects.services.iter().map(|(name, (_, service))| bare(name, service)).collect();
    let contested = contested_addresses(&workloads, &services);
    objects.report_contested(&contested, &mut problems);

    let pods = Pods::index(&workloads, &contested);
    let mut slices: BTreeMap<&NamespacedName, Vec<&SliceManifest>> = BTreeMap::new();
    for (name, (place, slice)) in &objects.slices {
        if objects.services.contains_key(&slice.service) {
            slices.entry(&slice.service).or_default().push(slice);
        } else {
            let message = format!("Service {} is in no file: the slice is ignored", slice.service);
            problems.push(place.problem(title("EndpointSlice", name), message));
        }
    }
    for service in &mut services {
        let Some((_, manifest)) = objects.services.get(&service.name) else { continue };
        service.endpoints = match slices.get(&service.name) {
            Some(slices) => pods.endpoints_given(manifest, slices),
            None => pods.endpoints_selected(&service.name, manifest),
        };
    }
    problems.sort();
    Assembled { workloads, services, problems }
}

/// Where an object stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Arc<str>,
    line: u64,
}

impl Place<'_> {
    fn problem(self, object: String, message: String) -> Problem {
        Problem { file: Arc::clone(self.file), line: Some(self.line), object: Some(object), message }
    }
}

/// The objects of all files by kind and name, each once.
#[derive(Default)]
struct Objects<'a> {
    namespaces: BTreeMap<Arc<str>, bool>,
    pods: BTreeMap<&'a NamespacedName, (Place<'a>, &'a PodManifest)>,
    services: BTreeMap<&'a NamespacedName, (Place<'a>, &'a ServiceManifest)>,
    slices: BTreeMap<&'a NamespacedName, (Place<'a>, &'a SliceManifest)>,
}

impl<'a> Objects<'a> {
    fn collect(files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>, problems: &mut Vec<Problem>) -> Self {
        let mut objects = Self::default();
        let mut places: HashMap<(&'static str, &'a NamespacedName), Place<'a>> = HashMap::new();
        for (file, content) in files {
            problems.extend(content.problems.iter().cloned());
            for object in &content.objects {
                let place = Place { file, line: object.line };
                match places.entry((object.body.kind(), &object.name)) {
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(place);
                        objects.add(place, object);
                    }
                    std::collections::hash_map::Entry::Occupied(first) => {
                        let Place { file, line } = first.get();
                        let message = format!("is already in {file}:{line}, which counts: remove one of the two");
                        problems.push(place.problem(object.title(), message));
                    }
                }
            }
        }
        objects
    }

    fn add(&mut self, place: Place<'a>, object: &'a Object) {
        let name = &object.name;
        match &object.body {
            Body::Namespace { labelled } => {
                self.namespaces.insert(Arc::clone(&name.name), *labelled);
            }
            Body::Pod(pod) => {
                self.pods.insert(name, (place, pod));
            }
            Body::Service(service) => {
                self.services.insert(name, (place, service));
            }
            Body::Slice(slice) => {
                self.slices.insert(name, (place, slice));
            }
        }
    }

    fn report_contested(&self, contested: &BTreeMap<IpAddr, Vec<Claimant>>, problems: &mut Vec<Problem>) {
        for (address, claimants) in contested {
            for claimant in claimants {
                let place = match claimant {
                    Claimant::Pod(name) => self.pods.get(name).map(|(place, _)| *place),
                    Claimant::Service(name) => self.services.get(name).map(|(place, _)| *place),
                };
                let Some(other) = claimants.iter().find(|other| *other != claimant) else { continue };
                let more = match claimants.len() {
                    2 => String::new(),
                    all => format!(" and {} more", all - 2),
                };
                let message =
                    format!("{address} is also claimed by {other}{more}: until one is left, the address is nobody's");
                problems.extend(place.map(|place| place.problem(claimant.to_string(), message)));
            }
        }
    }
}

fn bare(name: &NamespacedName, manifest: &ServiceManifest) -> Service {
    Service {
        name: name.clone(),
        vips: manifest.vips.clone(),
        ports: manifest.ports.clone(),
        endpoints: Vec::new(),
        selector: Arc::clone(&manifest.selector),
    }
}

/// The pods in the ways services look for them.
struct Pods<'a> {
    by_namespace: HashMap<&'a str, Vec<&'a Workload>>,
    by_name: HashMap<&'a NamespacedName, &'a Workload>,
    by_address: HashMap<IpAddr, &'a Workload>,
}

impl<'a> Pods<'a> {
    fn index(workloads: &'a [Workload], contested: &BTreeMap<IpAddr, Vec<Claimant>>) -> Self {
        let mut pods = Self { by_namespace: HashMap::new(), by_name: HashMap::new(), by_address: HashMap::new() };
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
    fn at(&self, address: IpAddr, named: Option<&NamespacedName>) -> Option<NamespacedName> {
        let on_host = || {
            let pod = self.by_name.get(named?)?;
            (pod.host_network && pod.addresses.contains(&address)).then_some(pod)
        };
        self.by_address.get(&address).or_else(on_host).map(|pod| pod.name.clone())
    }

    /// The endpoints that slices give. Slices that name one address differ in ports, so these add up.
    fn endpoints_given(&self, service: &ServiceManifest, slices: &[&SliceManifest]) -> Vec<Endpoint> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for slice in slices {
            for SliceEndpoint { addresses, ready, pod } in &slice.endpoints {
                for address in addresses {
                    let endpoint = endpoints.entry(*address).or_insert_with(|| Endpoint {
                        address: *address,
                        ports: BTreeMap::new(),
                        ready: false,
                        workload: self.at(*address, pod.as_ref()),
                    });
                    endpoint.ready |= ready | service.every_endpoint_ready;
                    endpoint.ports.extend(service.ports.iter().filter_map(|port| port_given(port, slice)));
                }
            }
        }
        endpoints.into_values().collect()
    }

    /// The endpoints that a selector leads to.
    fn endpoints_selected(&self, name: &NamespacedName, service: &ServiceManifest) -> Vec<Endpoint> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        // In Kubernetes an empty selector selects nothing here.
        let candidates = self.by_namespace.get(&*name.namespace).into_iter().flatten();
        for pod in candidates.filter(|pod| !service.selector.is_empty() && selects(&service.selector, pod)) {
            for address in pod.addresses.iter().filter(|address| service.families.include(**address)) {
                endpoints.entry(*address).or_insert_with(|| Endpoint {
                    address: *address,
                    ports: service.ports.iter().filter_map(|port| port_of_pod(port, pod)).collect(),
                    ready: pod.ready || service.every_endpoint_ready,
                    workload: self.at(*address, Some(&pod.name)),
                });
            }
        }
        endpoints.into_values().collect()
    }
}

fn selects(selector: &BTreeMap<String, String>, pod: &Workload) -> bool {
    selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn port_of_pod(port: &ServicePort, pod: &Workload) -> Option<(u16, u16)> {
    match &port.target {
        TargetPort::Number(number) => Some((port.port, *number)),
        TargetPort::Name(name) => Some((port.port, pod.port_named(name)?)),
    }
}

fn port_given(port: &ServicePort, slice: &SliceManifest) -> Option<(u16, u16)> {
    let name = port.name.as_deref().unwrap_or_default();
    let (_, number) = slice.ports.iter().find(|(given, _)| **given == *name)?;
    Some((port.port, number.unwrap_or(port.port)))
}
