//! The policies of a mesh, grouped by the workloads that they protect. The policies of a workload are found by its namespace,
//! its labels, and the services in front of it.

mod group;
mod index;
mod keys;
mod reach;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

pub use group::{Group, GroupEntry, Rules, can_match};
pub use index::{Facts, Source};
pub use reach::{Ports, ports_behind};

use super::selectors::Selectors;
pub use super::selectors::lacking;
use super::shared::SharedMap;
use crate::model::labels::Labels;
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, Scope, UnreadPolicies};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{NamespacedName, Workload};

/// All policies, indexed. A clone shares the unchanged parts.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    authorization: All<AuthorizationPolicy>,
    authentication: All<PeerAuthentication>,
    unread: Arc<UnreadPolicies>,
    mesh: Option<Arc<Group>>,
    namespaces: SharedMap<Arc<str>, Arc<Group>>,
    selectors: Selectors<Arc<Group>>,
    /// By the service that the policies name, whether the service exists or not.
    services: SharedMap<NamespacedName, Arc<Group>>,
    /// Those of these services that exist and have a selector, by the selector.
    selecting: Selectors<SharedMap<NamespacedName, ()>>,
    authentication_of_mesh: Level,
    authentication_of_namespaces: SharedMap<Arc<str>, Level>,
    authentication_by_selector: Selectors<Level>,
}

/// PeerAuthentications of one scope, by namespace and name.
type Level = Arc<[Arc<PeerAuthentication>]>;

/// Policies of one kind.
#[derive(Debug)]
struct All<T> {
    by_name: SharedMap<NamespacedName, Arc<T>>,
    /// The same, sorted by namespace and name when it is needed.
    sorted: OnceLock<Vec<Arc<T>>>,
}

impl<T> Clone for All<T> {
    fn clone(&self) -> Self {
        Self { by_name: self.by_name.clone(), sorted: OnceLock::new() }
    }
}

impl<T> Default for All<T> {
    fn default() -> Self {
        Self { by_name: SharedMap::default(), sorted: OnceLock::new() }
    }
}

impl<T> All<T> {
    fn sorted(&self) -> &[Arc<T>] {
        self.sorted.get_or_init(|| {
            let mut all: Vec<(&NamespacedName, &Arc<T>)> = self.by_name.iter().collect();
            all.sort_by_key(|(name, _)| *name);
            all.into_iter().map(|(_, policy)| Arc::clone(policy)).collect()
        })
    }
}

/// Policies that protect a workload, and the ports at which they do.
#[derive(Debug, Clone)]
pub struct Protection {
    /// The policies.
    pub group: Arc<Group>,
    /// The workload's ports that are protected.
    pub ports: Ports,
}

/// Policies that were added or changed, or (`None`) removed.
pub(super) type Changes<T> = BTreeMap<NamespacedName, Option<Arc<T>>>;

/// The workloads that some policies protect; one target for each named service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Mesh,
    Namespace(Arc<str>),
    Selector(Option<Arc<str>>, Labels),
    Service(NamespacedName),
}

impl Target {
    fn of(scope: &Scope) -> Vec<Self> {
        match scope {
            Scope::Mesh => vec![Self::Mesh],
            Scope::Namespace(namespace) => vec![Self::Namespace(Arc::clone(namespace))],
            Scope::Selector { namespace, labels } => vec![Self::Selector(namespace.clone(), labels.clone())],
            Scope::Services(names) => names.iter().cloned().map(Self::Service).collect(),
        }
    }
}

/// A policy of either kind.
trait Policy: PartialEq {
    fn name(&self) -> &NamespacedName;
    fn scope(&self) -> &Scope;
}

impl Policy for AuthorizationPolicy {
    fn name(&self) -> &NamespacedName {
        &self.name
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl Policy for PeerAuthentication {
    fn name(&self) -> &NamespacedName {
        &self.name
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl<T: Policy> All<T> {
    /// Applies changes. `members` returns the policies of a target before the change. Returns each target concerned with its
    /// current policies, by namespace and name.
    fn change<'a>(
        &mut self,
        changes: Changes<T>,
        members: impl Fn(&Target) -> &'a [Arc<T>],
    ) -> Vec<(Target, Vec<Arc<T>>)>
    where
        T: 'a,
    {
        let mut concerned: HashMap<Target, BTreeMap<NamespacedName, Arc<T>>> = HashMap::new();
        let known = |target: &Target| {
            members(target).iter().map(|policy| (policy.name().clone(), Arc::clone(policy))).collect::<BTreeMap<_, _>>()
        };
        for (name, policy) in changes {
            let before = self.by_name.get(&name).cloned();
            if before == policy {
                continue;
            }
            for target in before.iter().flat_map(|before| Target::of(before.scope())) {
                concerned.entry(target).or_insert_with_key(known).remove(&name);
            }
            for target in policy.iter().flat_map(|policy| Target::of(policy.scope())) {
                let of_target = concerned.entry(target).or_insert_with_key(known);
                of_target.extend(policy.iter().map(|policy| (name.clone(), Arc::clone(policy))));
            }
            self.by_name.set(name, policy);
            self.sorted = OnceLock::new();
        }
        concerned.into_iter().map(|(target, policies)| (target, policies.into_values().collect())).collect()
    }
}

/// The services of a mesh, for the resolution of policies that name services.
pub trait ServiceLookup {
    /// The Kubernetes Service of this name.
    fn kubernetes_service(&self, name: &NamespacedName) -> Option<&Arc<Service>>;

    /// The services in front of a workload.
    fn services_of(&self, workload: &NamespacedName) -> impl Iterator<Item = &Arc<Service>>;
}

impl Policies {
    /// Applies changes of AuthorizationPolicies. `mesh` has the current services.
    pub(super) fn set_authorization(&mut self, changes: Changes<AuthorizationPolicy>, mesh: &impl ServiceLookup) {
        let mut all = std::mem::take(&mut self.authorization);
        let concerned =
            all.change(changes, |target| self.group(target).map(|group| group.policies()).unwrap_or_default());
        self.authorization = all;
        for (target, policies) in concerned {
            let group = (!policies.is_empty()).then(|| Arc::new(Group::new(policies)));
            match target {
                Target::Mesh => self.mesh = group,
                Target::Namespace(namespace) => self.namespaces.set(namespace, group),
                Target::Selector(namespace, labels) => self.selectors.set(namespace.as_ref(), &labels, group),
                Target::Service(name) => {
                    let (was_named, is_named) = (self.services.contains_key(&name), group.is_some());
                    self.services.set(name.clone(), group);
                    if let (true, Some(service)) = (was_named != is_named, mesh.kubernetes_service(&name)) {
                        self.select(service, is_named);
                    }
                }
            }
        }
    }

    /// Applies changes of PeerAuthentications.
    pub(super) fn set_authentication(&mut self, changes: Changes<PeerAuthentication>) {
        let mut all = std::mem::take(&mut self.authentication);
        let concerned = all.change(changes, |target| self.level(target).map(|level| &**level).unwrap_or_default());
        self.authentication = all;
        for (target, policies) in concerned {
            let level: Level = policies.into();
            let left = (!level.is_empty()).then(|| Arc::clone(&level));
            match target {
                Target::Mesh => self.authentication_of_mesh = level,
                Target::Namespace(namespace) => self.authentication_of_namespaces.set(namespace, left),
                Target::Selector(Some(namespace), labels) => {
                    self.authentication_by_selector.set(Some(&namespace), &labels, left);
                }
                // These two scopes have no effect.
                Target::Selector(None, _) | Target::Service(_) => {}
            }
        }
    }

    fn group(&self, target: &Target) -> Option<&Arc<Group>> {
        match target {
            Target::Mesh => self.mesh.as_ref(),
            Target::Namespace(namespace) => self.namespaces.get(namespace),
            Target::Selector(namespace, labels) => self.selectors.get(namespace.as_ref(), labels),
            Target::Service(name) => self.services.get(name),
        }
    }

    fn level(&self, target: &Target) -> Option<&Level> {
        match target {
            Target::Mesh => Some(&self.authentication_of_mesh),
            Target::Namespace(namespace) => self.authentication_of_namespaces.get(namespace),
            Target::Selector(namespace, labels) => self.authentication_by_selector.get(namespace.as_ref(), labels),
            Target::Service(_) => None,
        }
    }

    /// Whether policies name services.
    pub fn name_services(&self) -> bool {
        !self.services.is_empty()
    }

    /// Whether a policy names this service.
    pub(super) fn name_service(&self, service: &Service) -> bool {
        service.kind == ServiceKind::Kubernetes && self.services.contains_key(&service.name)
    }

    /// Adds or removes the selector of a service that a policy names.
    pub(super) fn select(&mut self, service: &Service, is_there: bool) {
        if service.selector.is_empty() {
            return;
        }
        let namespace = Some(&service.name.namespace);
        let mut names = self.selecting.get(namespace, &service.selector).cloned().unwrap_or_default();
        names.set(service.name.clone(), is_there.then_some(()));
        self.selecting.set(namespace, &service.selector, (!names.is_empty()).then_some(names));
    }

    /// Sets the policies that may exist but could never be read.
    pub(super) fn set_unread(&mut self, unread: UnreadPolicies) {
        self.unread = Arc::new(unread);
    }

    /// All AuthorizationPolicies, by namespace and name.
    pub fn authorization(&self) -> &[Arc<AuthorizationPolicy>] {
        self.authorization.sorted()
    }

    /// All PeerAuthentications, by namespace and name.
    pub fn authentication(&self) -> &[Arc<PeerAuthentication>] {
        self.authentication.sorted()
    }

    /// The AuthorizationPolicy with this name.
    pub fn authorization_named(&self, name: &NamespacedName) -> Option<&Arc<AuthorizationPolicy>> {
        self.authorization.by_name.get(name)
    }

    /// The PeerAuthentication with this name.
    pub fn authentication_named(&self, name: &NamespacedName) -> Option<&Arc<PeerAuthentication>> {
        self.authentication.by_name.get(name)
    }

    /// The policies that could not be read.
    pub fn unread(&self) -> &UnreadPolicies {
        &self.unread
    }

    /// The source that may contain policies for a namespace, and could never be read.
    pub fn unread_of(&self, namespace: &str) -> Option<&Arc<str>> {
        self.unread.anywhere.as_ref().or_else(|| self.unread.namespaces.get(namespace))
    }

    /// The AuthorizationPolicies that protect a workload of this mesh.
    ///
    /// This is the only place where policies and workloads are joined. A policy that names a service protects only pods of the
    /// service's own namespace. Otherwise the author of endpoints in one namespace could open or close the pods of another.
    pub fn protecting(&self, workload: &Workload, mesh: &impl ServiceLookup) -> Vec<Protection> {
        let namespace = &workload.name.namespace;
        let mut found = Vec::new();
        let mut add = |group: &Arc<Group>, ports| found.push(Protection { group: Arc::clone(group), ports });
        let of_namespace = self.namespaces.get(namespace);
        self.mesh.iter().chain(of_namespace).for_each(|group| add(group, Ports::All));
        self.selectors.find(namespace, &workload.labels, |group| add(group, Ports::All));
        if self.services.is_empty() {
            return found;
        }
        let listed = mesh.services_of(&workload.name);
        let mut services: Vec<&Arc<Service>> = listed.filter(|service| self.name_service(service)).collect();
        self.selecting.find(namespace, &workload.labels, |names| {
            services.extend(names.keys().filter_map(|name| mesh.kubernetes_service(name)));
        });
        services.sort_by(|one, other| one.name.cmp(&other.name));
        services.dedup_by(|one, other| one.name == other.name);
        for service in services {
            let group = self.services.get(&service.name);
            if let (Some(group), Some(ports)) = (group, ports_behind(service, workload)) {
                add(group, ports);
            }
        }
        found
    }

    /// The PeerAuthentications that may apply to a workload.
    pub fn authenticating(&self, workload: &Workload) -> Vec<&Arc<PeerAuthentication>> {
        let namespace = &workload.name.namespace;
        let mut found: Vec<_> = self.authentication_of_mesh.iter().collect();
        let of_namespace = self.authentication_of_namespaces.get(namespace);
        found.extend(of_namespace.into_iter().flat_map(|level| level.iter()));
        self.authentication_by_selector.find(namespace, &workload.labels, |level| found.extend(level.iter()));
        found
    }
}

#[cfg(test)]
mod tests;
