//! The CNI plugin, and its counterpart in the daemon: no container of a pod of the mesh starts before the pod is enrolled.
//!
//! The container runtime runs the [`plugin`] after the plugins that have made a pod's network. The plugin hands the pod and its
//! network namespace to the daemon over a socket ([`message`]) and waits for the answer: the daemon ([`serve`]) looks the pod up in
//! the Kubernetes API, proves the network namespace, and enrols the pod. While no daemon answers, the plugin uses what the daemon
//! has last seen of the cluster ([`seen`]): pods of namespaces that may be in the mesh do not start. [`install`] puts the plugin
//! on the node and into the [`conflist`] of its CNI configuration.

use std::path::{Path, PathBuf};

pub mod conflist;
pub mod install;
pub mod message;
pub mod plugin;
pub mod seen;
pub mod serve;

/// The name of the plugin: of its program, and in the CNI configuration.
pub const NAME: &str = "ztunnel-cni";

/// The files by which the plugin and the daemon meet, in the state directory of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    folder: PathBuf,
}

impl Place {
    /// The files of the daemon with this state directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self { folder: state.join("cni") }
    }

    /// The folder, which only root may enter.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The socket of the daemon.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("cni.sock")
    }

    /// What the daemon has last seen of the cluster's namespaces.
    #[must_use]
    pub fn seen(&self) -> PathBuf {
        self.folder.join("namespaces.json")
    }

    /// Where the plugin has been installed.
    #[must_use]
    pub fn installed(&self) -> PathBuf {
        self.folder.join("installed.json")
    }
}
