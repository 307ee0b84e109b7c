//! Why an object, or a whole file, counts for nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::control::field::FieldPath;
use crate::control::objects::{Kind, check_name, title};
use crate::control::yaml;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// Why a text counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct FileError {
    /// The file's name relative to the mesh folder.
    pub file: Arc<str>,
    /// Line, counted from 1.
    pub line: Option<u64>,
    /// Column, counted from 1 in characters.
    pub column: Option<u64>,
    /// Path of the field in its document, such as `spec.containers[0].ports`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl FileError {
    /// About a file as a whole, or a line of it.
    pub(in crate::control) fn of(file: &Arc<str>, line: Option<u64>, message: impl Into<String>) -> Self {
        Self { file: Arc::clone(file), line, column: None, field: None, message: message.into() }
    }

    pub(super) fn at(file: &Arc<str>, path: &FieldPath, error: yaml::Error) -> Self {
        let yaml::Error { place, field, message, .. } = error;
        let field = field.map(|field| path.join(&field)).or_else(|| (!path.is_empty()).then(|| path.clone()));
        Self {
            file: Arc::clone(file),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            field: field.map(|field| field.to_string()),
            message,
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What a file can't say: an object of it that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub error: FileError,
    /// Which object it is, as far as its head tells.
    pub(in crate::control) subject: Subject,
    /// What nobody knows because of it.
    pub(in crate::control) hides: Hides,
    /// The text as such is broken.
    pub(in crate::control) is_syntax: bool,
    /// It is a template, and a manifest only when it is rendered.
    pub(in crate::control) is_template: bool,
}

/// Which object of the mesh a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) enum Subject {
    /// This one.
    Object(&'static str, NamespacedName),
    /// One of this kind.
    Kind(&'static str),
    /// Nobody knows.
    Unknown,
}

/// What a text may say that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Hides {
    /// Addresses may be those of pods of the mesh.
    pub(in crate::control) addresses: bool,
    /// Policies.
    pub(in crate::control) policies: PoliciesIn,
}

/// Where the policies of a text may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoliciesIn {
    /// In any namespace, the root namespace among them.
    Anywhere,
    /// In these; there may be none.
    Namespaces(BTreeSet<Arc<str>>),
}

impl PoliciesIn {
    pub(super) fn nowhere() -> Self {
        Self::Namespaces(BTreeSet::new())
    }

    pub(super) fn namespace(name: &str) -> Self {
        // No workload can be there: whoever wrote it meant something else.
        if check_name(name).is_err() {
            return Self::Anywhere;
        }
        Self::Namespaces([name.into()].into())
    }

    /// Told by single words, where nothing else can be read.
    pub(super) fn by_words(text: &str) -> Self {
        let is_traced = TRACES.iter().chain(&ESCAPES).any(|trace| text.contains(trace));
        if is_traced { Self::Anywhere } else { Self::nowhere() }
    }
}

/// Words without which a text holds no policy, nor anything that says whom policies protect.
const TRACES: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "rootNamespace"];
/// Escapes behind which such a word may stand in another spelling: of a character, or of a line's end.
const ESCAPES: [&str; 5] = ["\\x", "\\u", "\\U", "\\\n", "\\\r"];

impl Hides {
    /// Nothing that anyone relies on.
    pub(in crate::control) fn nothing() -> Self {
        Self { addresses: false, policies: PoliciesIn::nowhere() }
    }

    /// Whatever there may be.
    pub(in crate::control) fn anything() -> Self {
        Self { addresses: true, policies: PoliciesIn::Anywhere }
    }

    /// What an object of a kind and a namespace may say.
    pub(in crate::control) fn of(kind: Kind, namespace: &str, text: &str) -> Self {
        match kind {
            Kind::Authorization | Kind::PeerAuthentication => {
                Self { addresses: false, policies: PoliciesIn::namespace(namespace) }
            }
            // Localities, tokens, and what others carry out: neither opens nor closes anything.
            Kind::Node | Kind::RequestAuthentication | Kind::Unenforced(_) => Self::nothing(),
            // It tells which namespace is the root, and whether unknown destinations are to be reached.
            Kind::Mesh if text.contains("rootNamespace") => Self::anything(),
            _ => Self { addresses: true, policies: PoliciesIn::nowhere() },
        }
    }
}

impl Fault {
    /// The fault as a problem, with what follows from it.
    pub(in crate::control) fn problem(&self, consequence: &str) -> Problem {
        let FileError { file, line, field, message, .. } = &self.error;
        let field = field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
        let object = match &self.subject {
            Subject::Object(kind, name) => Some(title(kind, name)),
            Subject::Kind(_) | Subject::Unknown => None,
        };
        Problem {
            origin: Origin::File { file: Arc::clone(file), line: *line },
            object,
            message: format!("{field}{message}; {consequence}"),
            severity: Severity::Error,
        }
    }
}
