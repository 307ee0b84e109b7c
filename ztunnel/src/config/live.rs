//! The flags of the commands that ask a running daemon, or a control plane.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::{
    commands::Output,
    defaults,
    names::namespace,
    units::{Seconds, address, within},
};

/// Commands that ask a running daemon, or a control plane.
#[derive(Debug, Subcommand)]
pub enum LiveCommand {
    /// Tell whether the daemon of this node works, and what to do first if it does not
    ///
    /// Exit code: 0 if nothing is wrong, 1 if something is, 2 if no daemon answers.
    Status(StatusArgs),
    /// Show the labelled pods of this node: whether they are enrolled, and why not
    Pods(ListArgs),
    /// Show the services of the mesh, with their addresses and endpoints
    Services(ListArgs),
    /// Show the policies in force, with their origins
    Policies(ListArgs),
    /// Show the certificates of the pods of this node
    Certs(CertsArgs),
    /// Show the open connections of the pods of this node: their peers, how they are carried, and which rule allows them
    Connections(ConnectionsArgs),
    /// Show connections while they open, end, or are refused
    Observe(ObserveArgs),
    /// Show connections, failures and bytes of each workload of this node, and how long connects take
    Stat(TrafficArgs),
    /// Show which workloads have connections with each other, with mutual TLS or in plaintext
    Edges(TrafficArgs),
    /// Show the plaintext connections to pods of this node: the mode STRICT would refuse them
    WhoIsPlaintext(TrafficArgs),
    /// Show or change the levels of the daemon's log while it runs
    LogLevel(LogLevelArgs),
    /// Show which nodes are connected to a control plane, and whether they have the newest mesh
    ProxyStatus(ProxyStatusArgs),
    /// Write one archive with the state of the daemon and of this machine, without keys and tokens
    BugReport(BugReportArgs),
}

/// How a command prints what a daemon has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// A table, for people.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON with a schemaVersion, for programs.
    Json,
}

impl View {
    /// The format of errors.
    #[must_use]
    pub const fn output(self) -> Output {
        match self {
            Self::Table | Self::Wide => Output::Text,
            Self::Json => Output::Json,
        }
    }
}

/// The daemon that is asked.
#[derive(Clone, Debug, ClapArgs)]
pub struct DaemonArgs {
    /// Address of the admin endpoints of the daemon, in the network of its node
    #[arg(long, env = "ZTUNNEL_ADMIN", value_name = "ADDR", default_value = defaults::ADMIN, value_parser = address)]
    pub admin: SocketAddr,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: View,
}

/// Flags of `status`.
#[derive(Clone, Debug, ClapArgs)]
pub struct StatusArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Pin directory of the daemon, for the check of this machine if no daemon answers
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
}

/// Flags of `pods`, `services` and `policies`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ListArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Only objects of this namespace
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace)]
    pub namespace: Option<String>,
}

/// Flags of `certs`.
#[derive(Clone, Debug, ClapArgs)]
pub struct CertsArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// Flags of `connections`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ConnectionsArgs {
    /// The pods.
    #[command(flatten)]
    pub list: ListArgs,
    /// Only connections of this pod
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
    /// Show them again and again, with their rates, until the command is interrupted
    #[arg(long, short)]
    pub watch: bool,
    /// Time between two views, over which rates are measured
    #[arg(long, value_name = "DURATION", default_value_t = Seconds(2), value_parser = within(Seconds(1)..=Seconds(3_600)), requires = "watch")]
    pub interval: Seconds,
    /// End after so many views
    #[arg(long, value_name = "N", requires = "watch")]
    pub times: Option<u32>,
}

/// Flags of `observe`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ObserveArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Only connections that policy denies, or cuts after a change
    #[arg(long)]
    pub denied: bool,
    /// Only connections that do not reach their destination, for whatever reason
    #[arg(long)]
    pub refused: bool,
    /// Only connections from this client: a namespace, NAMESPACE/POD, an identity (spiffe://…) or an address
    #[arg(long, value_name = "END")]
    pub from: Option<String>,
    /// Only connections to this server: a namespace, NAMESPACE/POD, an identity, an address, or the host name of a service
    #[arg(long, value_name = "END")]
    pub to: Option<String>,
    /// Go on until the command is interrupted
    #[arg(long, short, conflicts_with = "duration")]
    pub follow: bool,
    /// How long events are shown without --follow
    #[arg(long = "for", value_name = "DURATION", default_value_t = Seconds(10), value_parser = within(Seconds(1)..=Seconds(86_400)))]
    pub duration: Seconds,
}

/// Flags of `stat`, `edges` and `who-is-plaintext`.
#[derive(Clone, Debug, ClapArgs)]
pub struct TrafficArgs {
    /// The workloads.
    #[command(flatten)]
    pub list: ListArgs,
    /// Time between the two looks at the counters, over which rates are measured; 0s: one look, without rates
    #[arg(long, value_name = "DURATION", default_value_t = Seconds(5), value_parser = within(Seconds(0)..=Seconds(3_600)))]
    pub interval: Seconds,
}

/// Flags of `log-level`.
#[derive(Clone, Debug, ClapArgs)]
pub struct LogLevelArgs {
    /// The daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Levels to set: a level for everything (off, error, warn, info, debug), or TARGET=LEVEL, with commas in between
    #[arg(value_name = "LEVELS")]
    pub levels: Option<String>,
    /// Go back to the levels with which the daemon was started, before LEVELS are set
    #[arg(long, short)]
    pub reset: bool,
}

/// Flags of `proxy-status`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ProxyStatusArgs {
    /// Address of the admin endpoints of the control plane
    #[arg(long, value_name = "ADDR", default_value = defaults::CONTROL_PLANE_ADMIN, value_parser = address)]
    pub admin: SocketAddr,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: View,
}

/// Flags of `bug-report`.
#[derive(Clone, Debug, ClapArgs)]
pub struct BugReportArgs {
    /// Address of the admin endpoints of the daemon, in the network of its node
    #[arg(long, env = "ZTUNNEL_ADMIN", value_name = "ADDR", default_value = defaults::ADMIN, value_parser = address)]
    pub admin: SocketAddr,
    /// Archive to write; it must not exist
    #[arg(long, value_name = "FILE", default_value = "ztunnel-bug-report.tar")]
    pub out: PathBuf,
    /// File with the log of the daemon, to be added to the archive, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Pin directory of the daemon, for the check of this machine
    #[arg(long, env = "ZTUNNEL_BPF_PIN", value_name = "DIR", default_value = defaults::BPF_PIN)]
    pub bpf_pin: PathBuf,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}
