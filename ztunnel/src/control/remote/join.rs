//! Resources of a control plane, related to each other: services get the endpoints that workloads say they are, and workloads the
//! policies that they name.

mod apart;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use self::apart::Apart;
use crate::istio::read::{ATTACHED, Fronting, ServiceFacts, WorkloadFacts, attached};
use crate::model::gateway::Gateway;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, Rule};
use crate::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::{Change, ServiceKey, Setting};

/// All resources that could be read, by their names, and what has changed since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Joined {
    workloads: HashMap<Arc<str>, Held>,
    services: HashMap<ServiceKey, HeldService>,
    policies: HashSet<Arc<str>>,
    /// The workloads behind a service, whether it is there or not.
    members: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Services whose endpoints may be others now.
    dirty: BTreeSet<ServiceKey>,
    /// How many workloads name a policy, whether it is there or not.
    naming: HashMap<Arc<str>, usize>,
    /// Policies that workloads name, and that are not there.
    missing: BTreeSet<Arc<str>>,
    /// Those of them in whose place a policy stands that denies everything.
    closed: BTreeSet<Arc<str>>,
    namespaces: HashMap<Arc<str>, usize>,
    nodes: HashMap<Arc<str>, usize>,
    /// How many services and workloads pass through a waypoint.
    waypoints: BTreeMap<Gateway, usize>,
    apart: Apart,
    registry_only: bool,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Held {
    workload: Arc<Workload>,
    fronting: Box<[Fronting]>,
    weight: u32,
}

#[derive(Debug)]
struct HeldService {
    facts: ServiceFacts,
    /// With its endpoints, as it was published last.
    published: Option<Arc<Service>>,
}

impl Joined {
    /// Takes a workload over.
    pub(super) fn put_workload(&mut self, uid: &Arc<str>, facts: WorkloadFacts) {
        let WorkloadFacts { workload, fronting, weight, policies: _ } = facts;
        let held = Held { workload, fronting: fronting.into(), weight };
        let before = self.workloads.get(uid);
        if before.is_some_and(|before| {
            before.workload == held.workload && before.fronting == held.fronting && before.weight == held.weight
        }) {
            return;
        }
        if let Some(before) = before {
            self.apart.note(uid, &before.workload, false);
        }
        self.apart.note(uid, &held.workload, true);
        let shown = self.apart.shown(uid, &held.workload);
        self.note(uid, &held, true);
        if let Some(before) = self.workloads.insert(Arc::clone(uid), held) {
            let is_renamed = before.workload.name != shown.name;
            self.note(uid, &before, false);
            // The new one may be behind services of the old one.
            let now = self.workloads.get(uid).map(|held| held.fronting.clone()).unwrap_or_default();
            now.iter().for_each(|fronting| self.behind(&fronting.service, uid, true));
            if is_renamed {
                self.changes.push(Change::WorkloadGone(before.workload.name.clone()));
            }
        }
        self.changes.push(Change::Workload(shown));
    }

    /// Takes a service over.
    pub(super) fn put_service(&mut self, facts: ServiceFacts) {
        let key = ServiceKey::of(&facts.service);
        let before = self.services.get(&key);
        if before.is_some_and(|before| before.facts == facts) {
            return;
        }
        count(&mut self.waypoints, facts.service.waypoint.as_deref(), true);
        let published = before.and_then(|before| before.published.clone());
        let before = self.services.insert(key.clone(), HeldService { facts, published });
        count(&mut self.waypoints, before.and_then(|before| before.facts.service.waypoint.clone()).as_deref(), false);
        self.dirty.insert(key);
    }

    /// Takes a policy over.
    pub(super) fn put_policy(&mut self, name: &Arc<str>, policy: AuthorizationPolicy) {
        self.policies.insert(Arc::clone(name));
        self.missing.remove(name);
        self.closed.remove(name);
        self.changes.push(Change::Authorization(Arc::new(policy)));
    }

    /// Takes a setting of the whole mesh over.
    pub(super) fn put_setting(&mut self, setting: Setting) {
        let Setting::RegistryOnly(registry_only) = setting;
        if std::mem::replace(&mut self.registry_only, registry_only) != registry_only {
            self.changes.push(Change::Setting(setting));
        }
    }

    /// Takes a workload or a service away. Whether it was there.
    pub(super) fn remove_address(&mut self, name: &str) -> bool {
        if let Some((uid, held)) = self.workloads.remove_entry(name) {
            self.apart.note(&uid, &held.workload, false);
            self.note(&uid, &held, false);
            self.changes.push(Change::WorkloadGone(held.workload.name.clone()));
            return true;
        }
        let Some((namespace, hostname)) = name.split_once('/') else { return false };
        let key = ServiceKey { namespace: namespace.into(), hostname: hostname.to_ascii_lowercase().into() };
        let Some(held) = self.services.remove(&key) else { return false };
        count(&mut self.waypoints, held.facts.service.waypoint.as_deref(), false);
        if held.published.is_some() {
            self.changes.push(Change::ServiceGone(key));
        }
        true
    }

    /// Takes a policy away. Whether it was there.
    pub(super) fn remove_policy(&mut self, name: &str) -> bool {
        let Some(name) = self.policies.take(name) else { return false };
        self.changes.push(Change::AuthorizationGone(named(&name)));
        if self.naming.contains_key(&name) {
            self.missing.insert(name);
        }
        true
    }

    /// Whether a workload names a policy that is not there, and this is not known yet.
    pub(super) fn waits(&self) -> bool {
        self.missing.iter().any(|name| !self.closed.contains(name))
    }

    /// Policies that workloads name, and that are not there.
    pub(super) fn missing(&self) -> &BTreeSet<Arc<str>> {
        &self.missing
    }

    /// Waypoints, and how many services and workloads pass through each.
    pub(super) fn waypoints(&self) -> impl Iterator<Item = (&Gateway, usize)> {
        self.waypoints.iter().map(|(waypoint, count)| (waypoint, *count))
    }

    /// How many workloads and services there are.
    pub(super) fn addresses(&self) -> usize {
        self.workloads.len() + self.services.len()
    }

    /// How many policies there are.
    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }

    /// What has changed since this was asked last.
    pub(super) fn take(&mut self) -> Vec<Change> {
        let workloads = self.workloads.iter().map(|(uid, held)| (uid, &held.workload));
        self.apart.decide(workloads, &mut self.changes);
        for key in std::mem::take(&mut self.dirty) {
            self.join(&key);
        }
        self.close();
        std::mem::take(&mut self.changes)
    }

    /// A service as it is now.
    fn join(&mut self, key: &ServiceKey) {
        let Some(held) = self.services.get(key) else { return };
        let endpoints = self.endpoints(key, &held.facts);
        let is_same = |published: &Arc<Service>| {
            published.endpoints == endpoints
                && **published
                    == Service { endpoints: Arc::clone(&published.endpoints), ..Service::clone(&held.facts.service) }
        };
        if held.published.as_ref().is_some_and(is_same) {
            return;
        }
        let service = Arc::new(Service { endpoints, ..Service::clone(&held.facts.service) });
        if let Some(held) = self.services.get_mut(key) {
            held.published = Some(Arc::clone(&service));
        }
        self.changes.push(Change::Service(service));
    }

    fn endpoints(&self, key: &ServiceKey, facts: &ServiceFacts) -> Arc<[Endpoint]> {
        let service = &facts.service;
        let mut endpoints = Vec::new();
        for held in self.members.get(key).into_iter().flatten().filter_map(|uid| self.workloads.get(uid)) {
            let fronting = held.fronting.iter().find(|fronting| fronting.service == *key);
            let own = fronting.map(|fronting| &*fronting.ports).unwrap_or_default();
            let ports: BTreeMap<u16, u16> =
                service.ports.iter().filter_map(|port| Some((port.port, target(port, own)?))).collect();
            let workload = &held.workload;
            let is_healthy = workload.ready || facts.every_endpoint_ready;
            let of_family = workload.addresses.iter().filter(|address| service.families.include(**address));
            endpoints.extend(of_family.map(|address| Endpoint {
                address: *address,
                ports: ports.clone(),
                health: if is_healthy { Health::Ready } else { Health::Unready },
                workload: Some(workload.name.clone()),
                weight: held.weight,
                node: workload.node.clone(),
                locality: workload.locality.clone(),
            }));
        }
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.into()
    }

    /// A policy that is named and not there may deny anything, so everything is denied in its place.
    fn close(&mut self) {
        let gone: Vec<Arc<str>> = self.closed.difference(&self.missing).cloned().collect();
        for name in gone {
            self.closed.remove(&name);
            self.changes.push(Change::AuthorizationGone(named(&name)));
        }
        for name in &self.missing {
            if self.closed.insert(Arc::clone(name)) {
                self.changes.push(Change::Authorization(Arc::new(AuthorizationPolicy {
                    name: named(name),
                    origin: Origin::Resource { name: Arc::clone(name) },
                    scope: attached(Arc::clone(name), ATTACHED.into()),
                    action: Action::Deny,
                    dry_run: false,
                    rules: vec![Rule::default()],
                })));
            }
        }
    }

    /// Notes in the indexes what a workload says, or said.
    fn note(&mut self, uid: &Arc<str>, held: &Held, is_in: bool) {
        let workload = &held.workload;
        held.fronting.iter().for_each(|fronting| self.behind(&fronting.service, uid, is_in));
        for (policy, _) in &workload.labels {
            match step(&mut self.naming, policy, is_in) {
                Some(true) if !self.policies.contains(policy) => drop(self.missing.insert(Arc::clone(policy))),
                Some(false) => drop(self.missing.remove(policy)),
                Some(true) | None => {}
            }
        }
        let namespace = &workload.name.namespace;
        match step(&mut self.namespaces, namespace, is_in) {
            Some(true) => self.changes.push(Change::Namespace(Arc::clone(namespace))),
            Some(false) => self.changes.push(Change::NamespaceGone(Arc::clone(namespace))),
            None => {}
        }
        if let Some(node) = &workload.node {
            match step(&mut self.nodes, node, is_in) {
                Some(true) => self.changes.push(Change::Node(Arc::clone(node))),
                Some(false) => self.changes.push(Change::NodeGone(Arc::clone(node))),
                None => {}
            }
        }
        count(&mut self.waypoints, workload.waypoint.as_deref(), is_in);
    }

    fn behind(&mut self, service: &ServiceKey, uid: &Arc<str>, is_in: bool) {
        self.dirty.insert(service.clone());
        if is_in {
            self.members.entry(service.clone()).or_default().insert(Arc::clone(uid));
        } else if let Some(members) = self.members.get_mut(service) {
            members.remove(uid);
            if members.is_empty() {
                self.members.remove(service);
            }
        }
    }
}

/// The name of a policy, from that of its resource.
fn named(resource: &str) -> NamespacedName {
    let (namespace, name) = resource.split_once('/').unwrap_or(("", resource));
    NamespacedName::new(namespace, name)
}

/// The workload's own port for a service's, or the service's target port.
fn target(port: &ServicePort, own: &[(u16, u16)]) -> Option<u16> {
    let given = own.iter().find(|(from, _)| *from == port.port).map(|(_, to)| *to);
    given.or(match port.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Name(_) => None,
    })
}

/// Counts up or down. `Some(true)`: it is there from now on; `Some(false)`: it is not any more.
fn step<K: Clone + Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K, is_in: bool) -> Option<bool> {
    if is_in {
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        return (*count == 1).then_some(true);
    }
    let count = counts.get_mut(key)?;
    *count = count.saturating_sub(1);
    if *count > 0 {
        return None;
    }
    counts.remove(key);
    Some(false)
}

fn count(counts: &mut BTreeMap<Gateway, usize>, waypoint: Option<&Gateway>, is_in: bool) {
    let Some(waypoint) = waypoint else { return };
    match counts.entry(waypoint.clone()) {
        Entry::Vacant(place) if is_in => drop(place.insert(1)),
        Entry::Occupied(mut place) if is_in => *place.get_mut() += 1,
        Entry::Occupied(mut place) if *place.get() > 1 => *place.get_mut() -= 1,
        Entry::Occupied(place) => drop(place.remove()),
        Entry::Vacant(_) => {}
    }
}
