//! The BPF tool chain: a compiler that has `core` for BPF, or its source, and a bpf-linker for the same LLVM.
//!
//! Two tool chains work: Debian's `rustc-web` with a compiled `core`, and a rustup nightly with `rust-src`. The set-up
//! installs the first, and uses the second if it is present.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::apt::Apt;
use super::linker::{self, Linker};
use super::{Mode, Row};
use crate::process;

/// The BPF target with this machine's byte order.
pub(crate) const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// A compiler that can make BPF objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Debian's compiler: `core` for BPF is compiled; it needs `RUSTC_BOOTSTRAP`, since its channel is stable.
    System(Version),
    /// A rustup tool chain of this name: builds `core` from source.
    Nightly(String, Version),
}

/// The output of `rustc -vV`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    release: String,
    llvm_major: u32,
}

/// Everything that a BPF build needs.
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

impl Compiler {
    fn version(&self) -> &Version {
        match self {
            Self::System(version) | Self::Nightly(_, version) => version,
        }
    }

    /// Its version, without the channel.
    pub(super) fn release(&self) -> &str {
        let release = self.version().release.as_str();
        release.split('-').next().unwrap_or(release)
    }

    /// The LLVM whose bitcode it writes.
    pub(super) fn llvm_major(&self) -> u32 {
        self.version().llvm_major
    }

    /// The compiler itself, with unstable features allowed.
    pub(super) fn rustc(&self) -> Command {
        match self {
            Self::System(_) => {
                let mut command = Command::new(SYSTEM_RUSTC);
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly(name, _) => rustup_run(name, "rustc"),
        }
    }

    /// A cargo that compiles with this compiler.
    pub(crate) fn cargo(&self) -> Command {
        match self {
            Self::System(_) => {
                let mut command = process::cargo();
                command.env("RUSTC", SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly(name, _) => {
                let mut command = rustup_run(name, "cargo");
                command.env_remove("RUSTC");
                command
            }
        }
    }

    /// The arguments that cargo needs to find or build `core`.
    pub(crate) fn core_arguments(&self) -> &'static [&'static str] {
        match self {
            Self::System(_) => &[],
            Self::Nightly(..) => &["-Z", "build-std=core"],
        }
    }
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Version { release, llvm_major } = self.version();
        match self {
            Self::System(_) => write!(f, "{SYSTEM_RUSTC} {release}, LLVM {llvm_major}"),
            Self::Nightly(name, _) => write!(f, "rustup {name} {release}, LLVM {llvm_major}, build-std"),
        }
    }
}

impl Version {
    /// Reads the output of `rustc -vV`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let llvm_major = field("LLVM version")?.split('.').next()?.parse().ok()?;
        Some(Self { release: field("release")?.to_owned(), llvm_major })
    }
}

/// The tool chain, if it is complete.
pub(crate) fn find() -> Option<Toolchain> {
    let compiler = choose()?;
    match linker::find(&compiler) {
        Linker::Usable(linker) => Some(Toolchain { compiler, linker }),
        Linker::Unusable(_) => None,
    }
}

/// The lines of the table for compiler and linker.
pub(super) fn rows(apt: &mut Apt, mode: Mode) -> Vec<Row> {
    let (row, compiler) = compiler_row(apt, mode);
    let linker = match compiler {
        Some(compiler) => linker::row(&compiler, apt, mode),
        None => Row::missing("bpf-linker", "-", "after the BPF compiler, whose LLVM it must share"),
    };
    vec![row, linker]
}

fn compiler_row(apt: &mut Apt, mode: Mode) -> (Row, Option<Compiler>) {
    let requirement = "BPF compiler";
    if let Some(compiler) = choose() {
        return (Row::met(requirement, compiler.to_string()), Some(compiler));
    }
    let row = Row::missing(requirement, "-", format!("apt-get install {}", SYSTEM_PACKAGES.join(" ")));
    if mode == Mode::Check {
        return (row, None);
    }
    let attempt = apt
        .install(&SYSTEM_PACKAGES)
        .and_then(|()| system().with_context(|| format!("{SYSTEM_RUSTC} has no `core` for {TARGET} even so")))
        .context("other way: `rustup toolchain install nightly --component rust-src`");
    match attempt {
        Ok(compiler) => (row.attempted(Ok(compiler.to_string())), Some(compiler)),
        Err(error) => (row.attempted(Err(error)), None),
    }
}

/// The first compiler on this machine whose linker is here too, or else the first compiler.
fn choose() -> Option<Compiler> {
    let mut found: Vec<Compiler> = system().into_iter().chain(nightly()).collect();
    let ready = found.iter().position(|compiler| matches!(linker::find(compiler), Linker::Usable(_)));
    (!found.is_empty()).then(|| found.swap_remove(ready.unwrap_or(0)))
}

fn system() -> Option<Compiler> {
    let rustc = || Command::new(SYSTEM_RUSTC);
    let version = Version::parse(&process::stdout_of(rustc().arg("-vV"))?)?;
    let libraries = process::stdout_of(rustc().args(["--print=target-libdir", "--target", TARGET]))?;
    has_core(Path::new(&libraries)).then_some(Compiler::System(version))
}

fn has_core(libraries: &Path) -> bool {
    std::fs::read_dir(libraries)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
}

fn nightly() -> Option<Compiler> {
    let list = process::stdout_of(Command::new("rustup").args(["toolchain", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).find_map(|name| {
        let sysroot = process::stdout_of(rustup_run(name, "rustc").args(["--print", "sysroot"]))?;
        let has_source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists();
        let version = Version::parse(&process::stdout_of(rustup_run(name, "rustc").arg("-vV"))?)?;
        has_source.then(|| Compiler::Nightly(name.to_owned(), version))
    })
}

fn rustup_run(toolchain: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    // The cargo that runs xtask sets these variables, which would select its own tool chain.
    command.args(["run", toolchain, program]).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

/// `cargo install` without the workspace's target folder and flags, which are not for the tool.
pub(super) fn cargo_install() -> Command {
    let mut command = process::cargo();
    command.arg("install").env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

#[cfg(test)]
mod tests {
    use super::{Compiler, Version};

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                          host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn rustc_names_its_release_and_llvm() {
        let version = Version::parse(DEBIAN).unwrap();
        assert_eq!(version, Version { release: "1.96.0".to_owned(), llvm_major: 22 });
        assert_eq!(Compiler::System(version).to_string(), "/usr/bin/rustc 1.96.0, LLVM 22");
    }

    #[test]
    fn a_version_without_llvm_is_none() {
        assert_eq!(Version::parse("rustc 1.96.0\nrelease: 1.96.0\n"), None);
        assert_eq!(Version::parse(""), None);
    }
}
