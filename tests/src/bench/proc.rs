//! The kernel's figures about a process: CPU time and memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU time of a process, user and system, of all threads including those that have ended.
///
/// # Errors
/// When the process is gone.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    // This clock counts nanoseconds. `/proc` counts hundredths of a second, which is too coarse for a process that does
    // very little.
    let clock =
        clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).with_context(|| format!("process {pid} is gone"))?;
    let time = clock_gettime(clock).with_context(|| format!("process {pid} is gone"))?;
    Ok(Duration::from(time))
}

/// CPU time of one thread of this process, user and system.
///
/// # Errors
/// When the thread has ended.
pub(super) fn thread_cpu(id: i32) -> Result<Duration> {
    let path = format!("/proc/self/task/{id}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("thread {id} has ended: no {path}"))?;
    // Nanoseconds on a processor, nanoseconds of waiting for a processor, number of time slices.
    let on_processor = text.split(' ').next().unwrap_or_default();
    let nanoseconds = on_processor.parse().with_context(|| format!("{path} has {text:?}"))?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// Whether the process runs: it is neither gone nor a zombie.
#[must_use]
pub(super) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name in parentheses, which may contain anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Resident memory in kB.
///
/// # Errors
/// When the process is gone.
pub(super) fn rss_kb(pid: u32) -> Result<f64> {
    status_kb(pid, "VmRSS:")
}

/// The most memory in kB that was ever resident.
///
/// # Errors
/// When the process is gone.
pub(super) fn peak_kb(pid: u32) -> Result<f64> {
    status_kb(pid, "VmHWM:")
}

fn status_kb(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The processor's name, the number of processors, and the kernel: needed to compare figures of two machines.
#[must_use]
pub(super) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} x {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}
