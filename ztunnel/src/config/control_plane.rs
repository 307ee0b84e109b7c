//! The command line of `ztunnel control-plane`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args as ClapArgs;

use super::{
    defaults,
    log::LogFormat,
    units::{Seconds, address, within},
};
use crate::{
    control::kubernetes::Access,
    model::{identity::TrustDomain, name::check_name, workload::NamespacedName},
    plane::{certificates::SigningLimits, serve::Limits},
};

/// Flags of `control-plane`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ControlPlaneArgs {
    /// Folder of Kubernetes manifests that make the mesh; it is watched
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR", required_unless_present = "kubernetes")]
    pub mesh: Option<PathBuf>,
    /// Make the mesh of the objects of the Kubernetes API, as a pod of the cluster or with --kubeconfig
    #[arg(long, env = "ZTUNNEL_KUBERNETES", conflicts_with = "mesh")]
    pub kubernetes: bool,
    /// Kubeconfig whose current context leads to the Kubernetes API; without it the service account of the pod counts
    #[arg(long, env = "ZTUNNEL_KUBECONFIG", value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the control plane in the cluster: of the authority's Secret, and of the mesh's settings (ConfigMap `istio`)
    #[arg(long, env = "ZTUNNEL_NAMESPACE", value_name = "NAME", default_value = defaults::SYSTEM_NAMESPACE, value_parser = name)]
    pub namespace: String,
    /// Folder of the certificate authority, in the layout of Istio's secret `cacerts`; made when it is empty. Replicas of a control
    /// plane share one. With --kubernetes the Secret `cacerts` is taken if this is not given, or else `ztunnel-ca`, which is made
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR", required_unless_present = "kubernetes")]
    pub ca_dir: Option<PathBuf>,
    /// ConfigMap in which the roots of an authority in a Secret are published, in the namespaces with pods of the mesh
    #[arg(long, env = "ZTUNNEL_ROOT_CONFIG_MAP", value_name = "NAME", default_value = defaults::ROOT_CONFIG_MAP, value_parser = name)]
    pub root_config_map: String,
    /// Folder with one file for each node, which is named like the node (spec.nodeName of its pods) and has its token, or `sha256:`
    /// and the token's SHA-256; it is watched. With --kubernetes the tokens of service accounts count if this is not given
    #[arg(long, env = "ZTUNNEL_NODE_TOKENS", value_name = "DIR", required_unless_present = "kubernetes")]
    pub node_tokens: Option<PathBuf>,
    /// Service account of the node daemon: its tokens, bound to a pod, prove the node of the pod
    #[arg(long, env = "ZTUNNEL_NODE_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME", default_value = defaults::NODE_SERVICE_ACCOUNT, value_parser = namespaced_name)]
    pub node_service_account: NamespacedName,
    /// Audience of the tokens of nodes; may be repeated
    #[arg(long, env = "ZTUNNEL_TOKEN_AUDIENCE", value_name = "NAME", value_delimiter = ',', default_values = defaults::TOKEN_AUDIENCES)]
    pub token_audience: Vec<String>,
    /// Folder for copies of the manifests that were valid last; without it a manifest that is invalid when the control plane starts
    /// keeps the mesh from being served
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Address where nodes connect
    #[arg(long, env = "ZTUNNEL_LISTEN", value_name = "ADDR", default_value = defaults::CONTROL_PLANE_LISTEN, value_parser = address)]
    pub listen: SocketAddr,
    /// Name in the serving certificate, a DNS name or an address; may be repeated
    #[arg(long, env = "ZTUNNEL_SERVING_NAME", value_name = "NAME", value_delimiter = ',', default_value = defaults::SERVING_NAME)]
    pub serving_name: Vec<String>,
    /// Trust domain of the mesh's identities
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Name of the cluster, as nodes and telemetry have it
    #[arg(long, env = "ZTUNNEL_CLUSTER_ID", value_name = "NAME", default_value = defaults::CLUSTER_ID)]
    pub cluster_id: String,
    /// How long a certificate is valid at most
    #[arg(long, env = "ZTUNNEL_CERT_TTL", value_name = "DURATION", default_value_t = Seconds(defaults::CERT_TTL_SECONDS), value_parser = within(Seconds(60)..=Seconds(31_536_000)))]
    pub cert_ttl: Seconds,
    /// Connections of nodes that may be open
    #[arg(long, env = "ZTUNNEL_MAX_CONNECTIONS", value_name = "N", default_value_t = defaults::CONTROL_PLANE_CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Connections from one address that may be open
    #[arg(long, env = "ZTUNNEL_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = defaults::CONTROL_PLANE_CONNECTIONS_PER_ADDRESS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections_per_address: u32,
    /// How long a node may take to answer a response before its stream is cut
    #[arg(long, env = "ZTUNNEL_ANSWER_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::ANSWER_TIMEOUT_SECONDS), value_parser = within(Seconds(1)..=Seconds(3_600)))]
    pub answer_timeout: Seconds,
    /// Time over which the streams of nodes are ended when the control plane is told to stop
    #[arg(long, env = "ZTUNNEL_DRAIN_TIMEOUT", value_name = "DURATION", default_value_t = Seconds(defaults::CONTROL_PLANE_DRAIN_SECONDS), value_parser = within(Seconds(0)..=Seconds(3_600)))]
    pub drain_timeout: Seconds,
    /// Address of /metrics for Prometheus
    #[arg(long, env = "ZTUNNEL_METRICS", value_name = "ADDR", default_value = defaults::CONTROL_PLANE_METRICS, value_parser = address)]
    pub metrics: SocketAddr,
    /// Address of /healthz/ready for the kubelet
    #[arg(long, env = "ZTUNNEL_READINESS", value_name = "ADDR", default_value = defaults::CONTROL_PLANE_READINESS, value_parser = address)]
    pub readiness: SocketAddr,
    /// Address of the admin endpoints: /debug/nodes, and the others as well
    #[arg(long, env = "ZTUNNEL_ADMIN", value_name = "ADDR", default_value = defaults::CONTROL_PLANE_ADMIN, value_parser = address)]
    pub admin: SocketAddr,
    /// What is logged, for example `info` or `warn,ztunnel::plane=debug`
    #[arg(long, env = "ZTUNNEL_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "ZTUNNEL_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Checks the name of a Kubernetes object.
fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// Parses an object in a namespace, written as `NAMESPACE/NAME`.
pub(super) fn namespaced_name(text: &str) -> Result<NamespacedName, String> {
    let (namespace, account) =
        text.split_once('/').ok_or_else(|| format!("{text:?} is not of the form NAMESPACE/NAME"))?;
    check_name(namespace)?;
    check_name(account)?;
    Ok(NamespacedName::new(namespace, account))
}

impl ControlPlaneArgs {
    /// How the Kubernetes API is reached. `None`: the mesh comes from a folder.
    #[must_use]
    pub fn access(&self) -> Option<Access> {
        let access = || self.kubeconfig.clone().map_or(Access::InCluster, Access::Kubeconfig);
        self.kubernetes.then(access)
    }

    /// The limits for callers.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections as usize,
            connections_per_address: self.max_connections_per_address as usize,
            answer_within: self.answer_timeout.duration(),
            spread: self.drain_timeout.duration(),
            ..defaults::CONTROL_PLANE_LIMITS
        }
    }

    /// The limits for signing certificates.
    #[must_use]
    pub fn signing_limits(&self) -> SigningLimits {
        defaults::SIGNING_LIMITS
    }
}
