//! What differs between the daemons of tests.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::Capability;
use crate::wait;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// The program.
    pub binary: PathBuf,
    /// Further arguments, e.g. `["--max-pods", "1"]`.
    pub arguments: Vec<String>,
    /// The only capabilities it gets; all when empty.
    pub capabilities: Vec<Capability>,
    /// Where its certificates come from.
    pub certificates: Issuer,
    /// The control plane that has the mesh and signs certificates: then it gets neither the manifests nor a CA.
    pub control_plane: Option<Remote>,
    /// Lets it live on when this process ends; see also [`Daemon::keep`].
    pub detached: bool,
    /// How long it may take to become ready.
    pub patience: Duration,
    /// The control group that it runs in, see [`MemoryLimit`](crate::cgroups::MemoryLimit).
    pub group: Option<PathBuf>,
}

/// A control plane, as a daemon is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub url: String,
    /// File of the roots that its certificate leads to.
    pub roots: PathBuf,
    /// File of the node's token.
    pub token: PathBuf,
    /// Folder of the manifests of the node's own pods, for what only the node needs of them.
    pub pods: PathBuf,
}

/// Where a daemon's certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// The CA that all daemons of a topology share.
    Shared,
    /// A CA in a folder.
    Ca(PathBuf),
    /// Ready certificates in a folder.
    Files(PathBuf),
    /// It is told nothing.
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
        }
    }
}
