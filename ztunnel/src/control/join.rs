//! Joins objects to workloads, services and policies, and follows their changes. Only what a change concerns is joined
//! again.
//!
//! The meaning of a Pod depends on its Namespace and its Node; the endpoints of a Service depend on Pods and
//! EndpointSlices. Each change notes what has to be joined again (`Dirty`); [`Joiner::take`] does so and yields the
//! difference. Changes that come rarely (a namespace's label, a node's labels, the mesh's settings) go through all
//! objects that they may concern.
//!
//! Objects may come in any order: the result is the same.

mod budget;
mod endpoints;
mod few;
mod members;
mod pods;
mod policies;
mod problems;
mod selection;
mod services;
mod table;
mod unenforced;
mod wide;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use self::budget::Budget;
use self::few::Few;
use self::selection::{Fronting, Named, Selection};
use self::table::{Key, Said, Table};
use super::objects::{
    AuthorizationManifest, Body, EndpointsManifest, EntryManifest, MeshSettings, NamespaceManifest, NodeManifest,
    Object, PeerAuthenticationManifest, PodManifest, ROOT_NAMESPACE, ServiceManifest, SliceManifest, Unenforced,
};
use crate::model::identity::TrustDomain;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::locality::Locality;
use crate::model::origin::Origin;
use crate::model::problem::Problem;
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::{Change, ServiceKey};
use crate::store::holders::Holders;

pub use self::table::Voice;

/// All objects, and what has been made of them.
#[derive(Debug)]
pub struct Joiner {
    trust_domain: TrustDomain,
    /// The node for whose pods local facts are kept; `None`: for all pods.
    node: Option<Arc<str>>,
    voices: BTreeMap<Arc<Voice>, Speech>,

    namespaces: Table<NamespaceManifest>,
    nodes: Table<Arc<NodeManifest>>,
    pods: Table<Arc<PodManifest>>,
    services: Table<Arc<ServiceManifest>>,
    slices: Table<Arc<SliceManifest>>,
    entries: Table<Arc<EntryManifest>>,
    settings: Table<Arc<MeshSettings>>,
    authorization: Table<Arc<AuthorizationManifest>>,
    authentication: Table<Arc<PeerAuthenticationManifest>>,
    /// Endpoints of services without a selector, by the name of the service.
    endpoints: Table<Arc<EndpointsManifest>>,
    /// A Pod of the same name takes precedence.
    workload_entries: Table<Arc<PodManifest>>,
    unenforced: unenforced::Tables,

    local: LocalPods,
    /// Stands in for the local facts of pods of other nodes.
    no_local: Arc<LocalPod>,
    pods_joined: HashMap<NamespacedName, JoinedPod>,
    services_joined: HashMap<ServiceKey, Arc<Service>>,
    budget: Budget,
    holders: Holders,
    /// The pods with `hostNetwork`, and WorkloadEntries, by their addresses.
    on_hosts: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    /// Kubernetes services by their cluster IPs.
    vips: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    contested: BTreeMap<IpAddr, Vec<NamespacedName>>,
    /// Kubernetes services by the external addresses that lead to them.
    external: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    /// The addresses of nodes, and the number of objects that name each.
    on_nodes: HashMap<IpAddr, usize>,

    selection: Selection,
    slices_of: BTreeMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The objects that name an address among their endpoints: ServiceEntries, EndpointSlices and Endpoints.
    naming: HashMap<IpAddr, Few<Key>>,
    /// The entries that name a host.
    hosts: HashMap<ServiceKey, BTreeSet<NamespacedName>>,
    /// The entries that name an address.
    entry_vips: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    /// The AuthorizationPolicies that name a service.
    targeting: HashMap<NamespacedName, BTreeSet<NamespacedName>>,

    problems: BTreeMap<Subject, Vec<Problem>>,
    dirty: Dirty,
}

/// The objects and problems of one voice.
#[derive(Debug, Default)]
struct Speech {
    keys: Box<[Key]>,
    problems: Vec<Problem>,
}

/// A joined pod, with the facts that services need.
#[derive(Debug, Clone, PartialEq)]
struct JoinedPod {
    workload: Arc<Workload>,
    /// The pod is being deleted and still takes connections.
    draining: bool,
    /// Its weight as an endpoint.
    weight: u32,
}

/// The subject of problems that are found only when objects are joined.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// Several objects have one name.
    Duplicates(Key),
    /// The memory that the services of a namespace take.
    Budget(Arc<str>),
    /// Addresses that several pods claim.
    Contested,
    Service(NamespacedName),
    Slice(NamespacedName),
    Endpoints(NamespacedName),
    WorkloadEntry(NamespacedName),
    /// A kind that is not enforced here, in a namespace.
    Unenforced(Unenforced, Arc<str>),
    Entry(NamespacedName),
    Authorization(NamespacedName),
    /// All PeerAuthentications: which of several is in force depends on the others.
    Authentication,
    Settings,
}

/// The objects that have to be joined again.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<NamespacedName>,
    fronting: BTreeSet<Fronting>,
    /// Labels that a selector names now, and none did before.
    labels_named: BTreeSet<Named>,
    /// Labels named by selectors that pods have got or lost.
    labels_moved: BTreeSet<Named>,
    /// The number of selectors with which the changed pods of a namespace were compared.
    compared: HashMap<Arc<str>, usize>,
    keys: BTreeSet<ServiceKey>,
    authorization: BTreeSet<NamespacedName>,
    authentication: BTreeSet<NamespacedName>,
    subjects: BTreeSet<Subject>,
    /// Addresses whose owner may have changed: the objects that name them have to be joined again.
    moved: BTreeSet<IpAddr>,
    /// Changes that need no joining.
    changes: Vec<Change>,
    /// The problems that a voice reports itself have changed.
    problems: bool,
    local: bool,
}

/// The difference that some changes make.
#[derive(Debug, Default)]
pub struct Joined {
    /// The changes.
    pub changes: Vec<Change>,
    /// Whether [`Joiner::problems`] has changed.
    pub problems: bool,
    /// Whether [`Joiner::local`] has changed.
    pub local: bool,
}

impl Joiner {
    /// Identities get the given trust domain. Local facts are kept for the pods of one node, or (`None`) of all nodes.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, node: Option<Arc<str>>) -> Self {
        Self {
            trust_domain,
            node,
            voices: BTreeMap::new(),
            namespaces: Table::default(),
            nodes: Table::default(),
            pods: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            entries: Table::default(),
            settings: Table::default(),
            authorization: Table::default(),
            authentication: Table::default(),
            endpoints: Table::default(),
            workload_entries: Table::default(),
            unenforced: unenforced::Tables::default(),
            local: LocalPods::new(),
            no_local: Arc::default(),
            pods_joined: HashMap::new(),
            services_joined: HashMap::new(),
            budget: Budget::default(),
            holders: Holders::default(),
            on_hosts: HashMap::new(),
            vips: HashMap::new(),
            contested: BTreeMap::new(),
            external: HashMap::new(),
            on_nodes: HashMap::new(),
            selection: Selection::default(),
            slices_of: BTreeMap::new(),
            naming: HashMap::new(),
            hosts: HashMap::new(),
            entry_vips: HashMap::new(),
            targeting: HashMap::new(),
            problems: BTreeMap::new(),
            dirty: Dirty::default(),
        }
    }

    /// Sets the budget of each namespace for its services.
    #[cfg(test)]
    pub(in crate::control) fn with_budget(mut self, most: usize) -> Self {
        self.budget = Budget::of(most);
        self
    }

    /// Replaces the objects and the problems of a voice.
    pub(in crate::control) fn say(&mut self, voice: &Voice, objects: Vec<Object>, problems: Vec<Problem>) {
        let mut said: BTreeMap<Key, Vec<(Origin, Body)>> = BTreeMap::new();
        for Object { name, origin, body } in objects {
            said.entry((body.kind(), name)).or_default().push((origin, body));
        }
        let (voice, speech) = match self.voices.remove_entry(voice) {
            Some((voice, speech)) => (voice, speech),
            None => (Arc::new(voice.clone()), Speech::default()),
        };
        self.dirty.problems |= speech.problems != problems;
        let keys: BTreeSet<Key> = said.keys().cloned().collect();
        for key in speech.keys.iter().filter(|key| !keys.contains(*key)) {
            self.replace(key, &voice, Vec::new());
        }
        // Selectors come before the pods that they may match: then each pod looks for its services, and no service goes
        // through all pods.
        let (pods, others): (Vec<_>, Vec<_>) =
            said.into_iter().partition(|((kind, _), _)| matches!(*kind, "Pod" | "WorkloadEntry"));
        for (key, said) in others.into_iter().chain(pods) {
            self.replace(&key, &voice, said);
        }
        if !keys.is_empty() || !problems.is_empty() {
            self.voices.insert(voice, Speech { keys: keys.into_iter().collect(), problems });
        }
    }

    /// Keeps the objects of a voice in force after the voice has disappeared. They rank behind the objects of all other
    /// voices.
    pub fn keep(&mut self, name: &Arc<str>) {
        let [here, gone] = [false, true].map(|is_gone| Voice { is_gone, name: Arc::clone(name) });
        let Some(speech) = self.voices.get(&here) else { return };
        let problems = speech.problems.clone();
        let objects = self.said(&here);
        self.say(&gone, objects, problems);
        self.silence(&here);
    }

    /// The objects of a voice.
    pub(in crate::control) fn said(&self, voice: &Voice) -> Vec<Object> {
        let mut objects = Vec::new();
        for key in self.voices.get(voice).into_iter().flat_map(|speech| &speech.keys) {
            let (kind, name) = key;
            macro_rules! add {
                ($table:ident, $body:ident) => {
                    objects.extend(self.$table.of(name, voice).map(|said| Object {
                        name: name.clone(),
                        origin: said.place.origin.clone(),
                        body: Body::$body(said.body.clone()),
                    }))
                };
            }
            match *kind {
                "Namespace" => add!(namespaces, Namespace),
                "Node" => add!(nodes, Node),
                "Pod" => add!(pods, Pod),
                "Service" => add!(services, Service),
                "EndpointSlice" => add!(slices, Slice),
                "ServiceEntry" => add!(entries, Entry),
                "ConfigMap" => add!(settings, Mesh),
                "AuthorizationPolicy" => add!(authorization, Authorization),
                "PeerAuthentication" => add!(authentication, PeerAuthentication),
                "Endpoints" => add!(endpoints, Endpoints),
                "WorkloadEntry" => add!(workload_entries, WorkloadEntry),
                _ => objects.extend(self.unenforced.said(key, voice)),
            }
        }
        objects
    }

    /// Removes all objects of a voice.
    pub fn silence(&mut self, voice: &Voice) {
        self.say(voice, Vec::new(), Vec::new());
    }

    /// The difference since the last call.
    pub fn take(&mut self) -> Joined {
        let mut changes = std::mem::take(&mut self.dirty.changes);
        // In this order: each step may mark more objects for the next.
        self.find_bearers();
        self.join_pods(&mut changes);
        self.join_services(&mut changes);
        self.join_policies(&mut changes);
        self.dirty.compared.clear();
        let problems = self.find_problems();
        Joined { changes, problems, local: std::mem::take(&mut self.dirty.local) }
    }

    /// All problems of the objects, in order.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let own = self.voices.values().flat_map(|speech| &speech.problems);
        let mut all: Vec<Problem> = own.chain(self.problems.values().flatten()).cloned().collect();
        all.sort();
        all
    }

    /// The facts in manifests of pods that only the pods' own node needs.
    #[must_use]
    pub fn local(&self) -> &LocalPods {
        &self.local
    }

    /// The namespace whose policies apply to the whole mesh.
    #[must_use]
    pub fn root_namespace(&self) -> Arc<str> {
        let named = self.settings().and_then(|(_, settings)| settings.body.root_namespace.clone());
        named.unwrap_or_else(|| ROOT_NAMESPACE.into())
    }

    /// Whether there is any valid object.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        self.voices.values().any(|speech| !speech.keys.is_empty())
    }

    /// The namespaces for which there is a Namespace object.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.iter().map(|(name, _)| &name.name)
    }

    /// Where each object comes from, by kind and name.
    #[must_use]
    pub fn origins(&self) -> HashMap<Key, Origin> {
        let mut origins = HashMap::new();
        for key in self.voices.values().flat_map(|speech| &speech.keys) {
            origins.extend(self.origin(key).map(|origin| (key.clone(), origin)));
        }
        origins
    }

    fn origin(&self, key: &Key) -> Option<Origin> {
        let (kind, name) = key;
        let place = match *kind {
            "Namespace" => &self.namespaces.get(name)?.place,
            "Node" => &self.nodes.get(name)?.place,
            "Pod" => &self.pods.get(name)?.place,
            "Service" => &self.services.get(name)?.place,
            "EndpointSlice" => &self.slices.get(name)?.place,
            "ServiceEntry" => &self.entries.get(name)?.place,
            "ConfigMap" => &self.settings.get(name)?.place,
            "AuthorizationPolicy" => &self.authorization.get(name)?.place,
            "PeerAuthentication" => &self.authentication.get(name)?.place,
            "Endpoints" => &self.endpoints.get(name)?.place,
            "WorkloadEntry" => &self.workload_entries.get(name)?.place,
            _ => self.unenforced.place(key)?,
        };
        Some(place.origin.clone())
    }

    fn settings(&self) -> Option<(&NamespacedName, &Said<Arc<MeshSettings>>)> {
        self.settings.iter().next()
    }

    fn namespace(&self, name: &NamespacedName) -> NamespaceManifest {
        let key = NamespacedName::new("", Arc::clone(&name.namespace));
        self.namespaces.get(&key).map(|said| said.body).unwrap_or_default()
    }

    fn node(&self, name: &str) -> Option<&Locality> {
        self.nodes.get(&NamespacedName::new("", name)).map(|said| &said.body.locality)
    }

    /// Replaces the versions of an object that a voice has, and notes what has to be joined again.
    fn replace(&mut self, key: &Key, voice: &Arc<Voice>, said: Vec<(Origin, Body)>) {
        macro_rules! table {
            ($table:ident, $body:ident) => {{
                let said = said.into_iter().filter_map(|(origin, body)| {
                    let Body::$body(body) = body else { return None };
                    Some(Said { place: table::Provenance { voice: Arc::clone(voice), origin }, body })
                });
                let said = said.collect();
                self.$table.replace(&key.1, voice, said)
            }};
        }
        let name = &key.1;
        let had_others = self.has_others(key);
        match key.0 {
            "Namespace" => {
                let replaced = table!(namespaces, Namespace);
                replaced.into_iter().for_each(|replaced| self.namespace_replaced(name, &replaced));
            }
            "Node" => {
                let replaced = table!(nodes, Node);
                replaced.into_iter().for_each(|replaced| self.node_replaced(name, &replaced));
            }
            "Pod" => {
                let replaced = table!(pods, Pod);
                self.dirty.pods.extend(replaced.map(|_| name.clone()));
                if self.workload_entries.get(name).is_some() {
                    self.dirty.subjects.insert(Subject::WorkloadEntry(name.clone()));
                }
            }
            "Service" => {
                let replaced = table!(services, Service);
                replaced.into_iter().for_each(|replaced| self.service_replaced(name, &replaced));
            }
            "EndpointSlice" => {
                let replaced = table!(slices, Slice);
                replaced.into_iter().for_each(|replaced| self.slice_replaced(name, &replaced));
            }
            "ServiceEntry" => {
                let replaced = table!(entries, Entry);
                replaced.into_iter().for_each(|replaced| self.entry_replaced(name, &replaced));
            }
            "ConfigMap" => {
                let replaced = table!(settings, Mesh);
                replaced.into_iter().for_each(|replaced| self.settings_replaced(&replaced));
            }
            "AuthorizationPolicy" => {
                let replaced = table!(authorization, Authorization);
                replaced.into_iter().for_each(|replaced| self.authorization_replaced(name, &replaced));
            }
            "PeerAuthentication" => {
                let replaced = table!(authentication, PeerAuthentication);
                self.dirty.subjects.extend(replaced.iter().map(|_| Subject::Authentication));
                self.dirty.authentication.extend(replaced.map(|_| name.clone()));
            }
            "Endpoints" => {
                let replaced = table!(endpoints, Endpoints);
                replaced.into_iter().for_each(|replaced| self.endpoints_replaced(name, &replaced));
            }
            "WorkloadEntry" => {
                let replaced = table!(workload_entries, WorkloadEntry);
                self.dirty.pods.extend(replaced.map(|_| name.clone()));
                self.dirty.subjects.insert(Subject::WorkloadEntry(name.clone()));
            }
            _ => {
                let kinds = self.unenforced.replace(key, voice, &said);
                let subjects = kinds.into_iter().map(|kind| Subject::Unenforced(kind, Arc::clone(&name.namespace)));
                self.dirty.subjects.extend(subjects);
            }
        }
        if had_others || self.has_others(key) {
            self.dirty.subjects.insert(Subject::Duplicates(key.clone()));
        }
    }
}
