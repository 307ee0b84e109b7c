//! Unique names, and the removal of what killed runs left behind.
//!
//! Everything that may outlive its process has the owner's process id in its name: `zt-<pid>x<n>` is the prefix of each
//! network namespace, pin directory and temporary folder. Two runs never use the same name, and the sweep knows which
//! owners are dead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::{cgroups, netns};

/// The directory of pin directories.
pub const BPF_ROOT: &str = "/sys/fs/bpf";

/// The directory of temporary folders: accessible to root only, and empty after a boot.
pub const FOLDER_ROOT: &str = "/run";

/// The prefix of all names of the demo: fixed, so that its manifests can name the namespaces.
pub const DEMO: &str = "zt-demo";

/// The prefix of all names of the cluster of `cargo xtask cluster`.
pub const CLUSTER: &str = "zt-cluster";

/// The prefix of all names of one topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// A prefix that no live process uses. The first call of a process removes what dead processes left.
    #[must_use]
    pub fn unique() -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        SWEEP.call_once(sweep);
        Self(format!("zt-{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The demo's fixed prefix.
    #[must_use]
    pub fn demo() -> Self {
        Self(DEMO.to_owned())
    }

    /// The fixed prefix of the cluster of `cargo xtask cluster`.
    #[must_use]
    pub fn cluster() -> Self {
        Self(CLUSTER.to_owned())
    }

    /// The name of a member's network namespace, e.g. `zt-4711x1-client-a`.
    #[must_use]
    pub fn member(&self, name: &str) -> String {
        format!("{}-{name}", self.0)
    }

    /// The directory in which a node's daemon pins its BPF objects.
    #[must_use]
    pub fn pins(&self, node: &str) -> PathBuf {
        Path::new(BPF_ROOT).join(self.member(node))
    }

    /// The folder for this topology's files.
    #[must_use]
    pub fn folder_path(&self) -> PathBuf {
        Path::new(FOLDER_ROOT).join(&self.0)
    }

    /// Makes the folder for this topology's files.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn folder(&self) -> Result<PathBuf> {
        let path = self.folder_path();
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// Removes namespaces, cgroups, pins and folders whose owner is dead. Never touches those of a live process, of the
/// demo or of `cargo xtask cluster`. Best effort: the next run tries again to remove what remains.
pub fn sweep() {
    let live: BTreeSet<String> = listed(Path::new("/proc")).into_iter().collect();
    let orphaned = |name: &str| owner(name).is_some_and(|pid| !live.contains(pid));
    for name in listed(Path::new(netns::FOLDER)).iter().filter(|name| orphaned(name)) {
        netns::remove(name);
    }
    for group in cgroups::named("zt-").iter().filter(|group| orphaned(&name_of(group))) {
        let _ = cgroups::remove(group);
    }
    for folder in [Path::new(BPF_ROOT), Path::new(FOLDER_ROOT)] {
        for name in listed(folder).iter().filter(|name| orphaned(name)) {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    }
}

/// The process id in a name such as `zt-4711x1-web-a`.
fn owner(name: &str) -> Option<&str> {
    let (pid, _) = name.strip_prefix("zt-")?.split_once('x')?;
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(pid)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The names in a folder; empty if the folder does not exist.
pub(crate) fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_read_from_our_names_only() {
        assert_eq!(owner("zt-4711x1-web-a"), Some("4711"));
        assert_eq!(owner("zt-demo-web-a"), None);
        assert_eq!(owner("zt-x1-web-a"), None);
        assert_eq!(owner("other-4711x1"), None);
    }

    #[test]
    fn prefixes_differ() {
        assert_ne!(Prefix::unique(), Prefix::unique());
    }
}
