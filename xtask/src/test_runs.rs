//! Which tests there are, and how each kind is run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::{self, Profile};
use crate::setup::{self, Needs};
use crate::workspace::Workspace;
use crate::{process, workspace};

/// Privileged tests load the machine (10,000 connections, floods): more at once and their deadlines measure each other.
const PRIVILEGED_THREADS: &str = "--test-threads=2";

/// Which tests to run.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Selection {
    /// Libraries, binaries and doc tests of ebpf-common, ztunnel and xtask
    Unit,
    /// Tests of the daemon on the real kernel (root)
    Privileged,
    /// Both
    All,
}

/// Runs the tests whose names contain `filter`; the privileged ones against `daemon` or a fresh release build.
pub(crate) fn run(workspace: &Workspace, what: Selection, filter: Option<&str>, daemon: Option<&Path>) -> Result<()> {
    if what != Selection::Privileged {
        setup::ensure(Needs::default())?;
        // One cargo call for all three: separate calls would resolve features separately and compile dependencies twice.
        let mut command = cargo_test(workspace);
        command.args(["--package", "ebpf-common", "--package", "ztunnel", "--package", "xtask", "--"]).args(filter);
        process::run(&mut command)?;
    }
    if what != Selection::Unit {
        privileged(workspace, filter, daemon)?;
    }
    Ok(())
}

fn privileged(workspace: &Workspace, filter: Option<&str>, daemon: Option<&Path>) -> Result<()> {
    ensure!(
        workspace::is_root()?,
        "the privileged tests make network namespaces and load BPF programs: run them as root (`cargo xtask test unit` \
         needs no root)"
    );
    setup::ensure(Needs { bpf: true, programs: true, ..Needs::default() })?;
    let daemon = match daemon {
        Some(path) => given(path)?,
        None => build::daemon(workspace, Profile::Release)?,
    };
    let mut command = cargo_test(workspace);
    command.args(["--package", "ztunnel-tests", "--", PRIVILEGED_THREADS]).args(filter).env("ZTUNNEL_BIN", daemon);
    process::run(&mut command)
}

/// Absolute, as the tests run in another folder.
fn given(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("--daemon {}: no such file", path.display()))
}

fn cargo_test(workspace: &Workspace) -> Command {
    let mut command = process::cargo();
    command.args(["test", "--no-fail-fast"]).current_dir(&workspace.root);
    command
}
