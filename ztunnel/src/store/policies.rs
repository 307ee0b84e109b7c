//! The policies of a mesh, grouped by whom they protect, so that a workload's are found by what it is: its namespace, its
//! labels, the services it stands behind.

mod group;
mod index;
mod keys;
mod reach;
mod selectors;

use std::collections::HashMap;
use std::sync::Arc;

pub use group::{Entry, Group, Ordered, Rules, can_match};
pub use index::{Facts, Source};
pub use reach::{Ports, ports_behind};
use selectors::Selectors;
pub use selectors::lacking;

use super::snapshot::Snapshot;
use crate::model::labels::Labels;
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, PolicySet, Scope, UnreadPolicies};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{NamespacedName, Workload};

/// All policies, indexed.
#[derive(Debug, Default)]
pub struct Policies {
    authorization: Vec<Arc<AuthorizationPolicy>>,
    authentication: Vec<Arc<PeerAuthentication>>,
    unread: UnreadPolicies,
    mesh: Option<Arc<Group>>,
    namespaces: HashMap<Arc<str>, Arc<Group>>,
    selectors: Selectors<Arc<Group>>,
    services: HashMap<NamespacedName, Arc<Guarded>>,
    /// Those of the services that have a selector, by it.
    services_by_selector: Selectors<Arc<Guarded>>,
    authentication_of_mesh: Vec<Arc<PeerAuthentication>>,
    authentication_of_namespaces: HashMap<Arc<str>, Vec<Arc<PeerAuthentication>>>,
    authentication_by_selector: Selectors<Arc<PeerAuthentication>>,
}

/// A service and the policies that name it.
#[derive(Debug)]
struct Guarded {
    service: Arc<Service>,
    group: Arc<Group>,
}

/// Policies that protect a workload, and where.
#[derive(Debug, Clone)]
pub struct Protection {
    /// The policies.
    pub group: Arc<Group>,
    /// The workload's ports at which they do.
    pub ports: Ports,
}

/// A namespace, or any, and labels.
type Selector<'a> = (Option<Arc<str>>, &'a Labels);

impl Policies {
    pub(super) fn index(policies: PolicySet, mesh: &Snapshot) -> Self {
        let PolicySet { mut authorization, mut authentication, unread } = policies;
        authorization.sort_by(|one, other| one.name.cmp(&other.name));
        authentication.sort_by(|one, other| one.name.cmp(&other.name));
        let mut indexed = Self {
            authorization: authorization.into_iter().map(Arc::new).collect(),
            authentication: authentication.into_iter().map(Arc::new).collect(),
            unread,
            ..Self::default()
        };
        indexed.group_authorization(mesh);
        indexed.group_authentication();
        indexed
    }

    fn group_authorization(&mut self, mesh: &Snapshot) {
        let mut everywhere: Vec<Ordered> = Vec::new();
        let mut namespaces: HashMap<Arc<str>, Vec<Ordered>> = HashMap::new();
        let mut selectors: HashMap<Selector<'_>, Vec<Ordered>> = HashMap::new();
        let mut services: HashMap<&NamespacedName, Vec<Ordered>> = HashMap::new();
        for (order, policy) in (0..).zip(&self.authorization) {
            let entry = || (order, Arc::clone(policy));
            match &policy.scope {
                Scope::Mesh => everywhere.push(entry()),
                Scope::Namespace(namespace) => namespaces.entry(Arc::clone(namespace)).or_default().push(entry()),
                Scope::Selector { namespace, labels } => {
                    selectors.entry((namespace.clone(), labels)).or_default().push(entry());
                }
                Scope::Services(names) => {
                    for name in names {
                        services.entry(name).or_default().push(entry());
                    }
                }
            }
        }
        let group = |policies: Vec<Ordered>| Arc::new(Group::new(policies));
        self.mesh = (!everywhere.is_empty()).then(|| group(everywhere));
        self.namespaces = namespaces.into_iter().map(|(namespace, policies)| (namespace, group(policies))).collect();
        let selected =
            selectors.into_iter().map(|((namespace, labels), policies)| (namespace, labels.clone(), group(policies)));
        self.selectors = Selectors::new(selected.collect());
        if services.is_empty() {
            return;
        }
        let known = mesh.services().filter(|service| service.kind == ServiceKind::Kubernetes);
        let guarded: HashMap<NamespacedName, Arc<Guarded>> = known
            .filter_map(|service| {
                let group = group(services.remove(&service.name)?);
                Some((service.name.clone(), Arc::new(Guarded { service: Arc::clone(service), group })))
            })
            .collect();
        let with_selector = guarded.values().filter(|guarded| !guarded.service.selector.is_empty());
        let by_selector = with_selector.map(|guarded| {
            let service = &guarded.service;
            (Some(Arc::clone(&service.name.namespace)), service.selector.clone(), Arc::clone(guarded))
        });
        self.services_by_selector = Selectors::new(by_selector.collect());
        self.services = guarded;
    }

    fn group_authentication(&mut self) {
        let mut selected = Vec::new();
        for policy in &self.authentication {
            match &policy.scope {
                Scope::Mesh => self.authentication_of_mesh.push(Arc::clone(policy)),
                Scope::Namespace(namespace) => {
                    let known = self.authentication_of_namespaces.entry(Arc::clone(namespace)).or_default();
                    known.push(Arc::clone(policy));
                }
                Scope::Selector { namespace: Some(namespace), labels } => {
                    selected.push((Some(Arc::clone(namespace)), labels.clone(), Arc::clone(policy)));
                }
                // Neither counts.
                Scope::Selector { namespace: None, .. } | Scope::Services(_) => {}
            }
        }
        self.authentication_by_selector = Selectors::new(selected);
    }

    /// All AuthorizationPolicies, by namespace and name.
    pub fn authorization(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.authorization
    }

    /// All PeerAuthentications, by namespace and name.
    pub fn authentication(&self) -> &[Arc<PeerAuthentication>] {
        &self.authentication
    }

    /// What is missing.
    pub fn unread(&self) -> &UnreadPolicies {
        &self.unread
    }

    /// A service that a policy names.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name).map(|guarded| &guarded.service)
    }

    /// The file that may hold policies which protect a namespace, and could never be read.
    pub fn unread_of(&self, namespace: &str) -> Option<&Arc<str>> {
        self.unread.anywhere.as_ref().or_else(|| self.unread.namespaces.get(namespace))
    }

    /// The AuthorizationPolicies that protect a workload of this mesh.
    pub fn protecting(&self, workload: &Workload, mesh: &Snapshot) -> Vec<Protection> {
        let namespace = &workload.name.namespace;
        let mut found = Vec::new();
        let mut add = |group: &Arc<Group>, ports| found.push(Protection { group: Arc::clone(group), ports });
        let of_namespace = self.namespaces.get(namespace);
        self.mesh.iter().chain(of_namespace).for_each(|group| add(group, Ports::All));
        self.selectors.find(namespace, &workload.labels, |group| add(group, Ports::All));
        if self.services.is_empty() {
            return found;
        }
        let mut services: Vec<&Arc<Guarded>> = Vec::new();
        let listed = mesh.services_of(&workload.name).iter();
        services.extend(listed.filter_map(|service| self.services.get(&service.name)));
        self.services_by_selector.find(namespace, &workload.labels, |guarded| services.push(guarded));
        services.sort_by(|one, other| one.service.name.cmp(&other.service.name));
        services.dedup_by(|one, other| one.service.name == other.service.name);
        for guarded in services {
            if let Some(ports) = ports_behind(&guarded.service, workload) {
                add(&guarded.group, ports);
            }
        }
        found
    }

    /// The PeerAuthentications that may say something about a workload.
    pub fn authenticating(&self, workload: &Workload) -> Vec<&Arc<PeerAuthentication>> {
        let namespace = &workload.name.namespace;
        let mut found: Vec<_> = self.authentication_of_mesh.iter().collect();
        found.extend(self.authentication_of_namespaces.get(namespace).into_iter().flatten());
        self.authentication_by_selector.find(namespace, &workload.labels, |policy| found.push(policy));
        found
    }
}

#[cfg(test)]
mod tests;
