//! Instructions of policy evaluation, of routing, and of encoding and decoding CONNECT requests, compared with
//! committed figures.
//!
//! valgrind counts them. This needs no hardware counter and no idle machine: two runs differ only by hash seeds and
//! their effect on the heap, which is less than 1 %.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::process;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

/// The committed figures.
const FILE: &str = "ztunnel/benches/instructions.json";

/// The function whose calls are counted: see `ztunnel/benches/instructions`.
const COUNTED: &str = "ztunnel_instructions::counted";

/// Growth by more than this fraction is an error. The compiler's placement of code changes a count by up to 12 %,
/// although the code stays the same. The test looks for another order of growth, or for a detour.
const TOLERANCE: f64 = 0.15;

/// Instructions of one operation of each scenario.
type Counts = BTreeMap<String, u64>;

/// The content of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Figures {
    /// The architecture: counts differ between architectures.
    machine: String,
    /// The output of `rustc --version`.
    compiler: String,
    /// Instructions of one operation.
    instructions: Counts,
}

/// Counts, and compares the counts with the file or updates it.
pub(crate) fn run(workspace: &Workspace, update: bool) -> Result<()> {
    setup::ensure(Needs { valgrind: true, ..Needs::default() })?;
    let file = workspace.root.join(FILE);
    // Read before the work: the file may be unreadable.
    let committed = if update { None } else { Some(read(&file)?) };
    let compiler = process::stdout_of(Command::new("rustc").arg("--version")).context("could not run `rustc`")?;
    let folder = workspace.target.join("instructions");
    let instructions = count(workspace, &folder)?;
    let now = Figures { machine: std::env::consts::ARCH.to_owned(), compiler, instructions };
    let Some(committed) = committed else {
        let text = serde_json::to_string_pretty(&now).context("the figures cannot be written as JSON")?;
        fs::write(&file, text + "\n").with_context(|| format!("could not write {}", file.display()))?;
        println!("{}", file.display());
        return Ok(());
    };
    println!("{}", table(&now.instructions, &committed.instructions));
    let Verdict { grown, shrunk } = compare(&now, &committed)?;
    if !shrunk.is_empty() {
        println!("Less than before by more than {} %: {}.", TOLERANCE * 100.0, shrunk.join("; "));
        println!("`cargo xtask instructions --update` renews {FILE}, so that a later increase is noticed.");
    }
    ensure!(grown.is_empty(), "{}", advice(&grown, &now, &committed, &folder));
    Ok(())
}

fn read(file: &Path) -> Result<Figures> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("could not read {}: `cargo xtask instructions --update` makes it", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a file of figures", file.display()))
}

/// Runs the scenarios under callgrind, which writes one file for each scenario to `folder`.
fn count(workspace: &Workspace, folder: &Path) -> Result<Counts> {
    let mut build = process::cargo();
    // The same profile and features as for the tested daemon, so that its library is not compiled again.
    build.args(["build", "--release", "--package", "ztunnel-instructions"]).current_dir(&workspace.root);
    process::run(&mut build)?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("could not empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind"])
        .args(["toggle-collect", "dump-after"].map(|option| format!("--{option}={COUNTED}")))
        .arg(format!("--callgrind-out-file={}", folder.join(OUT).display()))
        .arg(workspace.target.join("release/ztunnel-instructions"));
    let line = process::shown(&valgrind);
    println!("$ {line}");
    let output = valgrind
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{line}`"))?;
    ensure!(output.status.success(), "`{line}` failed: {}", output.status);
    let said = String::from_utf8(output.stdout).context("the names of the scenarios are not UTF-8")?;
    counts(&said, |number, name| {
        let (written, kept) = (folder.join(format!("{OUT}.{number}")), folder.join(file_name(name)));
        fs::rename(&written, &kept)
            .with_context(|| format!("no {}: did callgrind see no function {COUNTED}?", written.display()))?;
        fs::read_to_string(&kept).with_context(|| format!("could not read {}", kept.display()))
    })
}

/// The name of callgrind's dumps, before their number.
const OUT: &str = "callgrind.out";

/// The name of a dump once its scenario is known.
fn file_name(scenario: &str) -> String {
    let words = scenario.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-") + ".callgrind"
}

/// Combines the output of the scenarios (after each scenario one line with the number of operations and the name) with
/// callgrind's dumps, which are numbered from 1.
fn counts(said: &str, dump: impl Fn(usize, &str) -> Result<String>) -> Result<Counts> {
    let mut counts = Counts::new();
    for (number, line) in (1..).zip(said.lines()) {
        let (times, name) = line.split_once('\t').with_context(|| format!("not a scenario: {line:?}"))?;
        let times: u64 = times.parse().with_context(|| format!("not a scenario: {line:?}"))?;
        let total = total(&dump(number, name)?).with_context(|| format!("callgrind's count of {name:?}"))?;
        ensure!(times > 0 && total > 0, "{name:?} did nothing: {total} instructions, {times} times");
        let before = counts.insert(name.to_owned(), (total + times / 2) / times);
        ensure!(before.is_none(), "{name:?} was counted twice");
    }
    ensure!(!counts.is_empty(), "no scenario was counted");
    Ok(counts)
}

/// The `totals:` line of a dump.
fn total(dump: &str) -> Result<u64> {
    let line = dump.lines().find_map(|line| line.strip_prefix("totals:")).context("no totals")?;
    line.trim().parse().with_context(|| format!("totals {line:?}"))
}

/// The differences, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    grown: Vec<String>,
    shrunk: Vec<String>,
}

/// Compares two sets of figures; an error if they cannot be compared.
fn compare(now: &Figures, committed: &Figures) -> Result<Verdict> {
    let (machine, theirs) = (&now.machine, &committed.machine);
    ensure!(
        machine == theirs,
        "{FILE} has figures of {theirs}, and this machine is {machine}: the figures cannot be compared"
    );
    let names = |counts: &Counts, other: &Counts| {
        counts.keys().filter(|name| !other.contains_key(*name)).cloned().collect::<Vec<_>>().join("; ")
    };
    let (new, gone) =
        (names(&now.instructions, &committed.instructions), names(&committed.instructions, &now.instructions));
    if !new.is_empty() || !gone.is_empty() {
        let told = [("not in the file", new), ("only in the file", gone)];
        let told = told.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| format!("{what}: {names}"));
        bail!("{}; `cargo xtask instructions --update` renews {FILE}", told.collect::<Vec<_>>().join("; "));
    }
    let mut verdict = Verdict::default();
    for (name, count) in &now.instructions {
        let Some(before) = committed.instructions.get(name) else { continue };
        let line = format!("{name}: {count} instructions, was {before} ({})", change(*count, *before));
        let (count, before) = (*count as f64, *before as f64);
        if count > before * (1.0 + TOLERANCE) {
            verdict.grown.push(line);
        } else if count < before * (1.0 - TOLERANCE) {
            verdict.shrunk.push(line);
        }
    }
    Ok(verdict)
}

fn change(now: u64, before: u64) -> String {
    format!("{:+.1} %", (now as f64 / before.max(1) as f64 - 1.0) * 100.0)
}

fn advice(grown: &[String], now: &Figures, committed: &Figures, folder: &Path) -> String {
    let mut text = format!(
        "more instructions than before by more than {} %:\n  {}\n\
         Look where they are spent: `callgrind_annotate --inclusive=yes` of the scenario's file in {}.\n\
         If they are worth it, `cargo xtask instructions --update` renews {FILE}; say why in the commit.",
        TOLERANCE * 100.0,
        grown.join("\n  "),
        folder.display(),
    );
    if now.compiler != committed.compiler {
        text.push_str(&format!(
            "\nThe file was made with {}, this is {}: a compiler alone can shift the counts. Count the commit before with \
             this compiler as well, and renew the file in a commit of its own.",
            committed.compiler, now.compiler
        ));
    }
    text
}

fn table(now: &Counts, before: &Counts) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SCENARIO", "INSTRUCTIONS", "WAS", "CHANGE"]);
    for (name, count) in now {
        let was = before.get(name);
        let change = was.map(|was| change(*count, *was));
        let was = was.map(u64::to_string);
        table.add_row([name.clone(), count.to_string(), was.unwrap_or_default(), change.unwrap_or_default()]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests;
