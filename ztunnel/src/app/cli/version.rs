//! `ztunnel version`, `ztunnel completions` and `ztunnel man`: information about the program itself.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::{Generator, shells};

use super::output::json;
use crate::config::{
    Args,
    commands::{Output, Shell, VersionArgs},
    version::{BUILD, long},
};

/// The version of this binary.
///
/// # Errors
/// None.
pub fn version(args: &VersionArgs) -> anyhow::Result<String> {
    Ok(match args.output {
        Output::Text => format!("ztunnel {}\n", long()),
        Output::Json => json(&BUILD),
    })
}

/// A script for the completion of commands and flags.
///
/// # Errors
/// None.
pub fn completions(shell: Shell) -> anyhow::Result<String> {
    match shell {
        Shell::Bash => script(shells::Bash),
        Shell::Elvish => script(shells::Elvish),
        Shell::Fish => script(shells::Fish),
        Shell::PowerShell => script(shells::PowerShell),
        Shell::Zsh => script(shells::Zsh),
    }
}

fn script(shell: impl Generator) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ztunnel", &mut script);
    String::from_utf8(script).context("the script is not UTF-8: this is a bug, please report it")
}

/// Writes a manual page for the program and for each of its commands.
///
/// # Errors
/// The directory or a file can't be written.
pub fn man(dir: &Path) -> anyhow::Result<String> {
    let what = || format!("cannot write manual pages to {}", dir.display());
    fs::create_dir_all(dir).with_context(what)?;
    clap_mangen::generate_to(Args::command(), dir).with_context(what)?;
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::{completions, man, version};
    use crate::config::commands::{Output, Shell, VersionArgs};

    #[test]
    fn version_tells_the_build() {
        let text = version(&VersionArgs { output: Output::Text }).unwrap();
        for line in ["ztunnel 0.", "commit:", "BPF layout:", "compiler:"] {
            assert!(text.contains(line), "{text}");
        }
        let json: serde_json::Value =
            serde_json::from_str(&version(&VersionArgs { output: Output::Json }).unwrap()).unwrap();
        assert_eq!(json["schemaVersion"], 1);
        assert_eq!(json["bpfLayout"], ebpf_common::LAYOUT);
        assert!(json["commit"].is_string() && json["version"] == env!("CARGO_PKG_VERSION"), "{json}");
    }

    #[test]
    fn every_shell_has_a_script_and_every_command_a_page() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            assert!(completions(shell).unwrap().contains("analyze"), "{shell:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        man(&dir.path().join("man")).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path().join("man")).unwrap().map(|one| one.unwrap().file_name()).collect();
        names.sort();
        for page in ["ztunnel.1", "ztunnel-run.1", "ztunnel-analyze.1", "ztunnel-ca-init.1"] {
            assert!(names.iter().any(|name| name == page), "{page}: {names:?}");
        }
    }
}
