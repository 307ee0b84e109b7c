//! The sockets of another process, as the kernel has them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::libc;
use socket2::Socket;

/// A connection of another process.
#[derive(Debug)]
pub struct Connection {
    /// The address of its own end.
    pub local: SocketAddr,
    /// The address of the other end.
    pub peer: SocketAddr,
    /// A copy of the descriptor, which shares all options.
    pub socket: Socket,
}

/// All TCP connections of a process. Descriptors that are closed meanwhile are left out.
///
/// # Errors
/// When the process is gone, or may not be looked at.
pub fn connections(process: u32) -> Result<Vec<Connection>> {
    let at = format!("/proc/{process}/fd");
    let entries = fs::read_dir(&at).with_context(|| format!("cannot read {at}"))?;
    let pid = open(process).with_context(|| format!("cannot open process {process}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let is_socket = fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_socket) else {
            continue;
        };
        let Ok(copy) = copied(&pid, number) else { continue };
        let socket = Socket::from(copy);
        let ends = socket.local_addr().and_then(|local| Ok((local, socket.peer_addr()?)));
        let Some((Some(local), Some(peer))) = ends.ok().map(|(local, peer)| (local.as_socket(), peer.as_socket()))
        else {
            continue;
        };
        if socket.protocol().ok().flatten() == Some(socket2::Protocol::TCP) {
            found.push(Connection { local, peer, socket });
        }
    }
    Ok(found)
}

fn open(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}

fn copied(process: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three numbers and touches no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(answer).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
