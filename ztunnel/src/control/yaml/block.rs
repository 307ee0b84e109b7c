//! From YAML to a tree of values, by the events of the parser.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};

use super::error::Error;
use super::keys::{self, LeftOut};
use super::limits::{DEEPEST, MOST_VALUES};
use super::node::{Base, MappingEntry, Node, TextPosition, Value};
use super::syntax::sentence;
use crate::control::field::FieldPath;

/// The most bytes of text that aliases may repeat.
const MOST_REPEATED: usize = 16 * 1024 * 1024;

/// Reads a text of one document.
pub(super) fn read(text: &str, base: Base) -> Result<Option<Node<'_>>, Error> {
    Ok(build(text, Builder::new(base, None))?.root)
}

/// The same, for a text in which keys may be there twice: the last one counts. Also returns the fields that are left
/// out.
pub(super) fn read_lenient(text: &str, base: Base) -> Result<(Option<Node<'_>>, Vec<LeftOut<'_>>), Error> {
    let built = build(text, Builder::new(base, Some(Vec::new())))?;
    Ok((built.root, built.left_out.unwrap_or_default()))
}

fn build<'a>(text: &'a str, mut builder: Builder<'a>) -> Result<Builder<'a>, Error> {
    let base = builder.base;
    let mut parser = Parser::new_from_str_with_options(text, options());
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            let marker = error.marker();
            Error::syntax(place(base, marker.line(), marker.col()), sentence(error.kind()))
        })?;
        builder.take(event, &span)?;
    }
    Ok(builder)
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    options
}

/// The parser counts lines from 1 and columns from 0.
fn place(base: Base, line: usize, column: usize) -> TextPosition {
    base.place((line as u64).saturating_sub(1), column as u64)
}

struct Builder<'a> {
    base: Base,
    /// The fields that are left out; `None`: such a field is an error.
    left_out: Option<Vec<LeftOut<'a>>>,
    root: Option<Node<'a>>,
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    /// Anchors of values with fields that are left out, and the first such error.
    lenient_anchors: HashMap<usize, Error>,
    values: usize,
    repeated: usize,
}

/// A list or a map whose end has not been reached.
struct Open<'a> {
    place: TextPosition,
    anchor: usize,
    /// The number of fields that were left out before it.
    left_out: usize,
    inner: Inner<'a>,
}

enum Inner<'a> {
    List(Vec<Node<'a>>),
    Map {
        entries: Vec<MappingEntry<'a>>,
        merged: Vec<Node<'a>>,
        /// The key of the entry whose value comes next, its position, and whether the key is `<<`.
        key: Option<(Cow<'a, str>, TextPosition, bool)>,
    },
}

impl<'a> Builder<'a> {
    fn new(base: Base, left_out: Option<Vec<LeftOut<'a>>>) -> Self {
        Self {
            base,
            left_out,
            root: None,
            open: Vec::new(),
            anchors: HashMap::new(),
            lenient_anchors: HashMap::new(),
            values: 0,
            repeated: 0,
        }
    }

    fn take(&mut self, event: Event<'a>, span: &Span) -> Result<(), Error> {
        let place = place(self.base, span.start.line(), span.start.col());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(text, style, tag.as_deref());
                self.add(Node { place, value }, anchor, style == ScalarStyle::Plain)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(place, anchor, Inner::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.begin(place, anchor, Inner::Map { entries: Vec::new(), merged: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    return Err(Error::syntax(place, "an alias (*) stands inside of what it names: write it out"));
                };
                // The paths of the fields that are left out are those of the anchor.
                if let Some(error) = self.lenient_anchors.get(&id) {
                    return Err(error.clone());
                }
                let (values, bytes) = node.size();
                self.count(values, bytes, place)?;
                // The nodes keep the positions where the values are written, since they are corrected there.
                let node = self.anchors.get(&id).cloned().unwrap_or_else(Node::null);
                self.add(node, 0, false)
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(Error::syntax(place, "a second document begins here: only one may stand in this text"))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, values: usize, bytes: usize, place: TextPosition) -> Result<(), Error> {
        self.values = self.values.saturating_add(values);
        self.repeated = self.repeated.saturating_add(bytes);
        if self.values > MOST_VALUES {
            let message = format!("the document has more than {MOST_VALUES} values, the most that are read: split it");
            return Err(Error::syntax(place, message));
        }
        if self.repeated > MOST_REPEATED {
            let message = "aliases (*) repeat more text than is read: write fewer of them";
            return Err(Error::syntax(place, message));
        }
        Ok(())
    }

    fn begin(&mut self, place: TextPosition, anchor: usize, inner: Inner<'a>) -> Result<(), Error> {
        let left_out = self.left_out.as_ref().map_or(0, Vec::len);
        self.open.push(Open { place, anchor, left_out, inner });
        if self.open.len() > DEEPEST {
            return Err(Error::syntax(
                place,
                format!("the text is nested deeper than {DEEPEST} levels, the most that is read"),
            ));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(Open { place, anchor, left_out, inner }) = self.open.pop() else { return Ok(()) };
        let value = match inner {
            Inner::List(items) => Value::List(items),
            Inner::Map { entries, merged, .. } => {
                keys::map(entries, merged, self.left_out.as_mut(), || path(&self.open))?
            }
        };
        if anchor != 0
            && let Some(first) = self.left_out.as_ref().and_then(|all| all.get(left_out))
        {
            self.lenient_anchors.insert(anchor, first.error.clone());
        }
        self.add(Node { place, value }, anchor, false)
    }

    /// Adds a complete value to the open list or map.
    fn add(&mut self, node: Node<'a>, anchor: usize, is_plain: bool) -> Result<(), Error> {
        let place = node.place;
        self.count(1, 0, place)?;
        if anchor != 0 {
            let (values, bytes) = node.size();
            self.count(values, bytes, place)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root.get_or_insert(node);
            return Ok(());
        };
        match &mut open.inner {
            Inner::List(items) => items.push(node),
            Inner::Map { entries, merged, key } => match key.take() {
                Some((_, _, true)) => merged.push(node),
                Some((text, key_place, false)) => {
                    entries.push(MappingEntry { key: text, place: key_place, value: node });
                }
                None => match node.value {
                    Value::Plain(text) | Value::Text(text) => {
                        let is_merge = is_plain && text == "<<";
                        *key = Some((text, place, is_merge));
                    }
                    Value::List(_) | Value::Map(_) => {
                        let message =
                            "a key is a list or a map: a value that begins with { or [ has to be in quotation marks";
                        return Err(Error { is_syntax: true, ..Error::at(place, path(&self.open), message) });
                    }
                },
            },
        }
        Ok(())
    }
}

/// The path of the next value.
fn path(open: &[Open<'_>]) -> FieldPath {
    open.iter().fold(FieldPath::default(), |path, open| match &open.inner {
        Inner::List(items) => path.index(items.len()),
        Inner::Map { key: Some((key, _, _)), .. } => path.key(key),
        Inner::Map { key: None, .. } => path,
    })
}

fn scalar<'a>(text: Cow<'a, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value<'a> {
    match tag.and_then(Tag::core_suffix) {
        Some("str") => Value::Text(text),
        Some("int" | "float" | "bool" | "null") => Value::Plain(text),
        _ if style == ScalarStyle::Plain => Value::Plain(text),
        _ => Value::Text(text),
    }
}
