//! Paths of fields in an object, such as `spec.rules[0].from[1].source`.

use std::fmt;

/// The path of a field, starting at the object. The empty path is the object itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(in crate::control) struct FieldPath(Vec<Step>);

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::control) enum Step {
    /// To the value of a key.
    Key(Box<str>),
    /// To an entry of a list.
    Index(usize),
}

impl FieldPath {
    /// A path of keys without dots in them: `spec.mtls.mode`.
    pub(in crate::control) fn of(keys: &str) -> Self {
        Self(keys.split('.').map(|key| Step::Key(key.into())).collect())
    }

    pub(in crate::control) fn from_steps(steps: &[Step]) -> Self {
        Self(steps.to_vec())
    }

    pub(in crate::control) fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.into()));
        self
    }

    pub(in crate::control) fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }

    /// Appends a path: `rest` begins where this one ends.
    pub(in crate::control) fn join(&self, rest: &Self) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// The rest of the path below another one; `None` if it is not below.
    pub(in crate::control) fn below(&self, above: &Self) -> Option<Self> {
        self.0.strip_prefix(above.0.as_slice()).filter(|rest| !rest.is_empty()).map(Self::from_steps)
    }

    /// Whether its first step is this key.
    pub(in crate::control) fn begins_with(&self, key: &str) -> bool {
        matches!(self.0.first(), Some(Step::Key(first)) if **first == *key)
    }

    pub(in crate::control) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::control) fn steps(&self) -> &[Step] {
        &self.0
    }
}

/// Keys with characters that field names do not have are quoted: `metadata.annotations["istio.io/dry-run"]`.
impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if !is_plain(key) => write!(f, "[{key:?}]")?,
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::FieldPath;

    #[test]
    fn paths_are_shown_as_people_write_them() {
        let source = FieldPath::of("spec.rules").index(0).key("from").index(1).key("source");
        assert_eq!(source.to_string(), "spec.rules[0].from[1].source");
        let annotation = FieldPath::of("metadata.annotations").key("istio.io/dry-run");
        assert_eq!(annotation.to_string(), "metadata.annotations[\"istio.io/dry-run\"]");
        assert_eq!(FieldPath::of("a").key("").key("b\n").to_string(), "a[\"\"][\"b\\n\"]");
        let item = FieldPath::of("items").index(2);
        assert_eq!(item.join(&FieldPath::of("metadata.name")).to_string(), "items[2].metadata.name");
        let name = item.join(&FieldPath::of("metadata.name"));
        assert_eq!(name.below(&item).map(|rest| rest.to_string()).as_deref(), Some("metadata.name"));
        assert_eq!((name.below(&name), name.below(&source)), (None, None));
        assert!(name.begins_with("items") && !name.begins_with("metadata"));
        assert_eq!((FieldPath::default().is_empty(), FieldPath::default().to_string()), (true, String::new()));
    }
}
