//! Values with label selectors, found by the labels of a workload.

use std::sync::Arc;

use super::effort;
use super::shared::SharedMap;
use crate::model::labels::Labels;

/// One value for each selector. A value is stored under the label that was the rarest when the value was added, so that a
/// look-up meets few selectors that do not match.
#[derive(Debug, Clone)]
pub struct Selectors<T> {
    anywhere: ByLabel<T>,
    namespaces: SharedMap<Arc<str>, ByLabel<T>>,
}

/// The values of one label, by all labels of the selector. Many selectors may share their rarest label, so it is a map.
type Bucket<T> = SharedMap<Labels, T>;

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
                let Some(bucket) = place.labels.get(key).and_then(|values| values.get(value)) else { continue };
                let mut matching: Vec<(&Labels, &T)> =
                    bucket.iter().filter(|(wanted, _)| lacking(wanted, labels).is_none()).collect();
                // The order of the map is random.
                matching.sort_unstable_by_key(|(wanted, _)| *wanted);
                matching.into_iter().for_each(|(_, thing)| found(thing));
            }
        }
    }
}

impl<T: Clone> ByLabel<T> {
    fn bucket(&self, key: &str, value: &str) -> Option<&Bucket<T>> {
        self.labels.get(key)?.get(value)
    }

    /// The label under which a selector is stored, and its value.
    fn place<'l>(&self, labels: &'l Labels) -> Option<(&'l Arc<str>, &'l Arc<str>, &T)> {
        labels.iter().find_map(|(key, value)| {
            effort::count(1);
            Some((key, value, self.bucket(key, value)?.get(labels)?))
        })
    }

    fn get(&self, labels: &Labels) -> Option<&T> {
        if labels.is_empty() {
            return self.all.as_ref();
        }
        self.place(labels).map(|(_, _, thing)| thing)
    }

    fn set(&mut self, labels: &Labels, thing: Option<T>) {
        if labels.is_empty() {
            self.all = thing;
            return;
        }
        let place = self.place(labels).map(|(key, value, _)| (key, value));
        let len = |key: &str, value: &str| self.bucket(key, value).map_or(0, SharedMap::len);
        let rarest = || labels.iter().min_by_key(|(key, value)| len(key, value));
        let Some((key, value)) = place.or_else(rarest) else { return };
        let mut bucket = self.bucket(key, value).cloned().unwrap_or_default();
        bucket.set(labels.clone(), thing);
        let mut values = self.labels.get(key).cloned().unwrap_or_default();
        values.set(Arc::clone(value), (!bucket.is_empty()).then_some(bucket));
        self.labels.set(Arc::clone(key), (!values.is_empty()).then_some(values));
    }
}

/// The first label of a selector that a workload does not have.
#[must_use]
pub fn lacking<'a>(selector: &'a Labels, labels: &Labels) -> Option<(&'a str, &'a str)> {
    let missing = selector.iter().find(|(key, value)| labels.get(key) != Some(value));
    missing.map(|(key, value)| (&**key, &**value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn some_labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[a-d]", "[xy]", 0..4).prop_map(|labels| labels.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_matches_is_found(
            steps in prop::collection::vec((some_labels(), any::<bool>(), prop::option::of(0..100)), 0..60),
            workload in some_labels(),
        ) {
            let (mut selectors, mut model) = (Selectors::default(), BTreeMap::new());
            let demo: Arc<str> = "demo".into();
            for (labels, is_anywhere, thing) in steps {
                let namespace = (!is_anywhere).then_some(&demo);
                selectors.set(namespace, &labels, thing);
                prop_assert_eq!(selectors.get(namespace, &labels).copied(), thing);
                match thing {
                    Some(thing) => drop(model.insert((is_anywhere, labels), thing)),
                    None => drop(model.remove(&(is_anywhere, labels))),
                }
            }
            let mut found = Vec::new();
            selectors.find("demo", &workload, |thing| found.push(*thing));
            let mut expected: Vec<i32> =
                model.iter().filter(|((_, wanted), _)| workload.include(wanted)).map(|(_, thing)| *thing).collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
            let mut others = 0;
            selectors.find("other", &workload, |_| others += 1);
            prop_assert_eq!(others, model.keys().filter(|(is_anywhere, wanted)| *is_anywhere && workload.include(wanted)).count());
        }
    }

    /// Many selectors with the same labels, each a different choice of them.
    #[test]
    fn the_work_grows_with_the_number_of_selectors_only() {
        let steps = [1 << 9, 1 << 10].map(|count: u32| {
            let chosen = |number: u32| (0..10).filter(move |bit| number >> bit & 1 == 1);
            effort::of(|| {
                let mut selectors = Selectors::default();
                for number in 1..count {
                    let labels = chosen(number).map(|bit| (format!("label-{bit}"), "v")).collect();
                    selectors.set(Some(&"evil".into()), &labels, Some(number));
                }
            })
        });
        assert!(steps[0] > 0 && steps[1] <= steps[0] * 5 / 2, "{steps:?}");
    }
}
