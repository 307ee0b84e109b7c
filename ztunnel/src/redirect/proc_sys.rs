//! Sysctls of the network namespace in which the calling thread is.
//!
//! A container runtime mounts `/proc/sys` read-only in a container that is not privileged. The daemon then writes through an instance of
//! procfs of its own, which is mounted nowhere: no other process of the container reaches it. CAP_SYS_ADMIN is enough for this.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    ptr,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    libc,
    sys::stat::Mode,
    unistd::{AccessFlags, faccessat},
};

/// The folder of sysctls.
const FOLDER: &str = "/proc/sys";

// linux/mount.h
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const NOSUID_NODEV_NOEXEC: libc::c_uint = 0x2 | 0x4 | 0x8;

/// The root folder of the daemon's own instance of procfs, once it was needed.
static OWN: OnceLock<OwnedFd> = OnceLock::new();

/// The value of a sysctl, without blanks at its ends.
///
/// # Errors
/// As open(2) and read(2).
pub(super) fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new(FOLDER).join(name))?.trim().to_owned())
}

/// Sets a sysctl.
///
/// # Errors
/// As open(2) and write(2), or why there is no writable procfs.
pub(super) fn write(name: &str, value: &str) -> io::Result<()> {
    let opened = File::options().write(true).open(Path::new(FOLDER).join(name));
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => open_in(own()?, name)?,
        other => other?,
    };
    file.write_all(value.as_bytes())
}

/// Whether a sysctl can be written, without writing it: directly, or through an instance of procfs of the daemon's own.
///
/// # Errors
/// Why it cannot be written.
pub(super) fn is_writable_directly(name: &str) -> io::Result<bool> {
    match faccessat(AT_FDCWD, &Path::new(FOLDER).join(name), AccessFlags::W_OK, AtFlags::AT_EACCESS) {
        Ok(()) => Ok(true),
        Err(Errno::EROFS) => open_in(own()?, name).map(|_| false),
        Err(errno) => Err(errno.into()),
    }
}

fn open_in(procfs: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    Ok(openat(procfs, &Path::new("sys").join(name), flags, Mode::empty())?.into())
}

fn own() -> io::Result<&'static OwnedFd> {
    match OWN.get() {
        Some(own) => Ok(own),
        None => {
            let made = detached_procfs().map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("{FOLDER} is read-only, and no procfs of its own can be made: {error}"),
                )
            })?;
            // Another thread may have made one as well.
            Ok(OWN.get_or_init(|| made))
        }
    }
}

/// An instance of procfs in no mount namespace.
fn detached_procfs() -> io::Result<OwnedFd> {
    let context = fs_open(c"proc")?;
    // SAFETY: the command has neither key nor value, and the kernel reads neither.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<libc::c_char>(),
            ptr::null::<libc::c_void>(),
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes no pointers.
    let mounted =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, NOSUID_NODEV_NOEXEC) };
    owned(mounted)
}

fn fs_open(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with 0 and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
}

/// The descriptor that a call has returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the call has returned it as a new descriptor, which nothing else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
