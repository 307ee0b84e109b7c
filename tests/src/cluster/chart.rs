//! The Helm chart and the kustomize base of the tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::api::helm;
use super::programs::Programs;

/// The namespace of the installation by default.
pub const NAMESPACE: &str = "istio-system";

/// The name of the installation.
pub const RELEASE: &str = "ztunnel";

/// The folder of the chart.
#[must_use]
pub fn folder() -> PathBuf {
    deploy().join("helm/ztunnel")
}

/// The folder of the kustomize base.
#[must_use]
pub fn base() -> PathBuf {
    deploy().join("kustomize/base")
}

/// The folder with the definitions of Istio's objects that the chart installs where there are none.
#[must_use]
pub fn definitions() -> PathBuf {
    folder().join("files/crds")
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy")
}

/// The manifests that Helm renders from the chart with these arguments, for example `--set`.
///
/// # Errors
/// With what Helm says.
pub fn rendered(programs: &Programs, args: &[&str]) -> Result<String> {
    let home = tempfile::tempdir()?;
    let chart = folder();
    let done = helm(programs, home.path())?
        .args(["template", RELEASE, "--namespace", NAMESPACE])
        .args([chart.as_os_str()])
        .args(args)
        .finish()?;
    ensure!(done.success, "helm template failed: {}", done.stderr);
    Ok(done.stdout)
}

/// The manifests of the kustomize base, rendered from the chart.
///
/// # Errors
/// With what Helm says.
pub fn of_base(programs: &Programs) -> Result<String> {
    let rendered = rendered(programs, &["--set", "namespace.create=true", "--set", "crds.install=false"])?;
    Ok(format!("# Written by `cargo xtask cluster render` from deploy/helm/ztunnel.\n{rendered}"))
}

/// Writes the manifests of the kustomize base.
///
/// # Errors
/// When Helm fails, or the file can't be written.
pub fn write_base(programs: &Programs) -> Result<PathBuf> {
    let path = base().join("ztunnel.yaml");
    fs::write(&path, of_base(programs)?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
