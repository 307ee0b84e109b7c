//! The process: file descriptors, capabilities, signals.

use anyhow::bail;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::redirect::probe::{self, Uses};

/// Raises the soft limit of open files to the hard one.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| (soft, hard)));
    match raised {
        Ok((soft, hard)) => info!(soft, hard, "open files: soft limit raised to the hard one"),
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
}

/// The limit of open files.
#[must_use]
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Checks the capabilities of the process.
///
/// # Errors
/// If capabilities are missing; the error names them.
pub fn require_capabilities(uses: Uses) -> anyhow::Result<()> {
    let missing = probe::missing_capabilities(uses);
    if !missing.is_empty() {
        bail!(
            "missing {}: add it to securityContext.capabilities.add, or run as root; `ztunnel check` shows \
             what each is for",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// If the handlers can't be installed.
pub async fn told_to_stop() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
