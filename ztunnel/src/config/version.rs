//! The version and build of this binary.

use serde::Serialize;

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit of the build, with the suffix `-dirty` if files had been changed; `unknown` without git.
pub const COMMIT: &str = env!("ZTUNNEL_GIT_COMMIT");
/// Version and commit.
pub const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ZTUNNEL_GIT_COMMIT"), ")");
/// The build of this binary, for programs.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// See [`VERSION`].
    pub version: &'static str,
    /// See [`COMMIT`].
    pub commit: &'static str,
    /// The layout of the BPF maps. Two daemons can share maps only if their layouts are equal.
    pub bpf_layout: u32,
    /// The compiler's version.
    pub rustc: &'static str,
    /// The target machine.
    pub target: &'static str,
}

/// This binary.
pub const BUILD: Build = Build {
    version: VERSION,
    commit: COMMIT,
    bpf_layout: ebpf_common::LAYOUT,
    rustc: env!("ZTUNNEL_RUSTC"),
    target: env!("ZTUNNEL_TARGET"),
};

/// The same as text, with one value per line.
#[must_use]
pub fn long() -> String {
    let Build { version, commit, bpf_layout, rustc, target } = BUILD;
    format!("{version}\ncommit:     {commit}\nBPF layout: {bpf_layout}\ncompiler:   {rustc}\ntarget:     {target}")
}
