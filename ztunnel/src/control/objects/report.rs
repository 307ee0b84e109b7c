//! What is wrong in an object, by the path of the field.

use thiserror::Error;

use crate::control::field::FieldPath;
use crate::model::problem::Severity;

/// A field whose value makes its object count for nothing.
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

    /// The same, of a field whose object is itself a field of another.
    pub(in crate::control) fn below(self, field: &FieldPath) -> Self {
        Self { field: field.join(&self.field), message: self.message }
    }
}

/// Something wrong in an object that counts all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Remark {
    /// Where it stands in its object; empty for the object as a whole.
    pub(in crate::control) field: FieldPath,
    /// What is wrong, what follows from it, what to do.
    pub(in crate::control) message: String,
    /// How bad it is.
    pub(in crate::control) severity: Severity,
}

/// Collects the remarks about one object.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<Remark>);

impl Report {
    /// Something counts for nothing, or is not done.
    pub(super) fn error_at(&mut self, field: FieldPath, message: impl Into<String>) {
        self.0.push(Remark { field, message: message.into(), severity: Severity::Error });
    }

    /// Nothing is wrong, but one should know it.
    pub(super) fn info_at(&mut self, field: FieldPath, message: impl Into<String>) {
        self.0.push(Remark { field, message: message.into(), severity: Severity::Info });
    }

    /// Something may not mean what it was meant to.
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
