//! Why the files give no certificate.

use std::path::PathBuf;

use thiserror::Error;

use super::layout::{CHAIN, KEY, ROOTS};
use crate::{
    identity::certificate::{FileError, Flaw},
    model::identity::SpiffeId,
};

/// Why the files give no certificate for an identity.
#[derive(Debug, Error)]
pub enum FilesError {
    /// There are neither files for this identity nor files for all.
    #[error(
        "there is no certificate for {identity}: put {CHAIN} and {KEY} into {}, and {ROOTS} there or into {}",
        place.display(),
        dir.display()
    )]
    Absent {
        /// The identity.
        identity: SpiffeId,
        /// The directory of its own files.
        place: PathBuf,
        /// The directory of the files for all.
        dir: PathBuf,
    },
    /// A name can't be the name of a directory.
    #[error("{identity} can't be a directory's name")]
    NotAPath {
        /// The identity.
        identity: SpiffeId,
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
}
