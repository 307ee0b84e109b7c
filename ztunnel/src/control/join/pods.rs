//! Pods, joined with their namespaces and nodes: the owner of each address, and the services that a change concerns.

use std::net::IpAddr;
use std::sync::Arc;

use super::few::Few;
use super::services::note;
use super::{JoinedPod, Joiner, Subject};
use crate::model::service::ServiceKind;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::Change;
use crate::store::effort;

impl Joiner {
    /// Joins again the pods that are marked.
    pub(super) fn join_pods(&mut self, changes: &mut Vec<Change>) {
        for name in std::mem::take(&mut self.dirty.pods) {
            let before = self.pods_joined.get(&name).cloned();
            // Keeps the same allocation if the value is the same.
            let after = self.join_pod(&name).map(|after| before.clone().filter(|one| *one == after).unwrap_or(after));
            self.keep_once(&name, after.as_ref().map(|after| &after.workload));
            if !self.contested.is_empty() {
                // The pod's object may have moved to another line.
                self.dirty.subjects.insert(Subject::Contested);
            }
            if before == after {
                continue;
            }
            match &after {
                Some(after) => drop(self.pods_joined.insert(name.clone(), after.clone())),
                None => drop(self.pods_joined.remove(&name)),
            }
            let was = before.as_ref().map(|before| &*before.workload);
            let is = after.as_ref().map(|after| &after.workload);
            self.move_between_services(was, is.map(|is| &**is));
            for (pod, is_in) in [(was, false), (is.map(|is| &**is), true)] {
                for address in pod.filter(|pod| pod.has_shared_addresses()).into_iter().flat_map(|pod| &pod.addresses) {
                    note(&mut self.on_hosts, *address, name.clone(), is_in);
                }
                let of_node = pod.filter(|pod| pod.host_network).into_iter().flat_map(|pod| &pod.addresses);
                for address in pod.into_iter().flat_map(|pod| &pod.node_addresses).chain(of_node) {
                    self.note_node_address(*address, is_in);
                }
            }
            self.holders.note(was, is);
            let both = was.into_iter().chain(is.map(|is| &**is));
            self.dirty.moved.extend(both.flat_map(|pod| &pod.addresses));
            match after {
                Some(after) if was != Some(&after.workload) => changes.push(Change::Workload(after.workload)),
                // Only services need to know that it is draining.
                Some(_) => {}
                None => changes.push(Change::WorkloadGone(name)),
            }
        }
        for address in self.holders.settle() {
            // It may now belong to another of the pods that claim it.
            let claimants = self.holders.all(address).to_vec();
            effort::count(claimants.len());
            claimants.iter().for_each(|pod| self.note_selecting(pod));
            self.settle(address);
        }
        std::mem::take(&mut self.dirty.moved).into_iter().for_each(|address| self.note_naming(address));
    }

    /// Keeps one copy of each workload, shared with the published one, and keeps the local facts only for pods of this
    /// node.
    fn keep_once(&mut self, name: &NamespacedName, pod: Option<&Arc<Workload>>) {
        let is_here = pod.is_some_and(|pod| self.node.is_none() || pod.node == self.node);
        let mut local = None;
        if let (Some(pod), Some(manifest)) = (pod, self.pods.body_mut(name)) {
            let manifest = Arc::make_mut(manifest);
            manifest.workload = Arc::clone(pod);
            if is_here {
                local = Some(&*manifest.local);
            } else {
                manifest.local = Arc::clone(&self.no_local);
            }
        }
        if local == self.local.get(name) {
            return;
        }
        self.dirty.local = true;
        match local {
            Some(local) => drop(self.local.insert(name.clone(), local.clone())),
            None => drop(self.local.remove(name)),
        }
    }

    fn join_pod(&self, name: &NamespacedName) -> Option<JoinedPod> {
        let manifest = &self.pods.get(name).or_else(|| self.workload_entries.get(name))?.body;
        let node = manifest.workload.node.as_ref().and_then(|node| self.node(node));
        let workload = manifest.workload(self.namespace(name).labelled, node, &self.trust_domain);
        Some(JoinedPod { workload, draining: manifest.draining, weight: manifest.weight })
    }

    /// Determines again whether several pods claim an address.
    fn settle(&mut self, address: IpAddr) {
        let now = self.holders.contested(address);
        if now.as_ref() == self.contested.get(&address) {
            return;
        }
        self.dirty.moved.insert(address);
        self.dirty.subjects.insert(Subject::Contested);
        match now {
            Some(claimants) => drop(self.contested.insert(address, claimants)),
            None => drop(self.contested.remove(&address)),
        }
    }

    /// Marks the objects that name an address whose owner has changed.
    fn note_naming(&mut self, address: IpAddr) {
        for (kind, name) in self.naming.get(&address).into_iter().flat_map(Few::iter) {
            let fronting = match (*kind, self.slices.get(name)) {
                ("EndpointSlice", Some(slice)) => (ServiceKind::Kubernetes, slice.body.service.clone()),
                ("Endpoints", _) => (ServiceKind::Kubernetes, name.clone()),
                _ => (ServiceKind::Entry, name.clone()),
            };
            self.dirty.fronting.insert(fronting);
        }
        let on_host = self.on_hosts.get(&address).into_iter().flatten();
        let pods = on_host.filter_map(|name| self.pods_joined.get(name)).map(|pod| Arc::clone(&pod.workload));
        for pod in pods.collect::<Vec<_>>() {
            self.note_selecting(&pod);
        }
        let services = self.vips.get(&address).into_iter().chain(self.external.get(&address)).flatten();
        self.dirty.subjects.extend(services.cloned().map(Subject::Service));
        for name in self.entry_vips.get(&address).into_iter().flatten() {
            self.dirty.subjects.insert(Subject::Entry(name.clone()));
        }
    }
}
