//! Why there is no CA, or no certificate of it.

use std::path::PathBuf;

use thiserror::Error;

use super::request::RequestError;
use crate::identity::certificate::{FileError, Flaw};

/// Why there is no CA, or none that can be used.
#[derive(Debug, Error)]
pub enum CaError {
    /// Not one of the files is there.
    #[error("there is no CA in {dir}: `ztunnel ca init --ca-dir {dir}` makes one", dir = dir.display())]
    Absent {
        /// The directory.
        dir: PathBuf,
    },
    /// A new one would replace it.
    #[error("there is a CA in {} already: name another directory, or move that CA away", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// Some of the files are missing.
    #[error(
        "the CA in {} is incomplete, it lacks {}: put the missing files there, or empty the directory to have a new CA made",
        dir.display(),
        missing.join(", ")
    )]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// What is not there.
        missing: Vec<&'static str>,
    },
    /// A CA is only made in an empty directory.
    #[error("{} holds no CA, but {found}: no CA is made in a directory that is used for something else", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A file that can't be read or makes no sense.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that does not fit the others, or not its purpose.
    #[error("{} can't be used", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        flaw: Flaw,
    },
    /// The directory can't be worked with.
    #[error("cannot {what} {}", dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A request for a certificate that is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The crypto library fails.
    #[error("cannot make a key or certificate")]
    Make(#[source] rcgen::Error),
}
