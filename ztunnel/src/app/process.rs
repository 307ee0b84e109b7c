//! The process itself: descriptors, capabilities, signals, and the lock that keeps a second daemon away.

use std::{fs::File, path::Path};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::redirect::{pins::PinDir, probe};

/// Raises the soft limit of open files to the hard one.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| (soft, hard)));
    match raised {
        Ok((soft, hard)) => info!(soft, hard, "open files: soft limit raised to the hard one"),
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Says which capabilities are missing.
///
/// # Errors
/// When one is.
pub fn require_capabilities() -> anyhow::Result<()> {
    let missing = probe::missing_capabilities();
    if !missing.is_empty() {
        bail!(
            "missing {}: add it to securityContext.capabilities.add, or run as root; `ztunnel check` tells what each is for",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Held while a daemon, or a clean-up, works with a state directory and a pin directory.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for their drop")] [Flock<File>; 2]);

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// When someone else has it, or a directory can't be used.
    pub fn take(state: &Path, pins: &PinDir) -> anyhow::Result<Self> {
        std::fs::create_dir_all(state)
            .with_context(|| format!("cannot make the state directory {}; set --state", state.display()))?;
        pins.prepare()?;
        Ok(Self([lock(state)?, lock(pins.root())?]))
    }
}

fn lock(dir: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!(
                "another ztunnel works with {}; every daemon needs a --state and a --bpf-pin of its own",
                dir.display()
            )
        }
        Err((_, errno)) => bail!("cannot lock {}: {errno}", dir.display()),
    }
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// When the handlers can't be installed.
pub async fn told_to_stop() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
