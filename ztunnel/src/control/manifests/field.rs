//! Fields in error messages: which of them is wrong, and which stands at a line and column.

use std::fmt::{self, Write};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::document;

/// How deep a document may be to be explained. No Kubernetes object that is read here is half as deep, and every level
/// takes some 30 KiB of stack without optimisation.
const DEEPEST: usize = 32;

/// How many values a document may hold to be explained; a hundred bytes each are allocated for it.
const LARGEST: usize = 250_000;

/// A field whose value makes its file count for nothing.
#[derive(Debug)]
pub(super) struct FieldError {
    /// Line and column in the document, each counted from 1.
    pub(super) place: (u64, u64),
    /// Its path in the object, such as `spec.rules[0].from[1].source`.
    pub(super) field: String,
    /// What is wrong.
    pub(super) message: String,
}

impl FieldError {
    pub(super) fn new<T>(at: &Spanned<T>, field: impl Into<String>, message: impl Into<String>) -> Self {
        let place = (at.referenced.line(), at.referenced.column());
        Self { place, field: field.into(), message: message.into() }
    }
}

/// The path of the innermost field that begins at or before a place, such as `spec.containers[0].ports`; `None` where
/// the document is no YAML at all or the place is before its first field.
pub(super) fn path_at(text: &str, line: u64, column: u64) -> Option<String> {
    // A duplicate key may be the very error to be explained.
    let mut options = document::options();
    options.duplicate_keys = DuplicateKeyPolicy::LastWins;
    if let Some(budget) = &mut options.budget {
        budget.max_depth = DEEPEST;
        budget.max_nodes = LARGEST;
    }
    options.alias_limits.max_total_replayed_events = LARGEST;
    let root: Node = serde_saphyr::from_str_with_options(text, options).ok()?;
    let mut path = String::new();
    let mut node = &root;
    while let Some((step, child)) = node.child_at((line, column)) {
        match step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => write!(path, ".{key}").ok()?,
            Step::Index(index) => write!(path, "[{index}]").ok()?,
        }
        node = child;
    }
    let clean = |path: String| path.chars().filter(|c| !c.is_control()).collect::<String>();
    Some(clean(path)).filter(|path| !path.is_empty())
}

/// A document as far as places are concerned.
enum Node {
    Leaf,
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Node {
    /// The last child that begins at or before the place.
    fn child_at(&self, place: (u64, u64)) -> Option<(Step<'_>, &Node)> {
        let begins_before = |location: &Location| (location.line(), location.column()) <= place;
        match self {
            Self::Leaf => None,
            Self::Map(fields) => {
                let (key, value) = fields.iter().rev().find(|(key, _)| begins_before(&key.referenced))?;
                Some((Step::Key(&key.value), &value.value))
            }
            Self::List(items) => {
                let (index, item) = items.iter().enumerate().rev().find(|(_, item)| begins_before(&item.referenced))?;
                Some((Step::Index(index), &item.value))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
}
