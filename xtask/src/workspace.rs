//! Finds the workspace and its target folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::process;

/// The workspace as cargo sees it.
pub(crate) struct Workspace {
    /// The folder of the root Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, according to the user's configuration.
    pub(crate) target: PathBuf,
    /// The daemon's version.
    pub(crate) version: String,
}

impl Workspace {
    /// Determines them with `cargo metadata`.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = manifest_folder().join("Cargo.toml");
        let mut command = process::cargo();
        command.args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"]).arg(&manifest);
        let text = process::stdout_of(&mut command)
            .with_context(|| format!("`{}` failed: is Cargo.toml valid?", process::shown(&command)))?;
        Self::from_metadata(&text)
    }

    fn from_metadata(text: &str) -> Result<Self> {
        let metadata: Value = serde_json::from_str(text).context("cargo metadata is not JSON")?;
        let field = |name: &str| metadata.get(name).and_then(Value::as_str);
        let version = metadata
            .get("packages")
            .and_then(Value::as_array)
            .and_then(|packages| packages.iter().find(|package| package.get("name") == Some(&"ztunnel".into())))
            .and_then(|package| package.get("version")?.as_str());
        match (field("workspace_root"), field("target_directory"), version) {
            (Some(root), Some(target), Some(version)) => {
                Ok(Self { root: root.into(), target: target.into(), version: version.to_owned() })
            }
            _ => Err(anyhow!("cargo metadata names no workspace with a package `ztunnel`")),
        }
    }
}

/// xtask's own folder: as cargo says it at run time, so that a moved clone works, or else as it was at build time.
pub(crate) fn manifest_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).into(), PathBuf::from)
}

/// Whether this process is root.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata("/proc/self").context("could not read /proc/self: is /proc mounted?")?;
    Ok(data.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_metadata_is_read() {
        let workspace = Workspace::locate().unwrap();
        assert!(workspace.root.join("xtask/Cargo.toml").exists());
        assert!(workspace.target.is_absolute());
    }

    #[test]
    fn another_workspace_is_refused() {
        assert!(
            Workspace::from_metadata(r#"{"workspace_root":"/a","target_directory":"/a/t","packages":[]}"#).is_err()
        );
    }
}
