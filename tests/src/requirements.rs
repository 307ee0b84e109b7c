//! Requirements for this machine. A test that can't run fails here with the reason; it never passes silently.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

/// The folders in which programs are searched; processes in pods get the same path.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The programs of the topology itself.
const PROGRAMS: [&str; 2] = ["ip", "ss"];

/// Checks for root and the programs of the topology, and raises the limit of open files to its maximum.
///
/// # Errors
/// Names what is missing and the remedy.
pub fn check() -> Result<()> {
    ensure!(geteuid().is_root(), "needs root: it makes network namespaces and loads BPF programs (try sudo)");
    for name in PROGRAMS {
        program(name)?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// The mount point of the root of cgroup v2.
///
/// # Errors
/// When it is not mounted.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().filter(|line| line.contains(" - cgroup2 ")).find_map(|line| line.split(' ').nth(4));
    found.map(PathBuf::from).context("no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none DIR)")
}

/// Finds a program.
///
/// # Errors
/// When it is not installed.
pub fn program(name: &str) -> Result<PathBuf> {
    if name.starts_with('/') {
        return Ok(PathBuf::from(name));
    }
    let found = PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("the program {name} is not installed: `cargo xtask setup` installs what the tests need"),
    }
}
