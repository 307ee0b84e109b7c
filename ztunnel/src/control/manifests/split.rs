//! Splits a file into the texts of its objects.
//!
//! Objects are split before they are parsed: a fault in one of them does not affect the others, and an object that has
//! not changed need not be parsed again. An export of a cluster is a single document, a `List`: its items are split as
//! well.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::sync::Arc;

use crate::control::field::FieldPath;
use crate::control::yaml::{self, Base, Node, Slice};

/// Hash of the text of an object, and of all that determines how it is read.
pub(super) type Hash = [u64; 2];

/// The random seeds of the hashes. Without them nobody can construct two texts with the same hash.
#[derive(Debug, Clone, Default)]
pub(super) struct Seeds([RandomState; 2]);

/// One document of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    pub(super) base: Base,
}

/// `apiVersion` and `kind` of the items of a typed list, such as a `PodList`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) version: String,
    pub(super) kind: String,
}

/// The text of one object.
#[derive(Debug, Clone)]
pub(super) struct Piece<'a> {
    text: &'a str,
    pub(super) base: Base,
    /// The number of bytes before the hyphen of an item of a YAML list; the item is indented deeper than the hyphen.
    hyphen: Option<usize>,
    /// Its path in its document: `items[2]`, or empty if the piece is the whole document.
    pub(super) path: FieldPath,
    pub(super) inherited: Option<Arc<Inherited>>,
}

/// Splits a file at its document markers. YAML forbids a marker at the start of a line inside any scalar, so the lines
/// are enough. Documents with nothing but blanks and comments are left out.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut push = |start: usize, end: usize, lines| {
        let text = text.get(start..end).unwrap_or_default();
        documents.push(Document { text, base: Base { lines, columns: 0 } });
    };
    let (mut start, mut lines_before, mut has_content, mut has_directive) = (0, 0, false, false);
    let mut position = 0;
    for (number, line) in (0..).zip(lines(text)) {
        let end = position + line.len();
        let shown = line.strip_prefix('\u{feff}').unwrap_or(line);
        if is_marker(shown, "...") {
            if has_content {
                push(start, position, lines_before);
            }
            (start, lines_before, has_content, has_directive) = (end, number + 1, false, false);
        } else if is_marker(shown, "---") {
            if has_content {
                push(start, position, lines_before);
            }
            // Directives come before the marker of their document.
            if has_content || !has_directive {
                (start, lines_before) = (position, number);
            }
            has_content = has_text(shown.strip_prefix("---").unwrap_or_default());
            has_directive = false;
        } else if !has_content && shown.starts_with('%') {
            has_directive = true;
        } else {
            has_content |= has_text(shown);
        }
        position = end;
    }
    if has_content {
        push(start, text.len(), lines_before);
    }
    documents
}

/// Lines with their ends, in the styles of Unix, Windows and old Macs.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').flat_map(|line| {
        // The carriage return before a line feed belongs to the same end of line.
        let (body, end) = line.strip_suffix("\r\n").map_or((line, ""), |body| (body, "\r\n"));
        let (whole, last) = body.rsplit_once('\r').map_or(("", body), |(before, last)| {
            body.get(..before.len() + 1).map_or(("", body), |whole| (whole, last))
        });
        let last = line.get(whole.len()..whole.len() + last.len() + end.len()).unwrap_or_default();
        whole.split_inclusive('\r').chain((!last.is_empty()).then_some(last))
    })
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether the line has anything except blanks and a comment.
fn has_text(line: &str) -> bool {
    let bare = line.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    !(bare.is_empty() || bare.starts_with('#'))
}

impl<'a> Document<'a> {
    /// The document as one piece.
    pub(super) fn whole(&self) -> Piece<'a> {
        Piece { text: self.text, base: self.base, hyphen: None, path: FieldPath::default(), inherited: None }
    }

    /// The values of a JSON document; there may be several in a row. `None`: the document is not JSON.
    pub(super) fn values(&self) -> Option<Vec<Piece<'a>>> {
        yaml::is_json(self.text).then(|| {
            let slices = yaml::values(self.text, self.base);
            slices.into_iter().map(|slice| Piece::of(slice, FieldPath::default(), None)).collect()
        })
    }

    /// The head of a list in block style, and the texts of its items; `None` if lines alone can't show where the items
    /// are.
    pub(super) fn items(&self) -> Option<(String, Vec<Piece<'a>>)> {
        let mut cutter = Cutter::default();
        let mut position = 0;
        for (number, line) in (0..).zip(lines(self.text)) {
            cutter.take(position, number, line)?;
            position += line.len();
        }
        cutter.finish(position);
        let indent = cutter.indent?;
        let pieces = cutter.items.iter().enumerate().map(|(index, (start, end, line))| {
            Some(Piece {
                text: self.text.get(*start..*end)?,
                base: Base { lines: self.base.lines + line, columns: 0 },
                hyphen: Some(indent),
                path: FieldPath::of("items").index(index),
                inherited: None,
            })
        });
        Some((cutter.head, pieces.collect::<Option<_>>()?))
    }
}

/// Finds the items below a line `items:`, in the style that `kubectl` writes.
#[derive(Default)]
struct Cutter {
    /// All lines except those of the items.
    head: String,
    /// Start and end of each item, and the number of lines before it.
    items: Vec<(usize, usize, u64)>,
    indent: Option<usize>,
    state: State,
    start: Option<(usize, u64)>,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Before,
    Inside,
    After,
}

impl Cutter {
    fn take(&mut self, position: usize, number: u64, line: &str) -> Option<()> {
        let shown = line.strip_prefix('\u{feff}').unwrap_or(line);
        if self.state == State::Inside {
            let blanks = shown.len() - shown.trim_start_matches(' ').len();
            let rest = shown.get(blanks..)?;
            if !has_text(shown) {
                return Some(());
            }
            let is_item = rest.strip_prefix('-').is_some_and(|rest| rest.starts_with([' ', '\n', '\r']));
            let indent = match self.indent {
                Some(indent) => indent,
                None if is_item => *self.indent.insert(blanks),
                None => return None,
            };
            if blanks == indent && is_item {
                self.finish(position);
                self.start = Some((position, number));
                return Some(());
            }
            if blanks > indent {
                return Some(());
            }
            if blanks > 0 || rest.starts_with('-') {
                return None;
            }
            self.finish(position);
            self.state = State::After;
        }
        let begins_items = shown.strip_prefix("items:").is_some_and(|rest| !has_text(rest));
        if begins_items {
            if self.state != State::Before {
                return None;
            }
            self.state = State::Inside;
        } else {
            self.head.push_str(line);
        }
        Some(())
    }

    fn finish(&mut self, position: usize) {
        if let Some((start, lines)) = self.start.take() {
            self.items.push((start, position, lines));
        }
    }
}

impl<'a> Piece<'a> {
    pub(super) fn of(slice: Slice<'a>, path: FieldPath, inherited: Option<Arc<Inherited>>) -> Self {
        Self { text: slice.text, base: slice.base, hyphen: None, path, inherited }
    }

    /// The items of the piece and its head, if it is a JSON list.
    pub(super) fn json_items(&self) -> Option<(Node<'a>, Vec<Slice<'a>>)> {
        let is_json = self.hyphen.is_none() && yaml::is_json(self.text);
        is_json.then(|| yaml::items(Slice { text: self.text, base: self.base })).flatten()
    }

    /// The text as it is parsed: the hyphen of an item is replaced by a blank.
    pub(super) fn text(&self) -> Cow<'a, str> {
        match self.hyphen.and_then(|hyphen| Some((self.text.get(..hyphen)?, self.text.get(hyphen + 1..)?))) {
            None => Cow::Borrowed(self.text),
            Some((before, after)) => Cow::Owned([before, " ", after].concat()),
        }
    }

    /// Equal for two pieces with the same content.
    pub(super) fn hash(&self, seeds: &Seeds) -> Hash {
        seeds.0.each_ref().map(|seed| {
            let mut hasher = seed.build_hasher();
            if let Some(inherited) = &self.inherited {
                hasher.write(inherited.version.as_bytes());
                hasher.write(b"\n");
                hasher.write(inherited.kind.as_bytes());
            }
            hasher.write(&[0xFF, u8::from(self.hyphen.is_some())]);
            hasher.write(self.text.as_bytes());
            hasher.finish()
        })
    }

    /// The text of a file that contains only this piece.
    pub(super) fn to_file(&self) -> String {
        let text = self.text();
        match self.inherited.as_deref() {
            None => text.into_owned(),
            Some(Inherited { version, kind }) if self.hyphen.is_none() => {
                format!("{{\"apiVersion\": {version:?}, \"kind\": {:?}, \"items\": [{text}]}}", format!("{kind}List"))
            }
            Some(Inherited { version, kind }) => {
                format!("apiVersion: {version:?}\nkind: {:?}\nitems:\n{}", format!("{kind}List"), self.text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Document, documents, lines};

    fn cut(text: &str) -> Vec<(u64, &str)> {
        documents(text).into_iter().map(|Document { text, base }| (base.lines, text)).collect()
    }

    #[test]
    fn lines_end_in_three_ways() {
        for (text, expected) in [
            ("", vec![]),
            ("a", vec!["a"]),
            ("a\nb\r\nc\rd\r\r\n\n", vec!["a\n", "b\r\n", "c\r", "d\r", "\r\n", "\n"]),
            ("a\r", vec!["a\r"]),
        ] {
            assert_eq!(lines(text).collect::<Vec<_>>(), expected, "{text:?}");
            assert_eq!(lines(text).collect::<String>(), text);
        }
    }

    #[test]
    fn documents_without_content_are_left_out() {
        let table = [
            ("", vec![]),
            ("# a\n---\n\t\n---\n", vec![]),
            ("a: 1\n", vec![(0, "a: 1\n")]),
            ("---\n# Source: x\n---\na: 1\n---\n\n---\nb: 1\n---\n", vec![(2, "---\na: 1\n"), (6, "---\nb: 1\n")]),
            ("--- # x\na: 1\n...\n# y\n...\nb: 1\n", vec![(0, "--- # x\na: 1\n"), (5, "b: 1\n")]),
            (
                "%YAML 1.1\n---\na: 1\n...\n%YAML 1.2\n--- {b: 1}\n",
                vec![(0, "%YAML 1.1\n---\na: 1\n"), (4, "%YAML 1.2\n--- {b: 1}\n")],
            ),
            ("\u{feff}---\na: 1\n", vec![(0, "\u{feff}---\na: 1\n")]),
            ("a: |\n  ---\n  b\n", vec![(0, "a: |\n  ---\n  b\n")]),
            ("---a: 1\n", vec![(0, "---a: 1\n")]),
        ];
        for (text, expected) in table {
            assert_eq!(cut(text), expected, "{text:?}");
        }
    }

    #[test]
    fn items_of_a_list_are_cut_out() {
        let cut = |text: &str| {
            let document = documents(text)[0];
            let (head, pieces) = document.items()?;
            Some((head, pieces.iter().map(|piece| (piece.base.lines, piece.text().into_owned())).collect::<Vec<_>>()))
        };
        let item = |line, text: &str| (line, text.to_owned());
        assert_eq!(
            cut(
                "apiVersion: v1\nitems:\n# first\n- a: 1\n  b: |\n    - x\n\n-\n  c: 1\nkind: List\nmetadata:\n  x: y\n"
            ),
            Some((
                "apiVersion: v1\nkind: List\nmetadata:\n  x: y\n".to_owned(),
                vec![item(3, "  a: 1\n  b: |\n    - x\n\n"), item(7, " \n  c: 1\n")]
            ))
        );
        assert_eq!(
            cut("items:\n  - a: 1\n  - b: 1\n"),
            Some((String::new(), vec![item(1, "    a: 1\n"), item(2, "    b: 1\n")]))
        );
        for unclear in ["items: [{a: 1}]\n", "items:\n  a: 1\n", "items:\n- a: 1\nb: 1\nitems:\n- c: 1\n", "a: 1\n"] {
            assert_eq!(cut(unclear), None, "{unclear}");
        }
    }
}
