//! Why a text can't be read.

use super::node::TextPosition;
use crate::control::field::{FieldPath, Step};

/// Why a text can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) struct Error {
    /// Line and column, each counted from 1.
    pub(in crate::control) place: Option<TextPosition>,
    /// The field there.
    pub(in crate::control) field: Option<FieldPath>,
    /// What is wrong, and what to do.
    pub(in crate::control) message: String,
    /// The syntax of the text is broken: its content is unknown.
    pub(in crate::control) is_syntax: bool,
}

impl Error {
    pub(super) fn syntax(place: TextPosition, message: impl Into<String>) -> Self {
        Self { place: Some(place), field: None, message: message.into(), is_syntax: true }
    }

    pub(super) fn at(place: TextPosition, field: FieldPath, message: impl Into<String>) -> Self {
        let field = Some(field).filter(|field| !field.is_empty());
        Self { place: Some(place), field, message: message.into(), is_syntax: false }
    }

    /// The same error, for a value that is itself a field of another. A text with broken syntax has no fields.
    pub(super) fn below(self, step: Step) -> Self {
        if self.is_syntax {
            return self;
        }
        let above = FieldPath::from_steps(&[step]);
        let field = self.field.as_ref().map_or_else(|| above.clone(), |field| above.join(field));
        Self { field: Some(field), ..self }
    }
}
