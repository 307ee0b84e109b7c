//! Changes that come rarely and concern many objects: of a Namespace, of a Node, and of the mesh's settings.

use std::net::IpAddr;
use std::sync::Arc;

use super::table::Replaced;
use super::{Joiner, Subject};
use crate::control::objects::{MeshSettings, NamespaceManifest, NodeManifest};
use crate::model::service::ServiceKind;
use crate::model::workload::NamespacedName;
use crate::store::change::{Change, Setting};

impl Joiner {
    pub(super) fn namespace_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<NamespaceManifest>) {
        let (before, after) = (replaced.before, replaced.after);
        match (before, after) {
            (None, Some(_)) => self.dirty.changes.push(Change::Namespace(Arc::clone(&name.name))),
            (Some(_), None) => self.dirty.changes.push(Change::NamespaceGone(Arc::clone(&name.name))),
            _ => {}
        }
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        if before.labelled != after.labelled {
            self.dirty.pods.extend(self.pods.names_in(&name.name).cloned());
        }
        if before.distribution != after.distribution {
            let services = self.services.names_in(&name.name).map(|name| (ServiceKind::Kubernetes, name.clone()));
            self.dirty.fronting.extend(services);
            let entries = self.entries.names_in(&name.name).map(|name| (ServiceKind::Entry, name.clone()));
            self.dirty.fronting.extend(entries);
        }
    }

    pub(super) fn node_replaced(&mut self, name: &NamespacedName, replaced: &Replaced<Arc<NodeManifest>>) {
        match (&replaced.before, &replaced.after) {
            (None, Some(_)) => self.dirty.changes.push(Change::Node(Arc::clone(&name.name))),
            (Some(_), None) => self.dirty.changes.push(Change::NodeGone(Arc::clone(&name.name))),
            _ => {}
        }
        for (node, is_in) in [(&replaced.before, false), (&replaced.after, true)] {
            let addresses = node.iter().flat_map(|node| &node.addresses);
            addresses.for_each(|address| self.note_node_address(*address, is_in));
        }
        let locality =
            |node: &Option<Arc<NodeManifest>>| node.as_ref().map(|node| node.locality.clone()).unwrap_or_default();
        if locality(&replaced.before) == locality(&replaced.after) {
            return;
        }
        let here = |node: &Option<Arc<str>>| node.as_ref() == Some(&name.name);
        let pods = self.pods.iter().filter(|(_, pod)| here(&pod.body.workload.node)).map(|(name, _)| name.clone());
        self.dirty.pods.extend(pods);
        let slices = self.slices.iter().map(|(_, slice)| &slice.body);
        let concerned = slices.filter(|slice| slice.endpoints.iter().any(|endpoint| here(&endpoint.node)));
        self.dirty.fronting.extend(concerned.map(|slice| (ServiceKind::Kubernetes, slice.service.clone())));
        let endpoints = self.endpoints.iter().filter(|(_, said)| {
            let mut endpoints = said.body.subsets.iter().flat_map(|subset| &subset.endpoints);
            endpoints.any(|endpoint| here(&endpoint.node))
        });
        self.dirty.fronting.extend(endpoints.map(|(name, _)| (ServiceKind::Kubernetes, name.clone())));
    }

    /// Counts the objects that name an address of a node: such an address leads to no service.
    pub(super) fn note_node_address(&mut self, address: IpAddr, is_in: bool) {
        let count = self.on_nodes.entry(address).or_default();
        *count = if is_in { *count + 1 } else { count.saturating_sub(1) };
        let (is_new, is_gone) = (is_in && *count == 1, *count == 0);
        if is_gone {
            self.on_nodes.remove(&address);
        }
        if is_new || is_gone {
            let services = self.external.get(&address).into_iter().chain(self.vips.get(&address)).flatten();
            self.dirty.fronting.extend(services.map(|name| (ServiceKind::Kubernetes, name.clone())));
        }
    }

    pub(super) fn settings_replaced(&mut self, replaced: &Replaced<Arc<MeshSettings>>) {
        let before = replaced.before.as_deref().cloned().unwrap_or_default();
        let after = replaced.after.as_deref().cloned().unwrap_or_default();
        if before.registry_only != after.registry_only {
            self.dirty.changes.push(Change::Setting(Setting::RegistryOnly(after.registry_only)));
        }
        if before.export_to != after.export_to {
            self.dirty.subjects.extend(self.entries.iter().map(|(name, _)| Subject::Entry(name.clone())));
            self.dirty.fronting.extend(self.services.iter().map(|(name, _)| (ServiceKind::Kubernetes, name.clone())));
            self.dirty.fronting.extend(self.entries.iter().map(|(name, _)| (ServiceKind::Entry, name.clone())));
        }
        if (&before.root_namespace, before.entries_lead_everyone)
            != (&after.root_namespace, after.entries_lead_everyone)
        {
            self.dirty.fronting.extend(self.entries.iter().map(|(name, _)| (ServiceKind::Entry, name.clone())));
            self.dirty.subjects.extend(self.entries.iter().map(|(name, _)| Subject::Entry(name.clone())));
        }
        if before.root_namespace != after.root_namespace {
            let external = self.external.values().flatten().map(|name| (ServiceKind::Kubernetes, name.clone()));
            self.dirty.fronting.extend(external);
            self.dirty.authorization.extend(self.authorization.iter().map(|(name, _)| name.clone()));
            self.dirty.authentication.extend(self.authentication.iter().map(|(name, _)| name.clone()));
            self.dirty.subjects.insert(Subject::Authentication);
        }
        self.dirty.subjects.insert(Subject::Settings);
    }
}
