//! Finds the workloads and services whose messages a batch of changes may change. Some of them may have the same
//! message as before; none is missed (a property test compares with a catalogue in which everything is made again).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{served, touched::Touched};
use crate::{
    model::{
        labels::Labels,
        policy::{AuthorizationPolicy, PeerAuthentication, Scope},
        service::{Endpoint, Service},
        workload::{NamespacedName, Workload},
    },
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// The names of workloads, by namespace.
type Names = HashMap<Arc<str>, BTreeSet<Arc<str>>>;

/// The objects whose messages are made again.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    pub(super) workloads: BTreeSet<NamespacedName>,
    pub(super) services: BTreeSet<ServiceKey>,
}

impl Concerned {
    /// The objects that changes between two states concern. `names`: the workloads of the later state.
    pub(super) fn by(touched: &Touched, before: &Snapshot, after: &Snapshot, names: &Names) -> Self {
        let workloads = touched.workloads.clone();
        let mut concerned = Self { workloads, services: touched.services.clone() };
        for name in &touched.workloads {
            concerned.services_of(name, before, after);
        }
        let lookup = Lookup { mesh: after, names };
        for key in &touched.services {
            concerned.behind(before.service(key), after.service(key), before, &lookup);
        }
        for name in &touched.authorization {
            let policies = [before, after].map(|mesh| mesh.policies().authorization_named(name));
            concerned.authorized(policies, [before, after], &lookup);
        }
        for name in &touched.authentication {
            let policies = [before, after].map(|mesh| mesh.policies().authentication_named(name));
            concerned.authenticated(policies, &lookup);
        }
        concerned
    }

    /// Adds the services whose messages or endpoints depend on a workload: on its readiness and its addresses.
    fn services_of(&mut self, name: &NamespacedName, before: &Snapshot, after: &Snapshot) {
        let (was, is) = (before.workload(name), after.workload(name));
        let facts = |workload: Option<&Arc<Workload>>| {
            let told = |workload: &Arc<Workload>| served::workload(workload).then(|| workload.addresses.clone());
            workload.map(|workload| (workload.ready, workload.own_addresses().to_vec(), told(workload)))
        };
        if facts(was) != facts(is) {
            let services = [before, after].map(|mesh| mesh.services_of(name));
            self.services.extend(services.into_iter().flatten().map(|service| ServiceKey::of(service)));
        }
    }

    /// Adds the workloads that the change of a service concerns.
    fn behind(
        &mut self,
        was: Option<&Arc<Service>>,
        is: Option<&Arc<Service>>,
        before: &Snapshot,
        lookup: &Lookup<'_>,
    ) {
        let is_same_service = |one: &Arc<Service>, other: &Arc<Service>| {
            one.visibility == other.visibility && one.ports == other.ports && one.selector == other.selector
        };
        let is_same = matches!((was, is), (Some(was), Some(is)) if is_same_service(was, is));
        let of = |service: Option<&Arc<Service>>| {
            let mut endpoints: BTreeMap<NamespacedName, Vec<Endpoint>> = BTreeMap::new();
            for endpoint in service.iter().flat_map(|service| service.endpoints.iter()) {
                if let Some(workload) = &endpoint.workload {
                    endpoints.entry(workload.clone()).or_default().push(endpoint.clone());
                }
            }
            endpoints
        };
        let mut gone = of(was);
        for (name, endpoints) in of(is) {
            if gone.remove(&name).as_ref() != Some(&endpoints) || !is_same {
                self.workloads.insert(name);
            }
        }
        self.workloads.extend(gone.into_keys());
        if !is_same && [before, lookup.mesh].iter().any(|mesh| mesh.policies().name_services()) {
            for service in was.into_iter().chain(is).filter(|service| !service.selector.is_empty()) {
                self.workloads.extend(lookup.selected(Some(&service.name.namespace), &service.selector));
            }
        }
    }

    /// Adds the workloads that name a policy, or named it before.
    fn authorized(
        &mut self,
        policies: [Option<&Arc<AuthorizationPolicy>>; 2],
        meshes: [&Snapshot; 2],
        lookup: &Lookup<'_>,
    ) {
        let [was, is] = policies;
        let facts = |policy: &Arc<AuthorizationPolicy>| (policy.scope.clone(), policy.action, policy.dry_run);
        let is_named_alike = was.map(facts) == is.map(facts);
        let name_services = meshes.iter().any(|mesh| mesh.policies().name_services());
        for policy in was.into_iter().chain(is) {
            match &policy.scope {
                Scope::Selector { namespace, labels } if !is_named_alike => {
                    self.workloads.extend(lookup.selected(namespace.as_ref(), labels));
                }
                // The policy decides whether the ports are open to which no policy of a service applies.
                Scope::Mesh if name_services && !is_named_alike => self.workloads.extend(lookup.all()),
                Scope::Namespace(namespace) if name_services && !is_named_alike => {
                    self.workloads.extend(lookup.of(namespace));
                }
                Scope::Services(names) => {
                    for service in names {
                        let found = meshes.iter().filter_map(|mesh| mesh.kubernetes_service(service));
                        for service in found {
                            let endpoints = service.endpoints.iter();
                            self.workloads.extend(endpoints.filter_map(|endpoint| endpoint.workload.clone()));
                            if !service.selector.is_empty() {
                                self.workloads
                                    .extend(lookup.selected(Some(&service.name.namespace), &service.selector));
                            }
                        }
                    }
                }
                Scope::Selector { .. } | Scope::Mesh | Scope::Namespace(_) => {}
            }
        }
    }

    /// Adds the workloads to which a PeerAuthentication applies, or applied before.
    fn authenticated(&mut self, policies: [Option<&Arc<PeerAuthentication>>; 2], lookup: &Lookup<'_>) {
        for policy in policies.into_iter().flatten() {
            match &policy.scope {
                Scope::Mesh => self.workloads.extend(lookup.all()),
                Scope::Namespace(namespace) => self.workloads.extend(lookup.of(namespace)),
                Scope::Selector { namespace, labels } => {
                    self.workloads.extend(lookup.selected(namespace.as_ref(), labels));
                }
                Scope::Services(_) => {}
            }
        }
    }
}

/// Finds workloads.
struct Lookup<'a> {
    mesh: &'a Snapshot,
    names: &'a Names,
}

impl<'a> Lookup<'a> {
    fn all(&self) -> impl Iterator<Item = NamespacedName> + use<'a> {
        self.names.iter().flat_map(|(namespace, names)| {
            names.iter().map(|name| NamespacedName::new(Arc::clone(namespace), Arc::clone(name)))
        })
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = NamespacedName> + use<'a> {
        let found = self.names.get_key_value(namespace);
        found.into_iter().flat_map(|(namespace, names)| {
            names.iter().map(|name| NamespacedName::new(Arc::clone(namespace), Arc::clone(name)))
        })
    }

    /// The workloads with these labels, in one namespace or (`None`) in all.
    fn selected(&self, namespace: Option<&Arc<str>>, labels: &Labels) -> Vec<NamespacedName> {
        let candidates: Vec<NamespacedName> = match namespace {
            Some(namespace) => self.of(namespace).collect(),
            None => self.all().collect(),
        };
        let is_meant =
            |name: &NamespacedName| self.mesh.workload(name).is_some_and(|workload| workload.labels.include(labels));
        candidates.into_iter().filter(is_meant).collect()
    }
}
