//! Network namespaces, and the only `setns`.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sched::CloneFlags;
use thiserror::Error;

use super::socket;
use crate::model::netns::{NetnsFile, OpenNetns};

/// A network namespace that is kept open, so that it can be entered as long as this value lives.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    path: PathBuf,
    id: NetnsId,
    cookie: u64,
    /// Whether the path is looked at again: it leads to the namespace for as long as the pod lives.
    is_named: bool,
}

/// Which network namespace it is, whatever the path to it: its place in the kernel's file system of namespaces. It is given
/// anew only after the namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

impl NetnsId {
    /// What a path leads to now; `None`: nothing. Does not look whether it is a network namespace.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|found| Self { device: found.dev(), inode: found.ino() })
    }

    /// What a file leads to now; `None`: nothing. Does not look whether it is a network namespace.
    #[must_use]
    pub fn of(file: &NetnsFile) -> Option<Self> {
        match file {
            NetnsFile::Named(path) => Self::at(path),
            NetnsFile::Open(open) => Some(Self::of_open(open)),
        }
    }

    fn of_open(open: &OpenNetns) -> Self {
        let (device, inode) = open.place();
        Self { device, inode }
    }
}

/// Why a network namespace could not be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The file could not be opened.
    #[error("cannot open network namespace {path}: {source}; is it mounted where the daemon sees it?")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a network namespace")]
    NotANetns {
        /// The file.
        path: PathBuf,
    },
    /// It could not be entered.
    #[error("cannot enter network namespace {path}: {source}; the daemon needs CAP_SYS_ADMIN")]
    Enter {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Its cookie could not be read.
    #[error("cannot read the cookie of network namespace {path} (SO_NETNS_COOKIE, Linux 5.14): {source}")]
    Cookie {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

const NSFS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6e73_6673);

impl Netns {
    /// Opens the namespace behind a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the file can't be opened, is no network namespace or can't be entered.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = open_nonblocking(path).map_err(failed)?;
        let open = OpenNetns::new(file, path.to_owned()).map_err(failed)?;
        Ok(Self { is_named: true, ..Self::of_open(&open)? })
    }

    /// Opens the namespace that a file leads to.
    ///
    /// # Errors
    /// As [`Netns::open`].
    pub fn of(file: &NetnsFile) -> Result<Self, NetnsError> {
        match file {
            NetnsFile::Named(path) => Self::open(path),
            NetnsFile::Open(open) => Self::of_open(open),
        }
    }

    /// The namespace of a file that is open.
    ///
    /// # Errors
    /// When it is no network namespace or can't be entered.
    pub fn of_open(open: &OpenNetns) -> Result<Self, NetnsError> {
        let path = open.path().to_owned();
        let kind = nix::sys::statfs::fstatfs(open.file()).map(|stat| stat.filesystem_type());
        if kind.ok() != Some(NSFS_MAGIC) {
            return Err(NetnsError::NotANetns { path });
        }
        let id = NetnsId::of_open(open);
        let mut netns = Self { file: Arc::clone(open.file()), path, id, cookie: 0, is_named: false };
        // Only a network namespace can be entered as one.
        let cookie = netns.enter(socket::netns_cookie)?;
        netns.cookie = cookie.map_err(|source| NetnsError::Cookie { path: netns.path.clone(), source })?;
        Ok(netns)
    }

    /// The namespace that this thread is in.
    ///
    /// # Errors
    /// As [`Netns::open`].
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens what this thread needs in order to come home, so that it is there before the first connection.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn anchor_thread() -> io::Result<()> {
        HOME.with(|home| home.as_ref().map(|_| ()).map_err(|kind| (*kind).into()))
    }

    /// The file it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's name for it, never used twice while the machine runs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Whether the file still leads to this namespace: a runtime that deletes a pod unmounts or replaces it. One that was taken
    /// open always does.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.is_named || NetnsId::at(&self.path) == Some(self.id)
    }

    /// Which namespace it is.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` with this thread inside the namespace. `f` must not wait: the thread serves others.
    ///
    /// # Errors
    /// When the namespace can't be entered; `f` has not run then.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let enter = |source| NetnsError::Enter { path: self.path.clone(), source };
        let home = HOME.with(|home| match home {
            Ok(file) => Ok(Arc::clone(file)),
            Err(error) => Err(io::Error::from(*error)),
        });
        let home = home.map_err(enter)?;
        setns(&self.file).map_err(enter)?;
        let _guard = Return { home };
        Ok(f())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `O_NONBLOCK`, so that a FIFO planted at the path can't hold the daemon.
fn open_nonblocking(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC).open(path)
}

thread_local! {
    /// The namespace in which this thread was started.
    static HOME: Result<Arc<File>, io::ErrorKind> =
        open_nonblocking(Path::new("/proc/thread-self/ns/net")).map(Arc::new).map_err(|error| error.kind());
}

/// Leads the thread home. A thread that can't go home would serve other pods from this pod's namespace: it may not go on.
struct Return {
    home: Arc<File>,
}

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.home) {
            tracing::error!(fd = self.home.as_raw_fd(), %error, "cannot leave a pod's network namespace: aborting");
            std::process::abort();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that may switch the namespace")]
fn setns(file: &File) -> io::Result<()> {
    Ok(nix::sched::setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

#[cfg(test)]
mod tests {
    use super::{Netns, NetnsError};
    use std::path::Path;

    #[test]
    fn a_file_that_is_no_namespace_is_refused_by_name() {
        let missing = Netns::open(Path::new("/nonexistent/netns"));
        assert!(matches!(missing, Err(NetnsError::Open { .. })), "{missing:?}");
        let other = Netns::open(Path::new("/proc/version"));
        assert!(matches!(other, Err(NetnsError::NotANetns { .. })), "{other:?}");
    }
}
