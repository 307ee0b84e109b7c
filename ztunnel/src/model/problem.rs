//! A fault in the operator's input, described in the operator's terms.

use std::fmt;

use super::origin::Origin;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A request of the operator is not carried out, or an object is ignored.
    Error,
    /// The input may not be what the operator wanted.
    Warning,
    /// Nothing is wrong, but an object works differently than the operator may expect.
    Info,
}

impl Severity {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// An object in the mesh's sources is wrong or can't be honoured: its origin, the fault, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The origin of the object.
    pub origin: Origin,
    /// The object concerned, as `Kind namespace/name`.
    pub object: Option<String>,
    /// The fault, its consequence, and the remedy.
    pub message: String,
    /// Its severity.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        // The origin may name the object already.
        if let Some(object) = &self.object
            && !matches!(self.origin, Origin::Object { .. })
        {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}
