//! Network namespaces, the mount namespace of the node, and the only use of `setns`.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

use super::socket;
use crate::model::netns::{NetnsFile, OpenNetns};

/// A network namespace that is kept open, so that it can be entered while this value exists.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    path: PathBuf,
    id: NetnsId,
    cookie: u64,
    /// Whether the path is checked again: a named path leads to the namespace while the pod lives.
    is_named: bool,
}

/// The identity of a network namespace, independent of the path to it: its device and inode in the kernel's file system of
/// namespaces. The kernel reuses it only after the namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

impl NetnsId {
    /// The file to which a path leads now; `None`: there is none. It does not check that the file is a network namespace.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|found| Self { device: found.dev(), inode: found.ino() })
    }

    /// The same for a [`NetnsFile`].
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
    /// The file is not a network namespace.
    #[error("{path} is not a network namespace")]
    NotANetns {
        /// The file.
        path: PathBuf,
    },
    /// The namespace could not be entered.
    #[error("cannot enter network namespace {path}: {source}; the daemon needs CAP_SYS_ADMIN")]
    Enter {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The cookie of the namespace could not be read.
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
    /// If the file can't be opened, is not a network namespace or can't be entered.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = open_nonblocking(path).map_err(failed)?;
        let open = OpenNetns::new(file, path.to_owned()).map_err(failed)?;
        Ok(Self { is_named: true, ..Self::of_open(&open)? })
    }

    /// Opens the namespace to which a file leads.
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
    /// If it is not a network namespace or can't be entered.
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

    /// The current namespace of this thread.
    ///
    /// # Errors
    /// As [`Netns::open`].
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the thread's own namespace, to which it has to return after [`Self::enter`], before the first connection needs it.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn anchor_thread() -> io::Result<()> {
        HOME.with(|home| home.as_ref().map(|_| ()).map_err(|kind| (*kind).into()))
    }

    /// The file from which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's cookie for it, which is never reused while the machine runs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Whether the path still leads to this namespace: a runtime that deletes a pod unmounts or replaces it. Always `true` for
    /// a namespace from an open file.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.is_named || NetnsId::at(&self.path) == Some(self.id)
    }

    /// The identity of the namespace.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` with this thread inside the namespace. `f` must not wait, because the thread serves other connections as well.
    ///
    /// # Errors
    /// If the namespace can't be entered; `f` has not run then.
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

/// Runs `f` in the mount namespace of process 1, on a thread of its own, which ends with it. It needs CAP_SYS_PTRACE to open the namespace,
/// and CAP_SYS_CHROOT and CAP_SYS_ADMIN to enter it.
///
/// # Errors
/// The step that the kernel refuses, or the error of `f`.
pub fn with_mounts_of_the_node<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let failed = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"));
    let node = File::open("/proc/1/ns/mnt")
        .map_err(|error| failed("open the mounts of process 1 (it needs CAP_SYS_PTRACE)", error))?;
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            // A thread can enter a mount namespace only if it shares root and working directory with no other thread.
            unshare(CloneFlags::CLONE_FS)
                .map_err(|errno| failed("leave the directories of this process", errno.into()))?;
            enter_mounts(&node)
                .map_err(|error| failed("enter the mounts of process 1 (it needs CAP_SYS_CHROOT)", error))?;
            f()
        });
        working.join().map_err(|_| io::Error::other("the thread in the mounts of process 1 has failed"))?
    })
}

#[expect(clippy::disallowed_methods, reason = "the thread ends there, so there is nothing to restore")]
fn enter_mounts(file: &File) -> io::Result<()> {
    Ok(nix::sched::setns(file.as_fd(), CloneFlags::CLONE_NEWNS)?)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens with `O_NONBLOCK`, so that a FIFO at the path can't block the daemon.
fn open_nonblocking(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC).open(path)
}

thread_local! {
    /// The namespace in which this thread was started.
    static HOME: Result<Arc<File>, io::ErrorKind> =
        open_nonblocking(Path::new("/proc/thread-self/ns/net")).map(Arc::new).map_err(|error| error.kind());
}

/// Returns the thread to its own namespace. A thread that can't return would serve other pods from this pod's namespace, so the
/// process must not continue.
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
