//! Options in which the daemons of tests differ.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::Capability;
use crate::wait;

/// The options of a daemon.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// The program.
    pub binary: PathBuf,
    /// Further arguments, e.g. `["--max-pods", "1"]`.
    pub arguments: Vec<String>,
    /// The only capabilities it gets; if empty, all capabilities.
    pub capabilities: Vec<Capability>,
    /// The source of its certificates.
    pub certificates: Issuer,
    /// The control plane that has the mesh and signs certificates. With it, the daemon gets neither the manifests nor a
    /// CA.
    pub control_plane: Option<Remote>,
    /// Keeps it running when this process ends; see also [`Daemon::keep`].
    pub detached: bool,
    /// The time in which it must become ready.
    pub patience: Duration,
    /// The control group that it runs in, see [`MemoryLimit`](crate::cgroups::MemoryLimit).
    pub group: Option<PathBuf>,
    /// Its limit of open files, if it is not the one of this process.
    pub open_files: Option<u64>,
}

/// A control plane, in the settings of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its URL.
    pub url: String,
    /// File of the roots of its certificate.
    pub roots: PathBuf,
    /// File of the node's token.
    pub token: PathBuf,
    /// Folder with manifests of the node's own pods, for facts that only the node needs.
    pub pods: PathBuf,
}

/// The source of a daemon's certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// The CA that all daemons of a topology share.
    Shared,
    /// A CA in a folder.
    Ca(PathBuf),
    /// Certificates in a folder.
    Files(PathBuf),
    /// No setting.
    Unnamed,
}

impl DaemonOptions {
    /// A daemon with all capabilities and default settings.
    #[must_use]
    pub fn new(binary: PathBuf) -> Self {
        Self {
            binary,
            arguments: Vec::new(),
            capabilities: Vec::new(),
            certificates: Issuer::Shared,
            control_plane: None,
            detached: false,
            patience: wait::PATIENCE,
            group: None,
            open_files: None,
        }
    }
}
