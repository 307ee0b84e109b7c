//! bpf-linker: checks whether the installed linker is built for the compiler's LLVM, and builds it again if not.
//!
//! A linker for an older LLVM cannot read the compiler's bitcode, and its error message does not say so clearly. So the
//! two are compared before a build: by the shared library that the linker loads, by cargo's record of the features with
//! which it was installed, or by linking a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::apt::Apt;
use super::bpf::{self, Compiler};
use super::{Mode, Row};
use crate::process;

/// The state of the linker with regard to one compiler.
pub(super) enum Linker {
    Usable(PathBuf),
    /// The linker cannot be used, for this reason.
    Unusable(String),
}

/// Looks for a linker with the compiler's LLVM. A linker that does not fit is skipped, even if it is the first on
/// `PATH`.
pub(super) fn find(compiler: &Compiler) -> Linker {
    let mut reasons = Vec::new();
    for path in process::find_programs("bpf-linker") {
        match examine(compiler, path) {
            Linker::Usable(path) => return Linker::Usable(path),
            Linker::Unusable(reason) => reasons.push(reason),
        }
    }
    Linker::Unusable(reasons.into_iter().next().unwrap_or_else(|| "-".to_owned()))
}

fn examine(compiler: &Compiler, path: PathBuf) -> Linker {
    if process::stdout_of(Command::new(&path).arg("--version")).is_none() {
        return Linker::Unusable(format!("{} does not start (a library is gone?)", path.display()));
    }
    let wanted = compiler.llvm_major();
    match llvm_major(&path) {
        Some(major) if major == wanted => Linker::Usable(path),
        Some(major) => Linker::Unusable(format!("{} is for LLVM {major}, not {wanted}", path.display())),
        None if links(compiler, &path) => Linker::Usable(path),
        None => Linker::Unusable(format!("{} can't link what the compiler makes", path.display())),
    }
}

/// The row of the table; builds the linker if it is to be installed.
pub(super) fn row(compiler: &Compiler, apt: &mut Apt, mode: Mode) -> Row {
    let major = compiler.llvm_major();
    let requirement = format!("bpf-linker for LLVM {major}");
    let reason = match find(compiler) {
        Linker::Usable(path) => return Row::met(requirement, path.display().to_string()),
        Linker::Unusable(reason) => reason,
    };
    let row = Row::missing(requirement, reason, format!("cargo install bpf-linker (llvm-{major})"));
    if mode == Mode::Check {
        return row;
    }
    row.attempted(install(major, apt).and_then(|()| match find(compiler) {
        Linker::Usable(path) => Ok(path.display().to_string()),
        Linker::Unusable(reason) => bail!("bpf-linker was installed, but {reason}"),
    }))
}

fn install(major: u32, apt: &mut Apt) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{major}");
    let packages = [
        format!("llvm-{major}-dev"),
        format!("libpolly-{major}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
    ];
    let missing = Apt::missing(&packages.each_ref().map(String::as_str));
    if !missing.is_empty() {
        apt.install(&missing).with_context(|| format!("bpf-linker has to be built with LLVM {major}"))?;
    }
    let config = Path::new(&prefix).join("bin/llvm-config");
    ensure!(config.exists(), "no {}: bpf-linker can't be built for LLVM {major}", config.display());

    let feature = format!("llvm-{major}");
    let mut command = bpf::cargo_install();
    command.args(["bpf-linker", "--locked", "--force", "--no-default-features", "--features", &feature]);
    command.env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix).env("LLVM_PREFIX", &prefix);
    process::run_keeping_tail(&mut command).map_err(|error| {
        if lacks_feature(&error.to_string(), &feature) {
            return error.context(format!(
                "bpf-linker's newest release does not support LLVM {major} yet, which the BPF compiler uses: use a rustup \
                 nightly of another LLVM with rust-src, or hold rustc-web at an older version"
            ));
        }
        error
    })
}

/// Whether cargo said that the package has no such feature.
fn lacks_feature(message: &str, feature: &str) -> bool {
    message.lines().any(|line| line.contains(feature) && line.contains("feature") && line.contains("does not"))
}

fn llvm_major(linker: &Path) -> Option<u32> {
    let by_library = || loaded_llvm_major(&fs::read(linker).ok()?);
    let by_record = || {
        let record = linker.parent()?.parent()?.join(".crates2.json");
        recorded_llvm_major(&fs::read_to_string(record).ok()?)
    };
    by_library().or_else(by_record)
}

/// The version in the name of LLVM's shared library (`libLLVM.so.22.1`, `libLLVM-19.so`) that a program loads.
fn loaded_llvm_major(program: &[u8]) -> Option<u32> {
    const NAMES: [&[u8]; 2] = [b"libLLVM.so.", b"libLLVM-"];
    NAMES.iter().find_map(|name| {
        let starts = program.windows(name.len()).enumerate().filter(|(_, window)| window == name);
        starts.filter_map(|(start, _)| leading_number(program.get(start + name.len()..)?)).next()
    })
}

fn leading_number(text: &[u8]) -> Option<u32> {
    let digits: String = text.iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The `llvm-N` among the features that `cargo install` recorded.
fn recorded_llvm_major(record: &str) -> Option<u32> {
    let record: Value = serde_json::from_str(record).ok()?;
    let installs = record.get("installs")?.as_object()?;
    let (_, entry) = installs.iter().find(|(name, _)| name.starts_with("bpf-linker "))?;
    let features = entry.get("features")?.as_array()?.iter().filter_map(Value::as_str);
    features.filter_map(|feature| feature.strip_prefix("llvm-")?.parse().ok()).next()
}

/// Links an empty program. Only Debian's compiler can do this: a nightly would have to build `core` first.
fn links(compiler: &Compiler, linker: &Path) -> bool {
    if !matches!(compiler, Compiler::System(_)) {
        return true;
    }
    let folder = std::env::temp_dir().join(format!("xtask-link-{}", std::process::id()));
    let attempt = || -> std::io::Result<bool> {
        fs::create_dir_all(&folder)?;
        let source = folder.join("probe.rs");
        let text = "#![no_std]\n#![no_main]\n#[unsafe(no_mangle)]\npub fn probe() -> u64 { 0 }\n\
                    #[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }\n";
        fs::write(&source, text)?;
        let mut rustc = compiler.rustc();
        rustc.args(["--edition=2024", "--target", bpf::TARGET]).arg(format!("-Clinker={}", linker.display()));
        rustc.arg("-o").arg(folder.join("probe.o")).arg(&source);
        Ok(process::stdout_of(&mut rustc).is_some())
    };
    let linked = attempt().unwrap_or(false);
    let _leftovers = fs::remove_dir_all(&folder);
    linked
}

#[cfg(test)]
mod tests;
