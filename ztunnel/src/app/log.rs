//! The daemon's log: standard output, written by a thread of its own. A reader that stalls costs lines, never connections.

use anyhow::Context as _;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{args::LogFormat, defaults};

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
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(defaults::LOG_LINES)
        .thread_name("ztunnel-log")
        .finish(std::io::stdout());
    let lost = writer.error_counter();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    Ok(LogGuard { _worker: worker, lost })
}
