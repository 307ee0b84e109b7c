//! From JSON to a tree of values, and from long JSON texts to slices that are parsed one by one.

use std::borrow::Cow;

use super::error::Error;
use super::keys::{self, LeftOut};
use super::limits::{DEEPEST, MOST_VALUES};
use super::node::{Base, MappingEntry, Node, TextPosition, Value};
use crate::control::field::{FieldPath, Step};

/// Why a text is not JSON.
#[derive(Debug)]
pub(super) struct NotJson {
    pub(super) error: Error,
    /// The author probably meant JSON, and not YAML in flow style.
    pub(super) is_plausible_json: bool,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct Slice<'a> {
    pub(in crate::control) text: &'a str,
    pub(in crate::control) base: Base,
}

/// Whether a text begins like JSON: with a bracket, after blanks, a byte order mark, comments and a document marker.
pub(in crate::control) fn is_json(text: &str) -> bool {
    let mut reader = Reader::new(text, Base::default());
    reader.skip_blank(true);
    // Two braces are the start of an action of a template.
    matches!(reader.peek(), Some(b'{' | b'[')) && !reader.starts_with("{{")
}

/// Reads a text of one value. The content of `metadata.managedFields` is left out.
pub(super) fn read(text: &str, base: Base) -> Result<Option<Node<'_>>, NotJson> {
    Reader::new(text, base).read()
}

/// The same, for a text in which keys may be there twice: the last one counts. Also returns the fields that are left
/// out.
pub(super) fn read_lenient(text: &str, base: Base) -> Option<(Option<Node<'_>>, Vec<LeftOut<'_>>)> {
    let mut reader = Reader { left_out: Some(Vec::new()), ..Reader::new(text, base) };
    let node = reader.read().ok()?;
    Some((node, reader.left_out.unwrap_or_default()))
}

/// Splits a text of several values in a row. Each slice is one value, as its brackets show. After a value whose
/// brackets don't match, the next value begins at the next line that begins with a bracket.
pub(in crate::control) fn values(text: &str, base: Base) -> Vec<Slice<'_>> {
    let mut reader = Reader::new(text, base);
    let mut slices = Vec::new();
    loop {
        reader.skip_blank(true);
        if reader.peek().is_none() {
            return slices;
        }
        let (start, base) = (reader.at, reader.base());
        let begins_value = matches!(reader.peek(), Some(b'{' | b'['));
        if !begins_value || !reader.skip_value() {
            reader.at = start;
            reader.recover(base);
        }
        slices.push(Slice { text: text.get(start..reader.at).unwrap_or_default(), base });
    }
}

/// The entries of a map's list `items`, and the map without them; or the entries of a list. `None` if the map has no
/// such list, or its brackets don't match.
pub(in crate::control) fn items(slice: Slice<'_>) -> Option<(Node<'_>, Vec<Slice<'_>>)> {
    let mut reader = Reader::new(slice.text, slice.base);
    reader.skip_blank(true);
    let place = reader.place();
    match reader.peek()? {
        b'[' => Some((Node { place, value: Value::List(Vec::new()) }, reader.slices()?)),
        b'{' => {
            let (mut entries, mut items) = (Vec::new(), None);
            reader.bump();
            reader.skip_blank(false);
            while reader.peek()? != b'}' {
                let key_place = reader.place();
                let key = reader.string().ok()?;
                reader.skip_blank(false);
                reader.expect(b':').ok()?;
                reader.skip_blank(false);
                if key == "items" && reader.peek() == Some(b'[') {
                    if items.replace(reader.slices()?).is_some() {
                        return None;
                    }
                } else {
                    let value = reader.value(1, key == "metadata").ok()?;
                    entries.push(MappingEntry { key, place: key_place, value });
                }
                reader.separate(b'}').ok()?;
            }
            reader.bump();
            reader.skip_blank(true);
            let value = keys::map(entries, Vec::new(), None, FieldPath::default).ok()?;
            let is_over = reader.peek().is_none();
            Some((Node { place, value }, items.filter(|_| is_over)?))
        }
        _ => None,
    }
}

/// A text, and how much of it has been read.
struct Reader<'a> {
    text: &'a str,
    base: Base,
    at: usize,
    line: u64,
    line_start: usize,
    /// The number of bytes on this line that do not start a character.
    inner: usize,
    values: usize,
    /// The fields that are left out; `None`: such a field is an error.
    left_out: Option<Vec<LeftOut<'a>>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, base: Base) -> Self {
        Self { text, base, at: 0, line: 0, line_start: 0, inner: 0, values: 0, left_out: None }
    }

    fn read(&mut self) -> Result<Option<Node<'a>>, NotJson> {
        self.skip_blank(true);
        let is_plausible_json = self.is_plausible();
        let not_json = |error| NotJson { error, is_plausible_json };
        let node = self.value(0, false).map_err(not_json)?;
        self.skip_blank(true);
        match self.peek() {
            None => Ok(Some(node)),
            Some(_) => Err(not_json(self.error("something follows the closing bracket: remove it"))),
        }
    }

    fn left_out(&self) -> usize {
        self.left_out.as_ref().map_or(0, Vec::len)
    }

    /// Completes the paths of the fields that were left out of a field of this value: `before` were known before it.
    fn left_out_below(&mut self, before: usize, step: impl Fn() -> Step) {
        for one in self.left_out.iter_mut().flatten().skip(before) {
            one.error = one.error.clone().below(step());
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Advances by one byte.
    fn bump(&mut self) {
        match self.peek() {
            Some(b'\n') => {
                self.line += 1;
                (self.line_start, self.inner) = (self.at + 1, 0);
            }
            // A carriage return without a line feed ends a line as well.
            Some(b'\r') if self.text.as_bytes().get(self.at + 1) != Some(&b'\n') => {
                self.line += 1;
                (self.line_start, self.inner) = (self.at + 1, 0);
            }
            Some(0x80..=0xBF) => self.inner += 1,
            Some(_) => {}
            None => return,
        }
        self.at += 1;
    }

    fn column(&self) -> u64 {
        (self.at - self.line_start).saturating_sub(self.inner) as u64
    }

    fn place(&self) -> TextPosition {
        self.base.place(self.line, self.column())
    }

    fn base(&self) -> Base {
        let before = if self.line == 0 { self.base.columns } else { 0 };
        Base { lines: self.base.lines + self.line, columns: before + self.column() }
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::syntax(self.place(), message)
    }

    fn starts_with(&self, text: &str) -> bool {
        self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(text.as_bytes()))
    }

    /// Skips blanks. Between the values of a file it also skips comments, document markers and byte order marks.
    fn skip_blank(&mut self, between: bool) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.bump(),
                Some(b'#') if between => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.bump();
                    }
                }
                Some(b'-' | b'.')
                    if between
                        && self.at == self.line_start
                        && (self.starts_with("---") || self.starts_with("...")) =>
                {
                    (0..3).for_each(|_| self.bump());
                }
                Some(0xEF) if between && self.starts_with("\u{feff}") => {
                    (0..3).for_each(|_| self.bump());
                    // A byte order mark takes no column.
                    self.line_start += 3;
                    self.inner -= 2;
                }
                _ => return,
            }
        }
    }

    /// Whether the text after the opening bracket is JSON and not flow style: the first key has quotation marks.
    fn is_plausible(&self) -> bool {
        let mut rest = self.text.get(self.at..).unwrap_or_default().chars().filter(|c| !c.is_whitespace());
        match (rest.next(), rest.next()) {
            (Some('{'), second) => matches!(second, Some('"' | '}')),
            (Some('['), Some(second)) => matches!(second, '"' | '{' | '[' | ']') && self.text.contains('"'),
            _ => false,
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(self.error(format!("{:?} is missing here", char::from(byte))));
        }
        self.bump();
        Ok(())
    }

    /// Skips a comma, or stays before the closing bracket.
    fn separate(&mut self, close: u8) -> Result<(), Error> {
        self.skip_blank(false);
        match self.peek() {
            Some(b',') => {
                self.bump();
                self.skip_blank(false);
                if self.peek() == Some(close) {
                    return Err(self.error("a comma stands before a closing bracket: remove the comma"));
                }
                Ok(())
            }
            Some(byte) if byte == close => Ok(()),
            None => Err(self.error("the text ends inside of brackets: close them")),
            Some(_) => Err(self.error("a comma or a closing bracket is missing here")),
        }
    }

    /// `is_metadata`: the value is the field `metadata` of an object.
    fn value(&mut self, depth: usize, is_metadata: bool) -> Result<Node<'a>, Error> {
        let place = self.place();
        self.values += 1;
        if self.values > MOST_VALUES {
            let message = format!("the object has more than {MOST_VALUES} values, the most that are read: split it");
            return Err(self.error(message));
        }
        let value = match self.peek() {
            Some(b'{') => self.map(depth, is_metadata)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(_) => Value::Plain(Cow::Borrowed(self.literal()?)),
            None => return Err(self.error("the text ends where a value is missing")),
        };
        Ok(Node { place, value })
    }

    fn deeper(&self, depth: usize) -> Result<(), Error> {
        if depth >= DEEPEST {
            return Err(self.error(format!("the text is nested deeper than {DEEPEST} levels, the most that is read")));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Value<'a>, Error> {
        self.deeper(depth)?;
        self.bump();
        self.skip_blank(false);
        let mut items = Vec::new();
        while self.peek() != Some(b']') {
            let before = self.left_out();
            let item = self.value(depth + 1, false).map_err(|error| error.below(Step::Index(items.len())))?;
            self.left_out_below(before, || Step::Index(items.len()));
            items.push(item);
            self.separate(b']')?;
        }
        self.bump();
        Ok(Value::List(items))
    }

    fn map(&mut self, depth: usize, is_metadata: bool) -> Result<Value<'a>, Error> {
        self.deeper(depth)?;
        self.bump();
        self.skip_blank(false);
        let mut entries = Vec::new();
        while self.peek() != Some(b'}') {
            let place = self.place();
            let key = self.string()?;
            self.skip_blank(false);
            self.expect(b':')?;
            self.skip_blank(false);
            // `managedFields`, the API server's record of who set which field, is half of an object's size.
            if is_metadata && key == "managedFields" && self.peek() == Some(b'[') {
                if !self.skip_value() {
                    return Err(self.error("the text ends inside of brackets: close them"));
                }
            } else {
                let is_metadata = depth == 0 && key == "metadata";
                let before = self.left_out();
                let value = self.value(depth + 1, is_metadata);
                let value = value.map_err(|error| error.below(Step::Key((&*key).into())))?;
                self.left_out_below(before, || Step::Key((&*key).into()));
                entries.push(MappingEntry { key, place, value });
            }
            self.separate(b'}')?;
        }
        self.bump();
        keys::map(entries, Vec::new(), self.left_out.as_mut(), FieldPath::default)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.error("quotation marks are missing around a key or a text"));
        }
        self.bump();
        let (start, mut owned) = (self.at, None::<String>);
        let mut copied = start;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    let text = owned.get_or_insert_default();
                    text.push_str(self.text.get(copied..self.at).unwrap_or_default());
                    let letter = self.escape()?;
                    text.push(letter);
                    copied = self.at;
                }
                Some(0..0x20) => {
                    return Err(self.error(
                        "a line end or control character stands in a text: write it as an escape, such as \\n",
                    ));
                }
                Some(_) => self.bump(),
                None => return Err(self.error("a quotation mark is never closed: close it")),
            }
        }
        let rest = self.text.get(copied..self.at).unwrap_or_default();
        self.bump();
        Ok(match owned {
            None => Cow::Borrowed(rest),
            Some(mut text) => {
                text.push_str(rest);
                Cow::Owned(text)
            }
        })
    }

    fn escape(&mut self) -> Result<char, Error> {
        const UNKNOWN: &str = "this escape is not known: write \\\\ for a backslash";
        self.bump();
        let Some(letter) = self.peek() else { return Err(self.error("a quotation mark is never closed: close it")) };
        let simple = match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.bump();
                let first = self.four_digits().ok_or_else(|| self.error(UNKNOWN))?;
                let code = match first {
                    0xD800..0xDC00 => {
                        let second = if self.starts_with("\\u") {
                            self.bump();
                            self.bump();
                            self.four_digits().filter(|second| (0xDC00..0xE000).contains(second))
                        } else {
                            None
                        };
                        // One half of a surrogate pair is not a character; it is replaced as Kubernetes does it.
                        second.map_or(0xFFFD, |second| 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00))
                    }
                    code => code,
                };
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            _ => return Err(self.error(UNKNOWN)),
        };
        self.bump();
        Ok(simple)
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits =
            self.text.get(self.at..self.at + 4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let code = u32::from_str_radix(digits, 16).ok()?;
        (0..4).for_each(|_| self.bump());
        Some(code)
    }

    /// A number, `true`, `false` or `null`.
    fn literal(&mut self) -> Result<&'a str, Error> {
        let (start, place) = (self.at, self.place());
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')) {
            self.bump();
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        let is_number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
            && super::scalar::float(text).is_some()
            && !text.trim_start_matches('-').starts_with("00");
        if matches!(text, "true" | "false" | "null") || is_number {
            return Ok(text);
        }
        Err(Error::syntax(place, "this is not a JSON value: put text in quotation marks"))
    }

    /// Skips a value by its brackets and quotation marks. Returns whether they match.
    fn skip_value(&mut self) -> bool {
        let mut open = Vec::new();
        loop {
            match self.peek() {
                None => return false,
                Some(b'"') => {
                    if !self.skip_string() {
                        return false;
                    }
                }
                Some(b'{') => {
                    open.push(b'}');
                    self.bump();
                }
                Some(b'[') => {
                    open.push(b']');
                    self.bump();
                }
                Some(byte @ (b'}' | b']')) => {
                    if open.pop() != Some(byte) {
                        return false;
                    }
                    self.bump();
                }
                Some(b',') if open.is_empty() => return true,
                Some(_) => self.bump(),
            }
            if open.is_empty()
                && !self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
            {
                return true;
            }
        }
    }

    fn skip_string(&mut self) -> bool {
        self.bump();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.bump();
                    return true;
                }
                Some(b'\\') => {
                    self.bump();
                    self.bump();
                }
                // A JSON string cannot contain the end of a line.
                Some(b'\n') | None => return false,
                Some(_) => self.bump(),
            }
        }
    }

    /// The entries of a list; the reader skips the list.
    fn slices(&mut self) -> Option<Vec<Slice<'a>>> {
        let mut slices = Vec::new();
        self.bump();
        self.skip_blank(false);
        while self.peek()? != b']' {
            let (start, base) = (self.at, self.base());
            if !self.skip_value() {
                return None;
            }
            slices.push(Slice { text: self.text.get(start..self.at)?, base });
            self.separate(b']').ok()?;
        }
        self.bump();
        Some(slices)
    }

    /// Skips to the next line that begins with a bracket, after a value that began at `begin`.
    fn recover(&mut self, begin: Base) {
        // The position is computed from the offset, since lines may have been counted beyond it.
        self.line = begin.lines - self.base.lines;
        self.line_start = self.text.get(..self.at).unwrap_or_default().rfind(['\n', '\r']).map_or(0, |end| end + 1);
        self.inner = 0;
        self.bump();
        while let Some(byte) = self.peek() {
            if self.at == self.line_start && matches!(byte, b'{' | b'[') {
                return;
            }
            self.bump();
        }
    }
}
