//! The daemon's log on standard output, written by a separate thread. If the reader stalls, lines are dropped, but connections
//! are not affected.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use self::{
    format::{Json, Text},
    queue::Guard,
};
pub use self::{levels::LogLevels, queue::LostLines};
use crate::config::{args::LogFormat, defaults};

mod format;
pub(super) mod levels;
mod queue;

/// Writes the queued lines when it is dropped.
pub struct LogGuard {
    guard: Guard,
    levels: LogLevels,
}

impl LogGuard {
    /// The count of lines that were dropped because standard output did not take them.
    #[must_use]
    pub fn lost(&self) -> LostLines {
        self.guard.lost()
    }

    /// The levels, which can be changed.
    #[must_use]
    pub fn levels(&self) -> LogLevels {
        self.levels.clone()
    }
}

/// The target and the level of the lines of the BPF programs.
const BPF_LINES: &str = "ztunnel_ebpf=debug";

/// Starts the log; `bpf` includes the lines of the BPF programs, independent of the filter.
///
/// # Errors
/// If the filter is malformed, or the thread can't be started.
pub fn start(filter: &str, format: LogFormat, bpf: bool) -> anyhow::Result<LogGuard> {
    let text = if bpf { format!("{filter},{BPF_LINES}") } else { filter.to_owned() };
    let filter = EnvFilter::builder().parse(&text).with_context(|| format!("--log {text:?} is not a filter"))?;
    let (writer, guard) = queue::start(std::io::stdout(), defaults::LOG_LINES).context("cannot start the log")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let levels = match format {
        LogFormat::Text => {
            let builder = builder.fmt_fields(Text).event_format(Text).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevels::new(text, move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let builder = builder.fmt_fields(Text).event_format(Json).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevels::new(text, move |filter| handle.reload(filter))
        }
    };
    Ok(LogGuard { guard, levels })
}

/// A log without a reader, for tests that need the count of dropped lines.
#[cfg(test)]
pub(super) fn lost_lines() -> LostLines {
    let (_queue, guard) = queue::start(std::io::sink(), 0).unwrap();
    guard.lost()
}

/// Levels of a log that does not exist, for tests.
#[cfg(test)]
pub(super) fn levels_of_nothing() -> LogLevels {
    LogLevels::new("info".to_owned(), |_| Ok(()))
}

#[cfg(test)]
mod tests;
