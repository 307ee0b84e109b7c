//! The labels of a workload, and the labels of a selector.

use std::fmt;
use std::slice;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Labels, sorted by key. Clones share the memory.
///
/// A mesh has a value of this type for each pod, so it is one sorted block and not a tree: the first node of a tree alone takes
/// 550 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(found).map(|(_, value)| value)
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// The number of labels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all labels of a selector are among these labels, with the same values. A selector without labels always matches.
    #[must_use]
    pub fn include(&self, selector: &Self) -> bool {
        selector.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

/// Keys and values of [`Labels`], sorted by key.
#[derive(Clone, Debug)]
pub struct Iter<'a>(slice::Iter<'a, (Arc<str>, Arc<str>)>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Arc<str>, &'a Arc<str>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a Arc<str>, &'a Arc<str>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The last value of a key takes precedence.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut labels: Vec<(Arc<str>, Arc<str>)> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        // The sort is stable, so that the last value of a key stays the last.
        labels.sort_by(|(one, _), (other, _)| one.cmp(other));
        labels.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        Self(labels.into())
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>, const N: usize> From<[(K, V); N]> for Labels {
    fn from(labels: [(K, V); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// `key=value,key=value`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, value)) in self.iter().enumerate() {
            write!(f, "{}{key}={value}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(key, value)| (&**key, &**value)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{prop, proptest};

    use super::Labels;

    #[test]
    fn labels_are_sorted_and_once() {
        let labels = Labels::from([("b", "1"), ("a", "2"), ("b", "3"), ("", "4")]);
        assert_eq!(labels.to_string(), "=4,a=2,b=3");
        assert_eq!((labels.len(), labels.is_empty(), Labels::default().is_empty()), (3, false, true));
        assert_eq!(labels.get("b").map(|value| &**value), Some("3"));
        assert_eq!(labels.get("c"), None);
        assert_eq!(serde_json::to_string(&labels).unwrap(), r#"{"":"4","a":"2","b":"3"}"#);
        assert!(labels.include(&Labels::from([("a", "2")])) && labels.include(&Labels::default()));
        assert!(
            !labels.include(&Labels::from([("a", "2"), ("c", "2")])) && !labels.include(&Labels::from([("a", "3")]))
        );
    }

    proptest! {
        #[test]
        fn they_are_as_a_tree_would_have_them(given in prop::collection::vec(("[a-c]{0,2}", "[a-c]{0,1}"), 0..8), key in "[a-c]{0,2}") {
            let labels: Labels = given.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let tree: BTreeMap<String, String> = given.into_iter().collect();
            assert!(labels.iter().map(|(key, value)| (&**key, &**value)).eq(tree.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
            assert_eq!(labels.get(&key).map(|value| &**value), tree.get(&key).map(String::as_str));
        }
    }
}
