//! Copies log lines of the BPF programs to the daemon's log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tracing::{Span, warn};

use crate::lifecycle::tasks::TaskSet;

/// Starts to read the ring buffer of an object that was loaded with logging on.
///
/// # Errors
/// The reason why the buffer can't be read.
pub fn follow(object: &mut Ebpf, tasks: &mut TaskSet) -> Result<(), String> {
    let logger = EbpfLogger::init(object).map_err(|error| error.to_string())?;
    // SAFETY: the logger owns its descriptor for as long as it lives, and always gives the same one.
    let mut readable = unsafe { AsyncFd::register(logger) }.map_err(|error| error.to_string())?;
    tasks.spawn(Span::none(), async move {
        loop {
            match readable.readable_mut().await {
                Ok(mut guard) => {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                Err(error) => {
                    warn!(%error, "the log of the BPF programs ends");
                    return;
                }
            }
        }
    });
    Ok(())
}
