//! The pods behind the services and entries that have selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::selection::Label;
use super::{Fronting, JoinedPod, Joiner};
use crate::model::labels::Labels;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::ServiceKey;
use crate::store::effort;

impl Joiner {
    /// Finds the pods that have labels which no selector named before, among the pods that are joined already. The pods
    /// of a namespace are looked through once for all these labels.
    pub(super) fn find_bearers(&mut self) {
        let mut new: BTreeMap<Arc<str>, BTreeSet<Label>> = BTreeMap::new();
        for (namespace, label) in std::mem::take(&mut self.dirty.labels_named) {
            new.entry(namespace).or_default().insert(label);
        }
        for (namespace, new) in new {
            let names = self.pods.names_in(&namespace).chain(self.workload_entries.names_in(&namespace));
            for pod in names.filter_map(|name| self.pods_joined.get(name)) {
                self.selection.note_new(&pod.workload, &new);
            }
            self.dirty.labels_moved.extend(new.into_iter().map(|label| (Arc::clone(&namespace), label)));
        }
    }

    /// Follows a change of a pod, and marks the services and entries whose selectors match it now, or matched it before.
    pub(super) fn move_between_services(&mut self, was: Option<&Workload>, is: Option<&Workload>) {
        let matched_by = |pod: &Workload| (pod.finished, pod.labels.clone());
        let counted = |pod: &Workload| (matched_by(pod), pod.addresses.len());
        if was.map(counted) != is.map(counted) {
            let moved = &mut self.dirty.labels_moved;
            for (pod, is_in) in [(was, false), (is, true)] {
                pod.into_iter().for_each(|pod| self.selection.note(pod, is_in, |label| moved.extend([label])));
            }
        }
        was.into_iter().for_each(|was| self.note_selecting(was));
        if was.map(matched_by) != is.map(matched_by) {
            is.into_iter().for_each(|is| self.note_selecting(is));
        }
    }

    /// Marks the services and entries whose selectors match a pod.
    pub(super) fn note_selecting(&mut self, pod: &Workload) {
        let compared = self.dirty.compared.entry(Arc::clone(&pod.name.namespace)).or_default();
        let fronting = &mut self.dirty.fronting;
        self.selection.selecting(pod, compared, self.budget.most(), |selecting| fronting.extend([selecting]));
    }

    /// The services whose costs may have changed, because pods have got or lost labels that their selectors name.
    pub(super) fn keys_of_moved_labels(&mut self) -> BTreeSet<ServiceKey> {
        let mut found: BTreeSet<Fronting> = BTreeSet::new();
        for label in std::mem::take(&mut self.dirty.labels_moved) {
            found.extend(self.selection.naming(&label).inspect(|_| effort::count(1)));
        }
        found.iter().flat_map(|fronting| self.keys_of(fronting)).collect()
    }

    /// The pods that a selector matches.
    pub(super) fn members(&self, namespace: &Arc<str>, selector: &Labels) -> impl Iterator<Item = &JoinedPod> {
        let candidates = self.selection.candidates(namespace, selector).inspect(|_| effort::count(1));
        let named = |name: &Arc<str>| NamespacedName { namespace: Arc::clone(namespace), name: Arc::clone(name) };
        let pods = candidates.filter_map(move |name| self.pods_joined.get(&named(name)));
        pods.filter(|pod| pod.workload.labels.include(selector))
    }
}
