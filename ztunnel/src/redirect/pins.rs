//! The pins of programs, maps and links, which keep them after the end of the daemon: `<dir>/v<layout>/`.
//!
//! | path | what |
//! |---|---|
//! | `maps/NAME` | a map |
//! | `connect4`, `connect6`, `setsockopt` | the links of the hooks |
//! | `pods/COOKIE` | the link of `steer` to a pod's network namespace |
//! | `devices/COOKIE/INDEX-egress`, `-ingress` | the links of the guards to a device of a pod |
//! | `devices/COOKIE/hold` | the link of `hold` to the loopback device of a pod |

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::{stat, statfs};
use thiserror::Error;

use super::{guard::Guard, node_mounts, sys};

/// The pin directory of this layout.
#[derive(Clone, Debug)]
pub struct PinDir {
    base: PathBuf,
    root: PathBuf,
}

/// Why pins can't be used.
#[derive(Debug, Error)]
pub enum PinError {
    /// A directory could not be made.
    #[error("cannot make {path}: {source}")]
    MakeDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A BPF file system could not be mounted.
    #[error(
        "{path} is not on a BPF file system, and mounting one there failed: {source}; mount bpffs there, or \
         give the daemon CAP_SYS_ADMIN"
    )]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Only this process has the file system.
    #[error(
        "{path} is on a BPF file system that does not outlive this daemon: {reason}. Its pins would not \
         outlive the daemon either, and captured pods would be open when the daemon ends. Mount bpffs on the \
         host and give the daemon that mount (in Kubernetes: a hostPath volume), or accept open pods with \
         --bpf-pin-private"
    )]
    Private {
        /// The directory.
        path: PathBuf,
        /// The reason for this conclusion.
        reason: String,
    },
    /// A pin could not be removed or listed.
    #[error("cannot {what} {path}: {source}")]
    Access {
        /// The step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl PinDir {
    /// The pin directory below `base`. No file is made yet.
    #[must_use]
    pub fn at(base: &Path) -> Self {
        Self { base: base.to_owned(), root: base.join(format!("v{}", ebpf_common::LAYOUT)) }
    }

    /// Makes the directories, and mounts a BPF file system if there is none.
    ///
    /// # Errors
    /// Names the path and the step.
    pub fn prepare(&self) -> Result<(), PinError> {
        if !on_bpffs(&self.base) {
            // The usual mount point is preferred if it is free, so that other tools find the file system, too.
            let usual = Path::new("/sys/fs/bpf");
            let target = if self.base.starts_with(usual) && usual.is_dir() { usual } else { self.base.as_path() };
            make_dir(target)?;
            mount_for_the_host(target).map_err(|source| PinError::Mount { path: target.to_owned(), source })?;
        }
        make_dir(&self.root.join("maps"))?;
        make_dir(&self.root.join("pods"))?;
        make_dir(&self.root.join("devices"))
    }

    /// Makes sure that the pins outlive this process.
    ///
    /// # Errors
    /// When process 1 of the machine does not have the BPF file system of the directory.
    pub fn survive(&self) -> Result<(), PinError> {
        survives(&self.base).map(|_| ()).map_err(|reason| PinError::Private { path: self.base.clone(), reason })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// The pin of a connect hook's link.
    #[must_use]
    pub fn hook(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The pin of the link to a pod's network namespace.
    #[must_use]
    pub fn pod(&self, cookie: u64) -> PathBuf {
        self.root.join("pods").join(cookie.to_string())
    }

    /// The pins of the links to a pod's devices.
    #[must_use]
    pub fn devices(&self, cookie: u64) -> PathBuf {
        self.root.join("devices").join(cookie.to_string())
    }

    /// The pin of the link of a guard.
    #[must_use]
    pub fn guard(&self, cookie: u64, guard: Guard) -> PathBuf {
        self.devices(cookie).join(guard.to_string())
    }

    /// The pin of the link of `hold`.
    #[must_use]
    pub fn hold(&self, cookie: u64) -> PathBuf {
        self.devices(cookie).join("hold")
    }

    /// Removes every link of a pod.
    ///
    /// # Errors
    /// Names the file. The other files have been tried.
    pub fn remove_pod(&self, cookie: u64) -> Result<(), PinError> {
        let path = self.devices(cookie);
        detach(&self.pod(cookie));
        for pin in fs::read_dir(&path).into_iter().flatten().flatten() {
            detach(&pin.path());
        }
        let steer = self.remove(&self.pod(cookie));
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Access { what: "remove", path, source })
            }
            _ => steer,
        }
    }

    /// Cookies of the pods that have links.
    ///
    /// # Errors
    /// When a directory can't be listed.
    pub fn pods(&self) -> Result<Vec<u64>, PinError> {
        let mut cookies = self.cookies("pods")?;
        cookies.extend(self.cookies("devices")?);
        cookies.sort_unstable();
        cookies.dedup();
        Ok(cookies)
    }

    fn cookies(&self, dir: &str) -> Result<Vec<u64>, PinError> {
        let path = self.root.join(dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(PinError::Access { what: "list", path, source }),
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Removes a pin. It is no error if the pin does not exist.
    ///
    /// # Errors
    /// Names the file.
    pub fn remove(&self, path: &Path) -> Result<(), PinError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Access { what: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// The directories of this layout and of all others.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub fn layouts(&self) -> Result<Vec<PathBuf>, PinError> {
        let list = |source| PinError::Access { what: "list", path: self.base.clone(), source };
        let entries = fs::read_dir(&self.base).map_err(list)?.map(|entry| Ok(entry.map_err(list)?.path()));
        let all: Vec<_> = entries.collect::<Result<_, PinError>>()?;
        Ok(all.into_iter().filter(|path| is_layout(path)).collect())
    }

    /// Removes the pins of other layouts.
    ///
    /// # Errors
    /// Names the directory.
    pub fn remove_other_layouts(&self) -> Result<(), PinError> {
        for path in self.layouts()?.into_iter().filter(|path| *path != self.root) {
            fs::remove_dir_all(&path).map_err(|source| PinError::Access { what: "remove", path, source })?;
        }
        Ok(())
    }

    /// Removes all pins of this layout. The kernel removes the objects that nothing else holds.
    ///
    /// # Errors
    /// Names the directory.
    pub fn remove_all(&self) -> Result<(), PinError> {
        match fs::remove_dir_all(&self.root) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Access { what: "remove", path: self.root.clone(), source })
            }
            _ => {
                // This succeeds only if the directory is empty. The base may be the root of the file system.
                let _kept = fs::remove_dir(&self.base);
                Ok(())
            }
        }
    }
}

fn make_dir(path: &Path) -> Result<(), PinError> {
    fs::create_dir_all(path).map_err(|source| PinError::MakeDir { path: path.to_owned(), source })
}

/// Whether a path, or its deepest ancestor that exists, is on a BPF file system.
#[must_use]
pub fn on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|dir| statfs::statfs(dir).is_ok_and(|stat| stat.filesystem_type() == statfs::BPF_FS_MAGIC))
}

/// Detaches a link at once, if its pin is there. Otherwise the programs of a pod that is released would still refuse its connections
/// for some milliseconds. If the kernel cannot do it, the removal of the pin detaches the link later.
fn detach(pin: &Path) {
    if let Ok(link) = sys::open_pin(pin) {
        let _later = sys::detach(link.as_fd());
    }
}

/// Whether a directory has the name of a layout.
pub(super) fn is_layout(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A BPF file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BpfMount {
    /// The mount point.
    pub(super) point: PathBuf,
    /// Its device number, which identifies the file system.
    device: u64,
}

/// The BPF file systems in a text of `/proc/PID/mountinfo`: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS`.
pub(super) fn bpf_mounts(mountinfo: &str) -> Vec<BpfMount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "bpf" {
            return None;
        }
        let mut fields = before.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(BpfMount { point: fields.nth(1)?.into(), device })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Checks that pins at a path, or at its deepest ancestor that exists, outlive this process. Returns the reason.
///
/// # Errors
/// When they do not, or it is not known: the text is the reason.
pub(super) fn survives(path: &Path) -> Result<String, String> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let device =
        fs::metadata(existing).map_err(|error| format!("{} can't be read: {error}", existing.display()))?.dev();
    let mounts = fs::read_to_string("/proc/1/mountinfo").map_err(|error| {
        format!(
            "/proc/1/mountinfo can't be read, so it is not known whether the host has \
             mounted the file system: {error}"
        )
    })?;
    known_to_the_host(is_on_the_node()?, &mounts, device)
}

/// Where a BPF file system has to be mounted, so that the host has it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MountPlace {
    /// In the mount namespace of the daemon: the host sees the mount.
    Here,
    /// In the mount namespace of the host: the daemon sees the mount.
    OnTheHost,
}

/// The place in which a BPF file system for a path would be mounted.
///
/// # Errors
/// When there is none: the text is the reason.
pub(super) fn mount_place(path: &Path) -> Result<MountPlace, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path} can't be read: {error}"));
    let (own, first) = (read("/proc/self/mountinfo")?, read("/proc/1/mountinfo")?);
    let is_same = root_mount(&own).is_some() && root_mount(&own) == root_mount(&first);
    if is_on_the_node()? {
        if is_same || is_shared(&own, &first, path) {
            return Ok(MountPlace::Here);
        }
        if is_received(&own, &first, path) {
            return Ok(MountPlace::OnTheHost);
        }
    }
    Err("none is mounted, and a mount of the daemon would not be visible on the host".to_owned())
}

/// Mounts a BPF file system so that the host has it, if that is possible.
fn mount_for_the_host(target: &Path) -> io::Result<()> {
    if mount_place(target) != Ok(MountPlace::OnTheHost) {
        return node_mounts::mount_bpf_here(target);
    }
    node_mounts::mount_bpf(target)?;
    if on_bpffs(target) {
        Ok(())
    } else {
        Err(io::Error::other("the mount on the host does not appear in this container"))
    }
}

/// Whether a mount at a path appears in the other mount namespace as well.
fn is_shared(own: &str, other: &str, path: &Path) -> bool {
    is_peer_of(other, covering(own, path).and_then(|line| propagation(line, "shared:")))
}

/// Whether a mount at a path in the other mount namespace appears here.
fn is_received(own: &str, other: &str, path: &Path) -> bool {
    is_peer_of(other, covering(own, path).and_then(|line| propagation(line, "master:")))
}

fn is_peer_of(mounts: &str, group: Option<&str>) -> bool {
    group.is_some_and(|group| mounts.lines().any(|line| propagation(line, "shared:") == Some(group)))
}

/// The mount on which a path is.
fn covering<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let below = mounts.lines().filter_map(|line| Some((path.starts_with(mount_point(line)?), line)));
    let below = below.filter(|(is_below, _)| *is_below).map(|(_, line)| line);
    // The last mount of a mount point covers the mounts before it.
    below.max_by_key(|line| mount_point(line).map_or(0, str::len))
}

fn mount_point(line: &str) -> Option<&str> {
    line.split(' ').nth(4)
}

/// A peer group of a line of mountinfo, among the fields before the dash: `shared:NUMBER`, to which mounts below it are passed on, or
/// `master:NUMBER`, from which it receives them.
fn propagation<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.split(' ').skip(6).take_while(|field| *field != "-").find_map(|field| field.strip_prefix(kind))
}

/// Whether process 1 is process 1 of the node, and not of a container in which this process runs.
///
/// It is, if this process is in the machine's first PID namespace. A node that is itself a container (kind, k3d,
/// minikube) has a PID namespace of its own. There process 1 has to be an ancestor of this process, such as an ancestor
/// of the container runtime, and has to have other mounts. In a container, process 1 is this process itself, or has
/// started it and has the same mounts. A parent outside of the PID namespace is shown as 0.
fn is_on_the_node() -> Result<bool, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path} can't be read: {error}"));
    if fs::read_link("/proc/self/ns/pid").unwrap_or_default() == Path::new(FIRST_PID_NAMESPACE) {
        return Ok(true);
    }
    let (own, first) = (read("/proc/self/mountinfo")?, read("/proc/1/mountinfo")?);
    let has_own_mounts = root_mount(&own).is_some() && root_mount(&own) != root_mount(&first);
    Ok(has_own_mounts && descends_from_first(std::process::id(), |pid| read(&format!("/proc/{pid}/status")).ok()))
}

/// Whether process 1 is an ancestor of a process.
fn descends_from_first(process: u32, status: impl Fn(u32) -> Option<String>) -> bool {
    let parent = |of: u32| status(of)?.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    let mut ancestors = std::iter::successors(Some(process), |of| parent(*of)).skip(1).take(MOST_ANCESTORS);
    ancestors.find(|ancestor| *ancestor <= 1) == Some(1)
}

/// Ancestors that are examined.
const MOST_ANCESTORS: usize = 64;

/// The number of the mount at `/`. No other mount of the machine has it. The links to namespaces are no alternative:
/// following those of process 1 needs all of its capabilities.
fn root_mount(mountinfo: &str) -> Option<&str> {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields.get(4) == Some(&"/")).find_map(|fields| fields.first().copied())
}

/// The number of the machine's first PID namespace (PROC_PID_INIT_INO of linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

fn known_to_the_host(is_on_the_node: bool, mounts: &str, device: u64) -> Result<String, String> {
    if !is_on_the_node {
        return Err("the daemon is in its own PID namespace (without hostPID), so it is not known whether the \
             host has mounted the file system"
            .to_owned());
    }
    match bpf_mounts(mounts).into_iter().find(|mount| mount.device == device) {
        Some(mount) => Ok(format!("the host has it at {}", mount.point.display())),
        None => Err("process 1 has not mounted it, so it exists only in the daemon's own mount namespace".to_owned()),
    }
}

#[cfg(test)]
mod tests;
