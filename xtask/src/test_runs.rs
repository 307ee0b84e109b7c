//! The kinds of tests, and how each is run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Profile};
use crate::cluster::programs::{self, Unavailable};
use crate::setup::{self, Needs};
use crate::workspace::Workspace;
use crate::{image, process, workspace};

/// Privileged tests load the machine (10,000 connections, floods). With more of them at once, deadlines would fail
/// because of the load.
const PRIVILEGED_THREADS: &str = "--test-threads=2";

/// An API server needs a processor for seconds while it starts.
const CLUSTER_THREADS: &str = "--test-threads=2";

/// Which tests to run.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Selection {
    /// Libraries, binaries and doc tests of ebpf-common, ztunnel and xtask
    Unit,
    /// Tests of the daemon on the real kernel (root)
    Privileged,
    /// Tests of the daemon on a real Kubernetes (root, Go)
    Cluster,
    /// Units and privileged tests
    All,
}

/// The tests of a kind that run, and the daemon that is tested.
pub(crate) struct Selected<'a> {
    /// Only tests whose names contain this text.
    pub(crate) filter: Option<&'a str>,
    /// The daemon to test instead of a fresh release build.
    pub(crate) daemon: Option<&'a Path>,
    /// Whether it is no error if cluster tests can't run on this machine.
    pub(crate) if_possible: bool,
}

/// Runs the selected tests.
pub(crate) fn run(workspace: &Workspace, what: Selection, selected: &Selected<'_>) -> Result<()> {
    match what {
        Selection::Unit => unit(workspace, selected),
        Selection::Privileged => privileged(workspace, selected),
        Selection::Cluster => on_cluster(workspace, selected),
        Selection::All => {
            unit(workspace, selected)?;
            privileged(workspace, selected)
        }
    }
}

fn unit(workspace: &Workspace, selected: &Selected<'_>) -> Result<()> {
    setup::ensure(Needs::default())?;
    // One cargo call for all three: separate calls would resolve features separately and compile dependencies twice.
    let mut command = cargo_test(workspace);
    command
        .args(["--package", "ebpf-common", "--package", "ztunnel", "--package", "xtask", "--"])
        .args(selected.filter);
    process::run(&mut command)
}

fn privileged(workspace: &Workspace, selected: &Selected<'_>) -> Result<()> {
    ensure!(
        workspace::is_root()?,
        "the privileged tests make network namespaces and load BPF programs: run them as root (`cargo xtask test unit` \
         needs no root)"
    );
    setup::ensure(Needs { bpf: true, programs: true, ..Needs::default() })?;
    let daemon = daemon(workspace, selected)?;
    let mut command = cargo_test(workspace);
    command.args(["--package", "ztunnel-tests", "--", PRIVILEGED_THREADS]).args(selected.filter);
    process::run(command.env("ZTUNNEL_BIN", daemon))
}

/// The files `tests/tests/cluster_*.rs`, whose tests are ignored elsewhere.
fn on_cluster(workspace: &Workspace, selected: &Selected<'_>) -> Result<()> {
    let unavailable = if !workspace::is_root()? {
        Some("they make network namespaces and cgroups: run them as root".to_owned())
    } else if let (true, Some(Unavailable(reason))) = (selected.if_possible, programs::unbuilt()?) {
        Some(reason)
    } else {
        programs::available(workspace, false)?.err().map(|Unavailable(reason)| reason)
    };
    match unavailable {
        Some(reason) if selected.if_possible => {
            println!("\nNOT RUN: the cluster tests (`cargo xtask test cluster`): {reason}");
            return Ok(());
        }
        Some(reason) => bail!("the cluster tests cannot run here: {reason}"),
        None => {}
    }
    setup::ensure(Needs { bpf: true, programs: true, ..Needs::default() })?;
    let daemon = daemon(workspace, selected)?;
    let image = image::for_cluster(workspace, &daemon)?;
    let mut command = cargo_test(workspace);
    command.args(["--package", "ztunnel-tests", "--test", "cluster_*", "--", "--ignored", CLUSTER_THREADS]);
    process::run(command.args(selected.filter).env("ZTUNNEL_BIN", daemon).env("ZTUNNEL_IMAGE", image))
}

fn daemon(workspace: &Workspace, selected: &Selected<'_>) -> Result<PathBuf> {
    match selected.daemon {
        Some(path) => given(path),
        None => build::daemon(workspace, Profile::Release),
    }
}

/// Makes the path absolute, since the tests run in another folder.
fn given(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("--daemon {}: no such file", path.display()))
}

fn cargo_test(workspace: &Workspace) -> Command {
    let mut command = process::cargo();
    command.args(["test", "--no-fail-fast"]).current_dir(&workspace.root);
    command
}
