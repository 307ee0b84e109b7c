//! What this binary is.

use serde::Serialize;

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, with `-dirty` behind it where files had been changed; `unknown` without git.
pub const COMMIT: &str = env!("ZTUNNEL_GIT_COMMIT");
/// Version and commit.
pub const SHORT: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ZTUNNEL_GIT_COMMIT"), ")");
/// What this binary is, for programs.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// See [`VERSION`].
    pub version: &'static str,
    /// See [`COMMIT`].
    pub commit: &'static str,
    /// The layout of the BPF maps: two daemons share maps only if it is the same.
    pub bpf_layout: u32,
    /// The compiler.
    pub rustc: &'static str,
    /// The machine that it is for.
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

/// The same, a line each.
#[must_use]
pub fn long() -> String {
    let Build { version, commit, bpf_layout, rustc, target } = BUILD;
    format!("{version}\ncommit:     {commit}\nBPF layout: {bpf_layout}\ncompiler:   {rustc}\ntarget:     {target}")
}
