//! Distinguishes the kubelet from other processes of the node, by its user and its cgroup.
//!
//! Every user of the node can connect from the node's network namespace. The kubelet runs as root and in no pod. A pod
//! with `hostNetwork` shares the node's network namespace, and its root user is root, too. So both facts are needed;
//! the kernel has both for each socket.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use thiserror::Error;

use crate::net::node::Client;

/// Cgroups whose result is remembered: more than a node has services. Pods with root and `hostNetwork` can make more.
const REMEMBERED: usize = 1024;
/// Cgroups that one search visits. A user may make many cgroups below his own, and the kubelet is in none of those.
const LOOKED_AT: usize = 10_000;

/// The cgroups in which the kubelet may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KubeletCgroup {
    /// Anywhere but in a pod or another container.
    #[default]
    OutsideOfPods,
    /// In this cgroup or below it. The path is relative to the root of cgroup v2.
    Below(String),
}

/// A text is not the path of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not the path of a cgroup below the root of cgroup v2; write it as `cat /proc/KUBELET-PID/cgroup` shows it behind `0::`, for example /system.slice/kubelet.service"
)]
pub struct NotACgroup(String);

impl FromStr for KubeletCgroup {
    type Err = NotACgroup;

    fn from_str(text: &str) -> Result<Self, NotACgroup> {
        let below = text.strip_prefix('/').map(|path| path.strip_suffix('/').unwrap_or(path));
        match below {
            _ if text == "/" => Ok(Self::Below(String::new())),
            Some(path) if path.split('/').all(|part| !matches!(part, "" | "." | "..")) => {
                Ok(Self::Below(path.to_owned()))
            }
            _ => Err(NotACgroup(text.to_owned())),
        }
    }
}

/// The owner of a socket, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketOwner {
    /// The user; `None`: the process has closed the socket, and the kernel no longer has the user.
    pub(super) uid: Option<u32>,
    /// The cgroup in which the socket was made; `None`: the kernel does not report it.
    pub(super) cgroup: Option<u64>,
}

/// Recognises the sockets of the kubelet.
#[derive(Debug)]
pub(super) struct Kubelet {
    cgroup: KubeletCgroup,
    /// The mount point of the root of cgroup v2, if it is mounted.
    root: Option<PathBuf>,
    /// For each cgroup, whether it is one of the kubelet's. The kernel never uses a number twice.
    known: Mutex<HashMap<u64, bool>>,
}

impl Kubelet {
    pub(super) fn new(cgroup: KubeletCgroup, root: Option<PathBuf>) -> Self {
        Self { cgroup, root, known: Mutex::default() }
    }

    /// Whether the owner of a socket in the node's network namespace is the kubelet.
    pub(super) fn judge(&self, owner: SocketOwner) -> Client {
        let other = |why: String| Client::Other { why };
        if let Some(uid) = owner.uid.filter(|uid| *uid != 0) {
            return other(format!("it is a process of this node with uid {uid}, and the kubelet has uid 0"));
        }
        match (self.is_in_place(owner.cgroup), owner.uid) {
            (Some(false), _) => other(match &self.cgroup {
                KubeletCgroup::OutsideOfPods => "it is a process of this node in the cgroup of a pod or another container".to_owned(),
                KubeletCgroup::Below(path) => {
                    format!("it is a process of this node in another cgroup than the kubelet's, which is /{path} (--kubelet-cgroup)")
                }
            }),
            (_, Some(_)) => Client::Kubelet,
            (Some(true), None) if matches!(self.cgroup, KubeletCgroup::Below(_)) => Client::Kubelet,
            (_, None) => other(
                "a process of this node closed it at once, and this kernel (before 6.17) does not tell the user of a closed socket; \
                 set --kubelet-cgroup, so that it is known by its cgroup"
                    .to_owned(),
            ),
        }
    }

    /// Whether the kubelet may be in a cgroup. `None`: it is not known.
    fn is_in_place(&self, cgroup: Option<u64>) -> Option<bool> {
        let (id, root) = (cgroup?, self.root.as_ref()?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&id) {
            return Some(*known);
        }
        let found = match &self.cgroup {
            KubeletCgroup::OutsideOfPods => contains(root, id, |name| !is_container(name)),
            KubeletCgroup::Below(path) => contains(&root.join(path), id, |_| true),
        };
        let found = found.ok()?;
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(id, found);
        Some(found)
    }
}

/// Whether the cgroup with this number is `top` or below it. The search enters only cgroups for whose name `entered`
/// returns true. A cgroup that has been removed is not found.
fn contains(top: &Path, id: u64, entered: impl Fn(&str) -> bool) -> io::Result<bool> {
    if fs::metadata(top)?.ino() == id {
        return Ok(true);
    }
    let mut left = VecDeque::from([top.to_owned()]);
    let mut looked_at = 0;
    while let Some(dir) = left.pop_front() {
        // A cgroup that was removed meanwhile has no process, so it is not the one that is searched.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let is_cgroup = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name();
            if !is_cgroup || name.to_str().is_none_or(|name| !entered(name)) {
                continue;
            }
            if entry.ino() == id {
                return Ok(true);
            }
            looked_at += 1;
            if looked_at > LOOKED_AT {
                return Ok(false);
            }
            left.push_back(entry.path());
        }
    }
    Ok(false)
}

/// Whether a cgroup with this name belongs to pods or to another container. The names are those of the kubelet and of
/// container runtimes, with and without the slices and scopes of systemd.
fn is_container(name: &str) -> bool {
    const SCOPES: [&str; 7] = ["cri-containerd-", "crio-", "docker-", "libpod-", "nerdctl-", "lxc.payload", "machine-"];
    const WHOLE: [&str; 3] = ["machine.slice", "docker", "k8s.io"];
    let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id || name.contains("kubepods") || WHOLE.contains(&name) || SCOPES.iter().any(|scope| name.starts_with(scope))
}

#[cfg(test)]
mod tests;
