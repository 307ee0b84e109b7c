//! The daemon's log: standard output, written by a thread of its own. A reader that stalls costs lines, never connections.

use std::io::Write;

use anyhow::Context as _;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use self::format::{Json, Text};
use crate::config::{args::LogFormat, defaults};

mod format;

/// Writes out what is queued when it is dropped.
pub struct LogGuard {
    _worker: WorkerGuard,
    lost: ErrorCounter,
}

impl LogGuard {
    /// Counts lines that were lost because standard output did not take them.
    #[must_use]
    pub fn lost(&self) -> ErrorCounter {
        self.lost.clone()
    }
}

/// Where the lines of the BPF programs come from, and at which level they are.
const BPF_LINES: &str = "ztunnel_ebpf=debug";

/// Starts the log; `bpf` lets the lines of the BPF programs through, whatever the filter.
///
/// # Errors
/// When the filter is malformed.
pub fn start(filter: &str, format: LogFormat, bpf: bool) -> anyhow::Result<LogGuard> {
    let filter = if bpf { format!("{filter},{BPF_LINES}") } else { filter.to_owned() };
    let filter = EnvFilter::builder().parse(&filter).with_context(|| format!("--log {filter:?} is not a filter"))?;
    let (writer, worker) = queue(std::io::stdout(), defaults::LOG_LINES);
    let lost = writer.error_counter();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => builder.fmt_fields(Text).event_format(Text).init(),
        LogFormat::Json => builder.fmt_fields(Text).event_format(Json).init(),
    }
    Ok(LogGuard { _worker: worker, lost })
}

/// So many lines wait for the output, further ones are lost.
fn queue(output: impl Write + Send + 'static, lines: usize) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(lines).thread_name("ztunnel-log").finish(output)
}

#[cfg(test)]
mod tests;
