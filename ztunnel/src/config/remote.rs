//! Flags of a control plane.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, ValueEnum};

use super::control_plane::namespaced_name;
use super::defaults;
use crate::control::kubernetes::Access;
use crate::control::remote::{ControlPlane, Keepalive, PlaneUrl, Token};
use crate::model::workload::NamespacedName;

const HEADING: &str = "Control plane";

/// Flags of a control plane.
#[derive(Clone, Debug, ClapArgs)]
pub struct RemoteArgs {
    /// Control plane that has the mesh and signs certificates, in place of manifests: https://HOST:PORT; it speaks Istio's
    /// protocols
    #[arg(long = "control-plane", id = "control_plane", env = "ZTUNNEL_CONTROL_PLANE", value_name = "URL", conflicts_with = "mesh", requires = "pods", help_heading = HEADING)]
    pub url: Option<PlaneUrl>,
    /// File of the root certificates (PEM) that the certificate of the control plane must lead to
    #[arg(long = "control-plane-root", id = "control_plane_root", env = "ZTUNNEL_CONTROL_PLANE_ROOT", value_name = "FILE", default_value = defaults::CONTROL_PLANE_ROOT, help_heading = HEADING)]
    pub root: PathBuf,
    /// File of the token that proves to the control plane who this daemon is. Default:
    /// /var/run/secrets/tokens/istio-token, if it exists
    #[arg(long = "control-plane-token", id = "control_plane_token", env = "ZTUNNEL_CONTROL_PLANE_TOKEN", value_name = "FILE", conflicts_with = "mesh", help_heading = HEADING)]
    pub token: Option<PathBuf>,
    /// Name that the certificate of the control plane may have beside the host of the URL
    #[arg(long = "control-plane-name", id = "control_plane_name", env = "ZTUNNEL_CONTROL_PLANE_NAME", value_name = "NAME", conflicts_with = "mesh", help_heading = HEADING)]
    pub name: Option<String>,
    /// Where this node's own pods come from, of which a control plane knows no network namespaces: `kubernetes` (the pods of --node in
    /// the Kubernetes API, and their processes), or a folder with the Pod manifests of this node, which have the annotation of each
    /// pod's network namespace; the daemon watches it
    #[arg(long, env = "ZTUNNEL_PODS", value_name = "kubernetes|DIR", conflicts_with = "mesh", help_heading = HEADING)]
    pub pods: Option<PodsFrom>,
    /// Kubeconfig file with which the Kubernetes API is asked. Default: the service account of the pod in which the daemon runs
    #[arg(long, env = "ZTUNNEL_KUBECONFIG", value_name = "FILE", conflicts_with = "mesh", help_heading = HEADING)]
    pub kubeconfig: Option<PathBuf>,
    /// The /proc of the node, in which the daemon finds the processes of pods; in a container: a mount of it
    #[arg(long, env = "ZTUNNEL_PROC", value_name = "DIR", default_value = defaults::PROC, help_heading = HEADING)]
    pub proc: PathBuf,
    /// DaemonSet that runs this daemon. A daemon that is told to stop releases all pods if this DaemonSet has been deleted; otherwise
    /// captured pods stay captured, and closed. Needs --pods kubernetes
    #[arg(long, env = "ZTUNNEL_DAEMON_SET", value_name = "NAMESPACE/NAME", conflicts_with = "mesh", requires = "pods", value_parser = namespaced_name, help_heading = HEADING)]
    pub daemon_set: Option<NamespacedName>,
    /// Key of a taint that the daemon takes off its node when it is ready, so that pods are placed on a new node only then. Needs
    /// --pods kubernetes, and the right to get and patch the node
    #[arg(long, env = "ZTUNNEL_STARTUP_TAINT", value_name = "KEY", conflicts_with = "mesh", requires = "pods", help_heading = HEADING)]
    pub startup_taint: Option<String>,
    /// What of the mesh is asked for: `wildcard` (all of it), or `on-demand` (this node's own pods, and the addresses to which they
    /// connect; the first connection to an address waits for the answer of the control plane)
    #[arg(long = "control-plane-mode", id = "control_plane_mode", env = "ZTUNNEL_CONTROL_PLANE_MODE", value_enum, default_value_t = PlaneMode::Wildcard, conflicts_with = "mesh", help_heading = HEADING)]
    pub mode: PlaneMode,
    /// Network that the addresses of this node belong to, where the control plane distinguishes several networks. Default: the
    /// network without a name
    #[arg(long, env = "ZTUNNEL_NETWORK", value_name = "NAME", conflicts_with = "mesh", help_heading = HEADING)]
    pub network: Option<String>,
}

/// What of the mesh is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlaneMode {
    /// All of it.
    Wildcard,
    /// What connections need.
    OnDemand,
}

/// The source of a node's own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodsFrom {
    /// The Kubernetes API has the pods, and their processes lead to their network namespaces.
    Kubernetes,
    /// Manifests in a folder. A folder with the name `kubernetes` is written `./kubernetes`.
    Folder(PathBuf),
}

impl FromStr for PodsFrom {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "kubernetes" { Self::Kubernetes } else { Self::Folder(text.into()) })
    }
}

/// How the Kubernetes API is reached, from the flag --kubeconfig.
#[must_use]
pub fn access(kubeconfig: Option<&PathBuf>) -> Access {
    kubeconfig.cloned().map_or(Access::InCluster, Access::Kubeconfig)
}

impl RemoteArgs {
    /// The control plane for a node of a cluster, if any.
    #[must_use]
    pub fn settings(&self, node: &str, cluster: &str) -> Option<ControlPlane> {
        let token = || Token::IfThere(defaults::CONTROL_PLANE_TOKEN.into());
        Some(ControlPlane {
            url: self.url.clone()?,
            roots: self.root.clone(),
            token: self.token.clone().map_or_else(token, Token::File),
            alternative_name: self.name.clone(),
            node: node.into(),
            cluster: cluster.into(),
            network: self.network.as_deref().unwrap_or_default().into(),
            keepalive: Keepalive::default(),
        })
    }
}
