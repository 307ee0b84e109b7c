//! A real Kubernetes on this machine: its programs, an API server, kubectl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::cluster::api::{ApiServer, Options};
use ztunnel_tests::cluster::programs::{HELM, KUBERNETES, Programs};
use ztunnel_tests::cluster::{Cluster, chart, leftovers, node};
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
    /// Start the cluster, and wait until its nodes are ready (needs root)
    Up {
        /// Only etcd and kube-apiserver
        #[arg(long, conflicts_with = "nodes")]
        api_only: bool,
        /// How many nodes
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Remove the cluster, also one whose start was interrupted; exit 1 if something of it is left
    Down,
    /// Import an image, a tar of an OCI layout as `cargo xtask image` writes it, on all nodes
    LoadImage {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        images: Vec<PathBuf>,
    },
    /// Write the manifests of the kustomize base (deploy/kustomize) as the Helm chart makes them
    Render,
    /// Run a program on a node, in all of its namespaces
    Enter {
        /// The node, for example `node-1`
        node: String,
        /// The program and its arguments; a shell if there is none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
        program: Vec<String>,
    },
    /// Run Helm as the administrator of the cluster
    Helm {
        /// What Helm is to do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
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
        Action::Up { api_only, nodes } => {
            needs_root()?;
            programs::ensure(workspace, api_only)?;
            up((!api_only).then_some(nodes))
        }
        Action::LoadImage { images } => {
            needs_root()?;
            let programs = Programs::cache()?;
            for (node, first) in nodes()? {
                for image in &images {
                    node::import(first, &programs, image).with_context(|| node.clone())?;
                    println!("{node} has {}", image.display());
                }
            }
            Ok(())
        }
        Action::Render => {
            programs::ensure(workspace, false)?;
            println!("{}", chart::write_base(&Programs::cache()?)?.display());
            Ok(())
        }
        Action::Enter { node, program } => {
            needs_root()?;
            enter(&node, &program)
        }
        Action::Down => {
            needs_root()?;
            down()
        }
        Action::Helm { arguments } => {
            needs_root()?;
            let home = Prefix::cluster().folder_path().join("helm");
            let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR"]
                .map(|name| (name, home.as_path()));
            administer(&Programs::cache()?.built(&HELM, "helm")?, &arguments, &homes)
        }
        Action::Kubectl { arguments } => {
            needs_root()?;
            let folder = Prefix::cluster().folder_path().join("kubectl");
            administer(&Programs::cache()?.built(&KUBERNETES, "kubectl")?, &arguments, &[("KUBECACHEDIR", &folder)])
        }
    }
}

fn needs_root() -> Result<()> {
    ensure!(workspace::is_root()?, "the cluster is made of network namespaces and cgroups: run it as root");
    Ok(())
}

fn up(nodes: Option<u8>) -> Result<()> {
    let began = Instant::now();
    let found = leftovers::found(&Prefix::cluster())?;
    ensure!(
        found.is_empty(),
        "a cluster is there already ({}): remove it with `cargo xtask cluster down`",
        found.first().map_or("", String::as_str)
    );
    match nodes {
        Some(nodes) => Cluster::start_with(Prefix::cluster(), nodes, true)?.keep(),
        None => {
            let (prefix, detached) = (Prefix::cluster(), true);
            let options = Options { prefix, detached, controllers: false, scheduler: false };
            ApiServer::start_with(options)?.keep();
        }
    }
    let seconds = began.elapsed().as_secs_f32();
    match nodes {
        Some(nodes) => println!("ready after {seconds:.1} s, {nodes} nodes: cargo xtask cluster kubectl get nodes"),
        None => println!("ready after {seconds:.1} s: cargo xtask cluster kubectl version"),
    }
    Ok(())
}

/// The nodes of the cluster, each with its first process.
fn nodes() -> Result<Vec<(String, i32)>> {
    let nodes = node::running(&Prefix::cluster())?;
    ensure!(!nodes.is_empty(), "there is no cluster with nodes: start one with `cargo xtask cluster up`");
    Ok(nodes)
}

fn enter(node: &str, program: &[String]) -> Result<()> {
    let nodes = nodes()?;
    let found = nodes.iter().find(|(name, _)| name == node);
    let (_, first) = found.with_context(|| {
        let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
        format!("there is no node {node:?}: there are {}", names.join(", "))
    })?;
    let mut command = Command::new("nsenter");
    command.args(["-t", &first.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]);
    if program.is_empty() {
        command.arg("sh");
    }
    command.args(program);
    let status = command.status().with_context(|| format!("could not start `{}`", process::shown(&command)))?;
    ensure!(status.success(), "{status}");
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

/// Runs a program of the administrator with this process's streams and folder.
fn administer(program: &Path, arguments: &[String], variables: &[(&str, &Path)]) -> Result<()> {
    let prefix = Prefix::cluster();
    let kubeconfig = prefix.folder_path().join("pki/admin.kubeconfig");
    ensure!(kubeconfig.exists(), "there is no cluster: start one with `cargo xtask cluster up`");
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}/{}", netns::FOLDER, prefix.member("api")))
        .arg(program)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .envs(variables.iter().copied());
    let status = command.status().with_context(|| format!("could not start `{}`", process::shown(&command)))?;
    ensure!(status.success(), "{} failed: {status}", program.display());
    Ok(())
}
