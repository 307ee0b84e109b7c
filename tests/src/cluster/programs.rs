//! The programs of a cluster, in a cache outside of the tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{Context as Digest, SHA256};

use crate::settings;

/// How to get missing programs.
const REMEDY: &str =
    "`cargo xtask cluster programs` builds and unpacks them (needs Go, some minutes of processor time)";

/// A pinned Go module and the programs that are built from it.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The name of its folder in `tests/cluster/`.
    pub name: &'static str,
    /// The package of each program. The last element of its path that is no version is the program's name.
    pub packages: &'static [&'static str],
    /// The module file.
    pub file: &'static str,
    /// The checksums of all modules that it requires.
    pub sums: &'static str,
}

/// Kubernetes. The API server and kubectl come first, because they are enough for many tests.
pub const KUBERNETES: Module = Module {
    name: "kubernetes",
    packages: &[
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "k8s.io/kubernetes/cmd/kubectl",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubelet",
        "k8s.io/kubernetes/cmd/kube-proxy",
    ],
    file: include_str!("../../cluster/kubernetes/go.mod"),
    sums: include_str!("../../cluster/kubernetes/go.sum"),
};

/// Helm, which renders and installs the chart. kubectl has Kustomize.
pub const HELM: Module = Module {
    name: "helm",
    packages: &["helm.sh/helm/v4/cmd/helm"],
    file: include_str!("../../cluster/helm/go.mod"),
    sums: include_str!("../../cluster/helm/go.sum"),
};

/// All modules.
pub const MODULES: [Module; 2] = [KUBERNETES, HELM];

/// Debian's packages, with the files that are used of each. They are unpacked into the cache and not installed.
pub const PACKAGES: [(&str, &[&str]); 5] = [
    ("etcd-server", &["usr/bin/etcd"]),
    ("containerd", &["usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr"]),
    ("runc", &["usr/sbin/runc"]),
    ("containernetworking-plugins", &["usr/lib/cni/bridge", "usr/lib/cni/host-local", "usr/lib/cni/loopback"]),
    ("busybox-static", &["bin/busybox"]),
];

/// The place of the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    cache: PathBuf,
}

impl Programs {
    /// The cache of this user, with or without the programs in it.
    ///
    /// # Errors
    /// When the user has no cache folder.
    pub fn cache() -> Result<Self> {
        Ok(Self { cache: settings::cluster_cache()? })
    }

    /// The folder of the cache.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.cache
    }

    /// The folder of a Go module's programs. Its name depends on the module file and the checksums.
    #[must_use]
    pub fn module(&self, module: &Module) -> PathBuf {
        self.cache.join(format!("{}-{}", module.name, fingerprint(&[module.file, module.sums])))
    }

    /// The folder into which Debian's packages are unpacked.
    #[must_use]
    pub fn debian(&self) -> PathBuf {
        let names: Vec<&str> = PACKAGES.iter().map(|(package, _)| *package).collect();
        self.cache.join(format!("debian-{}", fingerprint(&names)))
    }

    /// A program that was built from a Go module.
    ///
    /// # Errors
    /// When it is not in the cache: `NOT RUN`, with the remedy.
    pub fn built(&self, module: &Module, program: &str) -> Result<PathBuf> {
        present(self.module(module).join(program))
    }

    /// A program of Debian's packages, by its path in the package.
    ///
    /// # Errors
    /// When it is not in the cache: `NOT RUN`, with the remedy.
    pub fn unpacked(&self, path: &str) -> Result<PathBuf> {
        present(self.debian().join(path))
    }

    /// The missing programs of those that a cluster needs, or (`api_only`) an API server.
    #[must_use]
    pub fn missing(&self, api_only: bool) -> Vec<String> {
        let modules =
            if api_only { vec![(KUBERNETES, 2)] } else { MODULES.map(|module| (module, usize::MAX)).to_vec() };
        let built = modules.iter().flat_map(|(module, count)| {
            module.packages.iter().take(*count).map(|package| self.module(module).join(program_of(package)))
        });
        let packages = if api_only { 1 } else { PACKAGES.len() };
        let unpacked =
            PACKAGES.iter().take(packages).flat_map(|(_, files)| files.iter().map(|file| self.debian().join(file)));
        built.chain(unpacked).filter(|path| !path.is_file()).map(|path| name_of(&path)).collect()
    }
}

/// The name of the program that Go builds from a package.
#[must_use]
pub fn program_of(package: &str) -> &str {
    let is_version = |part: &&str| part.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    package.rsplit('/').find(|part| !is_version(part)).unwrap_or(package)
}

/// The version at which a module file requires a module.
///
/// # Errors
/// When the file does not require the module.
pub fn required<'a>(file: &'a str, module: &str) -> Result<&'a str> {
    let lines = file.lines().map(|line| line.trim().trim_start_matches("require ").trim_start());
    let version =
        lines.filter_map(|line| line.strip_prefix(module)?.strip_prefix(' ')).find(|rest| rest.starts_with('v'));
    version
        .and_then(|rest| rest.split(' ').next())
        .with_context(|| format!("the module file does not require {module}"))
}

fn present(path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("NOT RUN: there is no {}: {REMEDY}", path.display());
    }
    Ok(path)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn fingerprint(texts: &[&str]) -> String {
    let mut digest = Digest::new(&SHA256);
    for text in texts {
        digest.update(&text.len().to_be_bytes());
        digest.update(text.as_bytes());
    }
    digest.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_kubernetes_is_read_from_its_module_file() -> Result<()> {
        assert!(required(KUBERNETES.file, "k8s.io/kubernetes")?.starts_with("v1."));
        assert!(required(KUBERNETES.file, "example.org/none").is_err());
        Ok(())
    }

    #[test]
    fn a_program_has_the_name_that_go_gives_it() {
        assert_eq!(program_of("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(program_of("sigs.k8s.io/kustomize/kustomize/v5"), "kustomize");
    }

    #[test]
    fn another_module_file_is_another_folder() -> Result<()> {
        let programs = Programs { cache: "/c".into() };
        let other = Module { sums: "", ..KUBERNETES };
        assert_ne!(programs.module(&KUBERNETES), programs.module(&other));
        let error = programs.built(&other, "kubelet").unwrap_err().to_string();
        assert!(error.starts_with("NOT RUN"), "{error}");
        Ok(())
    }
}
