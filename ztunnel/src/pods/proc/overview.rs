//! Checks that a folder is the `/proc` of a node, and that this process may read the needed facts in it. Used at the
//! start, and by `ztunnel check`.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{cgroup::Belongs, process::Process};

/// Processes that are examined.
const MOST: usize = 32_768;

/// The content of the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Number of processes.
    pub processes: usize,
    /// Number of pods that have some of the processes.
    pub pods: usize,
}

/// Why pods can't be found by their processes.
#[derive(Debug, Error)]
pub enum Unusable {
    /// The folder can't be listed.
    #[error("cannot list the processes of the node in {}: mount the /proc of the node, and set --proc to its \
         mount point", proc.display())]
    Unreadable {
        /// The folder.
        proc: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder has no processes.
    #[error("there are no processes in {}: mount the /proc of the node, and set --proc to its mount point", proc.display())]
    NoProcesses {
        /// The folder.
        proc: PathBuf,
    },
    /// This process may not read the network namespaces of processes.
    #[error(
        "cannot look at the network namespace of process {process} in {}: add CAP_SYS_PTRACE (securityContext.capabilities.add: \
         SYS_PTRACE), or run as root of the node",
        proc.display()
    )]
    Denied {
        /// The folder.
        proc: PathBuf,
        /// The process.
        process: u32,
        /// The cause.
        source: io::Error,
    },
}

/// Examines the processes of a node. Blocks on the file system.
///
/// # Errors
/// The missing precondition.
pub fn overview(proc: &Path) -> Result<Overview, Unusable> {
    let unreadable = |source| Unusable::Unreadable { proc: proc.to_owned(), source };
    let (mut processes, mut pods, mut denied) = (0, HashSet::new(), None);
    for entry in std::fs::read_dir(proc).map_err(unreadable)?.take(MOST) {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // The process may have ended meanwhile.
        let Ok(process) = Process::open(proc, number) else { continue };
        let Ok(belongs) = process.pod() else { continue };
        processes += 1;
        let is_of_pod = matches!(belongs, Belongs::To(_));
        match process.netns() {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                // A refusal for other processes does not matter, unless there is no process of a pod to try.
                if is_of_pod {
                    return Err(Unusable::Denied { proc: proc.to_owned(), process: number, source });
                }
                denied.get_or_insert((number, source));
            }
            Ok(_) | Err(_) => {}
        }
        if let Belongs::To(uid) = belongs {
            pods.insert(uid);
        }
    }
    if let Some((process, source)) = denied.filter(|_| pods.is_empty()) {
        return Err(Unusable::Denied { proc: proc.to_owned(), process, source });
    }
    if processes == 0 {
        return Err(Unusable::NoProcesses { proc: proc.to_owned() });
    }
    Ok(Overview { processes, pods: pods.len() })
}

#[cfg(test)]
mod tests {
    use super::{Unusable, overview};
    use crate::pods::proc::tests::Tree;

    #[test]
    fn processes_and_pods_are_counted_and_another_folder_is_told() {
        let tree = Tree::new();
        let none = overview(&tree.proc());
        assert!(matches!(none, Err(Unusable::NoProcesses { .. })), "{none:?}");
        tree.namespace("a", "10.0.0.1");
        tree.process(1, "/init.scope", "host");
        for process in [5, 6] {
            tree.of_pod(process, "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2", "a");
        }
        let found = overview(&tree.proc()).unwrap();
        assert_eq!((found.processes, found.pods), (3, 1));
        let missing = overview(&tree.proc().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("--proc"), "{missing}");
    }
}
