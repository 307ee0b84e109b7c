//! Problems in an object, by the path of the field.

use thiserror::Error;

use crate::control::field::FieldPath;
use crate::model::problem::Severity;

/// The most invalid fields of one object that are reported.
const MOST_FIELDS: usize = 16;

/// A field whose value makes its object invalid, and the object's other fields of which this is known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub(in crate::control) struct FieldError {
    /// The path of the field in its object.
    pub(in crate::control) field: FieldPath,
    /// What is wrong with it.
    pub(in crate::control) message: String,
    /// Other invalid fields, at most [`MOST_FIELDS`] with this one.
    others: Vec<(FieldPath, String)>,
    /// The number of further invalid fields.
    more: usize,
}

impl FieldError {
    pub(super) fn new(field: FieldPath, message: impl Into<String>) -> Self {
        Self { field, message: message.into(), others: Vec::new(), more: 0 }
    }

    /// The same error, for an object that is itself a field of another.
    pub(super) fn below(self, above: &FieldPath) -> Self {
        let others = self.others.into_iter().map(|(field, message)| (above.join(&field), message)).collect();
        Self { field: above.join(&self.field), others, ..self }
    }

    /// The same error with one message, which names the other fields as well.
    pub(super) fn in_one_message(self) -> Self {
        let mut message = self.message;
        for (field, other) in self.others {
            message.push_str(&format!("; also {field}: {other}"));
        }
        if self.more > 0 {
            message.push_str(&format!("; and {} more fields are invalid", self.more));
        }
        Self::new(self.field, message)
    }
}

/// Collects the invalid fields of one object, so that all of them are reported.
#[derive(Debug, Default)]
pub(super) struct FieldErrors(Option<FieldError>);

impl FieldErrors {
    /// The number of invalid fields.
    pub(super) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |first| 1 + first.others.len() + first.more)
    }

    pub(super) fn push(&mut self, error: FieldError) {
        let Some(first) = &mut self.0 else {
            self.0 = Some(error);
            return;
        };
        first.more += error.more;
        for other in std::iter::once((error.field, error.message)).chain(error.others) {
            match first.others.len() + 1 < MOST_FIELDS {
                true => first.others.push(other),
                false => first.more += 1,
            }
        }
    }

    /// The result, or nothing if it is an error.
    pub(super) fn take<T>(&mut self, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// # Errors
    /// A field is invalid.
    pub(super) fn finish(self) -> Result<(), FieldError> {
        self.0.map_or(Ok(()), Err)
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
