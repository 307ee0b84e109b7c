//! Finds the root of cgroup v2: `/sys/fs/cgroup`, a mount beside the old hierarchies on hybrid hosts, or a mount from
//! the host in a container. On a node that is itself a container (kind, k3d, minikube), the root is the part of the
//! hierarchy that the node has.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why the root of cgroup v2 can't be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The list of mounts could not be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(#[source] io::Error),
    /// No cgroup v2 is mounted.
    #[error("no cgroup v2 hierarchy is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup) or boot with it")]
    NotMounted,
    /// Only a part of the hierarchy is mounted.
    #[error(
        "{paths} is the cgroup of a container and not the root of cgroup v2, so connects of pods would not \
         be captured; mount the host's /sys/fs/cgroup into the container, or use the host's cgroup namespace"
    )]
    NotTheRoot {
        /// The mount points.
        paths: String,
    },
    /// It could not be opened.
    #[error("cannot open the cgroup v2 root {path}: {source}")]
    Open {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The mount point of the root of cgroup v2, or of the part of a node that is a container.
///
/// # Errors
/// When no such mount is found.
pub fn root() -> Result<PathBuf, CgroupError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
    let candidates = mount_points(&mounts);
    match root_among(&candidates) {
        Some(path) => Ok(path.clone()),
        None if candidates.is_empty() => Err(CgroupError::NotMounted),
        None => {
            let paths: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            Err(CgroupError::NotTheRoot { paths: paths.join(", ") })
        }
    }
}

/// The first candidate that is a root, or else the first with the pods of a node below it.
fn root_among(candidates: &[PathBuf]) -> Option<&PathBuf> {
    // Every cgroup except the root has this file.
    let is_root = |path: &&PathBuf| !path.join("cgroup.events").exists();
    candidates.iter().find(is_root).or_else(|| candidates.iter().find(|path| has_pods(path)))
}

/// Whether the cgroup in which a kubelet has its pods is a direct child: `kubepods`, `kubepods.slice`, `kubelet`,
/// `kubelet.slice`. The cgroup of a pod has no such child. Only the kubelet and root of the node may make one beside
/// the cgroups of the pods.
fn has_pods(cgroup: &Path) -> bool {
    let names = ["kubepods", "kubelet"].into_iter().flat_map(|name| [name.to_owned(), format!("{name}.slice")]);
    names.into_iter().any(|name| cgroup.join(name).join("cgroup.events").exists())
}

/// Opens the root of cgroup v2.
///
/// # Errors
/// When no such mount is found, or it can't be opened.
pub fn open_root() -> Result<File, CgroupError> {
    let path = root()?;
    File::open(&path).map_err(|source| CgroupError::Open { path, source })
}

/// Mounts that may be mounts of the root. Fields of a line: id, parent, device, root, mount point, options, optional
/// fields, `-`, type, source, ... In another cgroup namespace, the host's root is shown as one or more `/..`.
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    let candidate = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let may_be_root = root.split('/').all(|part| part.is_empty() || part == "..");
        (after.split(' ').next()? == "cgroup2" && may_be_root).then(|| Path::new(mount_point).to_owned())
    };
    mountinfo.lines().filter_map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::{mount_points, root_among};
    use std::path::PathBuf;

    #[test]
    fn the_part_of_a_node_in_a_container_is_known_by_its_pods() {
        let hierarchy = tempfile::tempdir().unwrap();
        let cgroup = |name: &str| {
            let path = hierarchy.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cgroup.events"), "").unwrap();
            path
        };
        let (container, node) = (cgroup("container"), cgroup("node"));
        assert_eq!(root_among(&[container.clone(), node.clone()]), None, "pods would escape");
        cgroup("node/system.slice");
        assert_eq!(root_among(&[container.clone(), node.clone()]), None);
        cgroup("node/kubelet.slice");
        assert_eq!(root_among(&[container.clone(), node.clone()]), Some(&node));
        let root = hierarchy.path().to_owned();
        assert_eq!(root_among(&[node, container, root.clone()]), Some(&root), "the root itself has no such file");
    }

    fn check(mountinfo: &str, expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(mount_points(mountinfo), expected, "{mountinfo}");
    }

    #[test]
    fn every_layout_is_found() {
        check("29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", &["/sys/fs/cgroup"]);
        check(
            "30 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
             32 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup systemd rw\n\
             31 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n",
            &["/sys/fs/cgroup/unified"],
        );
        check("29 23 0:26 /../.. /host/cgroup rw shared:9 - cgroup2 cgroup2 rw\n", &["/host/cgroup"]);
        check("30 24 0:27 / /x rw - tmpfs tmpfs rw\ngarbage\n", &[]);
        check("29 23 0:26 /kubepods /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n", &[]);
    }
}
