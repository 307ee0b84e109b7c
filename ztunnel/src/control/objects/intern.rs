//! One copy of texts that occur often: a mesh of a hundred thousand pods has few different namespaces, nodes and
//! labels.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::model::labels::Labels;

/// The texts and labels seen so far. It lives while the objects of one file, or of one list, are read.
#[derive(Debug, Default)]
pub(in crate::control) struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
}

impl Interner {
    /// The shared copy of a text.
    pub(in crate::control) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    /// The shared copy of some labels: the pods of a Deployment have the same labels.
    pub(in crate::control) fn labels(&mut self, labels: &BTreeMap<String, String>) -> Labels {
        let new: Labels = labels.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        if let Some(known) = self.labels.get(&new) {
            return known.clone();
        }
        self.labels.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Interner};

    #[test]
    fn equal_labels_are_one() {
        let mut texts = Interner::default();
        let given = |value: &str| [("a".to_owned(), value.to_owned())].into();
        let (one, same, other) = (texts.labels(&given("x")), texts.labels(&given("x")), texts.labels(&given("y")));
        let key = |labels: &super::Labels| labels.iter().next().unwrap().0.as_ptr();
        assert!(std::ptr::eq(one.get("a").unwrap(), same.get("a").unwrap()) && one != other);
        assert_eq!(key(&one), key(&other));
    }

    #[test]
    fn equal_texts_are_one() {
        let mut texts = Interner::default();
        let (one, same, other) = (texts.text("a"), texts.text("a"), texts.text("b"));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert_eq!((&*one, &*other), ("a", "b"));
    }
}
