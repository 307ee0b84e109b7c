//! From YAML and JSON texts to trees of values, each with its position in the text, and from such trees to types. The
//! only user of `granit_parser`.
//!
//! Values are read as `kubectl` reads them: plain scalars by the rules of YAML 1.1, so that `0400` is octal and `yes`
//! is true where a number or a boolean is expected. Every message is this program's own: messages of libraries and
//! names of types are never shown.

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
pub(in crate::control) use self::keys::LeftOut;
pub(in crate::control) use self::node::{Base, MappingEntry, Node, Value};

/// Reads a text of one document. `None`: the document is empty, or has only comments.
///
/// # Errors
/// The text is neither YAML nor JSON, or exceeds the limits of size or depth.
pub(in crate::control) fn tree(text: &str, base: Base) -> Result<Option<Node<'_>>, Error> {
    if !is_json(text) {
        return block::read(text, base);
    }
    // Flow style looks like JSON, and allows more.
    json::read(text, base).or_else(|not_json| match block::read(text, base) {
        Err(of_yaml) if not_json.is_plausible_json && of_yaml.is_syntax => Err(not_json.error),
        of_yaml => of_yaml,
    })
}

/// The same, for a text in which keys may be there twice: the last one counts. Also returns the fields that are left out.
/// `None`: the text cannot be read in this way either.
pub(in crate::control) fn lenient_tree(text: &str, base: Base) -> Option<(Node<'_>, Vec<LeftOut<'_>>)> {
    let of_json = is_json(text).then(|| json::read_lenient(text, base)).flatten();
    let (node, left_out) = of_json.or_else(|| block::read_lenient(text, base).ok())?;
    Some((node?, left_out))
}

/// Reads a text of one document as a type. An empty text is null.
///
/// # Errors
/// The text can't be read, or its content has another type.
pub(in crate::control) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let node = tree(text, Base::default())?.unwrap_or_else(Node::null);
    T::deserialize(NodeDeserializer::new(&node)).map_err(|fault| fault.into_error(&node))
}

/// The same, for a text in which keys may be there twice: the last one counts.
///
/// # Errors
/// The text can't be read, or its content has another type.
pub(in crate::control) fn read_lenient<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let node = match tree(text, Base::default()) {
        Err(error) if !error.is_syntax => lenient_tree(text, Base::default()).map(|(node, _)| Some(node)).ok_or(error),
        strict => strict,
    };
    let node = node?.unwrap_or_else(Node::null);
    T::deserialize(NodeDeserializer::new(&node)).map_err(|fault| fault.into_error(&node))
}

#[cfg(test)]
mod tests;
