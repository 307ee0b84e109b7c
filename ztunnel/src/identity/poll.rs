//! Polls files, and never waits for a file system on the thread of other tasks.
//!
//! inotify does not work here: Secrets are mounted from network and FUSE file systems, and behind symbolic links whose target
//! changes. A poll takes microseconds.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// The interval between two polls: a rotation takes effect within about a second.
const EVERY: Duration = Duration::from_secs(1);
/// Files are replaced one by one. Content that is unchanged after this time is treated as complete.
const SETTLE: Duration = Duration::from_millis(150);
/// The number of polls after which unchanged content that could not be used is tried again: a certificate may have become
/// valid, or a file readable.
const AGAIN: u32 = 30;
/// The time after which a file system without an answer is reported in the log.
const SILENT: Duration = Duration::from_secs(30);

/// Files on disk that change. The methods may block.
pub(crate) trait Polled: Send + Sync + 'static {
    /// The state of the files; another state means a change.
    type State: PartialEq + Send + 'static;

    /// The current state, if it differs from the state that was taken up last.
    fn news(&self) -> Option<Self::State>;

    /// Takes up the current state, or returns why this is not possible. The last state then stays in force.
    fn take_up(&self) -> Result<(), String>;

    /// A description for the log.
    fn name(&self) -> String;
}

/// The last fault.
struct Complaint<S> {
    about: S,
    why: String,
    told: bool,
    /// The number of polls that saw it again.
    looks: u32,
}

/// Polls until the future is dropped.
pub(crate) async fn poll<P: Polled>(polled: Arc<P>) {
    let mut complaint: Option<Complaint<P::State>> = None;
    loop {
        sleep(EVERY).await;
        let Some(news) = work(&polled, P::news).await else {
            if complaint.take().is_some_and(|complaint| complaint.told) {
                info!(what = polled.name(), "is in its earlier state again");
            }
            continue;
        };
        if let Some(known) = complaint.as_mut().filter(|known| known.about == news) {
            // A short inconsistency is normal while files are being replaced. It is reported if it stays.
            if !std::mem::replace(&mut known.told, true) {
                warn!(
                    what = polled.name(),
                    error = known.why,
                    "can't be used as it is now; the last good state stays in force"
                );
            }
            known.looks += 1;
            if known.looks < AGAIN {
                continue;
            }
        }
        let Some(settled) = settle(&polled, news).await else {
            continue;
        };
        complaint = match work(&polled, |polled| Some(polled.take_up())).await {
            Some(Err(why)) => {
                let told = complaint.is_some_and(|known| known.told && known.about == settled && known.why == why);
                Some(Complaint { about: settled, why, told, looks: 0 })
            }
            Some(Ok(())) | None => None,
        };
    }
}

/// Waits until two polls see the same state.
async fn settle<P: Polled>(polled: &Arc<P>, mut news: P::State) -> Option<P::State> {
    loop {
        sleep(SETTLE).await;
        let now = work(polled, P::news).await?;
        if now == news {
            return Some(now);
        }
        news = now;
    }
}

/// Runs a function on a blocking thread, without a time limit.
async fn work<P: Polled, T: Send + 'static>(
    polled: &Arc<P>,
    work: impl FnOnce(&P) -> Option<T> + Send + 'static,
) -> Option<T> {
    let worker = Arc::clone(polled);
    let mut done = spawn_blocking(move || work(&worker));
    let result = match timeout(SILENT, &mut done).await {
        Ok(result) => result,
        Err(_) => {
            warn!(what = polled.name(), "its file system does not answer; the last good state stays in force");
            let result = done.await;
            info!(what = polled.name(), "its file system answers again");
            result
        }
    };
    result.unwrap_or_else(|failure| {
        warn!(what = polled.name(), %failure, "cannot check it for changes");
        None
    })
}

#[cfg(test)]
mod tests;
