//! Links that are held beside their pins: removing the pins alone opens no pod while the daemon runs, and is noticed.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::libc;

use super::sys;

/// A link, held and pinned.
#[derive(Debug)]
pub(super) struct Held {
    link: OwnedFd,
    pin: PathBuf,
}

/// What has become of a link since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is as it was made.
    Whole,
    /// Its pin was gone, and is there again.
    Repinned,
    /// It is not attached any more: what it was attached to is gone, or somebody has detached it.
    Detached,
}

impl Held {
    /// Puts a program behind the link that is pinned; where there is none, or where it leads nowhere any more, `attach` makes
    /// one.
    ///
    /// # Errors
    /// When the program can't be replaced or attached, or the link not be pinned.
    pub(super) fn take(
        pin: PathBuf,
        program: BorrowedFd<'_>,
        attach: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Self> {
        match sys::open_pin(&pin) {
            Ok(link) => match sys::update_link(link.as_fd(), program) {
                Ok(()) => return Ok(Self { link, pin }),
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => std::fs::remove_file(&pin)?,
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let link = attach()?;
        pin_anew(link.as_fd(), &pin)?;
        Ok(Self { link, pin })
    }

    /// Looks whether the link is attached and pinned, and pins it again if it is not.
    ///
    /// # Errors
    /// When the kernel does not tell, or the link can't be pinned.
    pub(super) fn mend(&self) -> io::Result<Condition> {
        if !sys::link_info(self.link.as_fd())?.attached {
            return Ok(Condition::Detached);
        }
        if self.pin.exists() {
            return Ok(Condition::Whole);
        }
        pin_anew(self.link.as_fd(), &self.pin)?;
        Ok(Condition::Repinned)
    }

    /// The program behind it.
    pub(super) fn program(&self) -> io::Result<u32> {
        Ok(sys::link_info(self.link.as_fd())?.program)
    }

    /// The pin.
    pub(super) fn pin(&self) -> &Path {
        &self.pin
    }
}

/// Pins a link or a map, in a directory that may have been removed with all that was in it.
///
/// # Errors
/// As bpf(2).
pub(super) fn pin_anew(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    if let Some(dir) = pin.parent() {
        std::fs::create_dir_all(dir)?;
    }
    sys::pin(object, pin)
}
