//! What the daemon has last seen of the cluster's namespaces, for the plugin while no daemon answers.
//!
//! The plugin knows the namespace of a pod, not its labels. So a namespace in which only some pods are in the mesh counts as one
//! of the mesh, and a namespace that is not known may be one.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::libc;
use serde::{Deserialize, Serialize};

use crate::{model::node_pods::NodePods, pods::kubernetes::can_start};

/// A file of more bytes is not read: room for the longest names of a hundred thousand namespaces.
const MOST_BYTES: u64 = 16 << 20;

/// The namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    namespaces: BTreeMap<String, Standing>,
}

/// Whether new pods of a namespace may start while no daemon can enrol them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its pods are in the mesh, by its label.
    Mesh,
    /// It has no label, and pods of this node in it are in the mesh by labels of their own.
    Mixed,
    /// Its pods are not in the mesh.
    Outside,
}

impl Seen {
    /// The namespaces as the Kubernetes API reports them; `None`: it has not reported all of them yet.
    #[must_use]
    pub fn of(news: &NodePods) -> Option<Self> {
        let pods = news.pods.as_ref()?;
        let standing = |is_labelled: bool| if is_labelled { Standing::Mesh } else { Standing::Outside };
        let mut namespaces: BTreeMap<_, _> =
            news.namespaces.iter().map(|(name, is_labelled)| (name.to_string(), standing(*is_labelled))).collect();
        for (name, _) in pods.iter().filter(|(_, pod)| can_start(pod)) {
            if let Some(standing @ Standing::Outside) = namespaces.get_mut(&*name.namespace) {
                *standing = Standing::Mixed;
            }
        }
        Some(Self { namespaces })
    }

    /// Whether pods of the namespace may be in the mesh, so that none may start unless it is enrolled.
    #[must_use]
    pub fn may_be_in_mesh(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace) != Some(&Standing::Outside)
    }

    /// Why pods of the namespace do not start by themselves.
    #[must_use]
    pub fn reason(&self, namespace: &str) -> String {
        match self.namespaces.get(namespace) {
            Some(Standing::Mesh) => format!("the Namespace {namespace} has the label of the mesh"),
            Some(Standing::Mixed) => format!("pods of the Namespace {namespace} have the label of the mesh"),
            Some(Standing::Outside) => format!("the Namespace {namespace} is outside of the mesh"),
            None => format!("whether the Namespace {namespace} has the label of the mesh is not known on this node"),
        }
    }

    /// Reads the file. If it cannot be read or parsed, no namespace is known.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let read = || {
            let mut text = Vec::new();
            File::open(path)?.take(MOST_BYTES).read_to_end(&mut text)?;
            Ok::<_, io::Error>(serde_json::from_slice(&text)?)
        };
        read().unwrap_or_default()
    }

    /// Puts the file in the place of what was there. Blocks on the file system.
    ///
    /// # Errors
    /// As the file system; what was there stays.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self)?, 0o600)
    }
}

/// Puts a file in the place of what was there, at once and whole.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A file that ends otherwise is none of a CNI configuration.
    let next = path.with_file_name(format!(".{name}.next"));
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let mut file = options.open(&next)?;
    // Whatever the umask is.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        identity::{SpiffeId, TrustDomain},
        node_pods::NodePod,
        workload::{Membership, NamespacedName, RefuseReason, Workload},
    };

    fn news(pods: Option<&[(&str, Membership)]>) -> NodePods {
        let pod = |(namespace, membership): &(&str, Membership)| {
            let name = NamespacedName::new(*namespace, "a");
            let identity = SpiffeId::new(TrustDomain::default(), *namespace, "default");
            let workload = Workload { membership: *membership, ..Workload::new(name.clone(), identity) };
            (name, NodePod { workload: Arc::new(workload), local: Arc::default() })
        };
        let namespaces = [("mesh", true), ("outside", false), ("mixed", false)];
        NodePods {
            pods: pods.map(|pods| pods.iter().map(pod).collect()),
            namespaces: Arc::new(namespaces.map(|(name, is_labelled)| (name.into(), is_labelled)).into()),
            problem: None,
        }
    }

    #[test]
    fn pods_start_by_themselves_only_where_none_is_in_the_mesh() {
        assert_eq!(Seen::of(&news(None)), None);
        let waiting = Membership::Refused(RefuseReason::NoAddress);
        let seen = Seen::of(&news(Some(&[("mixed", waiting), ("outside", Membership::NotLabelled)]))).unwrap();
        let held = ["mesh", "mixed", "unknown", "outside"].map(|namespace| seen.may_be_in_mesh(namespace));
        assert_eq!(held, [true, true, true, false]);
        assert!(Seen::default().may_be_in_mesh("outside"), "nothing is known");
    }

    #[test]
    fn the_file_is_roots_alone_and_a_broken_one_says_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("namespaces.json");
        assert_eq!(Seen::read(&path), Seen::default());
        let seen = Seen::of(&news(Some(&[]))).unwrap();
        for _ in 0..2 {
            seen.write(&path).unwrap();
        }
        assert_eq!(Seen::read(&path), seen);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        for broken in ["", "{", "{\"namespaces\":{\"outside\":\"open\"}}"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(Seen::read(&path), Seen::default(), "{broken}");
        }
    }
}
