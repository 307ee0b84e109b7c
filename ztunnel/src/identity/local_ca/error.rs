//! Why there is no usable CA, or no certificate from it.

use std::path::PathBuf;

use thiserror::Error;

use super::request::RequestError;
use crate::identity::certificate::{FileError, Flaw};

/// Why there is no usable CA, or no certificate from it.
#[derive(Debug, Error)]
pub enum CaError {
    /// None of the files exists.
    #[error("there is no CA in {dir}: `ztunnel ca init --ca-dir {dir}` makes one", dir = dir.display())]
    Absent {
        /// The directory.
        dir: PathBuf,
    },
    /// There is a CA, which a new CA would replace.
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
        /// The missing files.
        missing: Vec<&'static str>,
    },
    /// The directory contains other files. A CA is made in an empty directory only.
    #[error("{} holds no CA, but {found}: no CA is made in a directory that is used for something else", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of its entries.
        found: String,
    },
    /// A file can't be read or parsed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not match the other files, or can't be used for its purpose.
    #[error("{} can't be used", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// The fault.
        #[source]
        flaw: Flaw,
    },
    /// A system call on the directory failed.
    #[error("cannot {what} {}", dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// The operation.
        what: &'static str,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// A request for a certificate is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The crypto library failed.
    #[error("cannot make a key or certificate")]
    Make(#[source] rcgen::Error),
}
