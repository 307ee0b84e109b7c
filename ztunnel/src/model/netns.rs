//! How a node reaches the network namespace of one of its pods.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that leads to a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsFile {
    /// A path that leads to the namespace for as long as the pod lives, such as /run/netns/NAME.
    Named(PathBuf),
    /// A file that is kept open, because its path may stop leading to the namespace while the pod lives.
    Open(OpenNetns),
}

impl NetnsFile {
    /// The path that the file has, or had when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Open(open) => &open.path,
        }
    }
}

impl From<&str> for NetnsFile {
    fn from(path: &str) -> Self {
        Self::Named(path.into())
    }
}

impl From<OpenNetns> for NetnsFile {
    fn from(open: OpenNetns) -> Self {
        Self::Open(open)
    }
}

/// A file of a network namespace that is kept open. Two are equal if they lead to the same namespace.
#[derive(Debug, Clone)]
pub struct OpenNetns {
    file: Arc<File>,
    path: PathBuf,
    place: (u64, u64),
}

impl OpenNetns {
    /// Takes a file that was opened at a path.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn new(file: File, path: PathBuf) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { file: Arc::new(file), path, place: (found.dev(), found.ino()) })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The path at which it was opened. It may lead to another file now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the namespace.
    #[must_use]
    pub fn place(&self) -> (u64, u64) {
        self.place
    }
}

impl PartialEq for OpenNetns {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for OpenNetns {}
