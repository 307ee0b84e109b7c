//! The binary for distribution.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::process;
use crate::workspace::Workspace;

/// Builds the daemon with the `release-lto` profile (one unit, fat LTO, stripped), and puts it and its checksum in target/dist/.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let built = build::daemon(workspace, Profile::ReleaseLto)?;
    let folder = workspace.target.join("dist");
    let name = format!("ztunnel-{}-{}-linux", workspace.version, std::env::consts::ARCH);
    let binary = folder.join(&name);
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    fs::copy(&built, &binary).with_context(|| format!("could not write {}", binary.display()))?;

    // sha256sum runs in the folder, so that the checksum file names the binary without a path and `sha256sum -c` works
    // anywhere.
    let sum = process::stdout_of(Command::new("sha256sum").arg(&name).current_dir(&folder))
        .with_context(|| format!("could not run sha256sum on {}", binary.display()))?;
    let sum_file = folder.join(format!("{name}.sha256"));
    fs::write(&sum_file, format!("{sum}\n")).with_context(|| format!("could not write {}", sum_file.display()))?;
    println!("{}\n{sum}", binary.display());
    Ok(())
}
