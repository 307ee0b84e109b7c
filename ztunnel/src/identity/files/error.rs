//! Why there is no certificate among the files.

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
    /// Neither a directory of its own, nor one for all.
    #[error(
        "there is no certificate for {identity}: put {CHAIN} and {KEY} into {}, and {ROOTS} there or into {}",
        place.display(),
        dir.display()
    )]
    Absent {
        /// Whose.
        identity: SpiffeId,
        /// Where they belong.
        place: PathBuf,
        /// The directory for all.
        dir: PathBuf,
    },
    /// A name that is no name of a directory.
    #[error("{identity} can't be a directory's name")]
    NotAPath {
        /// Whose.
        identity: SpiffeId,
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
}
