//! One copy of texts that repeat: a mesh of a hundred thousand pods has few namespaces, nodes and labels.

use std::collections::HashSet;
use std::sync::Arc;

/// Texts that have been met. It lives as long as the objects of one file, or of one list, are read.
#[derive(Debug, Default)]
pub(in crate::control) struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// The one copy of a text.
    pub(in crate::control) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Interner};

    #[test]
    fn equal_texts_are_one() {
        let mut texts = Interner::default();
        let (one, same, other) = (texts.text("a"), texts.text("a"), texts.text("b"));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert_eq!((&*one, &*other), ("a", "b"));
    }
}
