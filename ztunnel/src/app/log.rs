//! The daemon's log on standard output, written by a separate thread. If the reader stalls, lines are dropped, but connections
//! are not affected.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

pub use self::queue::LostLines;
use self::{
    format::{Json, Text},
    queue::Guard,
};
use crate::config::{args::LogFormat, defaults};

mod format;
mod queue;

/// Writes the queued lines when it is dropped.
pub struct LogGuard(Guard);

impl LogGuard {
    /// The count of lines that were dropped because standard output did not take them.
    #[must_use]
    pub fn lost(&self) -> LostLines {
        self.0.lost()
    }
}

/// The target and the level of the lines of the BPF programs.
const BPF_LINES: &str = "ztunnel_ebpf=debug";

/// Starts the log; `bpf` includes the lines of the BPF programs, independent of the filter.
///
/// # Errors
/// If the filter is malformed, or the thread can't be started.
pub fn start(filter: &str, format: LogFormat, bpf: bool) -> anyhow::Result<LogGuard> {
    let filter = if bpf { format!("{filter},{BPF_LINES}") } else { filter.to_owned() };
    let filter = EnvFilter::builder().parse(&filter).with_context(|| format!("--log {filter:?} is not a filter"))?;
    let (writer, guard) = queue::start(std::io::stdout(), defaults::LOG_LINES).context("cannot start the log")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => builder.fmt_fields(Text).event_format(Text).init(),
        LogFormat::Json => builder.fmt_fields(Text).event_format(Json).init(),
    }
    Ok(LogGuard(guard))
}

/// A log without a reader, for tests that need the count of dropped lines.
#[cfg(test)]
pub(super) fn lost_lines() -> LostLines {
    let (_queue, guard) = queue::start(std::io::sink(), 0).unwrap();
    guard.lost()
}

#[cfg(test)]
mod tests;
