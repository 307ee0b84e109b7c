//! Joins the resources of a control plane: services get their endpoints from the workloads that name them, and workloads get
//! the policies that they name.
//!
//! A control plane of this project describes the mesh twice: by Istio's messages, and exactly, by details beside Istio's
//! messages. The exact description is used when it is complete. Otherwise the description by Istio's messages is used, which
//! leads to the same decisions.

mod apart;
mod held;
mod objects;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use self::apart::Apart;
pub(super) use self::held::View;
use self::held::{Held, exactly, in_istios_words};
use self::objects::{Effect, Objects};
use crate::istio::read::{ATTACHED, ObjectFacts, ServiceFacts, WorkloadFacts, attached};
use crate::model::gateway::Gateway;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, Rule};
use crate::model::service::Service;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::{Change, ServiceKey, Setting};

/// All readable resources, by their names, and the changes since the last call of [`Joined::take`].
#[derive(Debug, Default)]
pub(super) struct Joined {
    workloads: HashMap<Arc<str>, Held>,
    services: HashMap<ServiceKey, ServiceFacts>,
    /// The policies of Istio's messages.
    policies: HashMap<Arc<str>, Arc<AuthorizationPolicy>>,
    objects: Objects,
    /// The number of workloads and services without details from the control plane.
    lacking: usize,
    /// The description in use.
    view: View,
    /// The services as last published.
    published: HashMap<ServiceKey, Arc<Service>>,
    /// The workloads behind a service, whether the service exists or not.
    members: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Services whose endpoints may have changed.
    dirty: BTreeSet<ServiceKey>,
    /// The number of workloads that name a policy, whether the policy exists or not.
    naming: HashMap<Arc<str>, usize>,
    /// Policies that workloads name but that do not exist.
    missing: BTreeSet<Arc<str>>,
    /// The missing policies that are replaced by a policy that denies everything.
    closed: BTreeSet<Arc<str>>,
    namespaces: HashMap<Arc<str>, usize>,
    nodes: HashMap<Arc<str>, usize>,
    /// The number of services and workloads behind each waypoint.
    waypoints: BTreeMap<Gateway, usize>,
    apart: Apart,
    registry_only: bool,
    changes: Vec<Change>,
}

/// The result of [`Joined::take`].
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) changes: Vec<Change>,
    /// The changes describe the whole mesh, because the other description is used from now on.
    pub(super) is_whole: bool,
}

impl Joined {
    /// Adds or replaces a workload.
    pub(super) fn put_workload(&mut self, uid: &Arc<str>, facts: WorkloadFacts) {
        let held = Held::of(facts);
        let before = self.workloads.get(uid);
        if before.is_some_and(|before| *before == held) {
            return;
        }
        if let Some(before) = before {
            self.apart.note(uid, &before.workload, false);
        }
        self.apart.note(uid, &held.workload, true);
        let shown = self.shown(uid, &held);
        self.note(uid, &held, true);
        if let Some(before) = self.workloads.insert(Arc::clone(uid), held) {
            self.note(uid, &before, false);
            // The new workload may be behind services of the old one.
            let now: Vec<ServiceKey> =
                self.workloads.get(uid).map(|held| held.services().cloned().collect()).unwrap_or_default();
            now.iter().for_each(|service| self.behind(service, uid, true));
            let was = self.shown(uid, &before);
            if let Some(was) = was.filter(|was| shown.as_ref().is_none_or(|shown| shown.name != was.name)) {
                self.changes.push(Change::WorkloadGone(was.name.clone()));
            }
        }
        self.changes.extend(shown.map(Change::Workload));
    }

    /// A workload as it is published.
    fn shown(&self, uid: &Arc<str>, held: &Held) -> Option<Arc<Workload>> {
        match self.view {
            View::Istio => Some(self.apart.shown(uid, &held.in_istios_words())),
            View::Exact => held.exactly().cloned(),
        }
    }

    /// Adds or replaces a service.
    pub(super) fn put_service(&mut self, facts: ServiceFacts) {
        let key = ServiceKey::of(&facts.service);
        if self.services.get(&key) == Some(&facts) {
            return;
        }
        self.lacking += usize::from(facts.exactly.is_none());
        count(&mut self.waypoints, facts.service.waypoint.as_deref(), true);
        if let Some(before) = self.services.insert(key.clone(), facts) {
            self.forget_service(&before);
        }
        self.dirty.insert(key);
    }

    fn forget_service(&mut self, before: &ServiceFacts) {
        self.lacking -= usize::from(before.exactly.is_none());
        count(&mut self.waypoints, before.service.waypoint.as_deref(), false);
    }

    /// Adds or replaces a policy of Istio's messages.
    pub(super) fn put_policy(&mut self, name: &Arc<str>, policy: AuthorizationPolicy) {
        let policy = Arc::new(policy);
        self.policies.insert(Arc::clone(name), Arc::clone(&policy));
        self.missing.remove(name);
        if self.view == View::Istio {
            self.closed.remove(name);
            self.changes.push(Change::Authorization(policy));
        }
    }

    /// Adds or replaces an object for which Istio has no message.
    pub(super) fn put_object(&mut self, name: &Arc<str>, facts: ObjectFacts) {
        let effect = self.objects.put(name, facts);
        self.follow(effect);
    }

    /// Removes an object for which Istio has no message.
    pub(super) fn remove_object(&mut self, name: &str) {
        let effect = self.objects.remove(name);
        self.follow(effect);
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::Policy(change) if self.view == View::Exact => self.changes.push(change),
            Effect::Service(key) => drop(self.dirty.insert(key)),
            Effect::Policy(_) | Effect::Nothing => {}
        }
    }

    /// Sets whether destinations outside of the mesh are refused (`REGISTRY_ONLY`).
    pub(super) fn put_registry_only(&mut self, registry_only: bool) {
        if std::mem::replace(&mut self.registry_only, registry_only) != registry_only {
            self.changes.push(Change::Setting(Setting::RegistryOnly(registry_only)));
        }
    }

    /// Removes a workload or a service. Returns whether it existed.
    pub(super) fn remove_address(&mut self, name: &str) -> bool {
        if let Some((uid, held)) = self.workloads.remove_entry(name) {
            self.apart.note(&uid, &held.workload, false);
            self.note(&uid, &held, false);
            let shown = self.shown(&uid, &held);
            self.changes.extend(shown.map(|shown| Change::WorkloadGone(shown.name.clone())));
            return true;
        }
        let Some((namespace, hostname)) = name.split_once('/') else { return false };
        let key = ServiceKey { namespace: namespace.into(), hostname: hostname.to_ascii_lowercase().into() };
        let Some(held) = self.services.remove(&key) else { return false };
        self.forget_service(&held);
        self.dirty.insert(key);
        true
    }

    /// The names of workloads and services whose addresses are not wanted, without the workloads in `own` and those behind a
    /// wanted service.
    pub(super) fn unwanted(&self, own: &BTreeSet<String>, wants: &dyn Fn(IpAddr) -> bool) -> Vec<String> {
        let is_wanted = |facts: &ServiceFacts| {
            let service = &facts.service;
            // The range does not show whether one of its addresses is wanted, so the service is kept. Few services have ranges.
            !service.ranges.is_empty() || service.vips.iter().any(|vip| wants(*vip))
        };
        let (wanted, others): (Vec<_>, Vec<_>) = self.services.iter().partition(|(_, facts)| is_wanted(facts));
        let wanted: BTreeSet<&ServiceKey> = wanted.into_iter().map(|(key, _)| key).collect();
        let mut names: Vec<String> =
            others.into_iter().map(|(key, _)| format!("{}/{}", key.namespace, key.hostname)).collect();
        let workloads = self.workloads.iter().filter(|(uid, held)| {
            !own.contains(&***uid)
                && !held.workload.addresses.iter().any(|address| wants(*address))
                && !held.services().any(|service| wanted.contains(service))
        });
        names.extend(workloads.map(|(uid, _)| uid.to_string()));
        names
    }

    /// Removes a policy of Istio's messages. Returns whether it existed.
    pub(super) fn remove_policy(&mut self, name: &str) -> bool {
        let Some((name, _)) = self.policies.remove_entry(name) else { return false };
        if self.view == View::Istio {
            self.changes.push(Change::AuthorizationGone(named(&name)));
        }
        if self.naming.contains_key(&name) {
            self.missing.insert(name);
        }
        true
    }

    /// The description to use. `may_be_exact`: the control plane has sent all objects for which Istio has no message.
    pub(super) fn view(&self, may_be_exact: bool) -> View {
        if may_be_exact && self.lacking == 0 { View::Exact } else { View::Istio }
    }

    /// The number of workloads and services without details from the control plane.
    pub(super) fn lacking(&self) -> usize {
        self.lacking
    }

    /// Whether a workload names a policy that does not exist, and that is not replaced by a denial yet.
    pub(super) fn waits(&self, view: View) -> bool {
        view == View::Istio && self.missing.iter().any(|name| !self.closed.contains(name))
    }

    /// Policies that workloads name but that do not exist.
    pub(super) fn missing(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.missing.iter()
    }

    /// The waypoints, and the number of services and workloads behind each.
    pub(super) fn waypoints(&self) -> impl Iterator<Item = (&Gateway, usize)> {
        self.waypoints.iter().map(|(waypoint, count)| (waypoint, *count))
    }

    /// The number of workloads and services.
    pub(super) fn addresses(&self) -> usize {
        self.workloads.len() + self.services.len()
    }

    /// The number of policies.
    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }

    /// The changes since the last call, in the description that is used from now on.
    pub(super) fn take(&mut self, view: View) -> Taken {
        let is_whole = view != self.view;
        if is_whole {
            self.view = view;
            self.begin_anew();
        }
        if self.view == View::Istio {
            let workloads = self.workloads.iter().map(|(uid, held)| (uid, held.in_istios_words()));
            self.apart.decide(workloads, &mut self.changes);
        }
        for key in std::mem::take(&mut self.dirty) {
            self.join(&key);
        }
        if self.view == View::Istio {
            self.close();
        }
        Taken { changes: std::mem::take(&mut self.changes), is_whole }
    }

    /// Starts changes that describe the whole mesh. The services follow, because they are joined again.
    fn begin_anew(&mut self) {
        self.closed.clear();
        self.published.clear();
        self.dirty = self.services.keys().chain(self.objects.services()).cloned().collect();
        self.apart.look_anew();
        let mut changes = vec![Change::Setting(Setting::RegistryOnly(self.registry_only))];
        changes.extend(self.namespaces.keys().cloned().map(Change::Namespace));
        changes.extend(self.nodes.keys().cloned().map(Change::Node));
        changes.extend(self.workloads.iter().filter_map(|(uid, held)| self.shown(uid, held)).map(Change::Workload));
        match self.view {
            View::Istio => changes.extend(self.policies.values().cloned().map(Change::Authorization)),
            View::Exact => changes.extend(self.objects.policies()),
        }
        self.changes = changes;
    }

    /// Publishes a service in its current state.
    fn join(&mut self, key: &ServiceKey) {
        let members = self.members.get(key).into_iter().flatten().filter_map(|uid| self.workloads.get(uid));
        let facts = self.services.get(key);
        let service = match self.view {
            View::Istio => facts.map(|facts| {
                let endpoints = in_istios_words(key, facts, members);
                Service { endpoints, ..Service::clone(&facts.service) }
            }),
            View::Exact => {
                let found = facts.and_then(|facts| facts.exactly.as_deref());
                found.or_else(|| self.objects.service(key)).map(|found| exactly(key, found, members))
            }
        };
        match (service, self.published.get(key)) {
            (Some(service), Some(published)) if **published == service => {}
            (Some(service), _) => {
                let service = Arc::new(service);
                self.published.insert(key.clone(), Arc::clone(&service));
                self.changes.push(Change::Service(service));
            }
            (None, Some(_)) => {
                self.published.remove(key);
                self.changes.push(Change::ServiceGone(key.clone()));
            }
            (None, None) => {}
        }
    }

    /// Replaces missing policies that workloads name: such a policy may deny any connection, so everything is denied.
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

    /// Adds the facts of a workload to the indexes, or removes them.
    fn note(&mut self, uid: &Arc<str>, held: &Held, is_in: bool) {
        let workload = &held.workload;
        let lacking = usize::from(!held.has_detail());
        self.lacking = if is_in { self.lacking + lacking } else { self.lacking - lacking };
        held.services().for_each(|service| self.behind(service, uid, is_in));
        for policy in &held.policies {
            match step(&mut self.naming, policy, is_in) {
                Some(true) if !self.policies.contains_key(policy) => drop(self.missing.insert(Arc::clone(policy))),
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

/// The name of a policy, from the name of its resource.
fn named(resource: &str) -> NamespacedName {
    let (namespace, name) = resource.split_once('/').unwrap_or(("", resource));
    NamespacedName::new(namespace, name)
}

/// Counts up or down. `Some(true)`: the key is new; `Some(false)`: the key is removed.
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
