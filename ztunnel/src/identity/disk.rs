//! Files of certificates and keys: read within limits, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use thiserror::Error;

/// What a file may have. A bundle of a hundred roots has a fifth of it.
const LARGEST: u64 = 1 << 20;

/// What a file that is not in its place yet is called, and after a crash still.
const UNFINISHED: &str = ".ztunnel-";

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system says no.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// What it is called.
        path: PathBuf,
    },
    /// Nothing that this program reads.
    #[error("{} is larger than {} KiB: it can't be a certificate or key", path.display(), LARGEST >> 10)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl ReadError {
    /// Whether there is no such file.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file. Blocks on the file system, on nothing else.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let unreadable = |source| ReadError::Unreadable { path: path.to_owned(), source };
    // A pipe in the file's place must not be waited for.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(ReadError::NotRegular { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    // The length may change while reading: the limit counts, not the metadata.
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST) {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// What tells whether a file is another one, or was written to. Links are followed, so a mounted secret's are, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamp of a file; none when there is none to be had.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Puts a file in its place, whole, on disk, and with that mode from its first byte on.
///
/// # Errors
/// What the system says; then the place is as it was.
pub fn write(dir: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let unfinished = dir.join(format!("{UNFINISHED}{name}-{:016x}", fastrand::u64(..)));
    let result = write_new(&unfinished, content, mode)
        .and_then(|()| fs::rename(&unfinished, dir.join(name)))
        .and_then(|()| File::open(dir)?.sync_all());
    if result.is_err() {
        // The first error is the one to tell.
        let _nothing_left = fs::remove_file(&unfinished);
    }
    result
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// What a directory holds, without what somebody left unfinished, which is removed if asked, and without what a file
/// system keeps for itself.
pub(super) fn names(dir: &Path, remove_unfinished: bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(UNFINISHED) {
            if remove_unfinished {
                fs::remove_file(dir.join(&name))?;
            }
        } else if name != "lost+found" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
