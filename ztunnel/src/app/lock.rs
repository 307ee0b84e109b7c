//! The lock that prevents a second daemon, and the directories of the lock. Only the daemon's user may enter these directories.
//!
//! Every process that can open a file or a directory can lock it. If all users could read the directory, any local user could
//! block the daemon.
//!
//! The lock belongs to the open files, not to the process. A daemon that hands over gives its successor the same open files, and closes
//! its own. No process unlocks explicitly, so a third process cannot take the lock in between.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{libc, sys::stat::fstat, unistd::geteuid};
use thiserror::Error;
use tracing::warn;

use crate::redirect::pins::{PinDir, PinError};

/// The file in the state directory that is locked.
const LOCK: &str = "lock";
/// The permission bits of users other than the owner.
const OTHERS: u32 = 0o077;

/// Why the lock could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// A directory, or a file in it, can't be created.
    #[error("cannot {what} {path}: {source}; set {flag} to a directory that only this user may write")]
    Access {
        /// The step.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The flag that names the directory.
        flag: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The path is not a directory, but a symbolic link or another file.
    #[error(
        "{path} is a symbolic link or not a directory; a user who can change a link could move the state of \
         the daemon; set {flag} to the path of a directory"
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// The flag.
        flag: &'static str,
    },
    /// Another user can change the content of the directory.
    #[error(
        "{path} belongs to uid {owner}, and the daemon has uid {own}; the owner could change or lock the \
         files in it; run chown {own} on it, or set {flag} to another directory"
    )]
    NotOurs {
        /// The path.
        path: PathBuf,
        /// The user ID of its owner.
        owner: u32,
        /// The user ID of the daemon.
        own: u32,
        /// The flag.
        flag: &'static str,
    },
    /// Pins can't be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Another daemon holds the lock.
    #[error("another ztunnel uses {path}; every daemon needs its own --state and --bpf-pin")]
    Held {
        /// The path.
        path: PathBuf,
    },
}

/// The lock that a daemon or a clean-up holds while it uses a state directory and a pin directory.
#[derive(Debug)]
pub struct Lock([File; 2]);

/// A lock that was handed over is not that of these directories.
#[derive(Debug, Error)]
#[error(
    "the running daemon with this --state has locked a {what} other than {path}; start this daemon with the \
     directories of the running one (compare --state and --bpf-pin, and the mounts of the container)"
)]
pub struct OtherLock {
    what: &'static str,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock. After that, both directories are accessible for this user only.
    ///
    /// # Errors
    /// If another process holds the lock, or a directory can't be used.
    pub fn take(state: &Path, pins: &PinDir) -> Result<Self, LockError> {
        let state = lock_state(state)?;
        pins.prepare()?;
        // A BPF file system has no regular files, so the directory is locked.
        let root = private(pins.root(), "--bpf-pin")?;
        Ok(Self([state, lock(root, pins.root(), "--bpf-pin")?]))
    }

    /// The open files that are locked.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|file| file.as_fd())
    }

    /// A lock that another process holds, by its open files: see [`Self::files`].
    ///
    /// # Errors
    /// When these are not the files of these directories.
    pub fn handed_over(files: [OwnedFd; 2], state: &Path, pins: &PinDir) -> Result<Self, OtherLock> {
        let places = [("lock file", state.join(LOCK)), ("pin directory", pins.root().to_owned())];
        for ((what, path), file) in places.into_iter().zip(&files) {
            let is_same = fstat(file)
                .ok()
                .zip(std::fs::metadata(&path).ok())
                .is_some_and(|(locked, named)| (locked.st_dev, locked.st_ino) == (named.dev(), named.ino()));
            if !is_same {
                return Err(OtherLock { what, path });
            }
        }
        Ok(Self(files.map(File::from)))
    }
}

/// Creates the state directory, and locks a file in it.
fn lock_state(state: &Path) -> Result<File, LockError> {
    const FLAG: &str = "--state";
    let access = |what, path: &Path, source| LockError::Access { what, path: path.to_owned(), flag: FLAG, source };
    if let Some(parent) = state.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|source| access("make the directory", parent, source))?;
    }
    match DirBuilder::new().mode(0o700).create(state) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(access("make the state directory", state, error));
        }
        _ => {}
    }
    private(state, FLAG)?;
    let path = state.join(LOCK);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let file = options.open(&path).map_err(|source| access("open the lock", &path, source))?;
    lock(file, &path, FLAG)
}

/// Opens a directory that only this user may enter. If this user owns it, its permissions are corrected.
fn private(dir: &Path, flag: &'static str) -> Result<File, LockError> {
    let path = || dir.to_owned();
    let access = |what| move |source| LockError::Access { what, path: path(), flag, source };
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let opened =
        OpenOptions::new().read(true).custom_flags(flags).open(dir).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP | libc::ENOTDIR) => LockError::NotADirectory { path: path(), flag },
            _ => access("open")(error),
        })?;
    let found = opened.metadata().map_err(access("look at"))?;
    let own = geteuid().as_raw();
    if found.uid() != own {
        return Err(LockError::NotOurs { path: path(), owner: found.uid(), own, flag });
    }
    let mode = found.mode() & 0o7777;
    if mode & OTHERS != 0 {
        opened.set_permissions(Permissions::from_mode(mode & !OTHERS)).map_err(access("close to others"))?;
        warn!(
            dir = %dir.display(), before = format!("{mode:04o}"),
            "other users had access to the directory; now only its owner has"
        );
    }
    Ok(opened)
}

fn lock(file: File, path: &Path, flag: &'static str) -> Result<File, LockError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LockError::Held { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => {
            Err(LockError::Access { what: "lock", path: path.to_owned(), flag, source })
        }
    }
}

#[cfg(test)]
mod tests;
