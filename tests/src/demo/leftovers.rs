//! The remains of a demo that was kept on purpose, or was killed: how they are found and removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::names::{BPF_ROOT, DEMO, Prefix, listed};
use crate::netns;
use crate::wait;

/// File with one process in each line: its id and its start time, so that a reused id is not taken for the process.
const PROCESSES: &str = "processes";

/// File that exists if everything was kept on purpose.
const KEPT: &str = "kept";

/// The demo's processes, recorded as they start. The first is the demo itself.
#[derive(Debug)]
pub(super) struct Leftovers {
    path: PathBuf,
}

impl Leftovers {
    /// Begins the record with this process.
    pub(super) fn begin(folder: &Path) -> Result<Self> {
        let mut leftovers = Self { path: folder.join(PROCESSES) };
        leftovers.add(std::process::id())?;
        Ok(leftovers)
    }

    /// Records a process.
    pub(super) fn add(&mut self, id: u32) -> Result<()> {
        let mut text = fs::read_to_string(&self.path).unwrap_or_default();
        text.push_str(&format!("{id} {}\n", start_time(id).context("a process ended early")?));
        fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Marks everything as kept on purpose.
pub(super) fn mark_kept(folder: &Path) -> Result<()> {
    fs::write(folder.join(KEPT), "").context("cannot mark the demo as kept")
}

/// Removes the remains of a killed demo.
///
/// # Errors
/// When a demo is running, or was kept on purpose.
pub(super) fn refuse_or_clean() -> Result<()> {
    let folder = Prefix::demo().folder_path();
    if folder.join(KEPT).exists() {
        bail!("a demo was left running with --keep: `cargo xtask demo --clean` removes it");
    }
    if let Some((id, start)) = recorded(&folder).into_iter().next()
        && start_time(id) == Some(start)
    {
        bail!("a demo is running (process {id})");
    }
    clean()
}

/// Ends the demo's processes and removes its namespaces, pins and files.
pub(super) fn clean() -> Result<()> {
    let folder = Prefix::demo().folder_path();
    for (id, start) in recorded(&folder) {
        if id == std::process::id() || start_time(id) != Some(start) {
            continue;
        }
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGKILL).with_context(|| format!("cannot end process {id}"))?;
        wait::until_true("a process of the demo to end", wait::PATIENCE, || Ok(start_time(id) != Some(start)))?;
    }
    let begin = format!("{DEMO}-");
    for name in listed(Path::new(netns::FOLDER)).iter().filter(|name| name.starts_with(&begin)) {
        netns::remove(name);
    }
    for name in listed(Path::new(BPF_ROOT)).iter().filter(|name| name.starts_with(&begin)) {
        let path = Path::new(BPF_ROOT).join(name);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn recorded(folder: &Path) -> Vec<(u32, u64)> {
    let text = fs::read_to_string(folder.join(PROCESSES)).unwrap_or_default();
    let parse = |line: &str| {
        let (id, start) = line.split_once(' ')?;
        Some((id.parse().ok()?, start.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// The start time of a process, in ticks since boot; `None` if the process is gone or a zombie.
fn start_time(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
