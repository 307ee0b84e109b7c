//! The pods that the selectors of services and entries match.
//!
//! Pods are kept by those of their labels that a selector of their namespace names, and not by service: many services may
//! select the same pods. A service finds its pods among the pods that have the rarest label of its selector, so the number
//! of those pods is the cost of the search. The budget of the namespace counts them (`budget.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::labels::Labels;
use crate::model::service::ServiceKind;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::effort;

/// The key of an object with endpoints: a Service or a ServiceEntry.
pub(super) type Fronting = (ServiceKind, NamespacedName);

/// A key and its value.
pub(super) type Label = (Arc<str>, Arc<str>);

/// A label that pods have and selectors name.
pub(super) type Named = (Arc<str>, Label);

/// Pods and selectors, by namespace.
#[derive(Debug, Default)]
pub(super) struct Selection(HashMap<Arc<str>, OfNamespace>);

/// The labels that selectors of a namespace name.
#[derive(Debug, Default)]
struct OfNamespace {
    labels: HashMap<Label, Bearers>,
    selectors: BTreeMap<Selecting, Labels>,
}

/// A service or entry of the namespace.
type Selecting = (ServiceKind, Arc<str>);

#[derive(Debug, Default)]
struct Bearers {
    /// The names of the pods that have the label.
    pods: BTreeSet<Arc<str>>,
    /// The number of their addresses. A pod without an address counts as one.
    addresses: usize,
    /// The selectors that name the label. `true`: it is the first label of the selector.
    selectors: BTreeMap<Selecting, bool>,
}

/// The costs of a pod as an endpoint.
fn addresses_of(pod: &Workload) -> usize {
    pod.addresses.len().max(1)
}

impl OfNamespace {
    /// The pods that have the rarest label of a selector.
    fn candidates(&self, selector: &Labels) -> Option<&Bearers> {
        let bearers = selector.iter().map(|(key, value)| self.labels.get(&(Arc::clone(key), Arc::clone(value))));
        bearers.min_by_key(|bearers| bearers.map_or(0, |bearers| bearers.addresses)).flatten()
    }
}

impl Bearers {
    fn note(&mut self, pod: &Workload, is_in: bool) {
        match is_in {
            true if self.pods.insert(Arc::clone(&pod.name.name)) => self.addresses += addresses_of(pod),
            false if self.pods.remove(&pod.name.name) => self.addresses -= addresses_of(pod),
            _ => {}
        }
    }
}

impl Selection {
    /// The number of addresses of the pods that have the rarest label of a selector.
    pub(super) fn cost(&self, namespace: &str, selector: &Labels) -> usize {
        let found = self.0.get(namespace).and_then(|all| all.candidates(selector));
        found.map_or(0, |bearers| bearers.addresses)
    }

    /// The names of the pods that have the rarest label of a selector.
    pub(super) fn candidates(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &Arc<str>> {
        let found = self.0.get(namespace).and_then(|all| all.candidates(selector));
        found.into_iter().flat_map(|bearers| &bearers.pods)
    }

    /// The services and entries whose selectors name a label.
    pub(super) fn naming(&self, (namespace, label): &Named) -> impl Iterator<Item = Fronting> {
        let bearers = self.0.get(namespace).and_then(|all| all.labels.get(label));
        let selectors = bearers.into_iter().flat_map(|bearers| bearers.selectors.keys());
        selectors.map(move |(kind, name)| (*kind, NamespacedName::new(Arc::clone(namespace), Arc::clone(name))))
    }

    /// Sets the selector of a service or entry. Returns the labels that no selector has named before: their pods have to
    /// be found.
    pub(super) fn set(&mut self, fronting: &Fronting, before: &Labels, after: &Labels) -> Vec<Named> {
        let (kind, NamespacedName { namespace, name }) = fronting;
        let of_namespace = self.0.entry(Arc::clone(namespace)).or_default();
        let selecting = (*kind, Arc::clone(name));
        for (key, value) in before {
            let label = (Arc::clone(key), Arc::clone(value));
            let Some(bearers) = of_namespace.labels.get_mut(&label) else { continue };
            bearers.selectors.remove(&selecting);
            if bearers.selectors.is_empty() {
                of_namespace.labels.remove(&label);
            }
        }
        let mut new = Vec::new();
        for (position, (key, value)) in after.iter().enumerate() {
            let label = (Arc::clone(key), Arc::clone(value));
            let bearers = of_namespace.labels.entry(label.clone()).or_default();
            if bearers.selectors.is_empty() {
                new.push((Arc::clone(namespace), label));
            }
            bearers.selectors.insert(selecting.clone(), position == 0);
        }
        match after.is_empty() {
            true => drop(of_namespace.selectors.remove(&selecting)),
            false => drop(of_namespace.selectors.insert(selecting, after.clone())),
        }
        if of_namespace.selectors.is_empty() {
            self.0.remove(namespace);
        }
        new
    }

    /// Adds a pod to those that have its labels, or removes it. Calls `moved` with each of these labels that a selector names.
    /// No selector matches a finished pod.
    pub(super) fn note(&mut self, pod: &Workload, is_in: bool, mut moved: impl FnMut(Named)) {
        let namespace = &pod.name.namespace;
        let Some(of_namespace) = self.0.get_mut(namespace).filter(|_| !pod.finished) else { return };
        for (key, value) in &pod.labels {
            let label = (Arc::clone(key), Arc::clone(value));
            let Some(bearers) = of_namespace.labels.get_mut(&label) else { continue };
            effort::count(1);
            bearers.note(pod, is_in);
            moved((Arc::clone(namespace), label));
        }
    }

    /// Adds a pod to those that have some new labels.
    pub(super) fn note_new(&mut self, pod: &Workload, new: &BTreeSet<Label>) {
        let Some(of_namespace) = self.0.get_mut(&pod.name.namespace).filter(|_| !pod.finished) else { return };
        effort::count(1);
        for (key, value) in &pod.labels {
            let label = (Arc::clone(key), Arc::clone(value));
            let bearers = of_namespace.labels.get_mut(&label).filter(|_| new.contains(&label));
            bearers.into_iter().for_each(|bearers| bearers.note(pod, true));
        }
    }

    /// Calls `found` with the services and entries whose selectors match a pod.
    ///
    /// `compared` is the number of selectors with which pods of the namespace were compared. If it becomes larger than `most`,
    /// `found` gets all services and entries of the namespace that have a selector, which takes one step for each of them,
    /// and later calls do nothing.
    pub(super) fn selecting(&self, pod: &Workload, compared: &mut usize, most: usize, mut found: impl FnMut(Fronting)) {
        let namespace = &pod.name.namespace;
        let Some(of_namespace) = self.0.get(namespace).filter(|_| !pod.finished && *compared <= most) else { return };
        let named = |(kind, name): &Selecting| {
            (*kind, NamespacedName { namespace: Arc::clone(namespace), name: Arc::clone(name) })
        };
        for (key, value) in &pod.labels {
            let Some(bearers) = of_namespace.labels.get(&(Arc::clone(key), Arc::clone(value))) else { continue };
            // Each selector is met once: under its first label.
            for (selecting, _) in bearers.selectors.iter().filter(|(_, is_first)| **is_first) {
                *compared += 1;
                effort::count(1);
                if of_namespace.selectors.get(selecting).is_some_and(|selector| pod.labels.include(selector)) {
                    found(named(selecting));
                }
            }
            if *compared > most {
                effort::count(of_namespace.selectors.len());
                return of_namespace.selectors.keys().map(named).for_each(found);
            }
        }
    }
}
