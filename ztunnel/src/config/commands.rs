//! The flags of the commands that do not run a daemon or a control plane.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::{
    defaults,
    names::{namespace, node_name},
    remote::PodsFrom,
    units::{Seconds, address, within},
};
use crate::{
    analyze::{Severity, Suppression},
    model::identity::{SpiffeId, TrustDomain},
};

/// A shell that completes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "a shell is known by its name")]
pub enum Shell {
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    PowerShell,
    Zsh,
}

/// Flags of `check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Name of this node, which is looked up in the mesh
    #[arg(long, env = "ZTUNNEL_NODE", value_name = "NAME", value_parser = node_name)]
    pub node: Option<String>,
    /// Folder with the Kubernetes manifests of the mesh
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
    /// As for `run`: `kubernetes` checks the Kubernetes API and the processes of pods as well
    #[arg(long, env = "ZTUNNEL_PODS", value_name = "kubernetes|DIR")]
    pub pods: Option<PodsFrom>,
    /// Kubeconfig file with which the Kubernetes API is asked. Default: the service account of the pod in which the daemon runs
    #[arg(long, env = "ZTUNNEL_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The /proc of the node, in which the daemon finds the processes of pods; in a container: a mount of it
    #[arg(long, env = "ZTUNNEL_PROC", value_name = "DIR", default_value = defaults::PROC)]
    pub proc: PathBuf,
    /// State directory of the daemon
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE)]
    pub state: PathBuf,
    /// Directory in which the daemon would pin BPF programs and maps
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `cleanup`.
#[derive(Debug, ClapArgs)]
pub struct CleanupArgs {
    /// State directory of the daemon
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE)]
    pub state: PathBuf,
    /// Pin directory of the daemon
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `ready`.
#[derive(Debug, ClapArgs)]
pub struct ReadyArgs {
    /// State directory of the daemon
    #[arg(long, env = "ZTUNNEL_STATE", value_name = "DIR", default_value = defaults::STATE)]
    pub state: PathBuf,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `version`.
#[derive(Debug, ClapArgs)]
pub struct VersionArgs {
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text, for people.
    #[default]
    Text,
    /// JSON with a schemaVersion, for programs.
    Json,
}

/// Flags of `explain`.
#[derive(Debug, ClapArgs)]
pub struct ExplainArgs {
    /// Folder with the Kubernetes manifests of the mesh
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR", required_unless_present = "admin")]
    pub mesh: Option<PathBuf>,
    /// Admin address of a running daemon that is asked, in place of reading manifests
    #[arg(long, value_name = "ADDR", conflicts_with = "mesh", value_parser = address)]
    pub admin: Option<SocketAddr>,
    /// Client: a pod, an identity (spiffe://…), an IP address, or the host name of a service, whose pods then connect
    #[arg(long, value_name = "NAMESPACE/POD|SPIFFE-ID|IP|HOST")]
    pub from: String,
    /// Destination: a pod, a service, an IP address, or a host name such as web, web.shop or web.shop.svc.cluster.local; the
    /// prefixes pod: and service: tell a pod and a service of the same name apart
    #[arg(long, value_name = "NAMESPACE/POD|NAMESPACE/SERVICE|IP|HOST")]
    pub to: String,
    /// TCP port of the destination: a number, or the name of a port of the service or of the pod
    #[arg(long, value_name = "PORT")]
    pub port: String,
    /// Trust domain of the identities of the mesh, where manifests are read
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `analyze`.
#[derive(Debug, ClapArgs)]
pub struct AnalyzeArgs {
    /// Files, folders (with all folders below them; hidden files are skipped), or - for standard input
    #[arg(value_name = "PATH", required_unless_present_any = ["mesh", "list_codes"])]
    pub paths: Vec<PathBuf>,
    /// Folder of manifests that a daemon reads: its files, without the folders below it; ignored if a PATH is given
    #[arg(long, env = "ZTUNNEL_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
    /// Namespace of objects that name none, as for kubectl
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace, requires = "paths", default_value = defaults::NAMESPACE)]
    pub namespace: String,
    /// Suppress findings of a code: all of them, or those about objects that match a pattern, for example
    /// unmatched-selector=Service/shop/*; can be given several times
    #[arg(long, value_name = "CODE[=KIND/NAMESPACE/NAME]")]
    pub ignore: Vec<Suppression>,
    /// Least severe finding for which the exit code is 1
    #[arg(long, value_enum, default_value = "error", value_name = "SEVERITY")]
    pub fail_on: FailOn,
    /// Print the codes of all findings, with their meanings, and end
    #[arg(long)]
    pub list_codes: bool,
    /// Trust domain of the identities of the mesh
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// The least severe finding for which `analyze` fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Errors.
    Error,
    /// Warnings and errors.
    Warning,
    /// Any finding.
    Info,
    /// None.
    Never,
}

impl FailOn {
    /// Whether a finding makes the command fail.
    #[must_use]
    pub fn includes(self, severity: Severity) -> bool {
        match self {
            Self::Error => severity == Severity::Error,
            Self::Warning => severity <= Severity::Warning,
            Self::Info => true,
            Self::Never => false,
        }
    }
}

/// What to do with a certificate authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Create a certificate authority in a directory that is empty or does not exist
    Init(CaInitArgs),
    /// Show a certificate authority, and what is wrong with it
    Show(CaShowArgs),
    /// Issue a certificate for one identity, with a new key
    Issue(CaIssueArgs),
}

impl CaCommand {
    /// How it prints its result.
    #[must_use]
    pub const fn output(&self) -> Output {
        match self {
            Self::Init(args) => args.output,
            Self::Show(args) => args.output,
            Self::Issue(args) => args.output,
        }
    }
}

/// Flags of `ca init`.
#[derive(Debug, ClapArgs)]
pub struct CaInitArgs {
    /// Directory of the authority, in the layout of Istio's secret cacerts
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Trust domain of the workloads that it will issue certificates for; it becomes a part of the authority's name
    #[arg(long, env = "ZTUNNEL_TRUST_DOMAIN", value_name = "NAME", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,
    /// Days that the authority is valid
    #[arg(long, value_name = "N", default_value_t = defaults::CA_TTL_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub ttl_days: u32,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `ca show`.
#[derive(Debug, ClapArgs)]
pub struct CaShowArgs {
    /// Directory of the authority
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

/// Flags of `ca issue`.
#[derive(Debug, ClapArgs)]
pub struct CaIssueArgs {
    /// Directory of the authority
    #[arg(long, env = "ZTUNNEL_CA_DIR", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Identity that the certificate proves: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
    #[arg(long, value_name = "SPIFFE-ID")]
    pub identity: SpiffeId,
    /// Directory for cert-chain.pem, key.pem and root-cert.pem, as --cert-dir expects them; the default is standard output
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How long the certificate is valid; it ends no later than the authority
    #[arg(long, value_name = "DURATION", default_value_t = Seconds(defaults::CERT_TTL_SECONDS), value_parser = within(Seconds(1)..=Seconds(315_360_000)))]
    pub ttl: Seconds,
    /// Replace files that exist
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}
