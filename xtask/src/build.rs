//! Building the daemon with its BPF programs inside.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

mod bpf_object;

/// The way the daemon is compiled. The BPF programs are always optimised, as the verifier requires.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For debugging.
    Dev,
    /// For demo and tests: optimised, quick to link.
    Release,
    /// For distribution: one unit, fat LTO, stripped.
    ReleaseLto,
}

impl Profile {
    /// Cargo's name of the profile, and of its folder in the target folder.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Dev => ("dev", "debug"),
            Self::Release => ("release", "release"),
            Self::ReleaseLto => ("release-lto", "release-lto"),
        }
    }
}

/// Builds the BPF object, then the daemon that embeds it; sets up the BPF tool chain first if it is missing.
pub(crate) fn daemon(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    setup::ensure(Needs { bpf: true, ..Needs::default() })?;
    bpf_object::build(workspace)?;
    let (name, folder) = profile.names();
    let mut command = process::cargo();
    command.args(["build", "--package", "ztunnel", "--bin", "ztunnel", "--profile", name]).current_dir(&workspace.root);
    process::run(&mut command)?;
    Ok(workspace.target.join(folder).join("ztunnel"))
}

/// Replaces this process by a release build of this program with the same arguments, since the program's own work is
/// part of what it measures.
pub(crate) fn run_optimised(workspace: &Workspace) -> Result<()> {
    let mut command = process::cargo();
    command.args(["build", "--release", "--package", "xtask"]).current_dir(&workspace.root);
    process::run(&mut command)?;
    let program = workspace.target.join("release/xtask");
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("could not run {}", program.display()))
}
