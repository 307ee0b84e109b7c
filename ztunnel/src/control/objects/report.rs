//! Problems in an object, by the path of the field.

use thiserror::Error;

use crate::control::field::FieldPath;
use crate::model::problem::Severity;

/// A field whose value makes its object invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub(in crate::control) struct FieldError {
    /// The path of the field in its object.
    pub(in crate::control) field: FieldPath,
    /// What is wrong with it.
    pub(in crate::control) message: String,
}

impl FieldError {
    pub(super) fn new(field: FieldPath, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }

    /// The same error, for an object that is itself a field of another.
    pub(in crate::control) fn below(self, field: &FieldPath) -> Self {
        Self { field: field.join(&self.field), message: self.message }
    }
}

/// A problem in an object that is valid nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Remark {
    /// The path of the field in its object; empty for the object as a whole.
    pub(in crate::control) field: FieldPath,
    /// What is wrong, the consequence, and what to do.
    pub(in crate::control) message: String,
    /// How bad it is.
    pub(in crate::control) severity: Severity,
}

/// Collects the remarks about one object.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<Remark>);

impl Report {
    /// Some part of the object has no effect.
    pub(super) fn error_at(&mut self, field: FieldPath, message: impl Into<String>) {
        self.0.push(Remark { field, message: message.into(), severity: Severity::Error });
    }

    /// Nothing is wrong, but the user should know it.
    pub(super) fn info_at(&mut self, field: FieldPath, message: impl Into<String>) {
        self.0.push(Remark { field, message: message.into(), severity: Severity::Info });
    }

    /// Some part of the object may not have the intended meaning.
    pub(super) fn warn(&mut self, message: impl Into<String>) {
        self.warn_at(FieldPath::default(), message);
    }

    pub(super) fn warn_at(&mut self, field: FieldPath, message: impl Into<String>) {
        self.0.push(Remark { field, message: message.into(), severity: Severity::Warning });
    }

    pub(super) fn finish(self) -> Vec<Remark> {
        self.0
    }
}
