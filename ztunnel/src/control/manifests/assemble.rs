//! Joins the objects of all files to workloads, services and policies.

mod policies;

use std::collections::hash_map::{self, HashMap};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::Pods;
use super::parse::FileContent;
use crate::control::objects::{
    self, AuthorizationManifest, Body, EntryManifest, MeshSettings, NamespaceManifest, Object,
    PeerAuthenticationManifest, PodManifest, ROOT_NAMESPACE, ServiceManifest, SliceManifest, title,
};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::locality::{Distribution, Locality};
use crate::model::origin::Origin;
use crate::model::policy::PolicySet;
use crate::model::problem::{Problem, Severity};
use crate::model::service::{Families, Service, ServiceKind, Visibility};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::claims::{Claimant, contested_addresses};

/// The mesh that a set of files describes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assembled {
    /// All pods, by name.
    pub workloads: Vec<Workload>,
    /// What the manifest of each pod says for the pod's own node.
    pub local: LocalPods,
    /// All services: those of Kubernetes by name, then those of service entries by name and host.
    pub services: Vec<Service>,
    /// Destinations that are nobody's are not to be reached (`outboundTrafficPolicy: REGISTRY_ONLY`).
    pub registry_only: bool,
    /// The namespaces that are described.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Who may connect to whom; what could never be read is not in it.
    pub policies: PolicySet,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: Arc<str>,
    /// What is wrong, by file and line.
    pub problems: Vec<Problem>,
}

/// Joins files. They are to come in the order of their names: of two objects with one name the first stays. Identities
/// are of the given trust domain.
pub fn assemble<'a>(
    files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>,
    trust_domain: &TrustDomain,
) -> Assembled {
    let mut problems = Vec::new();
    let objects = Objects::collect(files, &mut problems);
    let workloads: Vec<Workload> = objects.pods.values().map(|(_, pod)| objects.workload(pod, trust_domain)).collect();
    let local = objects.pods.iter().map(|(name, (_, pod))| ((*name).clone(), pod.local.clone())).collect();
    let mut services: Vec<Service> =
        objects.services.iter().map(|(name, (_, service))| objects.service(name, service)).collect();
    let contested = contested_addresses(&workloads, &services);
    objects.report_contested(&contested, &mut problems);

    let draining = objects.pods.iter().filter(|(_, (_, pod))| pod.draining).map(|(name, _)| *name);
    let pods = Pods::index(&workloads, draining.collect(), &objects.nodes, &contested);
    let slices = objects.slices_by_service(&mut problems);
    for service in &mut services {
        let Some((_, manifest)) = objects.services.get(&service.name) else { continue };
        service.endpoints = match slices.get(&service.name) {
            Some(slices) => pods.given(manifest, slices),
            None => pods.selected(service, manifest.every_endpoint_ready),
        };
    }
    objects.add_entries(&pods, &mut services, &mut problems);
    let registry_only = objects.mesh_settings(trust_domain, &mut problems);
    let namespaces = objects.namespaces.keys().map(|name| Arc::clone(name)).collect();
    let root_namespace = objects.root_namespace();
    let policies = policies::join(&objects, &root_namespace, &mut problems);
    problems.sort();
    Assembled { workloads, local, services, registry_only, namespaces, policies, root_namespace, problems }
}

/// Where an object stands.
#[derive(Clone, Copy)]
struct Place<'a>(&'a Origin);

impl Place<'_> {
    fn origin(self) -> Origin {
        self.0.clone()
    }

    fn problem(self, object: String, message: String) -> Problem {
        Problem { origin: self.origin(), object: Some(object), message, severity: Severity::Error }
    }
}

/// The objects of all files by kind and name, each once.
#[derive(Default)]
struct Objects<'a> {
    namespaces: BTreeMap<&'a Arc<str>, NamespaceManifest>,
    nodes: HashMap<&'a str, &'a Locality>,
    pods: BTreeMap<&'a NamespacedName, (Place<'a>, &'a PodManifest)>,
    services: BTreeMap<&'a NamespacedName, (Place<'a>, &'a ServiceManifest)>,
    slices: BTreeMap<&'a NamespacedName, (Place<'a>, &'a SliceManifest)>,
    entries: BTreeMap<&'a NamespacedName, (Place<'a>, &'a EntryManifest)>,
    mesh: Option<(Place<'a>, &'a Object, &'a MeshSettings)>,
    authorization: BTreeMap<&'a NamespacedName, (Place<'a>, &'a AuthorizationManifest)>,
    authentication: BTreeMap<&'a NamespacedName, (Place<'a>, &'a PeerAuthenticationManifest)>,
}

impl<'a> Objects<'a> {
    fn collect(files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>, problems: &mut Vec<Problem>) -> Self {
        let mut objects = Self::default();
        let mut places: HashMap<(&'static str, &'a NamespacedName), Place<'a>> = HashMap::new();
        for (_, content) in files {
            problems.extend(content.problems.iter().cloned());
            for object in &content.objects {
                let place = Place(&object.origin);
                match places.entry((object.body.kind(), &object.name)) {
                    hash_map::Entry::Vacant(entry) => {
                        entry.insert(place);
                        objects.add(place, object);
                    }
                    hash_map::Entry::Occupied(first) => {
                        let message = format!("is already in {}, which counts: remove one of the two", first.get().0);
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
            Body::Namespace(namespace) => drop(self.namespaces.insert(&name.name, *namespace)),
            Body::Node(locality) => drop(self.nodes.insert(&name.name, locality)),
            Body::Pod(pod) => drop(self.pods.insert(name, (place, pod))),
            Body::Service(service) => drop(self.services.insert(name, (place, service))),
            Body::Slice(slice) => drop(self.slices.insert(name, (place, slice))),
            Body::Entry(entry) => drop(self.entries.insert(name, (place, entry))),
            Body::Mesh(settings) => self.mesh = Some((place, object, settings)),
            Body::Authorization(policy) => drop(self.authorization.insert(name, (place, policy))),
            Body::PeerAuthentication(policy) => drop(self.authentication.insert(name, (place, policy))),
        }
    }

    fn root_namespace(&self) -> Arc<str> {
        let named = self.mesh.as_ref().and_then(|(_, _, settings)| settings.root_namespace.clone());
        named.unwrap_or_else(|| ROOT_NAMESPACE.into())
    }

    fn namespace(&self, name: &NamespacedName) -> NamespaceManifest {
        self.namespaces.get(&name.namespace).copied().unwrap_or_default()
    }

    fn workload(&self, pod: &PodManifest, trust_domain: &TrustDomain) -> Workload {
        let node = pod.workload.node.as_ref().and_then(|node| self.nodes.get(&**node)).copied();
        pod.workload(self.namespace(&pod.workload.name).labelled, node, trust_domain)
    }

    /// What the service's own distribution is, or else its namespace's.
    fn distribution(&self, own: Option<Distribution>, name: &NamespacedName) -> Distribution {
        own.or(self.namespace(name).distribution).unwrap_or(Distribution::Any)
    }

    /// Whose pods know a service: as it says itself, or else as the mesh does.
    fn visibility(&self, own: Option<&Visibility>, name: &NamespacedName) -> Visibility {
        let of_mesh = || {
            let (_, _, settings) = self.mesh.as_ref().filter(|(_, _, settings)| !settings.export_to.is_empty())?;
            Some(objects::visibility(settings.export_to.iter().map(String::as_str), &name.namespace).0)
        };
        own.cloned().or_else(of_mesh).unwrap_or(Visibility::Everyone)
    }

    /// A service without its endpoints.
    fn service(&self, name: &NamespacedName, manifest: &ServiceManifest) -> Service {
        Service {
            vips: manifest.vips.clone(),
            ports: manifest.ports.clone(),
            selector: manifest.selector.clone(),
            families: manifest.families,
            distribution: self.distribution(manifest.distribution, name),
            visibility: self.visibility(manifest.visibility.as_ref(), name),
            ..Service::new(name.clone(), format!("{}.{}.svc.cluster.local", name.name, name.namespace))
        }
    }

    /// Adds the services of the service entries. Told is a host name that is taken already in its namespace, and an
    /// address that is a pod's.
    fn add_entries(&self, pods: &Pods<'_>, services: &mut Vec<Service>, problems: &mut Vec<Problem>) {
        let mut taken: HashSet<(Arc<str>, Arc<str>)> = services
            .iter()
            .map(|service| (Arc::clone(&service.name.namespace), Arc::clone(&service.hostname)))
            .collect();
        for (name, (place, manifest)) in &self.entries {
            let mut endpoints = None;
            for host in &manifest.hosts {
                if !taken.insert((Arc::clone(&name.namespace), Arc::clone(host))) {
                    let message = format!(
                        "spec.hosts: {host} already belongs to another service of namespace {}; here it does not count",
                        name.namespace
                    );
                    problems.push(place.problem(title("ServiceEntry", name), message));
                    continue;
                }
                let mut service = self.entry(name, host, manifest);
                let endpoints = endpoints.get_or_insert_with(|| pods.of_entry(&service, &manifest.endpoints));
                service.endpoints = Arc::clone(endpoints);
                services.push(service);
            }
            for (address, pod) in manifest.vips.iter().filter_map(|address| Some((address, pods.owner(*address)?))) {
                let message = format!("spec.addresses: {address} is the address of Pod {}, which keeps it", pod.name);
                problems.push(place.problem(title("ServiceEntry", name), message));
            }
        }
    }

    /// A host's service without its endpoints.
    fn entry(&self, name: &NamespacedName, host: &Arc<str>, manifest: &EntryManifest) -> Service {
        Service {
            name: name.clone(),
            hostname: Arc::clone(host),
            kind: ServiceKind::Entry,
            vips: manifest.vips.clone(),
            ranges: manifest.ranges.clone(),
            ports: manifest.ports.clone(),
            resolution: manifest.resolution,
            endpoints: Arc::default(),
            selector: manifest.selector.clone(),
            families: Families::default(),
            distribution: self.distribution(manifest.distribution, name),
            visibility: self.visibility(manifest.visibility.as_ref(), name),
            identities: manifest.identities.clone(),
        }
    }

    fn slices_by_service(&self, problems: &mut Vec<Problem>) -> BTreeMap<&'a NamespacedName, Vec<&'a SliceManifest>> {
        let mut slices: BTreeMap<&NamespacedName, Vec<&SliceManifest>> = BTreeMap::new();
        for (name, (place, slice)) in &self.slices {
            if self.services.contains_key(&slice.service) {
                slices.entry(&slice.service).or_default().push(slice);
            } else {
                let message = format!("Service {} is in no file: the slice is ignored", slice.service);
                problems.push(place.problem(title("EndpointSlice", name), message));
            }
        }
        slices
    }

    /// Whether only known destinations may be reached; what else the settings say is compared.
    fn mesh_settings(&self, trust_domain: &TrustDomain, problems: &mut Vec<Problem>) -> bool {
        let Some((place, object, settings)) = &self.mesh else { return false };
        if let Some(named) = settings.trust_domain.as_ref().filter(|named| *named != trust_domain) {
            let message = format!(
                "data.mesh.trustDomain: {named} is not this daemon's trust domain, {trust_domain}, which counts: correct \
                 it here or with --trust-domain"
            );
            problems.push(place.problem(object.title(), message));
        }
        if let Some(alias) = settings.trust_domain_aliases.first() {
            let message = format!(
                "data.mesh.trustDomainAliases: {alias:?} does not count: principals are compared as they are; name each \
                 trust domain in policies, or write \"*/ns/NAMESPACE/sa/NAME\""
            );
            problems.push(place.problem(object.title(), message));
        }
        let (_, wrong) = objects::visibility(settings.export_to.iter().map(String::as_str), &object.name.namespace);
        for message in wrong {
            problems.push(place.problem(object.title(), format!("data.mesh.defaultServiceExportTo: {message}")));
        }
        settings.registry_only
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
