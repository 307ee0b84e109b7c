//! YAML and JSON texts to trees of values, each with its place in the text, and such trees to types. The only user of
//! `granit_parser`.
//!
//! Values are taken as `kubectl` takes them: plain scalars by the rules of YAML 1.1, so that `0400` is octal and `yes` is true where a
//! number or a boolean is wanted. Every message is this program's own: a library's words and the names of types reach nobody.

mod block;
mod de;
mod error;
mod json;
mod keys;
mod limits;
mod node;
mod scalar;
mod syntax;

use serde::de::DeserializeOwned;

pub(in crate::control) use self::de::NodeDeserializer;
pub(in crate::control) use self::error::Error;
pub(in crate::control) use self::json::{Slice, is_json, items, values};
pub(in crate::control) use self::node::{Base, MappingEntry, Node, Value};

/// Reads a text of one document. `None`: it is empty, or holds nothing but comments.
///
/// # Errors
/// It is neither YAML nor JSON, or is larger or deeper than what is read.
pub(in crate::control) fn tree(text: &str, base: Base) -> Result<Option<Node<'_>>, Error> {
    if !is_json(text) {
        return block::read(text, base, keys::Twice::IsAnError);
    }
    // Flow style looks like JSON, and takes more.
    json::read(text, base).or_else(|not_json| match block::read(text, base, keys::Twice::IsAnError) {
        Err(of_yaml) if not_json.is_plausible_json && of_yaml.is_syntax => Err(not_json.error),
        of_yaml => of_yaml,
    })
}

/// The same, of a text in which keys may be there twice: the last counts.
pub(in crate::control) fn lenient_tree(text: &str) -> Option<Node<'_>> {
    block::read(text, Base::default(), keys::Twice::LastCounts).ok().flatten()
}

/// Reads a text of one document as a type. An empty one is null.
///
/// # Errors
/// It can't be read, or is something else.
pub(in crate::control) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let node = tree(text, Base::default())?.unwrap_or_else(Node::null);
    T::deserialize(NodeDeserializer::new(&node)).map_err(|fault| fault.into_error(&node))
}

#[cfg(test)]
mod tests;
