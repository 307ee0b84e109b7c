//! Puts the BPF object where `include_bytes!` finds it: OUT_DIR/ztunnel.bpf.o.
//!
//! `cargo xtask build` makes the object. Without it an empty one takes its place, so that `cargo check` and `cargo test`
//! work on a machine without the BPF tool chain; the daemon says at its start that it has no programs.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
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
    Ok(())
}

/// OUT_DIR is `TARGET_FOLDER/[TRIPLE/]PROFILE/build/…`, wherever the user keeps the target folder.
fn target_folder(out: &Path) -> Option<&Path> {
    let build = out.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "build"))?;
    let folder = build.parent()?.parent()?;
    let triple = std::env::var_os("TARGET")?;
    if folder.file_name() == Some(triple.as_os_str()) { folder.parent() } else { Some(folder) }
}
