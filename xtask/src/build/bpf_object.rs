//! Compiles the BPF object with the BPF tool chain, and puts it where ztunnel's build script looks for it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::setup::bpf::{self, Toolchain};
use crate::workspace::Workspace;

/// Compiles the programs and updates target/bpf/ztunnel.bpf.o.
pub(super) fn build(workspace: &Workspace) -> Result<()> {
    let tools = bpf::find().context("no BPF tool chain: run `cargo xtask setup`")?;
    println!("BPF tool chain: {}; {}", tools.compiler, tools.linker.display());

    // The programs have a target folder of their own: their compiler and flags would invalidate the host's build each
    // time.
    let target = workspace.target.join("bpf-build");
    let mut command = tools.compiler.cargo();
    command.current_dir(&workspace.root);
    command.args(["build", "--package", "ztunnel-ebpf", "--bin", "ztunnel-ebpf", "--release"]);
    command.args(["--target", bpf::TARGET, "--target-dir"]).arg(&target).args(tools.compiler.core_arguments());
    // The encoded variable takes precedence over RUSTFLAGS and configuration, whose flags are for the host.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(&tools).join("\u{1f}")).env_remove("RUSTFLAGS");
    process::run(&mut command).context("the BPF programs did not build")?;

    let built = target.join(bpf::TARGET).join("release/ztunnel-ebpf");
    let object = fs::read(&built).with_context(|| format!("could not read {}", built.display()))?;
    ensure!(has_section(&object, ".BTF"), "{} has no .BTF section: is it linked with bpf-linker?", built.display());
    publish(&object, &workspace.target.join("bpf/ztunnel.bpf.o"))
}

fn flags(tools: &Toolchain) -> Vec<String> {
    vec![
        format!("-Clinker={}", tools.linker.display()),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The layouts of pt_regs and similar types in aya: those of the kernel that will load the object.
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ]
}

/// Whether the object has a section of this name. Names end with a zero byte. LLVM may store `.BTF` as the end of
/// `.rel.BTF`, which exists only together with it.
fn has_section(object: &[u8], name: &str) -> bool {
    let name = [name.as_bytes(), b"\0"].concat();
    object.windows(name.len()).any(|window| window == name)
}

/// Writes the object if it differs: with an unchanged object cargo rebuilds nothing.
fn publish(object: &[u8], path: &Path) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == object) {
        return Ok(());
    }
    let write = || {
        let fresh = path.with_extension("new");
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&fresh, object)?;
        fs::rename(&fresh, path)
    };
    write().with_context(|| format!("could not write {}", path.display()))?;
    println!("{} ({} KiB)", path.display(), object.len() / 1024);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_found_by_name() {
        assert!(has_section(b"\x7fELF\0.text\0.BTF\0.maps\0", ".BTF"));
        assert!(has_section(b"\x7fELF\0.text\0.rel.BTF\0", ".BTF"));
        assert!(!has_section(b"\x7fELF\0.text\0.BTF.ext\0", ".BTF"));
    }

    #[test]
    fn an_unchanged_object_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bpf/object");
        let modified = || fs::metadata(&path).unwrap().modified().unwrap();
        publish(b"one", &path).unwrap();
        let first = modified();
        publish(b"one", &path).unwrap();
        assert_eq!(modified(), first);
        publish(b"two", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
