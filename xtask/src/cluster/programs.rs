//! Builds the programs of the cluster from Go modules, and unpacks those of Debian, into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::cluster::programs::{KUBERNETES, MODULES, Module, PACKAGES, Programs, program_of, required};

use crate::process;
use crate::workspace::Workspace;

/// Where Go's own distribution is put, beside the folders of `PATH`.
const GO: &str = "/usr/local/go/bin/go";

/// How many programs of Kubernetes an API server needs: the first ones of the module.
const OF_API: usize = 2;

/// Why programs of the cluster are not there and can't be had on this machine.
#[derive(Debug)]
pub(crate) struct Unavailable(pub(crate) String);

/// Builds and unpacks what is missing in the cache.
pub(crate) fn ensure(workspace: &Workspace, api_only: bool) -> Result<()> {
    match available(workspace, api_only)? {
        Ok(()) => Ok(()),
        Err(Unavailable(reason)) => bail!(reason),
    }
}

/// What is not in the cache, so that it would have to be built first.
pub(crate) fn unbuilt() -> Result<Option<Unavailable>> {
    let missing = Programs::cache()?.missing(false);
    Ok((!missing.is_empty()).then(|| {
        Unavailable(format!(
            "{} are not built yet: run `cargo xtask cluster programs`, which takes some ten minutes and keeps them",
            missing.join(", ")
        ))
    }))
}

/// The same; that this machine lacks Go or Debian's packages is told apart from a build that fails.
pub(crate) fn available(workspace: &Workspace, api_only: bool) -> Result<Result<(), Unavailable>> {
    let programs = Programs::cache()?;
    let missing = programs.missing(api_only);
    if missing.is_empty() {
        return Ok(Ok(()));
    }
    println!("Not in the cache of the cluster's programs: {}", missing.join(", "));
    if let Err(unavailable) = debian(&programs)? {
        return Ok(Err(unavailable));
    }
    let modules = if api_only { &[KUBERNETES][..] } else { &MODULES };
    for module in modules {
        let count = if api_only { OF_API } else { module.packages.len() };
        if let Err(unavailable) = built(workspace, &programs, module, count)? {
            return Ok(Err(unavailable));
        }
    }
    let missing = programs.missing(api_only);
    ensure!(
        missing.is_empty(),
        "built and unpacked everything, but these programs are not there: {}",
        missing.join(", ")
    );
    Ok(Ok(()))
}

/// Builds the first `count` programs of a module that are not in the cache.
fn built(workspace: &Workspace, programs: &Programs, module: &Module, count: usize) -> Result<Result<(), Unavailable>> {
    let folder = programs.module(module);
    let packages = module.packages.iter().take(count);
    let missing: Vec<&&str> = packages.filter(|package| !folder.join(program_of(package)).is_file()).collect();
    if missing.is_empty() {
        return Ok(Ok(()));
    }
    let Some(go) = process::find_program("go").or_else(|| Some(PathBuf::from(GO)).filter(|path| path.is_file())) else {
        return Ok(Err(Unavailable(format!(
            "there is no Go, of which the programs of the cluster are built: install {} or newer (https://go.dev/dl), put \
             `go` on PATH, and run this command again",
            go_version(module.file)
        ))));
    };
    let source = workspace.root.join("tests/cluster").join(module.name);
    let command = |words: &[&str]| {
        let mut command = Command::new(&go);
        command
            .args(words)
            .current_dir(&source)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly -buildvcs=false");
        command
    };
    if let Err(error) = process::run_keeping_tail(&mut command(&["mod", "download"])) {
        let what = format!("cannot get the Go modules of tests/cluster/{}: {error:#}", module.name);
        return Ok(Err(Unavailable(what)));
    }
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    for package in missing {
        let name = program_of(package);
        let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
        let mut build = command(&["build", "-trimpath", "-ldflags", &linker_flags(module)?, "-o"]);
        build.arg(&unfinished).arg(package);
        let done = process::run_keeping_tail(&mut build);
        let done = done.and_then(|()| fs::rename(&unfinished, folder.join(name)).context("could not name the program"));
        if let Err(error) = done {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
    }
    Ok(Ok(()))
}

/// Without symbols; Kubernetes' programs ask each other for their version, which is set here.
fn linker_flags(module: &Module) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    if module.name == KUBERNETES.name {
        let version = required(module.file, "k8s.io/kubernetes")?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        for (name, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
            flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
        }
    }
    Ok(flags)
}

fn go_version(file: &str) -> String {
    let version = file.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or("a current version");
    format!("Go {version}")
}

/// Unpacks Debian's packages; they are not installed, so that no service is enabled and no file of the machine changes.
fn debian(programs: &Programs) -> Result<Result<(), Unavailable>> {
    let folder = programs.debian();
    let is_there = || PACKAGES.iter().flat_map(|(_, files)| *files).all(|file| folder.join(file).is_file());
    if is_there() {
        return Ok(Ok(()));
    }
    let names = PACKAGES.map(|(package, _)| package);
    if process::find_program("apt-get").is_none() || process::find_program("dpkg-deb").is_none() {
        let what = format!("this is not Debian: unpack its packages {} into {}", names.join(", "), folder.display());
        return Ok(Err(Unavailable(what)));
    }
    let unfinished = folder.with_added_extension(std::process::id().to_string());
    fs::create_dir_all(&unfinished).with_context(|| format!("could not make {}", unfinished.display()))?;
    let done = unpack(&names, &unfinished);
    let done = done.and_then(|fetched| {
        if fetched.is_ok() {
            let _ = fs::remove_dir_all(&folder);
            fs::rename(&unfinished, &folder).with_context(|| format!("could not make {}", folder.display()))?;
        }
        Ok(fetched)
    });
    let _ = fs::remove_dir_all(&unfinished);
    done
}

fn unpack(packages: &[&str], folder: &Path) -> Result<Result<(), Unavailable>> {
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq"]).args(packages).current_dir(folder);
    if process::run_keeping_tail(&mut download).is_err() {
        // The lists may be missing or out of date.
        let updated = process::run_keeping_tail(Command::new("apt-get").args(["update", "-qq"]));
        if let Err(error) = updated.and_then(|()| process::run_keeping_tail(&mut download)) {
            return Ok(Err(Unavailable(format!("cannot get Debian's packages: {error:#}"))));
        }
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            process::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder))?;
            fs::remove_file(&path)?;
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_kubernetes_are_built_with_its_version() {
        let flags = linker_flags(&KUBERNETES).unwrap();
        assert!(flags.contains("version.gitMajor=1 "), "{flags}");
        assert!(go_version(KUBERNETES.file).starts_with("Go 1."), "{}", go_version(KUBERNETES.file));
    }
}
