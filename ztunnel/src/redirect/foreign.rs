//! Other installations of this daemon. An installation that had another pin directory may still capture a pod. Its hook
//! then refuses connects that this installation allows.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use ebpf_common::{Pod, maps as names};
use thiserror::Error;

use super::{
    pins::{self, PinDir},
    sys,
};

/// The depth to which a BPF file system is searched for pin directories.
const DEPTH: usize = 3;

/// Another installation captures the pod.
#[derive(Debug, Error)]
#[cfg_attr(test, derive(Default))]
#[error(
    "another installation of ztunnel still captures the pod, {place}: its {program} (BPF program {id}) takes or refuses the pod's \
     connections; stop it and run `ztunnel cleanup --bpf-pin {remedy} --state DIR` with the directories that it had (where its --state \
     is that of this daemon, stop this daemon meanwhile); the pod is then enrolled by itself"
)]
pub struct Foreign {
    program: &'static str,
    id: u32,
    place: String,
    remedy: String,
}

/// Another installation captures the pod, or it is not known whether one does.
#[derive(Debug, Error)]
pub enum ForeignError {
    /// Another installation captures the pod.
    #[error(transparent)]
    Captured(Box<Foreign>),
    /// The kernel does not answer.
    #[error(
        "cannot ask the kernel which BPF programs are attached to {object}: {source}; the daemon needs CAP_SYS_ADMIN"
    )]
    Ask {
        /// The object.
        object: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Makes sure that no other installation captures the network namespace with a cookie. `held`: the programs of this
/// installation, because somebody may have removed their pins.
///
/// # Errors
/// When another installation does, or the kernel does not answer.
pub fn refuse(
    pins: &PinDir,
    held: impl IntoIterator<Item = u32>,
    cgroup: BorrowedFd<'_>,
    netns: impl AsFd,
    cookie: u64,
) -> Result<(), ForeignError> {
    let mut own = own_programs(pins, cookie);
    own.extend(held);
    let failed = |object| move |source| ForeignError::Ask { object, source };
    let hooks = sys::attached(cgroup, sys::At::Connect4).map_err(failed("the root of cgroup v2"))?;
    for id in hooks.into_iter().filter(|id| !own.contains(id)) {
        if captures(id, cookie).map_err(failed("the root of cgroup v2"))? {
            return Err(found("connect4", id, cookie));
        }
    }
    let steering = sys::attached(netns.as_fd(), sys::At::SkLookup).map_err(failed("the pod's network namespace"))?;
    for id in steering.into_iter().filter(|id| !own.contains(id)) {
        let program = sys::program_info(id).map_err(failed("the pod's network namespace"))?;
        if program.is_some_and(|program| program.name == "steer") {
            return Err(found("steer", id, cookie));
        }
    }
    Ok(())
}

/// The connect hooks of other installations on this node, each with the directory of its pins if that can be found.
///
/// # Errors
/// When the kernel does not tell which programs are attached.
pub(super) fn others(pins: &PinDir, cgroup: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    // No pod has this cookie, so only the hooks are compared.
    let own = own_programs(pins, 0);
    let mut others = Vec::new();
    for id in sys::attached(cgroup, sys::At::Connect4)?.into_iter().filter(|id| !own.contains(id)) {
        let Some(program) = sys::program_info(id)?.filter(|program| program.name == "connect4") else { continue };
        if pods_of(program.maps)?.is_some() {
            let place = pinned(|layout| program_at(&layout.join("connect4")) == Some(id));
            others.push(match place {
                Some(place) => format!("BPF program {id}, pinned at {}", place.display()),
                None => format!("BPF program {id}, with pins that are on no BPF file system mounted here"),
            });
        }
    }
    Ok(others)
}

/// Programs behind the pins of this installation. Pins of another layout are included, because an upgrade replaces
/// them.
fn own_programs(pins: &PinDir, cookie: u64) -> HashSet<u32> {
    let layouts = pins.layouts().unwrap_or_default();
    let links = layouts.iter().flat_map(|dir| [dir.join("connect4"), dir.join("pods").join(cookie.to_string())]);
    links.filter_map(|pin| program_at(&pin)).collect()
}

/// The program behind a pinned link.
fn program_at(pin: &Path) -> Option<u32> {
    Some(sys::link_info(sys::open_pin(pin).ok()?.as_fd()).ok()?.program)
}

/// The map of captured pods among the maps of a program, if the program is one of ztunnel's.
fn pods_of(maps: Vec<u32>) -> io::Result<Option<OwnedFd>> {
    for id in maps {
        if let Some(map) = sys::map_like(id, names::PODS, size_of::<u64>(), size_of::<Pod>())? {
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// Whether a program is a connect hook of ztunnel and captures the connects of a network namespace.
fn captures(program: u32, cookie: u64) -> io::Result<bool> {
    let Some(info) = sys::program_info(program)? else { return Ok(false) };
    if info.name != "connect4" {
        return Ok(false);
    }
    let Some(map) = pods_of(info.maps)? else { return Ok(false) };
    let flags = sys::value_of(map.as_fd(), cookie)?.map_or(0, |[flags, _workers]| flags);
    Ok(flags & Pod::CAPTURE_OUTBOUND != 0)
}

fn found(program: &'static str, id: u32, cookie: u64) -> ForeignError {
    let pin = pinned(|layout| layout.join("pods").join(cookie.to_string()).exists());
    let (place, remedy) = match pin {
        Some(pin) => (format!("pinned at {}", pin.display()), pin.display().to_string()),
        None => ("with pins that are on no BPF file system mounted here".to_owned(), "DIR".to_owned()),
    };
    ForeignError::Captured(Box::new(Foreign { program, id, place, remedy }))
}

/// The pin directory on a mounted BPF file system with a layout for which `is_it` returns true.
fn pinned(is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    pins::bpf_mounts(&mounts).iter().find_map(|mount| pinned_below(&mount.point, &is_it, DEPTH))
}

/// The pin directory at or below `dir` with a layout for which `is_it` returns true.
fn pinned_below(dir: &Path, is_it: &impl Fn(&Path) -> bool, depth: usize) -> Option<PathBuf> {
    let folders = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let folders: Vec<_> = folders.collect();
    if folders.iter().any(|path| pins::is_layout(path) && is_it(path)) {
        return Some(dir.to_owned());
    }
    let depth = depth.checked_sub(1)?;
    folders.iter().find_map(|folder| pinned_below(folder, is_it, depth))
}

#[cfg(test)]
mod tests {
    use super::pinned_below;
    use std::path::Path;

    #[test]
    fn a_pin_directory_is_found_by_the_pod_in_it() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path().join("a/old/v1/pods");
        std::fs::create_dir_all(&pods).unwrap();
        std::fs::create_dir_all(root.path().join("b/v1/pods")).unwrap();
        std::fs::write(pods.join("77"), "").unwrap();
        let found = |cookie: &str, depth| {
            let has_it = |layout: &Path| layout.join("pods").join(cookie).exists();
            pinned_below(root.path(), &has_it, depth)
        };
        assert_eq!(found("77", 3), Some(root.path().join("a/old")));
        assert_eq!(found("7", 3), None);
        assert_eq!(found("77", 1), None, "deeper than it is looked");
    }
}
