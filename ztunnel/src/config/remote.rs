//! Flags of a control plane.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::defaults;
use crate::control::remote::{ControlPlane, PlaneUrl, Token};

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
    /// Folder with the Pod manifests of this node, which have the annotation of each pod's network namespace: a control plane knows
    /// no network namespaces; the daemon watches the folder
    #[arg(long, env = "ZTUNNEL_PODS", value_name = "DIR", conflicts_with = "mesh", help_heading = HEADING)]
    pub pods: Option<PathBuf>,
    /// Network that the addresses of this node belong to, where the control plane distinguishes several networks. Default: the
    /// network without a name
    #[arg(long, env = "ZTUNNEL_NETWORK", value_name = "NAME", conflicts_with = "mesh", help_heading = HEADING)]
    pub network: Option<String>,
}

impl RemoteArgs {
    /// The control plane of a node of a cluster, if there is one.
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
        })
    }
}
