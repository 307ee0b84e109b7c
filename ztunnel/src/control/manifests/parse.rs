//! From one file to its objects.

mod repeated;

use std::collections::HashMap;
use std::sync::Arc;

use super::addresses;
use super::document::{self, Content, Header, Unclear};
use super::error::{AddressesIn, Fault, FileError, Hides, PoliciesIn, Subject};
use super::split::{self, Document, Hash, Inherited, Piece, Seeds};
use super::template::{has_braces, is_template};
use super::used::typed;
use crate::control::field::{FieldPath, Step};
use crate::control::objects::{self, Interner, Kind, Object, Remark, Resource, Said, check_name};
use crate::control::yaml::{self, LeftOut, MappingEntry, Node, Value};
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// The deepest nesting of lists.
const DEEPEST_LIST: usize = 4;

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FileContent {
    /// In the order of the file.
    pub(in crate::control) objects: Vec<Object>,
    /// Problems of these objects.
    pub(in crate::control) problems: Vec<Problem>,
    /// The objects that can't be read.
    pub(in crate::control) faults: Vec<Fault>,
}

/// The results of reading a file, by the hashes of the texts of its objects. An object whose text is the same when the
/// file is read again is not parsed again.
#[derive(Debug, Clone, Default)]
pub(in crate::control) struct Known {
    seeds: Seeds,
    parts: HashMap<Hash, Part>,
    /// The namespace of objects that name none, if it is not `default`.
    namespace: Option<Arc<str>>,
}

impl Known {
    /// Empty, for a file whose objects are in this namespace if they name none.
    pub(in crate::control) fn nothing_in(namespace: Option<Arc<str>>) -> Self {
        Self { namespace, ..Self::default() }
    }
}

/// The result of reading one text.
#[derive(Debug, Clone)]
struct Part {
    /// The number of lines before the text when it was read.
    lines: u64,
    object: Option<Object>,
    problems: Box<[Problem]>,
}

/// Reads one file: YAML or JSON, any number of documents and lists. `file` is used in messages only.
///
/// # Errors
/// An object of the file can't be read, or is not allowed as it is written; the first such error is returned.
pub fn parse(file: &Arc<str>, text: &str) -> Result<FileContent, FileError> {
    let content = read(file, text);
    match content.faults.first() {
        Some(fault) => Err(fault.error.clone()),
        None => Ok(content),
    }
}

/// Reads one file. Parts that can't be read are reported, and the rest counts.
#[must_use]
pub fn read(file: &Arc<str>, text: &str) -> FileContent {
    read_again(file, text, &Known::default()).0
}

/// The valid objects of a text, by kind and name, each with a text of its own; `None` if the text can't be split into
/// objects.
pub(in crate::control) fn valid_texts(text: &str) -> Option<Vec<(Key, String)>> {
    let (file, known) = ("".into(), Known::default());
    let mut reader = Reader::new(&file, &known);
    reader.valid = Some(Vec::new());
    split::documents(text).iter().for_each(|document| reader.document(document));
    reader.valid
}

/// Reads a file of which `known` is known from an earlier reading, and also returns the new knowledge.
pub(in crate::control) fn read_again(file: &Arc<str>, text: &str, known: &Known) -> (FileContent, Known) {
    let mut reader = Reader::new(file, known);
    split::documents(text).iter().for_each(|document| reader.document(document));
    reader.finish()
}

/// The key of an object: its kind and its name.
type Key = (&'static str, NamespacedName);

/// The position of a value, and what is known about it.
struct Context<'c> {
    path: FieldPath,
    inherited: Option<&'c Inherited>,
    /// The number of lists around it.
    depth: usize,
    /// The text that contains it.
    text: &'c str,
    /// The fields of the text that are left out because their keys are there again. Their paths begin at the document.
    left_out: &'c [LeftOut<'c>],
}

/// A field that is left out, and its path in its object.
type Repeated<'c> = (FieldPath, &'c LeftOut<'c>);

/// The fields that are left out of a value.
fn repeated<'c>(context: &Context<'c>) -> Vec<Repeated<'c>> {
    let path_of = |one: &LeftOut<'_>| one.error.field.as_ref()?.below(&context.path);
    context.left_out.iter().filter_map(|one| Some((path_of(one)?, one))).collect()
}

struct Reader<'f> {
    file: &'f Arc<str>,
    known: &'f Known,
    next: HashMap<Hash, Part>,
    texts: Interner,
    content: FileContent,
    /// Indexes of the faults that are parts of a template if the file has a template.
    braced: Vec<usize>,
    /// The number of documents that are not objects, and the line of the first.
    strangers: (u64, u64),
    /// The texts of the valid objects, if the caller asks for them and the text can be split.
    valid: Option<Vec<(Key, String)>>,
}

impl<'f> Reader<'f> {
    fn new(file: &'f Arc<str>, known: &'f Known) -> Self {
        Self {
            file,
            known,
            next: HashMap::new(),
            texts: Interner::default(),
            content: FileContent::default(),
            braced: Vec::new(),
            strangers: (0, 0),
            valid: None,
        }
    }

    fn finish(mut self) -> (FileContent, Known) {
        if self.content.faults.iter().any(|fault| fault.is_template) {
            for index in std::mem::take(&mut self.braced) {
                self.content.faults.get_mut(index).into_iter().for_each(Fault::make_template);
            }
        }
        if let (count @ 1.., line) = self.strangers {
            let more = match count {
                1 => String::new(),
                _ => format!(" (and {} more documents of this file)", count - 1),
            };
            self.content.problems.push(Problem {
                origin: Origin::line_of(Arc::clone(self.file), line),
                object: None,
                message: format!(
                    "not a Kubernetes object: apiVersion and kind are missing{more}; it is ignored: move it out of \
                     the folder, or write both fields"
                ),
                severity: Severity::Warning,
            });
        }
        self.content.objects.shrink_to_fit();
        // If a file has one object only, the object has changed whenever the file has: there is nothing to reuse.
        let parts = if self.next.len() > 1 { self.next } else { HashMap::new() };
        (self.content, Known { seeds: self.known.seeds.clone(), parts, namespace: self.known.namespace.clone() })
    }

    fn document(&mut self, document: &Document<'_>) {
        if let Some(mut values) = document.values() {
            // In YAML's flow style, quotation marks and brackets may have other meanings than in JSON.
            if let [first, _, ..] = values.as_slice()
                && yaml::tree(&first.text(), first.base).is_err()
                && yaml::tree(document.text, document.base).is_ok()
            {
                values = vec![document.whole()];
            }
            values.iter().for_each(|piece| self.piece(piece, 0));
        } else if !self.block_list(document) {
            self.piece(&document.whole(), 0);
        }
    }

    /// Reads the items of a list in block style one by one. Returns whether the document is such a list.
    fn block_list(&mut self, document: &Document<'_>) -> bool {
        let Some((head, mut pieces)) = document.items() else { return false };
        let Ok(Some(head)) = yaml::tree(&head, document.base) else { return false };
        let Ok(Content::List(inherited)) = Header::of(&head, None).content(false) else { return false };
        if let Some(fault) = self.strange_field(&head, inherited.is_some(), &FieldPath::default(), document.text) {
            self.content.faults.push(fault);
            return true;
        }
        let (objects, problems, faults) =
            (self.content.objects.len(), self.content.problems.len(), self.content.faults.len());
        for piece in &mut pieces {
            piece.inherited.clone_from(&inherited);
            self.piece(piece, 1);
        }
        // A line that looks like the start of an item may be in the middle of a text, and an alias may refer to another
        // item.
        let is_cut_wrongly = self.content.faults.iter().skip(faults).any(|fault| fault.is_syntax)
            && !yaml::tree(document.text, document.base).is_err_and(|error| error.is_syntax);
        if is_cut_wrongly {
            self.content.objects.truncate(objects);
            self.content.problems.truncate(problems);
            self.content.faults.truncate(faults);
            self.braced.retain(|index| *index < faults);
            self.valid = None;
        }
        !is_cut_wrongly
    }

    fn piece(&mut self, piece: &Piece<'_>, depth: usize) {
        if depth < DEEPEST_LIST && self.json_list(piece, depth) {
            return;
        }
        let hash = piece.hash(&self.known.seeds);
        if let Some(part) = self.known.parts.get(&hash) {
            let part = part.moved(self.file, piece.base.lines);
            self.content.objects.extend(part.object.clone());
            self.content.problems.extend(part.problems.iter().cloned());
            self.next.insert(hash, part);
            return;
        }
        let text = piece.text();
        let before = (self.content.objects.len(), self.content.problems.len());
        let (faults, strangers) = (self.content.faults.len(), self.strangers.0);
        let context = Context {
            path: piece.path.clone(),
            inherited: piece.inherited.as_deref(),
            depth,
            text: &text,
            left_out: &[],
        };
        match yaml::tree(&text, piece.base) {
            Ok(None) => {}
            Ok(Some(node)) => self.node(node, &context),
            Err(error) => self.lenient(error, piece.base, &context),
        }
        match (self.content.objects.get(before.0..).unwrap_or_default(), &mut self.valid) {
            ([object], Some(valid)) => valid.push(((object.body.kind(), object.name.clone()), piece.to_file())),
            ([_, ..], valid) => *valid = None,
            _ => {}
        }
        let is_plain = self.content.faults.len() == faults && self.strangers.0 == strangers;
        if let (true, objects @ ([] | [_])) = (is_plain, self.content.objects.get(before.0..).unwrap_or_default()) {
            let problems = self.content.problems.get(before.1..).unwrap_or_default().into();
            self.next.insert(hash, Part { lines: piece.base.lines, object: objects.first().cloned(), problems });
        }
    }

    /// Reads the items of a JSON list one by one. Returns whether the piece is a list.
    fn json_list(&mut self, piece: &Piece<'_>, depth: usize) -> bool {
        let Some((head, slices)) = piece.json_items() else { return false };
        let (path, inherited) = if matches!(head.value, Value::List(_)) {
            (piece.path.clone(), piece.inherited.clone())
        } else {
            let header = Header::of(&head, piece.inherited.as_deref());
            let Ok(Content::List(inherited)) = header.content(false) else { return false };
            if let Some(fault) = self.strange_field(&head, inherited.is_some(), &piece.path, &piece.text()) {
                self.content.faults.push(fault);
                return true;
            }
            (piece.path.clone().key("items"), inherited)
        };
        let strangers = self.strangers.0;
        for (index, slice) in slices.into_iter().enumerate() {
            self.piece(&Piece::of(slice, path.clone().index(index), inherited.clone()), depth + 1);
        }
        self.strangers.0 = self.strangers.0.min(strangers + 1);
        true
    }

    /// A fault if a List has a field other than the known ones: with a misspelled `items` all objects would be missing.
    fn strange_field(&self, head: &Node<'_>, is_typed: bool, path: &FieldPath, text: &str) -> Option<Fault> {
        const KNOWN: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];
        let strange = head.entries().iter().find(|entry| !KNOWN.contains(&&*entry.key) && !is_typed)?;
        let (line, column) = strange.place;
        let error = FileError {
            file: Arc::clone(self.file),
            line: Some(line),
            column: Some(column),
            field: Some(path.clone().key(&strange.key).to_string()),
            message: "unknown field: a List has apiVersion, kind, metadata and items".to_owned(),
        };
        Some(Fault { error, subject: Subject::Unknown, hides: by_words(text), is_syntax: false, is_template: false })
    }

    fn unreadable(&mut self, error: yaml::Error, context: &Context<'_>) {
        let is_syntax = error.is_syntax;
        let fault = Fault {
            error: FileError::at(self.file, &context.path, error),
            subject: Subject::Unknown,
            hides: by_words(context.text),
            is_syntax,
            is_template: false,
        };
        self.fault(fault, context.text);
    }

    /// Reports a fault. If the text is a template, that is reported instead.
    fn fault(&mut self, mut fault: Fault, text: &str) {
        let braces_in_name = matches!(&fault.error.field, Some(field) if field.starts_with("metadata.name"))
            && fault.error.message.contains("{{");
        if (fault.is_syntax || braces_in_name) && text.contains("{{") && is_template(text) {
            fault.make_template();
        } else if fault.is_syntax && has_braces(text) {
            self.braced.push(self.content.faults.len());
        }
        self.content.faults.push(fault);
    }

    fn node(&mut self, mut node: Node<'_>, context: &Context<'_>) {
        let is_item = context.path.steps().iter().any(|step| matches!(step, Step::Key(_)));
        if let (Value::List(items), false) = (&mut node.value, is_item) {
            let strangers = self.strangers.0;
            for (index, item) in std::mem::take(items).into_iter().enumerate() {
                let path = context.path.clone().index(index);
                self.node(item, &Context { path, ..*context });
            }
            // A list of several things that are not objects counts as one document.
            self.strangers.0 = self.strangers.0.min(strangers + 1);
            return;
        }
        if let Some(namespace) = &self.known.namespace {
            node.name_namespace(namespace);
        }
        let header = Header::of(&node, context.inherited);
        if self.unclear_head((&node, &header), context, is_item) {
            return;
        }
        match header.content(is_item) {
            Ok(Content::Stranger) if node.is_null() => {}
            Ok(Content::Stranger) => self.stranger(&node),
            Ok(Content::Other) => self.repeated_unused(header.title().as_deref(), &repeated(context)),
            Ok(Content::Object(kind)) => self.object(kind, node, context),
            Ok(Content::List(inherited)) => self.list(node, inherited.as_deref(), context),
            Err(unclear) => {
                let fault = self.unclear(unclear, &node, &header, context);
                self.fault(fault, context.text);
            }
        }
    }

    fn stranger(&mut self, node: &Node<'_>) {
        let (count, first) = self.strangers;
        self.strangers = (count + 1, if count == 0 { node.place.0 } else { first });
    }

    fn list(&mut self, mut node: Node<'_>, inherited: Option<&Inherited>, context: &Context<'_>) {
        let wrong = |message: &str| {
            let field = FieldPath::of("items");
            let place = node.locate(&field).or(Some(node.place));
            yaml::Error { place, field: Some(field), message: message.to_owned(), is_syntax: false }
        };
        if let Some(fault) = self.strange_field(&node, inherited.is_some(), &context.path, context.text) {
            self.content.faults.push(fault);
            return;
        }
        if self.unclear_list(context) {
            return;
        }
        if context.depth >= DEEPEST_LIST {
            return self.unreadable(wrong("lists are nested too deeply: write one list"), context);
        }
        if node.get("items").is_some_and(|items| !items.is_null() && !matches!(items.value, Value::List(_))) {
            return self.unreadable(wrong("is not a list: write a list of objects"), context);
        }
        let Value::Map(entries) = &mut node.value else { return };
        for entry in entries.drain(..).filter(|entry| entry.key == "items") {
            let Value::List(items) = entry.value.value else { continue };
            for (index, item) in items.into_iter().enumerate() {
                let path = context.path.clone().key("items").index(index);
                self.node(item, &Context { path, inherited, depth: context.depth + 1, ..*context });
            }
        }
    }

    fn unclear(&self, unclear: Unclear, node: &Node<'_>, header: &Header<'_>, context: &Context<'_>) -> Fault {
        let (subject, hides) = self.unclear_subject(&unclear, header, context.text);
        let mut error = FileError::of(self.file, Some(node.place.0), unclear.message);
        error.field = (!context.path.is_empty()).then(|| context.path.to_string());
        Fault { error, subject, hides, is_syntax: false, is_template: false }
    }

    fn unclear_subject(&self, unclear: &Unclear, header: &Header<'_>, text: &str) -> (Subject, Hides) {
        match unclear.kind {
            Some(kind) => self.subject(kind, header, text),
            None if unclear.is_policy => {
                let policies = PoliciesIn::namespace(header.namespace());
                (Subject::Unknown, Hides { addresses: AddressesIn::Nowhere, policies })
            }
            None => (Subject::Unknown, by_words(text)),
        }
    }

    fn subject(&self, kind: Kind, header: &Header<'_>, text: &str) -> (Subject, Hides) {
        let namespace = header.namespace();
        let hides = Hides::of(kind, namespace, text);
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        let is_right =
            |name: &&str| check_name(name).is_ok() && (namespace.is_empty() || check_name(namespace).is_ok());
        let subject = match header.name().filter(is_right) {
            Some(name) => Subject::Object(kind.name(), NamespacedName::new(namespace, name)),
            None => Subject::Kind(kind.name()),
        };
        (subject, hides)
    }

    fn object(&mut self, kind: Kind, mut node: Node<'_>, context: &Context<'_>) {
        let (subject, hides) = self.subject(kind, &Header::of(&node, context.inherited), context.text);
        if let Some(error) = self.repeated_used(kind, context).filter(|_| !matches!(kind, Kind::Unenforced(_))) {
            return self.fault(Fault { error, subject, hides, is_syntax: false, is_template: false }, context.text);
        }
        let unused = repeated(context);
        if !unused.is_empty() {
            self.repeated_unused(Header::of(&node, context.inherited).title().as_deref(), &unused);
        }
        let line = node.place.0;
        let said = self.resource(kind, &mut node, context).and_then(|resource| {
            objects::read(resource, &mut self.texts).map_err(|error| {
                let place = node.locate(&error.field).or(Some((line, 0)));
                yaml::Error { place, field: Some(error.field), message: error.message, is_syntax: false }
            })
        });
        match said {
            Ok(said) => self.said(said, &node),
            // The object would have no effect anyway.
            Err(_) if matches!(kind, Kind::Unenforced(_)) => {}
            Err(error) => {
                let mut error = FileError::at(self.file, &context.path, error);
                error.column = error.column.filter(|column| *column > 0);
                let addresses = match hides.addresses {
                    AddressesIn::Anywhere if unused.is_empty() => addresses::named_by(kind, &node),
                    addresses => addresses,
                };
                let hides = Hides { addresses, ..hides };
                self.fault(Fault { error, subject, hides, is_syntax: false, is_template: false }, context.text);
            }
        }
    }

    /// Reads the object as the type of its kind. Fields that have a wrong type and that this program does not use are
    /// removed.
    fn resource(&mut self, kind: Kind, node: &mut Node<'_>, context: &Context<'_>) -> Result<Resource, yaml::Error> {
        if let (Some(inherited), Value::Map(entries)) = (context.inherited, &mut node.value) {
            for (key, value) in [("apiVersion", &inherited.version), ("kind", &inherited.kind)] {
                if !entries.iter().any(|entry| entry.key == key) {
                    let value = Node { place: node.place, value: Value::Text(value.clone().into()) };
                    entries.push(MappingEntry { key: key.into(), place: node.place, value });
                }
            }
        }
        if let Some(expected) = document::version(kind)
            && let Some(given) = node.get("apiVersion")
            && given.text() != Some(expected)
        {
            let message = format!(
                "{:?} is not supported for kind {}: write {expected}",
                given.text().unwrap_or_default(),
                kind.name()
            );
            let field = Some(FieldPath::of("apiVersion"));
            return Err(yaml::Error { place: Some(given.place), field, message, is_syntax: false });
        }
        typed(kind, node)
    }

    fn said(&mut self, said: Said, node: &Node<'_>) {
        let Said { name, title, body, remarks } = said;
        let line = node.place.0;
        for Remark { field, message, severity } in remarks {
            let place = if field.is_empty() { None } else { node.locate(&field) };
            let origin = Origin::line_of(Arc::clone(self.file), place.map_or(line, |(line, _)| line));
            self.content.problems.push(Problem { origin, object: Some(title.clone()), message, severity });
        }
        let origin = Origin::line_of(Arc::clone(self.file), line);
        self.content.objects.extend(body.map(|body| Object { name, origin, body }));
    }
}

/// The possible content of a text of which only the words are known.
fn by_words(text: &str) -> Hides {
    Hides { addresses: AddressesIn::Anywhere, policies: PoliciesIn::by_words(text) }
}

impl Known {
    /// The number of known texts.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }
}

impl Part {
    /// The same part, for a text that has `lines` lines before it now.
    fn moved(&self, file: &Arc<str>, lines: u64) -> Self {
        let mut part = self.clone();
        if part.lines != lines {
            let origin = |origin: &mut Origin| {
                if let Some(line) = origin.line() {
                    *origin = Origin::line_of(Arc::clone(file), (line + lines).saturating_sub(self.lines));
                }
            };
            part.object.iter_mut().for_each(|object| origin(&mut object.origin));
            part.problems.iter_mut().for_each(|problem| origin(&mut problem.origin));
            part.lines = lines;
        }
        part
    }
}
