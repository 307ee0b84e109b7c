//! Why a file counts for nothing.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};

/// Why a file counts for nothing.
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

impl From<FileError> for Problem {
    fn from(error: FileError) -> Self {
        let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
        Self {
            origin: Origin::File { file: error.file, line: error.line },
            object: None,
            message: format!("{field}{}", error.message),
            severity: Severity::Error,
        }
    }
}
