//! Shares one copy of repeated texts while they are in use.

use std::collections::HashSet;
use std::sync::Arc;

/// The known texts. Unused texts are dropped from time to time.
#[derive(Debug)]
pub(super) struct Texts {
    texts: HashSet<Arc<str>>,
    /// The number of texts from which unused texts are dropped.
    most: usize,
}

const LEAST: usize = 1024;

impl Default for Texts {
    fn default() -> Self {
        Self { texts: HashSet::new(), most: LEAST }
    }
}

impl Texts {
    /// The shared copy of a text.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= self.most {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.most = self.texts.len().saturating_mul(2).max(LEAST);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST, Texts};
    use std::sync::Arc;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut texts = Texts::default();
        let kept = texts.text("kept");
        (0..10 * LEAST).for_each(|number| drop(texts.text(&format!("passing-{number}"))));
        assert!(texts.texts.len() <= LEAST, "{}", texts.texts.len());
        assert!(Arc::ptr_eq(&kept, &texts.text("kept")));
    }
}
