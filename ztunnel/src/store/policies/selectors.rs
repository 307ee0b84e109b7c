//! What is chosen by labels, found by the labels of a workload.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::labels::Labels;

/// By the value of a label.
type ByValue<T> = HashMap<Arc<str>, Vec<(Labels, T)>>;

/// Things with selectors. Each is kept under the rarest of its labels, so that a workload meets few that it is not.
#[derive(Debug)]
pub(super) struct Selectors<T> {
    anywhere: ByLabel<T>,
    namespaces: HashMap<Arc<str>, ByLabel<T>>,
}

#[derive(Debug)]
struct ByLabel<T> {
    /// With a selector that names no label.
    all: Vec<T>,
    /// By a label's key, then by its value.
    labels: HashMap<Arc<str>, ByValue<T>>,
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self { all: Vec::new(), labels: HashMap::new() }
    }
}

impl<T> Default for Selectors<T> {
    fn default() -> Self {
        Self { anywhere: ByLabel::default(), namespaces: HashMap::new() }
    }
}

impl<T> Selectors<T> {
    /// Indexes things by namespace (`None`: any) and selector.
    pub(super) fn new(selected: Vec<(Option<Arc<str>>, Labels, T)>) -> Self {
        let mut popular: HashMap<(Arc<str>, Arc<str>), usize> = HashMap::new();
        for (key, value) in selected.iter().flat_map(|(_, labels, _)| labels) {
            *popular.entry((key.clone(), value.clone())).or_default() += 1;
        }
        let mut selectors = Self::default();
        for (namespace, labels, thing) in selected {
            let of_namespace = match namespace {
                Some(namespace) => selectors.namespaces.entry(namespace).or_default(),
                None => &mut selectors.anywhere,
            };
            let own = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
            match own.min_by_key(|label| popular.get(label).copied()) {
                Some((key, value)) => {
                    let of_key = of_namespace.labels.entry(key).or_default();
                    of_key.entry(value).or_default().push((labels, thing));
                }
                None => of_namespace.all.push(thing),
            }
        }
        selectors
    }

    /// Yields what selects a workload of this namespace with these labels.
    pub(super) fn find<'a>(&'a self, namespace: &str, labels: &Labels, mut found: impl FnMut(&'a T)) {
        let of_namespace = self.namespaces.get(namespace);
        for place in [Some(&self.anywhere), of_namespace].into_iter().flatten() {
            place.all.iter().for_each(&mut found);
            for (key, value) in labels {
                let candidates = place.labels.get(key).and_then(|values| values.get(value));
                let matching = candidates.into_iter().flatten().filter(|(wanted, _)| lacking(wanted, labels).is_none());
                matching.for_each(|(_, thing)| found(thing));
            }
        }
    }
}

/// The first of a selector's labels that is not among a workload's.
#[must_use]
pub fn lacking<'a>(selector: &'a Labels, labels: &Labels) -> Option<(&'a str, &'a str)> {
    let missing = selector.iter().find(|(key, value)| labels.get(key) != Some(value));
    missing.map(|(key, value)| (&**key, &**value))
}
