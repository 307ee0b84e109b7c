//! The field at a line and a column.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess};
use serde_saphyr::{Location, Spanned};

use super::options::explaining;
use super::shape::{self, Shape};
use crate::control::field::FieldPath;

/// The path of the innermost field that begins at or before a place, such as `spec.containers[0].ports`; `None` where
/// the text is no YAML at all, too large to be explained, or the place is before its first field.
pub(super) fn path_at(text: &str, line: u64, column: u64) -> Option<FieldPath> {
    let root: Node = serde_saphyr::from_str_with_options(text, explaining()).ok()?;
    let mut path = FieldPath::default();
    let mut node = &root;
    while let Some((step, child)) = node.child_at((line, column)) {
        path = match step {
            Step::Key(key) => path.key(key),
            Step::Index(index) => path.index(index),
        };
        node = child;
    }
    Some(path).filter(|path| !path.is_empty())
}

/// A text as far as places are concerned.
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
        shape::any(Whole, deserializer)
    }
}

/// Everything is kept.
struct Whole;

impl<'de> Shape<'de> for Whole {
    type Value = Node;

    fn leaf(self) -> Node {
        Node::Leaf
    }

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
}
