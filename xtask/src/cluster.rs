//! A real Kubernetes on this machine: its programs, an API server, kubectl.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::cluster::api::{ApiServer, Options};
use ztunnel_tests::cluster::leftovers;
use ztunnel_tests::cluster::programs::{KUBERNETES, Programs};
use ztunnel_tests::names::Prefix;
use ztunnel_tests::netns;

use crate::{process, workspace};

pub(crate) mod programs;

/// What is done with the cluster.
#[derive(clap::Subcommand)]
pub(crate) enum Action {
    /// Build and unpack the programs of the cluster into the cache, and do nothing else
    ///
    /// Kubernetes is built from pinned Go modules (tests/cluster/): some ten minutes of processor time, once. etcd, the
    /// container runtime and the CNI plugins are Debian's packages, unpacked and not installed. The cache is `ztunnel-cluster`
    /// in XDG_CACHE_HOME or ~/.cache.
    Programs {
        /// Only what an API server needs: kube-apiserver, kubectl and etcd
        #[arg(long)]
        api_only: bool,
        /// Change nothing; exit 1 if something is missing
        #[arg(long)]
        check: bool,
    },
    /// Start the cluster (needs root)
    Up {
        /// Only etcd and kube-apiserver
        #[arg(long, required = true)]
        api_only: bool,
    },
    /// Remove the cluster, also one whose start was interrupted; exit 1 if something of it is left
    Down,
    /// Run kubectl as the administrator of the cluster
    Kubectl {
        /// What kubectl is to do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
}

/// Does what `action` says.
pub(crate) fn run(workspace: &workspace::Workspace, action: Action) -> Result<()> {
    match action {
        Action::Programs { api_only, check: true } => {
            let missing = Programs::cache()?.missing(api_only);
            ensure!(missing.is_empty(), "not in the cache: {}", missing.join(", "));
            Ok(())
        }
        Action::Programs { api_only, check: false } => programs::ensure(workspace, api_only),
        Action::Up { api_only } => {
            needs_root()?;
            programs::ensure(workspace, api_only)?;
            let found = leftovers::found(&Prefix::cluster())?;
            ensure!(
                found.is_empty(),
                "a cluster is there already ({}): remove it with `cargo xtask cluster down`",
                found.first().map_or("", String::as_str)
            );
            let options = Options { prefix: Prefix::cluster(), detached: true, controllers: false, scheduler: false };
            let mut api =
                ApiServer::start_with(options).context("`cargo xtask cluster down` removes what has started")?;
            api.keep();
            println!("{} is ready: cargo xtask cluster kubectl version", api.url());
            Ok(())
        }
        Action::Down => {
            needs_root()?;
            down()
        }
        Action::Kubectl { arguments } => {
            needs_root()?;
            kubectl(&arguments)
        }
    }
}

fn needs_root() -> Result<()> {
    ensure!(workspace::is_root()?, "the cluster is made of network namespaces and cgroups: run it as root");
    Ok(())
}

fn down() -> Result<()> {
    let prefix = Prefix::cluster();
    let errors = leftovers::remove(&prefix);
    let left = leftovers::found(&prefix)?;
    if !errors.is_empty() || !left.is_empty() {
        bail!("of the cluster is left:\n{}", [errors, left].concat().join("\n"));
    }
    println!("nothing of the cluster is left");
    Ok(())
}

/// kubectl with this process's streams and folder.
fn kubectl(arguments: &[String]) -> Result<()> {
    let prefix = Prefix::cluster();
    let kubeconfig = prefix.folder_path().join("pki/admin.kubeconfig");
    ensure!(kubeconfig.exists(), "there is no cluster: start one with `cargo xtask cluster up`");
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}/{}", netns::FOLDER, prefix.member("api")))
        .arg(Programs::cache()?.built(&KUBERNETES, "kubectl")?)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env("KUBECACHEDIR", prefix.folder_path().join("kubectl"));
    let status = command.status().with_context(|| format!("could not start `{}`", process::shown(&command)))?;
    ensure!(status.success(), "kubectl failed: {status}");
    Ok(())
}
