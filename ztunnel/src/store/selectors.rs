//! Values with label selectors, found by the labels of a workload.

use std::sync::Arc;

use super::shared::SharedMap;
use crate::model::labels::Labels;

/// One value for each selector. A value is stored under the label that was the rarest when the value was added, so that a
/// look-up meets few selectors that do not match.
#[derive(Debug, Clone)]
pub struct Selectors<T> {
    anywhere: ByLabel<T>,
    namespaces: SharedMap<Arc<str>, ByLabel<T>>,
}

/// The values of one label, each with all labels of its selector.
type Bucket<T> = Arc<[(Labels, T)]>;

/// Buckets by the value of a label.
type ByValue<T> = SharedMap<Arc<str>, Bucket<T>>;

#[derive(Debug, Clone)]
struct ByLabel<T> {
    /// The value of the selector without labels.
    all: Option<T>,
    /// By a label's key, then by its value.
    labels: SharedMap<Arc<str>, ByValue<T>>,
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self { all: None, labels: SharedMap::default() }
    }
}

impl<T> Default for Selectors<T> {
    fn default() -> Self {
        Self { anywhere: ByLabel::default(), namespaces: SharedMap::default() }
    }
}

impl<T: Clone> Selectors<T> {
    /// Sets the value of a selector in a namespace (`None`: in any namespace). `None` as the value removes it.
    pub fn set(&mut self, namespace: Option<&Arc<str>>, labels: &Labels, thing: Option<T>) {
        let Some(namespace) = namespace else { return self.anywhere.set(labels, thing) };
        let mut of_namespace = self.namespaces.get(namespace).cloned().unwrap_or_default();
        of_namespace.set(labels, thing);
        let is_left = of_namespace.all.is_some() || !of_namespace.labels.is_empty();
        self.namespaces.set(Arc::clone(namespace), is_left.then_some(of_namespace));
    }

    /// The value of a selector in a namespace.
    pub fn get(&self, namespace: Option<&Arc<str>>, labels: &Labels) -> Option<&T> {
        let by_label = match namespace {
            None => &self.anywhere,
            Some(namespace) => self.namespaces.get(namespace)?,
        };
        by_label.get(labels)
    }

    /// Yields the values whose selectors match a workload of this namespace with these labels.
    pub fn find<'a>(&'a self, namespace: &str, labels: &Labels, mut found: impl FnMut(&'a T)) {
        let of_namespace = self.namespaces.get(namespace);
        for place in [Some(&self.anywhere), of_namespace].into_iter().flatten() {
            place.all.iter().for_each(&mut found);
            if place.labels.is_empty() {
                continue;
            }
            for (key, value) in labels {
                let candidates = place.labels.get(key).and_then(|values| values.get(value));
                let all = candidates.into_iter().flat_map(|bucket| bucket.iter());
                all.filter(|(wanted, _)| lacking(wanted, labels).is_none()).for_each(|(_, thing)| found(thing));
            }
        }
    }
}

impl<T: Clone> ByLabel<T> {
    fn bucket(&self, key: &str, value: &str) -> &[(Labels, T)] {
        let bucket = self.labels.get(key).and_then(|values| values.get(value));
        bucket.map(|bucket| &**bucket).unwrap_or_default()
    }

    /// The label under which a selector is stored, and its position there.
    fn place<'l>(&self, labels: &'l Labels) -> Option<(&'l Arc<str>, &'l Arc<str>, usize)> {
        labels.iter().find_map(|(key, value)| {
            let position = self.bucket(key, value).iter().position(|(wanted, _)| wanted == labels)?;
            Some((key, value, position))
        })
    }

    fn get(&self, labels: &Labels) -> Option<&T> {
        if labels.is_empty() {
            return self.all.as_ref();
        }
        let (key, value, position) = self.place(labels)?;
        self.bucket(key, value).get(position).map(|(_, thing)| thing)
    }

    fn set(&mut self, labels: &Labels, thing: Option<T>) {
        if labels.is_empty() {
            self.all = thing;
            return;
        }
        let place = self.place(labels);
        let rarest = || labels.iter().min_by_key(|(key, value)| self.bucket(key, value).len());
        let Some((key, value)) = place.map(|(key, value, _)| (key, value)).or_else(rarest) else { return };
        let mut bucket = self.bucket(key, value).to_vec();
        if let Some((_, _, position)) = place {
            bucket.remove(position);
        }
        bucket.extend(thing.map(|thing| (labels.clone(), thing)));
        let mut values = self.labels.get(key).cloned().unwrap_or_default();
        values.set(Arc::clone(value), (!bucket.is_empty()).then(|| bucket.into()));
        self.labels.set(Arc::clone(key), (!values.is_empty()).then_some(values));
    }
}

/// The first label of a selector that a workload does not have.
#[must_use]
pub fn lacking<'a>(selector: &'a Labels, labels: &Labels) -> Option<(&'a str, &'a str)> {
    let missing = selector.iter().find(|(key, value)| labels.get(key) != Some(value));
    missing.map(|(key, value)| (&**key, &**value))
}
