//! Puts the BPF object where `include_bytes!` finds it, OUT_DIR/ztunnel.bpf.o, and says which commit and compiler this is.
//!
//! `cargo xtask build` makes the object. Without it an empty one takes its place, so that `cargo check` and `cargo test`
//! work on a machine without the BPF tool chain; the daemon says at its start that it has no programs.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?);
    let folder = target_folder(&out).ok_or_else(|| format!("no target folder above {}", out.display()))?.join("bpf");
    let object = folder.join("ztunnel.bpf.o");
    if !object.exists() {
        fs::create_dir_all(&folder)?;
        // Cargo reruns this script whenever a watched file is absent or younger than the script's last start, so the
        // placeholder exists and is as old as can be.
        File::create(&object)?.set_modified(SystemTime::UNIX_EPOCH)?;
    }
    fs::copy(&object, out.join("ztunnel.bpf.o"))?;
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());
    identify();
    Ok(())
}

/// What a binary is built from. Whoever builds without git sets ZTUNNEL_GIT_COMMIT.
fn identify() {
    println!("cargo::rerun-if-env-changed=ZTUNNEL_GIT_COMMIT");
    let variable = |name: &str| std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty());
    let given = variable("ZTUNNEL_GIT_COMMIT");
    let commit = given.or_else(|| {
        // Its log has one line more for each commit and checkout.
        let log = said("git", &["rev-parse", "--git-path", "logs/HEAD"])?;
        if Path::new(&log).exists() {
            println!("cargo::rerun-if-changed={log}");
        }
        said("git", &["rev-parse", "--short=12", "HEAD"])
    });
    println!("cargo::rustc-env=ZTUNNEL_GIT_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let compiler = variable("RUSTC").and_then(|rustc| said(&rustc, &["--version"]));
    println!("cargo::rustc-env=ZTUNNEL_RUSTC={}", compiler.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=ZTUNNEL_TARGET={}", variable("TARGET").as_deref().unwrap_or("unknown"));
}

/// The first line that a program prints, if it is there and succeeds.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).output().ok().filter(|done| done.status.success())?;
    let line = String::from_utf8(done.stdout).ok()?.lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

/// OUT_DIR is `TARGET_FOLDER/[TRIPLE/]PROFILE/build/…`, wherever the user keeps the target folder.
fn target_folder(out: &Path) -> Option<&Path> {
    let build = out.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "build"))?;
    let folder = build.parent()?.parent()?;
    let triple = std::env::var_os("TARGET")?;
    if folder.file_name() == Some(triple.as_os_str()) { folder.parent() } else { Some(folder) }
}
