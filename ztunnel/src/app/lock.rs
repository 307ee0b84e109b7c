//! The lock that keeps a second daemon away, and the directories that it is in: nobody but this user may enter them.
//!
//! Whoever can open a file, or a directory, can lock it. In a directory that all may read any local user could hold the daemon
//! back for ever.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    unistd::geteuid,
};
use thiserror::Error;
use tracing::warn;

use crate::redirect::pins::{PinDir, PinError};

/// The file in the state directory that is locked.
const LOCK: &str = "lock";
/// What others than the owner may do.
const OTHERS: u32 = 0o077;

/// Why a lock can't be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// A directory can't be made, or a file in it.
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
    /// The name leads elsewhere.
    #[error(
        "{path} is a symbolic link or no directory: whoever can change it decides where the daemon's state is; name the directory itself in {flag}"
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// The flag.
        flag: &'static str,
    },
    /// Somebody else can change what is in it.
    #[error(
        "{path} belongs to uid {owner}, and the daemon has uid {own}: its owner could change or lock what is in it; chown it to {own}, or set {flag} to another directory"
    )]
    NotOurs {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        own: u32,
        /// The flag.
        flag: &'static str,
    },
    /// Pins can't be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Another daemon has it.
    #[error("another ztunnel works with {path}; every daemon needs a --state and a --bpf-pin of its own")]
    Held {
        /// The path.
        path: PathBuf,
    },
}

/// Held while a daemon, or a clean-up, works with a state directory and a pin directory.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for their drop")] [Flock<File>; 2]);

impl Lock {
    /// Takes it. Both directories are this user's alone then.
    ///
    /// # Errors
    /// When someone else has it, or a directory can't be used.
    pub fn take(state: &Path, pins: &PinDir) -> Result<Self, LockError> {
        let state = lock_state(state)?;
        pins.prepare()?;
        // A BPF file system has no files to lock.
        let root = private(pins.root(), "--bpf-pin")?;
        Ok(Self([state, lock(root, pins.root(), "--bpf-pin")?]))
    }
}

/// Makes the state directory, and locks a file in it.
fn lock_state(state: &Path) -> Result<Flock<File>, LockError> {
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

/// Opens a directory that only this user may enter, and makes it so if it is this user's.
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
        warn!(dir = %dir.display(), before = format!("{mode:04o}"), "others could enter the directory; now only its owner can");
    }
    Ok(opened)
}

fn lock(file: File, path: &Path, flag: &'static str) -> Result<Flock<File>, LockError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => LockError::Held { path: path.to_owned() },
        errno => LockError::Access { what: "lock", path: path.to_owned(), flag, source: errno.into() },
    })
}

#[cfg(test)]
mod tests;
