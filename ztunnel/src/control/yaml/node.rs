//! A text as a tree of values, each with its position.

use std::borrow::Cow;

use crate::control::field::{FieldPath, Step};

/// A line and a column, each counted from 1; columns count characters.
pub(in crate::control) type TextPosition = (u64, u64);

/// The position of a text in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::control) struct Base {
    /// The number of lines before the text.
    pub(in crate::control) lines: u64,
    /// The number of characters before the text in its first line.
    pub(in crate::control) columns: u64,
}

impl Base {
    /// Converts a position in the text, counted from 0, to the position in the file.
    pub(super) fn place(self, line: u64, column: u64) -> TextPosition {
        let before = if line == 0 { self.columns } else { 0 };
        (self.lines + line + 1, before + column + 1)
    }
}

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct Node<'a> {
    pub(in crate::control) place: TextPosition,
    pub(in crate::control) value: Value<'a>,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) enum Value<'a> {
    /// A plain scalar. Its meaning depends on the expected type.
    Plain(Cow<'a, str>),
    /// A scalar in quotation marks, or a block scalar: always text.
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Map(Vec<MappingEntry<'a>>),
}

/// One field of a map.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct MappingEntry<'a> {
    pub(in crate::control) key: Cow<'a, str>,
    /// The position of the key.
    pub(in crate::control) place: TextPosition,
    pub(in crate::control) value: Node<'a>,
}

impl<'a> Node<'a> {
    pub(in crate::control) fn null() -> Self {
        Self { place: (1, 1), value: Value::Plain(Cow::Borrowed("")) }
    }

    pub(in crate::control) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if super::scalar::is_null(text))
    }

    /// The fields of a map; empty for other values.
    pub(in crate::control) fn entries(&self) -> &[MappingEntry<'a>] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// The value of a field.
    pub(in crate::control) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// The text of a scalar that is not null.
    pub(in crate::control) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Plain(text) | Value::Text(text) if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Adds a namespace to the `metadata` of an object that names none.
    pub(in crate::control) fn name_namespace(&mut self, namespace: &str) {
        let Value::Map(entries) = &mut self.value else { return };
        let Some(metadata) = entries.iter_mut().find(|entry| entry.key == "metadata") else { return };
        let MappingEntry { place, value: Node { value: Value::Map(fields), .. }, .. } = metadata else { return };
        let names_none = |value: &Node<'_>| value.is_null() || value.text() == Some("");
        fields.retain(|field| field.key != "namespace" || !names_none(&field.value));
        if fields.iter().all(|field| field.key != "namespace") {
            let value = Node { place: *place, value: Value::Text(namespace.to_owned().into()) };
            fields.push(MappingEntry { key: "namespace".into(), place: *place, value });
        }
    }

    /// Removes a field at any depth.
    pub(in crate::control) fn remove(&mut self, path: &[Step]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match (&mut self.value, first) {
            (Value::Map(entries), Step::Key(key)) => {
                let Some(index) = entries.iter().position(|entry| entry.key == **key) else { return false };
                if rest.is_empty() {
                    entries.remove(index);
                    return true;
                }
                entries.get_mut(index).is_some_and(|entry| entry.value.remove(rest))
            }
            (Value::List(items), Step::Index(index)) => items.get_mut(*index).is_some_and(|item| item.remove(rest)),
            _ => false,
        }
    }

    /// The position of a field. For a missing field, it is the position of the innermost existing field around it; for
    /// a field that is null, the position of the key. `None` if nothing on the path exists.
    pub(in crate::control) fn locate(&self, path: &FieldPath) -> Option<TextPosition> {
        let (mut node, mut found) = (self, None);
        for step in path.steps() {
            let (place, below) = match (&node.value, step) {
                (Value::Map(entries), Step::Key(key)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == **key) else { break };
                    (if entry.value.is_null() { entry.place } else { entry.value.place }, &entry.value)
                }
                (Value::List(items), Step::Index(index)) => {
                    let Some(item) = items.get(*index) else { break };
                    (item.place, item)
                }
                _ => break,
            };
            (node, found) = (below, Some(place));
        }
        found
    }

    /// The number of values, including itself, and the number of bytes of text.
    pub(super) fn size(&self) -> (usize, usize) {
        match &self.value {
            Value::Plain(text) | Value::Text(text) => (1, text.len()),
            Value::List(items) => items.iter().fold((1, 0), |sum, item| add(sum, item.size())),
            Value::Map(entries) => {
                entries.iter().fold((1, 0), |sum, entry| add(add(sum, (1, entry.key.len())), entry.value.size()))
            }
        }
    }
}

fn add(one: (usize, usize), other: (usize, usize)) -> (usize, usize) {
    (one.0.saturating_add(other.0), one.1.saturating_add(other.1))
}
