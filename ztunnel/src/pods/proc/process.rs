//! One process of the node, read from `/proc/PID`.
//!
//! The folder is opened once, and everything is read through it. When the process has ended and another process has its
//! PID, the kernel answers with an error and not with facts of the other process.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{Mode, fstatat},
};

use super::cgroup::{Belongs, pod_of};
use crate::{model::netns::OpenNetns, net::netns::NetnsId};

/// Bytes of `/proc/PID/cgroup` that are read: enough for a line for each of up to 13 hierarchies, with paths of the
/// greatest length.
const CGROUP_MOST: u64 = 64 << 10;
/// Bytes of `/proc/PID/stat` that are read. It has one short line.
const STAT_MOST: u64 = 4 << 10;

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    folder: OwnedFd,
    path: PathBuf,
}

impl Process {
    /// The process that has this PID now.
    ///
    /// # Errors
    /// There is no such process.
    pub(super) fn open(proc: &Path, number: u32) -> io::Result<Self> {
        let path = proc.join(number.to_string());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { folder: open(&path, flags, Mode::empty())?, path })
    }

    /// The pod to which it belongs. A process whose file is too long belongs to none.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn pod(&self) -> io::Result<Belongs> {
        Ok(self.read("cgroup", CGROUP_MOST)?.map_or(Belongs::ToNone, |text| pod_of(&text)))
    }

    /// The time of its start, in ticks since the boot.
    ///
    /// # Errors
    /// It has ended, or the kernel's answer is not valid.
    pub(super) fn started(&self) -> io::Result<u64> {
        let text = self.read("stat", STAT_MOST)?.unwrap_or_default();
        started(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat has no start time"))
    }

    /// The network namespace that it is in.
    ///
    /// # Errors
    /// It has ended, or this process may not read the fact.
    pub(super) fn netns(&self) -> io::Result<NetnsId> {
        let found = fstatat(&self.folder, "ns/net", AtFlags::empty())?;
        Ok(NetnsId { device: found.st_dev, inode: found.st_ino })
    }

    /// Opens the network namespace that it is in.
    ///
    /// # Errors
    /// As [`Process::netns`].
    pub(super) fn open_netns(&self) -> io::Result<OpenNetns> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.folder, "ns/net", flags, Mode::empty())?);
        OpenNetns::new(file, self.path.join("ns/net"))
    }

    /// The text of a file; `None`: it is longer than `most`. Bytes that are not UTF-8 do not matter here.
    fn read(&self, file: &str, most: u64) -> io::Result<Option<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.folder, file, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes)?;
        let is_whole = u64::try_from(bytes.len()).is_ok_and(|length| length <= most);
        Ok(is_whole.then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// Reads the 22nd field. The second field is the name of the process. The process chooses it, so it may contain blanks
/// and brackets.
fn started(stat: &str) -> Option<u64> {
    let (_, behind_the_name) = stat.rsplit_once(')')?;
    behind_the_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Process, started};
    use std::path::Path;

    #[test]
    fn the_start_time_is_found_whatever_the_process_is_called() {
        let behind = "S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4711 13 14";
        for name in ["pause", "a b", ") S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 99 (", ""] {
            assert_eq!(started(&format!("7 ({name}) {behind}")), Some(4711), "{name}");
        }
        for garbage in ["", "7 (x", "7 (x) S 1 2", "7 (x) S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 never 13"] {
            assert_eq!(started(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn this_process_is_as_the_kernel_says() {
        let process = Process::open(Path::new("/proc"), std::process::id()).unwrap();
        let netns = process.open_netns().unwrap();
        let id = process.netns().unwrap();
        assert_eq!(netns.place(), (id.device, id.inode));
        assert!(process.started().unwrap() > 0);
        process.pod().unwrap();
        assert!(Process::open(Path::new("/proc"), u32::MAX).is_err());
    }
}
