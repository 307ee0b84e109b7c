//! Kubernetes services and the services of ServiceEntries, with their endpoints.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::budget::{self, Lists};
use super::table::Replaced;
use super::{Fronting, Joiner, Key, Subject};
use crate::control::objects::{EndpointsManifest, EntryManifest, External, ServiceManifest, SliceManifest, visibility};
use crate::model::labels::Labels;
use crate::model::locality::Distribution;
use crate::model::service::{
    Addressing, Endpoint, ExternalAddress, Families, Resolution, Service, ServiceKind, Visibility,
};
use crate::model::workload::NamespacedName;
use crate::store::change::{Change, ServiceKey};
use crate::store::effort;

fn hostname(name: &NamespacedName) -> String {
    format!("{}.{}.svc.cluster.local", name.name, name.namespace)
}

pub(super) fn key_of(name: &NamespacedName) -> ServiceKey {
    ServiceKey { namespace: Arc::clone(&name.namespace), hostname: hostname(name).into() }
}

fn host_key(name: &NamespacedName, host: &Arc<str>) -> ServiceKey {
    ServiceKey { namespace: Arc::clone(&name.namespace), hostname: Arc::clone(host) }
}

/// The Kubernetes service that has a host name, if the name has the form of a Kubernetes service's.
pub(super) fn named_by(key: &ServiceKey) -> Option<NamespacedName> {
    let name = key.hostname.strip_suffix(".svc.cluster.local")?.strip_suffix(&*key.namespace)?.strip_suffix('.')?;
    Some(NamespacedName::new(Arc::clone(&key.namespace), name))
}

/// Adds a value to a set, or removes it. An empty set is removed.
pub(super) fn note<K: Hash + Eq, V: Ord>(sets: &mut HashMap<K, BTreeSet<V>>, key: K, value: V, is_in: bool) {
    if is_in {
        sets.entry(key).or_default().insert(value);
    } else if let Some(set) = sets.get_mut(&key) {
        set.remove(&value);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

/// The number of addresses of a slice's endpoints. An endpoint without an address counts as one.
fn addresses_in(slice: &SliceManifest) -> usize {
    slice.endpoints.iter().map(|endpoint| endpoint.addresses.len().max(1)).sum()
}

/// The number of namespaces that are listed.
fn listed(visibility: Option<&Visibility>) -> usize {
    match visibility {
        Some(Visibility::Namespaces(namespaces)) => namespaces.len(),
        Some(Visibility::Everyone) | None => 0,
    }
}

impl Joiner {
    pub(super) fn service_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<Arc<ServiceManifest>>) {
        let (before, after) = (replaced.before.as_deref(), replaced.after.as_deref());
        let fronting = (ServiceKind::Kubernetes, name.clone());
        let vips = |service: Option<&ServiceManifest>| {
            service.map(|service| service.vips.iter().copied().collect::<BTreeSet<IpAddr>>()).unwrap_or_default()
        };
        let (had, has) = (vips(before), vips(after));
        for vip in had.symmetric_difference(&has) {
            note(&mut self.vips, *vip, name.clone(), has.contains(vip));
            self.dirty.moved.insert(*vip);
        }
        let external = |service: Option<&ServiceManifest>| {
            let all = service.into_iter().flat_map(|service| &service.external);
            all.map(|external| external.address).collect::<BTreeSet<IpAddr>>()
        };
        let (had, has) = (external(before), external(after));
        for address in had.symmetric_difference(&has) {
            note(&mut self.external, *address, name.clone(), has.contains(address));
        }
        let selector = |service: Option<&ServiceManifest>| service.map(|service| service.selector.clone());
        self.select(&fronting, selector(before), selector(after));
        let is_bare = |service: Option<&ServiceManifest>| service.map(|service| service.selector.is_empty());
        if is_bare(before) != is_bare(after) {
            self.note_policies_of(name);
        }
        if before.is_some() != after.is_some() {
            let slices = self.slices_of.get(name).into_iter().flatten().cloned().map(Subject::Slice);
            self.dirty.subjects.extend(slices);
            if self.endpoints.get(name).is_some() {
                self.dirty.subjects.insert(Subject::Endpoints(name.clone()));
            }
            self.note_host(key_of(name));
        }
        self.dirty.subjects.insert(Subject::Service(name.clone()));
        self.dirty.fronting.insert(fronting);
    }

    pub(super) fn slice_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<Arc<SliceManifest>>) {
        let (before, after) = (replaced.before.as_deref(), replaced.after.as_deref());
        for (slice, is_in) in [(before, false), (after, true)] {
            let Some(slice) = slice else { continue };
            let had_some = self.slices_of.contains_key(&slice.service);
            let of_service = self.slices_of.entry(slice.service.clone()).or_default();
            if is_in {
                of_service.insert(name.clone())
            } else {
                of_service.remove(name)
            };
            if of_service.is_empty() {
                self.slices_of.remove(&slice.service);
            }
            if had_some != self.slices_of.contains_key(&slice.service) {
                self.note_policies_of(&slice.service);
            }
            self.dirty.fronting.insert((ServiceKind::Kubernetes, slice.service.clone()));
        }
        let addresses = |slice: Option<&SliceManifest>| {
            let endpoints = slice.into_iter().flat_map(|slice| &slice.endpoints);
            endpoints.flat_map(|endpoint| &endpoint.addresses).copied().collect()
        };
        self.name(&("EndpointSlice", name.clone()), &addresses(before), &addresses(after));
        self.dirty.subjects.insert(Subject::Slice(name.clone()));
    }

    pub(super) fn endpoints_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<Arc<EndpointsManifest>>) {
        let (before, after) = (replaced.before.as_deref(), replaced.after.as_deref());
        let addresses = |endpoints: Option<&EndpointsManifest>| {
            let subsets = endpoints.into_iter().flat_map(|endpoints| &endpoints.subsets);
            subsets.flat_map(|subset| &subset.endpoints).flat_map(|endpoint| &endpoint.addresses).copied().collect()
        };
        self.name(&("Endpoints", name.clone()), &addresses(before), &addresses(after));
        if before.is_some() != after.is_some() {
            self.note_policies_of(name);
        }
        self.dirty.fronting.insert((ServiceKind::Kubernetes, name.clone()));
        self.dirty.subjects.insert(Subject::Endpoints(name.clone()));
    }

    /// The slices of a service, or else the Endpoints of one that has no selector; `None`: it has neither.
    fn given_by(&self, name: &NamespacedName, service: &ServiceManifest) -> Option<Vec<&SliceManifest>> {
        if let Some(slices) = self.slices_of.get(name) {
            return Some(slices.iter().filter_map(|name| self.slices.get(name)).map(|slice| &*slice.body).collect());
        }
        let has_own = service.selector.is_empty() && !matches!(service.addressing, Addressing::Alias(_));
        let endpoints = self.endpoints.get(name).filter(|_| has_own)?;
        Some(endpoints.body.subsets.iter().collect())
    }

    pub(super) fn entry_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<Arc<EntryManifest>>) {
        let (before, after) = (replaced.before.as_deref(), replaced.after.as_deref());
        let hosts = |entry: Option<&EntryManifest>| {
            let hosts = entry.into_iter().flat_map(|entry| &entry.hosts);
            hosts.map(|host| host_key(name, host)).collect::<BTreeSet<_>>()
        };
        let (had, has) = (hosts(before), hosts(after));
        for key in had.symmetric_difference(&has) {
            note(&mut self.hosts, key.clone(), name.clone(), has.contains(key));
            self.note_host(key.clone());
        }
        let vips = |entry: Option<&EntryManifest>| {
            entry.into_iter().flat_map(|entry| &entry.vips).copied().collect::<BTreeSet<IpAddr>>()
        };
        let (had, has) = (vips(before), vips(after));
        for vip in had.symmetric_difference(&has) {
            note(&mut self.entry_vips, *vip, name.clone(), has.contains(vip));
            // Other entries may name the same address.
            self.dirty.moved.insert(*vip);
        }
        let addresses = |entry: Option<&EntryManifest>| {
            entry.into_iter().flat_map(|entry| &entry.endpoints).map(|endpoint| endpoint.address).collect()
        };
        self.name(&("ServiceEntry", name.clone()), &addresses(before), &addresses(after));
        let selector = |entry: Option<&EntryManifest>| entry.map(|entry| entry.selector.clone());
        let fronting = (ServiceKind::Entry, name.clone());
        self.select(&fronting, selector(before), selector(after));
        self.dirty.fronting.insert(fronting);
        self.dirty.subjects.insert(Subject::Entry(name.clone()));
    }

    /// Marks a host whose owner may have changed.
    fn note_host(&mut self, key: ServiceKey) {
        self.dirty.keys.insert(key);
    }

    /// Marks the policies that name a service: their problems may have changed.
    fn note_policies_of(&mut self, service: &NamespacedName) {
        let policies = self.targeting.get(service).into_iter().flatten().cloned().map(Subject::Authorization);
        self.dirty.subjects.extend(policies);
    }

    /// Updates the index of the addresses that an object names among its endpoints.
    fn name(&mut self, key: &Key, before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>) {
        for address in before.symmetric_difference(after) {
            let keys = self.naming.entry(*address).or_default();
            keys.note(key, after.contains(address));
            if keys.is_empty() {
                self.naming.remove(address);
            }
        }
    }

    /// Follows a change of a selector.
    fn select(&mut self, fronting: &Fronting, before: Option<Labels>, after: Option<Labels>) {
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before != after {
            self.dirty.labels_named.extend(self.selection.set(fronting, &before, &after));
        }
    }

    /// The keys of a Service, or of the hosts of a ServiceEntry.
    pub(super) fn keys_of(&self, (kind, name): &Fronting) -> Vec<ServiceKey> {
        match (kind, self.entries.get(name)) {
            (ServiceKind::Kubernetes, _) => vec![key_of(name)],
            (ServiceKind::Entry, Some(entry)) => entry.body.hosts.iter().map(|host| host_key(name, host)).collect(),
            (ServiceKind::Entry, None) => Vec::new(),
        }
    }

    /// Joins again the services that are marked.
    pub(super) fn join_services(&mut self, changes: &mut Vec<Change>) {
        let mut keys = std::mem::take(&mut self.dirty.keys);
        for key in &keys {
            // Once for all changes: any number of entries may name a host.
            let entries = self.hosts.get(key).into_iter().flatten();
            self.dirty.subjects.extend(entries.inspect(|_| effort::count(1)).cloned().map(Subject::Entry));
        }
        for fronting in std::mem::take(&mut self.dirty.fronting) {
            keys.extend(self.keys_of(&fronting));
        }
        // Their endpoints are the same, unless the budget has a place for other services now.
        let costs: BTreeSet<ServiceKey> = self.keys_of_moved_labels();
        let (mut namespaces, mut of_entries) = (BTreeSet::new(), HashMap::new());
        for key in costs.union(&keys) {
            let (kind, cost) = self.cost(key, &mut of_entries);
            self.budget.enter(kind, key, cost);
            namespaces.insert(Arc::clone(&key.namespace));
        }
        for namespace in namespaces {
            for key in self.budget.settle(&namespace) {
                // A host that belongs to another entry is reported only for services within the budget.
                let entries = self.hosts.get(&key).into_iter().flatten().cloned().map(Subject::Entry);
                self.dirty.subjects.extend(entries);
                keys.insert(key);
            }
            self.dirty.subjects.insert(Subject::Budget(namespace));
        }
        // The hosts of an entry share their endpoints.
        let mut of_entries = HashMap::new();
        for key in keys {
            // External ways to pods of the mesh are reported.
            self.dirty.subjects.extend(named_by(&key).map(Subject::Service));
            let before = self.services_joined.get(&key);
            let after = self.join_service(&key, &mut of_entries);
            match (before, after) {
                (Some(before), Some(after)) if **before == after => {}
                (_, Some(after)) => {
                    let after = Arc::new(after);
                    self.services_joined.insert(key, Arc::clone(&after));
                    changes.push(Change::Service(after));
                }
                (Some(_), None) => {
                    self.services_joined.remove(&key);
                    changes.push(Change::ServiceGone(key));
                }
                (None, None) => {}
            }
        }
    }

    /// The cost of a service in the budget of its namespace, computed without joining it.
    ///
    /// `of_entries`: the cost of an entry's endpoints, computed once for all of its hosts.
    fn cost(&self, key: &ServiceKey, of_entries: &mut HashMap<NamespacedName, usize>) -> (ServiceKind, usize) {
        if let Some(name) = named_by(key)
            && let Some(service) = self.services.get(&name)
        {
            let service = &service.body;
            let endpoints = match self.given_by(&name, service) {
                // Each slice is searched for each port.
                Some(slices) => slices.iter().map(|slice| 1 + addresses_in(slice)).sum(),
                None => self.selection.cost(&name.namespace, &service.selector),
            };
            let lists = Lists {
                ports: service.ports.len(),
                namespaces: listed(service.visibility.as_ref()),
                labels: service.selector.len(),
                identities: 0,
            };
            let own = 1 + service.vips.len() + service.external.len() + lists.cost();
            return (ServiceKind::Kubernetes, own + endpoints * budget::endpoint(service.ports.len()));
        }
        let found = self.hosts.get(key).and_then(BTreeSet::first);
        let Some((name, entry)) = found.and_then(|name| Some((name, self.entries.get(name)?))) else {
            return (ServiceKind::Entry, 0);
        };
        let entry = &entry.body;
        let endpoints = *of_entries.entry(name.clone()).or_insert_with(|| match entry.selector.is_empty() {
            true => entry.endpoints.len(),
            false => self.selection.cost(&name.namespace, &entry.selector),
        });
        let lists = Lists {
            ports: entry.ports.len(),
            identities: entry.identities.len(),
            namespaces: listed(entry.visibility.as_ref()),
            labels: entry.selector.len(),
        };
        let own = 1 + entry.vips.len() + entry.ranges.len() + lists.cost();
        (ServiceKind::Entry, own + endpoints * budget::endpoint(entry.ports.len()))
    }

    /// A service as it is published. A Kubernetes service that exceeds the budget has no endpoints, so that connections
    /// to its address are refused and not passed on to a pod. A ServiceEntry that exceeds it does not exist.
    fn join_service(
        &self,
        key: &ServiceKey,
        of_entries: &mut HashMap<NamespacedName, Arc<[Endpoint]>>,
    ) -> Option<Service> {
        if let Some(name) = named_by(key)
            && let Some(service) = self.services.get(&name)
        {
            return Some(self.kubernetes_service(&name, &service.body, self.budget.is_over(key)));
        }
        if self.budget.is_over(key) {
            return None;
        }
        let name = self.hosts.get(key)?.first()?;
        let entry = &self.entries.get(name)?.body;
        let mut service = self.entry_service(name, &key.hostname, entry);
        let endpoints = of_entries.entry(name.clone()).or_insert_with(|| {
            let found = self.endpoints_of_entry(&service, entry);
            let joined = entry.hosts.iter().filter_map(|host| self.services_joined.get(&host_key(name, host)));
            let mut shared = joined.filter(|service| service.name == *name).map(|service| &service.endpoints);
            shared.find(|shared| **shared == found).map_or(found, Arc::clone)
        });
        service.endpoints = Arc::clone(endpoints);
        Some(service)
    }

    fn kubernetes_service(&self, name: &NamespacedName, manifest: &ServiceManifest, is_over: bool) -> Service {
        let mut service = Service {
            addressing: manifest.addressing.clone(),
            // An address of a node leads to the node.
            vips: manifest.vips.iter().filter(|vip| !self.on_nodes.contains_key(vip)).copied().collect(),
            external: self.external(name, manifest),
            ports: manifest.ports.clone(),
            selector: manifest.selector.clone(),
            families: manifest.families,
            distribution: self.distribution(manifest.distribution, name),
            is_sticky: manifest.is_sticky,
            visibility: self.visibility(manifest.visibility.as_ref(), name),
            ..Service::new(name.clone(), hostname(name))
        };
        service.endpoints = match self.given_by(name, manifest) {
            _ if is_over => Arc::default(),
            Some(slices) => self.given(manifest, slices.into_iter()),
            None => self.selected(&service, manifest.every_endpoint_ready),
        };
        service
    }

    /// The external addresses that lead to a service. An address of a node is left out: it leads to the node. An
    /// address that also belongs to a pod or another service is that one's; this is decided when the address is looked
    /// up.
    fn external(&self, name: &NamespacedName, manifest: &ServiceManifest) -> Vec<ExternalAddress> {
        let of_nobody = manifest.external.iter().filter(|external| !self.on_nodes.contains_key(&external.address));
        let is_root = || name.namespace == self.root_namespace();
        let address = |external: &External| ExternalAddress {
            address: external.address,
            leads_everyone: external.is_balancer || is_root(),
        };
        of_nobody.map(address).collect()
    }

    /// The service of a host of an entry, without endpoints.
    fn entry_service(&self, name: &NamespacedName, host: &Arc<str>, manifest: &EntryManifest) -> Service {
        Service {
            name: name.clone(),
            hostname: Arc::clone(host),
            kind: ServiceKind::Entry,
            addressing: Addressing::Given,
            vips: manifest.vips.clone(),
            external: Vec::new(),
            ranges: manifest.ranges.clone(),
            ports: manifest.ports.clone(),
            resolution: manifest.resolution,
            endpoints: Arc::default(),
            selector: manifest.selector.clone(),
            families: Families::default(),
            distribution: self.distribution(manifest.distribution, name),
            is_sticky: false,
            visibility: self.entry_visibility(name, manifest),
            identities: manifest.identities.clone(),
            waypoint: None,
        }
    }

    /// The endpoints in the entry, or those that its selector matches.
    fn endpoints_of_entry(&self, service: &Service, manifest: &EntryManifest) -> Arc<[Endpoint]> {
        match manifest.selector.is_empty() {
            true => manifest.endpoints.iter().map(|endpoint| self.recognised(endpoint.clone())).collect(),
            false => self.selected(service, false),
        }
    }

    /// The traffic distribution of the service, or else of its namespace.
    fn distribution(&self, own: Option<Distribution>, name: &NamespacedName) -> Distribution {
        own.or(self.namespace(name).distribution).unwrap_or(Distribution::Any)
    }

    /// The namespaces whose pods see a ServiceEntry. An entry with endpoints leads traffic elsewhere, and it may name
    /// any address or IP block: an author with access to one namespace could otherwise take the traffic of the whole
    /// mesh.
    fn entry_visibility(&self, name: &NamespacedName, manifest: &EntryManifest) -> Visibility {
        let exported = self.visibility(manifest.visibility.as_ref(), name);
        let own = &name.namespace;
        match &exported {
            _ if self.may_lead_everyone(name, manifest) => exported,
            Visibility::Namespaces(namespaces) if !namespaces.contains(own) => Visibility::Namespaces(Vec::new()),
            Visibility::Everyone | Visibility::Namespaces(_) => Visibility::Namespaces(vec![Arc::clone(own)]),
        }
    }

    fn may_lead_everyone(&self, name: &NamespacedName, manifest: &EntryManifest) -> bool {
        let is_free = self.settings().is_some_and(|(_, settings)| settings.body.entries_lead_everyone);
        is_free || manifest.resolution == Resolution::Passthrough || name.namespace == self.root_namespace()
    }

    /// Whether an entry is exported to more pods than those that see it.
    pub(super) fn is_kept_in(&self, name: &NamespacedName, manifest: &EntryManifest) -> bool {
        !self.may_lead_everyone(name, manifest)
            && match self.visibility(manifest.visibility.as_ref(), name) {
                Visibility::Everyone => true,
                Visibility::Namespaces(namespaces) => namespaces.iter().any(|namespace| *namespace != name.namespace),
            }
    }

    /// The namespaces whose pods see a service, as the service says or else as the mesh's settings say.
    fn visibility(&self, own: Option<&Visibility>, name: &NamespacedName) -> Visibility {
        let of_mesh = || {
            let (_, settings) = self.settings().filter(|(_, settings)| !settings.body.export_to.is_empty())?;
            Some(visibility(settings.body.export_to.iter().map(String::as_str), &name.namespace).0)
        };
        own.cloned().or_else(of_mesh).unwrap_or(Visibility::Everyone)
    }
}
