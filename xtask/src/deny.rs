//! Dependency policy: cargo-deny with the rules of deny.toml.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

/// Longest wait for the advisory database: a network that drops packets must not hang CI.
const FETCH_SECONDS: &str = "120";

/// Checks bans, licences and sources. Checks advisories if their database can be fetched; with `advisories` it must be.
pub(crate) fn run(workspace: &Workspace, advisories: bool) -> Result<()> {
    setup::ensure(Needs { deny: true, ..Needs::default() })?;
    process::run(cargo_deny(workspace).args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    match fetch_database(workspace) {
        Ok(()) => process::run(cargo_deny(workspace).args(["check", "--disable-fetch", "advisories"])),
        Err(reason) if advisories => bail!("advisories: not checked: {reason}"),
        Err(reason) => {
            println!("advisories: not checked: {reason}");
            Ok(())
        }
    }
}

fn cargo_deny(workspace: &Workspace) -> Command {
    let mut command = process::cargo();
    command.arg("deny").current_dir(&workspace.root);
    command
}

/// Fetches the advisory database, or says in one line why that is not possible.
fn fetch_database(workspace: &Workspace) -> Result<(), String> {
    let cargo = process::cargo();
    let output = Command::new("timeout")
        .arg(FETCH_SECONDS)
        .arg(cargo.get_program())
        .args(["deny", "--color=never", "fetch", "db"])
        .current_dir(&workspace.root)
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("could not run cargo-deny: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    if output.status.code() == Some(124) {
        return Err(format!("the advisory database did not arrive within {FETCH_SECONDS} s"));
    }
    Err(one_line_reason(&String::from_utf8_lossy(&output.stderr)))
}

/// git's `fatal:` line, which says most, or else the first line that is not empty.
fn one_line_reason(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let fatal = lines().find_map(|line| line.strip_prefix("fatal: "));
    fatal.or_else(|| lines().next()).unwrap_or("cargo-deny could not fetch the advisory database").to_owned()
}

#[cfg(test)]
mod tests {
    use super::one_line_reason;

    #[test]
    fn the_reason_is_what_git_said() {
        let stderr = "\n[ERROR] failed to fetch: failed to clone\nCloning into 'x'...\nfatal: unable to access 'y'\n";
        assert_eq!(one_line_reason(stderr), "unable to access 'y'");
        assert_eq!(one_line_reason("\nno space\n"), "no space");
    }
}
