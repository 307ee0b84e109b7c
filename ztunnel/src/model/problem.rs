//! A fault in what the operator gave us, told in the operator's terms.

use std::fmt;

use super::origin::Origin;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// What was asked for is not done, or something counts for nothing.
    Error,
    /// What was asked for may not be what is meant.
    Warning,
    /// Nothing is wrong; something works otherwise than one may expect.
    Info,
}

impl Severity {
    /// As JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Something in the mesh's sources that is wrong or can't be honoured: where it stands, what it is and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The object concerned, as `Kind namespace/name`.
    pub object: Option<String>,
    /// What is wrong, what follows from it, what to do.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        // The origin may be the object itself.
        if let Some(object) = &self.object
            && !matches!(self.origin, Origin::Object { .. })
        {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}
