//! The versions of the tools with which the last run of `.ci/run` succeeded, compared with those of this machine.
//!
//! A pinned tool chain would have to be downloaded on machines with another one. Instead a difference is shown, to
//! explain strange failures.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use toml::Table;

use super::bpf;
use crate::process;

/// A tool whose version is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Rustc,
    Clippy,
    Rustfmt,
    BpfCompiler,
    BpfLinker,
    CargoDeny,
    Valgrind,
    Linux,
}

impl Tool {
    const ALL: [Self; 8] = [
        Self::Rustc,
        Self::Clippy,
        Self::Rustfmt,
        Self::BpfCompiler,
        Self::BpfLinker,
        Self::CargoDeny,
        Self::Valgrind,
        Self::Linux,
    ];

    /// Its key in `[workspace.metadata.tried]`.
    const fn name(self) -> &'static str {
        match self {
            Self::Rustc => "rustc",
            Self::Clippy => "clippy",
            Self::Rustfmt => "rustfmt",
            Self::BpfCompiler => "bpf-compiler",
            Self::BpfLinker => "bpf-linker",
            Self::CargoDeny => "cargo-deny",
            Self::Valgrind => "valgrind",
            Self::Linux => "linux",
        }
    }

    /// The version on this machine; `None` if the tool is missing.
    fn here(self) -> Option<String> {
        let of_cargo = |name: &str| {
            let mut command = process::cargo();
            command.args([name, "--version"]);
            process::stdout_of(&mut command)
        };
        let of_program = |name: &str| process::stdout_of(Command::new(process::find_program(name)?).arg("--version"));
        let text = match self {
            Self::Rustc => process::stdout_of(Command::new("rustc").arg("--version")),
            Self::Clippy => of_cargo("clippy"),
            Self::Rustfmt => of_cargo("fmt"),
            Self::BpfCompiler => bpf::find().map(|found| found.compiler.release().to_owned()),
            Self::BpfLinker => of_program("bpf-linker"),
            Self::CargoDeny => of_program("cargo-deny"),
            Self::Valgrind => of_program("valgrind"),
            Self::Linux => process::stdout_of(Command::new("uname").arg("-r")),
        }?;
        let version = version_in(&text)?;
        // Distributions release kernels of one version with many different third numbers.
        Some(if self == Self::Linux { version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".") } else { version })
    }
}

/// The first version number of a text.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| c.is_whitespace() || matches!(c, '-' | '('));
    let word = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))?;
    Some(word.to_owned())
}

/// One line for people, and one for each tool that differs.
pub(super) fn report(root: &Path) -> Result<String> {
    let tried = tried(root)?;
    let compared = Tool::ALL.map(|tool| (tool.name(), tried_of(&tried, tool), tool.here()));
    Ok(text(&compared))
}

fn text(compared: &[(&str, Option<&str>, Option<String>)]) -> String {
    let shown: Vec<String> =
        compared.iter().map(|(name, _, here)| format!("{name} {}", here.as_deref().unwrap_or("-"))).collect();
    let differences = compared.iter().filter(|(_, tried, here)| here.is_some() && here.as_deref() != *tried);
    let lines: Vec<String> = differences
        .map(|(name, tried, here)| {
            let (here, tried) = (here.as_deref().unwrap_or("-"), tried.unwrap_or("-"));
            format!("  {name} {here} here, {tried} in the last successful run of .ci/run")
        })
        .collect();
    let mut text = format!("Versions: {}\n", shown.join(", "));
    if lines.is_empty() {
        text.push_str("All of them are those of the last successful run of .ci/run.\n");
    } else {
        text.push_str(
            "These versions differ; most differences do not matter, but look here when something fails strangely:\n",
        );
        text.push_str(&lines.join("\n"));
        text.push('\n');
    }
    text
}

/// `[workspace.metadata.tried]` of the root Cargo.toml.
fn tried(root: &Path) -> Result<Table> {
    let path = root.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let manifest: Table = text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
    let table = manifest.get("workspace").and_then(|workspace| workspace.get("metadata")?.get("tried")?.as_table());
    let table = table.with_context(|| format!("{} has no [workspace.metadata.tried]", path.display()))?;
    for name in table.keys() {
        ensure!(
            Tool::ALL.iter().any(|tool| tool.name() == name),
            "{}: workspace.metadata.tried.{name}: no such tool is compared; remove it",
            path.display()
        );
    }
    Ok(table.clone())
}

fn tried_of(tried: &Table, tool: Tool) -> Option<&str> {
    tried.get(tool.name())?.as_str()
}

#[cfg(test)]
mod tests {
    use super::{Tool, text, tried, tried_of, version_in};
    use crate::workspace::manifest_folder;

    #[test]
    fn the_version_is_found_in_what_tools_print() {
        for (text, version) in [
            ("rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
            ("rustfmt 1.9.0-stable (59807616e1 2026-04-14)", "1.9.0"),
            ("valgrind-3.19.0", "3.19.0"),
            ("6.18.44-cloud-amd64", "6.18.44"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version));
        }
        assert_eq!(version_in("none"), None);
    }

    #[test]
    fn what_differs_is_named_and_what_is_missing_is_not() {
        let same = ("rustc", Some("1.95.0"), Some("1.95.0".to_owned()));
        let report = text(&[same.clone(), ("valgrind", Some("3.19.0"), None)]);
        assert!(report.starts_with("Versions: rustc 1.95.0, valgrind -\nAll of them"), "{report}");
        let report = text(&[same, ("linux", Some("6.18"), Some("6.1".to_owned()))]);
        assert!(report.ends_with("\n  linux 6.1 here, 6.18 in the last successful run of .ci/run\n"), "{report}");
        assert!(!report.contains("  rustc"), "{report}");
    }

    #[test]
    fn the_compiler_of_the_last_run_is_the_one_that_the_workspace_asks_for() {
        let root = manifest_folder().join("..");
        let tried = tried(&root).unwrap();
        for tool in Tool::ALL {
            assert!(tried_of(&tried, tool).is_some(), "workspace.metadata.tried has no {}", tool.name());
        }
        let rust_version = env!("CARGO_PKG_RUST_VERSION");
        let tried = tried_of(&tried, Tool::Rustc).unwrap();
        assert!(
            tried.starts_with(&format!("{rust_version}.")),
            "rust-version is {rust_version}, and .ci/run tried {tried}"
        );
    }
}
