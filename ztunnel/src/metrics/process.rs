//! The metrics of the process itself, with the names that Prometheus client libraries use for every program.

use std::{fs, sync::LazyLock};

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::registry::Registry;

use super::state::{counter_of_seconds, gauge, gauge_of_seconds};

/// The ticks per second of process times in `/proc`: the same on every architecture of the daemon, and independent of the
/// kernel's own clock (`USER_HZ`, part of the kernel's interface).
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers the current values in `/proc`. A value that can't be read is left out.
pub fn register(registry: &mut Registry) {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(times) = stat.as_deref().and_then(Times::read) {
        counter_of_seconds(registry, "process_cpu_seconds", "CPU time of the process, of user and system", times.cpu);
        if let Some(boot) = *BOOT {
            let start = boot + times.start_after_boot;
            gauge_of_seconds(registry, "process_start_time_seconds", "Start of the process, as Unix time", start);
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |key| number(&status, key).map(|kilobytes| kilobytes.saturating_mul(1024));
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory of the process", kilobytes("VmRSS:")),
        ("process_virtual_memory_bytes", "Virtual memory of the process", kilobytes("VmSize:")),
        ("process_threads", "Threads of the process", number(&status, "Threads:")),
        ("process_open_fds", "Open file descriptors", open_files()),
        ("process_max_fds", "Limit of open file descriptors", max_files()),
    ] {
        if let Some(value) = value {
            gauge(registry, name, help, value);
        }
    }
}

/// The start of the machine, as Unix time. The file grows with the number of CPUs and interrupts, so it is read once.
static BOOT: LazyLock<Option<f64>> = LazyLock::new(|| {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    number(&stat, "btime").map(|seconds| seconds as f64)
});

/// Times of a process, in seconds.
#[derive(Debug, PartialEq)]
struct Times {
    cpu: f64,
    start_after_boot: f64,
}

impl Times {
    /// Reads `/proc/PID/stat`.
    fn read(stat: &str) -> Option<Self> {
        // The second field is the name of the program in parentheses. The name may contain spaces and parentheses.
        let (_, after) = stat.rsplit_once(')')?;
        let mut fields = after.split_ascii_whitespace();
        // These are fields 14, 15 and 22 of the manual page; the iterator starts at field 3.
        let user: u64 = fields.nth(11)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let start: u64 = fields.nth(6)?.parse().ok()?;
        let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
        Some(Self { cpu: seconds(user.saturating_add(system)), start_after_boot: seconds(start) })
    }
}

/// The first number in the line that begins with `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// The number of open file descriptors.
pub fn open_files() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    // Reading the folder itself keeps one file open.
    Some((entries.count() as u64).saturating_sub(1))
}

/// The limit of open file descriptors.
pub fn max_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

#[cfg(test)]
mod tests;
