//! Flags of the CNI plugin, and what a container runtime says to it.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::defaults;
use crate::model::name::check_name;

const HEADING: &str = "CNI plugin";

/// Flags of `run` that concern the plugin.
#[derive(Clone, Debug, ClapArgs)]
pub struct InstallArgs {
    /// Install the CNI plugin ztunnel-cni on this node, so that the containers of a pod of the mesh start only when the pod is enrolled.
    /// Needs --pods kubernetes. Without this flag a plugin that was installed before is removed
    #[arg(long = "cni-install", id = "cni_install", env = "ZTUNNEL_CNI_INSTALL", conflicts_with = "mesh", requires = "pods", help_heading = HEADING)]
    pub install: bool,
    /// Directory of the node's CNI programs, which the daemon has to see under the same path
    #[arg(long = "cni-bin-dir", id = "cni_bin_dir", env = "ZTUNNEL_CNI_BIN_DIR", value_name = "DIR", default_value = defaults::CNI_PROGRAMS, help_heading = HEADING)]
    pub programs: PathBuf,
    /// Directory of the node's CNI configuration, which the daemon has to see under the same path
    #[arg(long = "cni-conf-dir", id = "cni_conf_dir", env = "ZTUNNEL_CNI_CONF_DIR", value_name = "DIR", default_value = defaults::CNI_CONFIGURATION, help_heading = HEADING)]
    pub configuration: PathBuf,
    /// Namespaces whose pods start without the plugin asking a daemon, separated by commas: those that the daemon itself needs. The
    /// namespace of --daemon-set is always one of them
    #[arg(long = "cni-exclude-namespaces", id = "cni_exclude_namespaces", env = "ZTUNNEL_CNI_EXCLUDE_NAMESPACES", value_name = "NAMES", value_delimiter = ',', value_parser = namespace, default_value = defaults::CNI_EXCLUDED, help_heading = HEADING)]
    pub excluded: Vec<String>,
}

fn namespace(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// What the container runtime says to the plugin, in the variables of the CNI specification; and a trial of an installed plugin.
#[derive(Clone, Debug, ClapArgs)]
pub struct PluginArgs {
    /// Command: ADD, CHECK, DEL, GC, STATUS or VERSION
    #[arg(long, env = "CNI_COMMAND", value_name = "COMMAND", default_value = "")]
    pub command: String,
    /// Name of the pod sandbox
    #[arg(long, env = "CNI_CONTAINERID", value_name = "ID", default_value = "")]
    pub container_id: String,
    /// Path of the network namespace of the pod
    #[arg(long, env = "CNI_NETNS", value_name = "PATH", default_value = "")]
    pub netns: String,
    /// More about the pod: KEY=VALUE, separated by semicolons
    #[arg(long, env = "CNI_ARGS", value_name = "ARGS", default_value = "")]
    pub args: String,
    /// Root directory from which --try-program is started
    #[arg(long, value_name = "DIR", requires = "try_program", hide = true)]
    pub try_root: Option<PathBuf>,
    /// Plugin that is asked for its versions
    #[arg(long, value_name = "FILE", requires = "try_root", hide = true)]
    pub try_program: Option<PathBuf>,
}
