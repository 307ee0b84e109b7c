//! Links that the daemon holds besides their pins. So the removal of a pin opens no pod while the daemon runs, and it
//! is noticed.

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

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is attached and pinned.
    Whole,
    /// Its pin was gone, and is there again.
    Repinned,
    /// It is no longer attached: its target is gone, or somebody has detached it.
    Detached,
}

impl Held {
    /// Replaces the program of the pinned link. If there is no link, or its target is gone, `attach` makes one.
    ///
    /// # Errors
    /// When the program can't be replaced or attached, or the link can't be pinned.
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

    /// Checks whether the link is attached and pinned. Pins it again if its pin is missing.
    ///
    /// # Errors
    /// When the kernel does not answer, or the link can't be pinned.
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

    /// The id of the link's program.
    pub(super) fn program(&self) -> io::Result<u32> {
        Ok(sys::link_info(self.link.as_fd())?.program)
    }

    /// The pin.
    pub(super) fn pin(&self) -> &Path {
        &self.pin
    }
}

/// Pins a link or a map. Makes the directory again if it has been removed.
///
/// # Errors
/// As bpf(2).
pub(super) fn pin_anew(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    if let Some(dir) = pin.parent() {
        std::fs::create_dir_all(dir)?;
    }
    sys::pin(object, pin)
}
