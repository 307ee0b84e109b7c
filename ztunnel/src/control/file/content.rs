//! One file of the folder: its state in the file system, its bytes, and the objects in them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use nix::fcntl::OFlag;

use crate::control::manifests::{Fault, FileContent, FileError, Hides, Known, Subject, read_again};

/// The largest file that is read. The whole text is in memory while the file is read, its objects one after the other.
/// An export has 4 to 12 KiB for each Pod, and twice that with `managedFields`: this is an export of at least ten
/// thousand Pods.
pub(super) const LARGEST_FILE: u64 = 256 * 1024 * 1024;

/// The metadata of a file, with links followed. Every write changes the `ctime`, which no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The coarsest clock of a file system: a file that changes again within the tick in which it was read has the same
/// metadata.
const COARSEST_TICK: Duration = Duration::from_secs(2);

impl State {
    /// `None` also for a file that has just changed: it may change again within the same tick.
    pub(super) fn settled(path: &Path, now: SystemTime) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?, now)
    }

    /// The same, of metadata that have been read already.
    pub(super) fn of(metadata: &fs::Metadata, now: SystemTime) -> Option<Self> {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let since = Duration::new(changed.0.try_into().ok()?, changed.1.try_into().ok()?);
        let is_settled = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.checked_sub(since)? > COARSEST_TICK;
        is_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed,
        })
    }
}

/// SHA-256.
pub(super) type Digest = [u8; digest::SHA256_OUTPUT_LEN];

pub(super) fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = Path::new(name).extension();
    !hidden && extension.is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// Why a file's bytes could not be read; `Display` gives the cause, since the text ends up in a problem.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    #[error("is not a regular file: move it away")]
    NotRegular,
    #[error("is larger than {} MiB, the most that is read: split it, or export without managedFields", LARGEST_FILE / 1024 / 1024)]
    TooLarge,
    #[error(
        "is not read: the files of the mesh folder may have {} MiB together; remove what is not needed, or export without managedFields",
        limit / 1024 / 1024
    )]
    FolderTooLarge { limit: u64 },
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// Reads a file. The folder, with this limit, has room for `room` more bytes: nothing is read of a larger file.
pub(super) fn read_bytes(path: &Path, limit: u64, room: u64) -> Result<Vec<u8>, ReadError> {
    // The metadata is read before the file is opened, since opening a device may have effects. It is opened without
    // blocking, since the file may have been replaced by a pipe meanwhile.
    if !fs::metadata(path).map_err(ReadError::Open)?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(ReadError::Open)?;
    let metadata = file.metadata().map_err(ReadError::Read)?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    if metadata.len() > LARGEST_FILE {
        return Err(ReadError::TooLarge);
    }
    if metadata.len() > room {
        return Err(ReadError::FolderTooLarge { limit });
    }
    // The whole capacity at once, so that the buffer is not copied when it grows.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len() + 1).unwrap_or_default());
    // The length may change while reading.
    file.take(LARGEST_FILE.min(room) + 1).read_to_end(&mut bytes).map_err(ReadError::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_FILE) {
        return Err(ReadError::TooLarge);
    }
    Ok(bytes)
}

/// The content of a file of which nothing can be read.
pub(super) fn unreadable(name: &Arc<str>, line: Option<u64>, message: impl Into<String>) -> FileContent {
    let error = FileError::of(name, line, message);
    let (subject, hides) = (Subject::Unknown, Hides::anything());
    let fault = Fault { error, subject, hides, is_syntax: true, is_template: false };
    FileContent { faults: vec![fault], ..FileContent::default() }
}

/// Reads a file of which `known` is known. Also returns the new knowledge, unless nothing of the file can be read.
pub(super) fn read_bytes_again(name: &Arc<str>, bytes: &[u8], known: &Known) -> (FileContent, Option<Known>) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) => {
            return (unreadable(name, Some(1), "is UTF-16 text: save it as UTF-8"), None);
        }
        // A text in another encoding may hide anything.
        Err(error) => {
            let before = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
            return (unreadable(name, u64::try_from(before + 1).ok(), "is not UTF-8 text: save it as UTF-8"), None);
        }
    };
    // A panic of the parser over one file must not affect the others.
    match catch_unwind(AssertUnwindSafe(|| read_again(name, text, known))) {
        Ok((content, known)) => (content, Some(known)),
        Err(_) => (
            unreadable(
                name,
                None,
                "the parser failed on this file: this is a bug, please report it \
             with the file",
            ),
            None,
        ),
    }
}
