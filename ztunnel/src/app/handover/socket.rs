//! The socket of the daemon that runs, in the state directory: nobody but this user can enter that.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{libc, unistd::geteuid};
use tokio::net::{UnixListener, UnixStream};

/// The name of the socket for handovers.
pub(super) const NAME: &str = "handover.sock";
/// The end of the name of a socket before it replaces an older one.
const UNFINISHED: &str = ".unfinished";

/// The state directory, opened: the path of a socket is limited to 107 bytes, the path of a directory is not.
struct Directory(File);

impl Directory {
    fn open(state: &Path) -> io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        Ok(Self(OpenOptions::new().read(true).custom_flags(flags).open(state)?))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// Listens in a state directory, and replaces an older socket.
pub(in crate::app) fn listen(state: &Path, name: &str) -> io::Result<UnixListener> {
    let dir = Directory::open(state)?;
    let unfinished = dir.path(&format!("{name}{UNFINISHED}"));
    let _left_by_a_crash = fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished)?;
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600))?;
    fs::rename(&unfinished, dir.path(name))?;
    Ok(listener)
}

/// Connects to a socket of a daemon in a state directory.
pub(in crate::app) async fn connect(state: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = Directory::open(state)?;
    let stream = UnixStream::connect(dir.path(name)).await?;
    own(&stream)?;
    Ok(stream)
}

/// The process of the daemon that works with a state directory, in the PID namespace of this one.
///
/// # Errors
/// When no daemon of this user listens there.
pub async fn in_charge(state: &Path) -> io::Result<i32> {
    let credentials = connect(state, NAME).await?.peer_cred()?;
    credentials.pid().filter(|pid| *pid > 0).ok_or_else(|| {
        io::Error::other(
            "the process of the other side \
         is not visible in this PID namespace",
        )
    })
}

/// Makes sure that the other side is of this user.
pub(in crate::app) fn own(stream: &UnixStream) -> io::Result<()> {
    let (other, own) = (stream.peer_cred()?.uid(), geteuid().as_raw());
    if other == own {
        return Ok(());
    }
    let text = format!("the other side has uid {other}, and this daemon has uid {own}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}
