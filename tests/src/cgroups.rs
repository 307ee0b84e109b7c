//! Control groups of a cluster's nodes, in each hierarchy of cgroup v1 and in that of v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The roots of all hierarchies: that of v2 alone, or a folder for each (the *hybrid* layout has v2 in `unified`).
#[must_use]
pub fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    // Symbolic links such as `cpu` to `cpu,cpuacct` are the same hierarchy again.
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Makes a group in each hierarchy, with the same resources as its parent.
///
/// # Errors
/// When the kernel refuses it.
pub fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(name);
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // In cgroup v1 only: a group without these cannot take a process.
            if hierarchy.join("cpuset.cpu_exclusive").exists() {
                let value = fs::read(hierarchy.join(file))?;
                fs::write(group.join(file), value)
                    .with_context(|| format!("cannot write {file} of {}", group.display()))?;
            }
        }
        if hierarchy == Path::new(ROOT) {
            delegate(&hierarchy)?;
        }
    }
    Ok(())
}

/// A group that limits the memory of its processes. Dropping it removes it, if its processes have ended.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// Makes a group with a limit in bytes.
    ///
    /// # Errors
    /// When the kernel has no such groups, or refuses it.
    pub fn new(name: &str, bytes: u64) -> Result<Self> {
        let root = Path::new(ROOT);
        let (hierarchy, file) = if root.join("cgroup.controllers").exists() {
            delegate(root)?;
            (root.to_owned(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        let limit = Self { group: hierarchy.join(name) };
        fs::create_dir(&limit.group).with_context(|| format!("cannot make {}", limit.group.display()))?;
        let path = limit.group.join(file);
        fs::write(&path, bytes.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(limit)
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Path {
        &self.group
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A later run removes what is left.
        let _ = fs::remove_dir(&self.group);
    }
}

/// Enables the controllers for the groups below the root of a v2 hierarchy.
fn delegate(root: &Path) -> Result<()> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let wanted = controllers.split_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    let file = root.join("cgroup.subtree_control");
    fs::write(&file, &wanted).with_context(|| format!("cannot write `{wanted}` to {}", file.display()))
}

/// The groups at the top of all hierarchies whose names begin with `begin`.
#[must_use]
pub fn named(begin: &str) -> Vec<PathBuf> {
    let below = |hierarchy: PathBuf| fs::read_dir(hierarchy).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin));
    hierarchies().into_iter().flat_map(below).filter(|path| is_named(path) && path.is_dir()).collect()
}

/// Removes a group and all groups below.
///
/// # Errors
/// When a process is in one of them.
pub fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
