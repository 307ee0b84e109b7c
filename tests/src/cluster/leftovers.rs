//! Finds the objects of a cluster in the kernel by their names, to remove them and to check that nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::names::{Prefix, listed};
use crate::{cgroups, netns, wait};

/// How long the kernel may take to end processes that were killed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ends every process in the cluster's network namespaces, and removes its namespaces, cgroups and files. Returns the
/// errors of the removals that failed.
#[must_use]
pub fn remove(prefix: &Prefix) -> Vec<String> {
    let mut errors = Vec::new();
    let ended = wait::until_true("the end of the cluster's processes", PATIENCE, || {
        let processes = processes(prefix);
        for process in &processes {
            // It is no error if the process has ended since it was found.
            let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        Ok(processes.is_empty())
    });
    errors.extend(ended.err().map(|error| format!("{error:#}")));
    for path in cgroups::named(&begin(prefix)) {
        let removed = wait::until_true("the cgroup is empty", PATIENCE, || Ok(cgroups::remove(&path).is_ok()));
        errors.extend(removed.err().map(|error| format!("cannot remove {}: {error:#}", path.display())));
    }
    for name in namespaces(prefix) {
        netns::remove(&name);
    }
    let folder = prefix.folder_path();
    if folder.exists()
        && let Err(error) = fs::remove_dir_all(&folder)
    {
        errors.push(format!("cannot remove {}: {error}", folder.display()));
    }
    errors
}

/// Everything that exists of a cluster: processes, namespaces, cgroups, mounts, files.
///
/// # Errors
/// When the mounts can't be read.
pub fn found(prefix: &Prefix) -> Result<Vec<String>> {
    let mut found: Vec<String> =
        processes(prefix).iter().map(|id| format!("process {id}{}", command_of(*id))).collect();
    found.extend(namespaces(prefix).into_iter().map(|name| format!("network namespace {name}")));
    found.extend(cgroups::named(&begin(prefix)).iter().map(|path| format!("cgroup {}", path.display())));
    let folder = prefix.folder_path();
    let below = format!(" {}/", folder.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|line| line.contains(&below)).map(|line| format!("mount {line}")));
    if folder.exists() {
        found.push(format!("folder {}", folder.display()));
    }
    Ok(found)
}

fn begin(prefix: &Prefix) -> String {
    prefix.member("")
}

fn namespaces(prefix: &Prefix) -> Vec<String> {
    let begin = begin(prefix);
    listed(Path::new(netns::FOLDER)).into_iter().filter(|name| name.starts_with(&begin)).collect()
}

/// The processes whose network namespace is one of the cluster's. The first process of a node is among them. When it
/// ends, all other processes of the node end with it, whatever network namespace they are in.
fn processes(prefix: &Prefix) -> Vec<i32> {
    let inode = |path: PathBuf| path.metadata().ok().map(|data| (data.dev(), data.ino()));
    let folder = Path::new(netns::FOLDER);
    let ours: BTreeSet<_> = namespaces(prefix).iter().filter_map(|name| inode(folder.join(name))).collect();
    let all = listed(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok());
    // The namespace of a zombie can't be read, so zombies do not count.
    all.filter(|id| inode(PathBuf::from(format!("/proc/{id}/ns/net"))).is_some_and(|found| ours.contains(&found)))
        .collect()
}

fn command_of(process: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    if name.is_empty() { name } else { format!(" ({})", name.trim()) }
}
