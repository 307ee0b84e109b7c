//! Files of certificates and keys: they are read within limits, and written completely or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use thiserror::Error;

/// The maximum size of a file. A bundle of a hundred roots needs a fifth of it.
const LARGEST: u64 = 1 << 20;

/// The prefix of a file that is not renamed yet. After a crash it may stay.
const UNFINISHED: &str = ".ztunnel-";

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system call failed.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It is too large for a certificate or key.
    #[error("{} is larger than {} KiB: it can't be a certificate or key", path.display(), LARGEST >> 10)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl ReadError {
    /// Whether the file does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file. It blocks only on the file system.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let unreadable = |source| ReadError::Unreadable { path: path.to_owned(), source };
    // The call must not wait for a pipe in place of the file.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(ReadError::NotRegular { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read, so the limit applies to the bytes and not to the metadata.
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST) {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Changes if the file is replaced or written. Links are followed, so that it works for mounted Secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamp of a file; `None` if it can't be read.
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

/// Writes a file completely, syncs it to disk, and moves it into place. It has the mode from its first byte on.
///
/// # Errors
/// The error of the system call. The place is unchanged then.
pub fn write(dir: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let unfinished = dir.join(format!("{UNFINISHED}{name}-{:016x}", fastrand::u64(..)));
    let result = write_new(&unfinished, content, mode)
        .and_then(|()| fs::rename(&unfinished, dir.join(name)))
        .and_then(|()| File::open(dir)?.sync_all());
    if result.is_err() {
        // The first error is the one that is returned.
        let _nothing_left = fs::remove_file(&unfinished);
    }
    result
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The entries of a directory, without unfinished files and without `lost+found`. Unfinished files are removed if requested.
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
