//! Fuzzing with the stable compiler: its LLVM has the instrumentation that libFuzzer needs; cargo-fuzz only sets the
//! flags for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

/// Coverage of edges and comparisons, and overflow checks, in optimised code.
const FLAGS: [&str; 10] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// An input that takes longer than this many seconds is a finding: each should take microseconds.
const SLOWEST: &str = "-timeout=2";
/// A target that needs more than this many MiB is a finding.
const LARGEST: &str = "-rss_limit_mb=1024";

/// Builds the targets and runs each of them, or the named one, for the given number of seconds.
pub(crate) fn run(workspace: &Workspace, only: Option<&str>, seconds: u32) -> Result<()> {
    let folder = workspace.root.join("ztunnel/fuzz");
    let all = targets(&folder)?;
    let chosen: Vec<&str> =
        all.iter().map(String::as_str).filter(|name| only.is_none_or(|only| only == *name)).collect();
    ensure!(!chosen.is_empty(), "there is no fuzz target {:?}, only {}", only.unwrap_or_default(), all.join(", "));
    setup::ensure(Needs::default())?;
    let built = build(workspace, &chosen)?;
    let mut broken = Vec::new();
    for name in chosen {
        if let Err(error) = fuzz(workspace, &folder, &built, name, seconds) {
            eprintln!("{error:#}");
            broken.push(name);
        }
    }
    if !broken.is_empty() {
        bail!("broken: {}", broken.join(", "));
    }
    Ok(())
}

/// The names of the targets, in order.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let files = files(&folder.join("targets"))?;
    Ok(files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect())
}

/// Builds the targets and returns the folder with the binaries. An explicit target keeps the flags away from build
/// scripts and macros. A target folder of its own keeps the rest of the workspace from being compiled again.
fn build(workspace: &Workspace, names: &[&str]) -> Result<PathBuf> {
    let about = process::stdout_of(Command::new("rustc").arg("-vV")).context("could not run `rustc -vV`")?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
    let target = workspace.target.join("fuzz");
    let mut command = process::cargo();
    command
        .args(["build", "--release", "--package", "ztunnel-fuzz", "--target", host, "--target-dir"])
        .arg(&target)
        .args(names.iter().flat_map(|name| ["--bin", name]))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .current_dir(&workspace.root);
    process::run(&mut command)?;
    Ok(target.join(host).join("release"))
}

fn fuzz(workspace: &Workspace, folder: &Path, built: &Path, name: &str, seconds: u32) -> Result<()> {
    let corpus = workspace.target.join("fuzz/corpus").join(name);
    let findings = workspace.target.join("fuzz/findings").join(name);
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    }
    let begun = SystemTime::now();
    let mut command = Command::new(built.join(name));
    // libFuzzer reads and writes the first folder, and only reads the second one.
    command
        .arg(&corpus)
        .arg(folder.join("seeds").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args([SLOWEST, LARGEST, "-print_final_stats=1", "-verbosity=0"]);
    process::run(&mut command).map_err(|error| match written_since(&findings, begun).as_slice() {
        [] => error.context(format!("{name} broke, and kept no input")),
        inputs => error.context(format!("{name} broke on {}", inputs.join(", "))),
    })
}

fn written_since(folder: &Path, begun: SystemTime) -> Vec<String> {
    let is_new = |file: &PathBuf| file.metadata().and_then(|data| data.modified()).is_ok_and(|time| time >= begun);
    files(folder).unwrap_or_default().into_iter().filter(is_new).map(|file| file.display().to_string()).collect()
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))?;
    entries.map(|entry| Ok(entry.with_context(|| format!("could not list {}", folder.display()))?.path())).collect()
}
