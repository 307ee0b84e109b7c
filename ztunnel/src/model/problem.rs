//! A fault in what the operator gave us, told in the operator's terms.

use std::fmt;
use std::sync::Arc;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// What was asked for is not done, or something counts for nothing.
    Error,
    /// What was asked for may not be what is meant.
    Warning,
}

/// Something in the mesh's sources that is wrong or can't be honoured: where it stands, what it is and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The file's name relative to the mesh folder, or the folder's path when the folder itself is the problem.
    pub file: Arc<str>,
    /// Line in that file, counted from 1.
    pub line: Option<u64>,
    /// The object concerned, as `Kind namespace/name`.
    pub object: Option<String>,
    /// What is wrong, what follows from it, what to do.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}
