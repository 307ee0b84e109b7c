//! Applies a batch of changes to the indexes: a change touches only the objects that it names.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Snapshot, disjoint};
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{Membership, NamespacedName, Workload};
use crate::store::change::{Batch, Change, Gaps, ServiceKey, Setting};
use crate::store::claims::{rank, with, without};
use crate::store::policies::Changes;

impl Snapshot {
    pub(super) fn take(&mut self, batch: Batch) {
        let Batch { mut changes, is_whole, gaps, problems, is_read: _ } = batch;
        if is_whole {
            changes.splice(0..0, self.all_but(&changes));
        }
        // Policies are applied after the services, because the workloads that a policy protects depend on the services.
        let (mut authorization, mut authentication) = (Changes::default(), Changes::default());
        for change in changes {
            match change {
                Change::Workload(workload) => self.set_workload(&workload),
                Change::WorkloadGone(name) => self.remove_workload(&name),
                Change::Service(service) => self.set_service(&service),
                Change::ServiceGone(key) => self.remove_service(&key),
                Change::Authorization(policy) => note(&mut authorization, policy.name.clone(), Some(policy)),
                Change::AuthorizationGone(name) => note(&mut authorization, name, None),
                Change::Authentication(policy) => note(&mut authentication, policy.name.clone(), Some(policy)),
                Change::AuthenticationGone(name) => note(&mut authentication, name, None),
                Change::Namespace(name) if self.namespaces.contains(&name) => {}
                Change::Namespace(name) => drop(Arc::make_mut(&mut self.namespaces).insert(name)),
                Change::NamespaceGone(name) if !self.namespaces.contains(&name) => {}
                Change::NamespaceGone(name) => drop(Arc::make_mut(&mut self.namespaces).remove(&name)),
                Change::Node(name) => drop(Arc::make_mut(&mut self.described_nodes).insert(name)),
                Change::NodeGone(name) => drop(Arc::make_mut(&mut self.described_nodes).remove(&name)),
                Change::Setting(Setting::RegistryOnly(registry_only)) => self.registry_only = registry_only,
            }
        }
        for address in self.holders.settle() {
            self.settle(address);
        }
        self.claims.settle();
        self.settle_behind();
        self.set_policies(authorization, authentication);
        if let Some(Gaps { partial, blind, addresses, unread }) = gaps {
            (self.partial, self.blind, self.unread_addresses) = (partial, blind, disjoint(&addresses));
            if *self.policies.unread() != unread {
                Arc::make_mut(&mut self.policies).set_unread(unread);
            }
        }
        if let Some(problems) = problems {
            self.problems = problems;
        }
    }

    /// The removals of all objects that none of the changes names.
    fn all_but(&self, changes: &[Change]) -> Vec<Change> {
        let mut named: [HashSet<&NamespacedName>; 3] = Default::default();
        let [workloads, authorization, authentication] = &mut named;
        let (mut services, mut namespaces, mut nodes, mut is_set) =
            (HashSet::new(), HashSet::new(), HashSet::new(), false);
        for change in changes {
            match change {
                Change::Workload(workload) => drop(workloads.insert(&workload.name)),
                Change::Service(service) => drop(services.insert(ServiceKey::of(service))),
                Change::Authorization(policy) => drop(authorization.insert(&policy.name)),
                Change::Authentication(policy) => drop(authentication.insert(&policy.name)),
                Change::Namespace(name) => drop(namespaces.insert(name)),
                Change::Node(name) => drop(nodes.insert(name)),
                Change::Setting(Setting::RegistryOnly(_)) => is_set = true,
                Change::WorkloadGone(_)
                | Change::ServiceGone(_)
                | Change::AuthorizationGone(_)
                | Change::AuthenticationGone(_)
                | Change::NamespaceGone(_)
                | Change::NodeGone(_) => {}
            }
        }
        let gone =
            |names: &HashSet<&NamespacedName>, name: &NamespacedName| (!names.contains(name)).then(|| name.clone());
        let mut all: Vec<Change> = Vec::new();
        all.extend(self.workloads.keys().filter_map(|name| gone(workloads, name)).map(Change::WorkloadGone));
        let services = self.services.keys().filter(|key| !services.contains(*key));
        all.extend(services.cloned().map(Change::ServiceGone));
        let known = self.policies.authorization().iter().map(|policy| &policy.name);
        all.extend(known.filter_map(|name| gone(authorization, name)).map(Change::AuthorizationGone));
        let known = self.policies.authentication().iter().map(|policy| &policy.name);
        all.extend(known.filter_map(|name| gone(authentication, name)).map(Change::AuthenticationGone));
        let namespaces = self.namespaces.iter().filter(|name| !namespaces.contains(name));
        all.extend(namespaces.cloned().map(Change::NamespaceGone));
        let nodes = self.described_nodes.iter().filter(|name| !nodes.contains(name));
        all.extend(nodes.cloned().map(Change::NodeGone));
        all.extend((!is_set).then_some(Change::Setting(Setting::RegistryOnly(false))));
        all
    }

    fn set_policies(
        &mut self,
        mut authorization: Changes<AuthorizationPolicy>,
        mut authentication: Changes<PeerAuthentication>,
    ) {
        // The value stays the same if nothing changes, because readers detect changes by its identity.
        authorization.retain(|name, policy| self.policies.authorization_named(name) != policy.as_ref());
        authentication.retain(|name, policy| self.policies.authentication_named(name) != policy.as_ref());
        if authorization.is_empty() && authentication.is_empty() {
            return;
        }
        let mut policies = std::mem::take(&mut self.policies);
        let changed = Arc::make_mut(&mut policies);
        changed.set_authorization(authorization, self);
        changed.set_authentication(authentication);
        self.policies = policies;
    }

    fn set_workload(&mut self, workload: &Arc<Workload>) {
        let before = self.workloads.get(&workload.name).cloned();
        if before.as_ref() != Some(workload) {
            self.workloads.insert(workload.name.clone(), Arc::clone(workload));
            self.replace_workload(before.as_deref(), Some(workload));
        }
    }

    fn remove_workload(&mut self, name: &NamespacedName) {
        if let Some(before) = self.workloads.remove(name) {
            self.replace_workload(Some(&before), None);
        }
    }

    /// Updates the indexes for a changed workload.
    fn replace_workload(&mut self, before: Option<&Workload>, after: Option<&Arc<Workload>>) {
        let in_mesh = |workload: Option<&Workload>| {
            usize::from(workload.is_some_and(|workload| workload.membership == Membership::InMesh))
        };
        self.in_mesh = self.in_mesh + in_mesh(after.map(|after| &**after)) - in_mesh(before);
        self.holders.note(before, after);
        let (had, has) = (before.and_then(|one| one.node.as_ref()), after.and_then(|one| one.node.as_ref()));
        if let (Some(before), Some(node)) = (before, had.filter(|node| has != Some(node))) {
            let mut pods = self.nodes.remove(node).unwrap_or_default();
            pods.remove(&before.name);
            self.nodes.set(Arc::clone(node), (!pods.is_empty()).then_some(pods));
        }
        if let (Some(after), Some(node)) = (after, has) {
            let mut pods = self.nodes.remove(node).unwrap_or_default();
            pods.insert(after.name.clone(), Arc::clone(after));
            self.nodes.insert(Arc::clone(node), pods);
        }
    }

    fn set_service(&mut self, service: &Arc<Service>) {
        let key = ServiceKey::of(service);
        let before = self.services.get(&key).cloned();
        if before.as_ref() == Some(service) {
            return;
        }
        let before = before.filter(|before| {
            // The lists are ordered by these fields.
            let is_same = (before.kind, &before.name) == (service.kind, &service.name);
            if !is_same {
                self.remove_service(&key);
            }
            is_same
        });
        self.services.insert(key.clone(), Arc::clone(service));
        if service.kind == ServiceKind::Kubernetes && before.is_none() {
            self.kubernetes_services.insert(service.name.clone(), key.clone());
        }
        let named = with(self.services_by_hostname.get(&service.hostname), service);
        self.services_by_hostname.insert(Arc::clone(&service.hostname), named);
        self.claims.note(&key, before.as_deref(), Some(service));
        self.stand_behind(&key, before.as_deref(), Some(service));
        self.select(before.as_deref(), Some(service));
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let Some(before) = self.services.remove(key) else { return };
        if self.kubernetes_services.get(&before.name) == Some(key) {
            self.kubernetes_services.remove(&before.name);
        }
        let named = without(self.services_by_hostname.get(&before.hostname), key);
        self.services_by_hostname.set(Arc::clone(&before.hostname), named);
        self.claims.note(key, Some(&before), None);
        self.stand_behind(key, Some(&before), None);
        self.select(Some(&before), None);
    }

    /// Notes the workloads behind a service that were added or removed.
    fn stand_behind(&mut self, key: &ServiceKey, before: Option<&Service>, after: Option<&Service>) {
        let behind = |service: Option<&Service>| {
            let endpoints = service.into_iter().flat_map(|service| service.endpoints.iter());
            endpoints.filter_map(|endpoint| endpoint.workload.clone()).collect::<BTreeSet<_>>()
        };
        let (before, after) = (behind(before), behind(after));
        for name in before.symmetric_difference(&after) {
            self.noted_behind.entry(name.clone()).or_default().insert(key.clone(), after.contains(name));
        }
    }

    /// Makes the list of services of each noted workload, once for all changes: any number of services may be in front of a
    /// workload.
    fn settle_behind(&mut self) {
        for (name, noted) in std::mem::take(&mut self.noted_behind) {
            let known = self.services_by_workload.get(&name).map(|keys| &**keys).unwrap_or_default();
            let mut keys: Vec<ServiceKey> = known.iter().filter(|key| !noted.contains_key(*key)).cloned().collect();
            keys.extend(noted.into_iter().filter_map(|(key, is_behind)| is_behind.then_some(key)));
            keys.sort_by_cached_key(|key| self.services.get(key).map(|service| rank(service)));
            self.services_by_workload.set(name, (!keys.is_empty()).then(|| keys.into()));
        }
    }

    /// Determines again whether several pods claim an address.
    fn settle(&mut self, address: IpAddr) {
        let claimants = self.holders.contested(address);
        if claimants.is_some() || !self.contested.is_empty() {
            self.contested.set(address, claimants.map(Arc::from));
        }
    }

    /// Updates the policies for the change of a service that one of them names.
    fn select(&mut self, before: Option<&Service>, after: Option<&Service>) {
        let named = |service: &&Service| self.policies.name_service(service);
        let (before, after) = (before.filter(named), after.filter(named));
        if before.is_none() && after.is_none() {
            return;
        }
        let policies = Arc::make_mut(&mut self.policies);
        before.into_iter().for_each(|service| policies.select(service, false));
        after.into_iter().for_each(|service| policies.select(service, true));
    }
}

/// The last change of a name takes precedence.
fn note<T>(changes: &mut Changes<T>, name: NamespacedName, policy: Option<Arc<T>>) {
    changes.insert(name, policy);
}
