//! Why an object, or a whole file, is not valid.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use thiserror::Error;

use crate::control::field::FieldPath;
use crate::control::objects::{Kind, check_name, title};
use crate::control::yaml;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// Why a text is not valid.
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
    /// An error of a file as a whole, or of one line of it.
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

/// An object of a file that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub error: FileError,
    /// Which object it is, as far as its head says.
    pub(in crate::control) subject: Subject,
    /// What may be missing because of it.
    pub(in crate::control) hides: Hides,
    /// The syntax of the text is broken.
    pub(in crate::control) is_syntax: bool,
    /// The text is a template, which has to be rendered to become a manifest.
    pub(in crate::control) is_template: bool,
}

/// Which object of the mesh a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) enum Subject {
    /// The object of this kind and name.
    Object(&'static str, NamespacedName),
    /// Some object of this kind.
    Kind(&'static str),
    /// Any object.
    Unknown,
}

/// The possible content of a text that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Hides {
    /// Addresses that may belong to pods of the mesh.
    pub(in crate::control) addresses: AddressesIn,
    /// The namespaces of possible policies.
    pub(in crate::control) policies: PoliciesIn,
}

/// The addresses that a text may give to pods or services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) enum AddressesIn {
    /// None: it describes neither.
    Nowhere,
    /// These; the set may be empty.
    These(BTreeSet<IpNet>),
    /// Any address.
    Anywhere,
}

impl AddressesIn {
    /// The addresses of two texts.
    pub(in crate::control) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Anywhere, _) | (_, Self::Anywhere) => Self::Anywhere,
            (Self::Nowhere, other) => other,
            (one, Self::Nowhere) => one,
            (Self::These(mut all), Self::These(more)) => {
                all.extend(more);
                Self::These(all)
            }
        }
    }
}

/// The namespaces in which the policies of a text may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoliciesIn {
    /// In any namespace, the root namespace among them.
    Anywhere,
    /// In these namespaces; the set may be empty.
    Namespaces(BTreeSet<Arc<str>>),
}

impl PoliciesIn {
    pub(super) fn nowhere() -> Self {
        Self::Namespaces(BTreeSet::new())
    }

    pub(super) fn namespace(name: &str) -> Self {
        // There can be no workload in such a namespace: the author must have meant another one.
        if check_name(name).is_err() {
            return Self::Anywhere;
        }
        Self::Namespaces([name.into()].into())
    }

    /// Determined by single words of the text, if nothing else can be read.
    pub(super) fn by_words(text: &str) -> Self {
        let is_traced = TRACES.iter().chain(&ESCAPES).any(|trace| text.contains(trace));
        if is_traced { Self::Anywhere } else { Self::nowhere() }
    }
}

/// A text without any of these words holds no policy, and nothing that determines which workloads policies select.
const TRACES: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "rootNamespace"];
/// With these escapes such a word may be spelled differently: escapes of a character, or of the end of a line.
const ESCAPES: [&str; 5] = ["\\x", "\\u", "\\U", "\\\n", "\\\r"];

impl Hides {
    /// Nothing that anyone relies on is missing.
    pub(in crate::control) fn nothing() -> Self {
        Self { addresses: AddressesIn::Nowhere, policies: PoliciesIn::nowhere() }
    }

    /// Anything may be missing.
    pub(in crate::control) fn anything() -> Self {
        Self { addresses: AddressesIn::Anywhere, policies: PoliciesIn::Anywhere }
    }

    /// The possible content of a text that has one of two contents. If policies may be in one of two namespaces, they
    /// may be in any: the author has written the wrong one.
    pub(super) fn or(self, other: Self) -> Self {
        let policies = match (self.policies, other.policies) {
            (PoliciesIn::Namespaces(one), PoliciesIn::Namespaces(other)) if one.is_empty() || one == other => {
                PoliciesIn::Namespaces(other)
            }
            (PoliciesIn::Namespaces(one), PoliciesIn::Namespaces(other)) if other.is_empty() => {
                PoliciesIn::Namespaces(one)
            }
            _ => PoliciesIn::Anywhere,
        };
        Self { addresses: self.addresses.or(other.addresses), policies }
    }

    /// The possible content of an object of a kind and a namespace.
    pub(in crate::control) fn of(kind: Kind, namespace: &str, text: &str) -> Self {
        match kind {
            Kind::Authorization | Kind::PeerAuthentication => {
                Self { addresses: AddressesIn::Nowhere, policies: PoliciesIn::namespace(namespace) }
            }
            // Localities, tokens, and objects that others enforce: none of these allows or denies a connection.
            Kind::Node | Kind::RequestAuthentication | Kind::Unenforced(_) => Self::nothing(),
            // The settings determine the root namespace, and whether unknown destinations may be reached.
            Kind::Mesh if text.contains("rootNamespace") => Self::anything(),
            _ => Self { addresses: AddressesIn::Anywhere, policies: PoliciesIn::nowhere() },
        }
    }
}

impl Fault {
    /// Reports a template in place of the fault. A template has no objects.
    pub(super) fn make_template(&mut self) {
        let message = "this is a template, not a manifest: render it first, for example with helm template";
        *self = Self {
            error: FileError::of(&self.error.file, self.error.line, message),
            subject: Subject::Unknown,
            hides: Hides::nothing(),
            is_syntax: false,
            is_template: true,
        };
    }

    /// The fault as a problem, with its consequence.
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
