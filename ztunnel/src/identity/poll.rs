//! Looks at files again and again, without ever waiting for a file system on the thread of others.
//!
//! inotify is no help here: secrets are mounted from network and FUSE file systems, and behind symbolic links that are
//! turned elsewhere. A look costs microseconds.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// Between two looks: a rotation takes effect within about a second.
const EVERY: Duration = Duration::from_secs(1);
/// Files are replaced one by one. What is still the same after this is taken to be complete.
const SETTLE: Duration = Duration::from_millis(150);
/// Looks after which what could not be used is tried again, though it has not changed: a certificate's time may have come,
/// a file may be readable again.
const AGAIN: u32 = 30;
/// When a file system that does not answer is worth a line in the log.
const SILENT: Duration = Duration::from_secs(30);

/// Something on disk that changes. Its methods may block.
pub(crate) trait Polled: Send + Sync + 'static {
    /// What tells one state of it from another.
    type State: PartialEq + Send + 'static;

    /// What is there, if that is not what was taken up last.
    fn news(&self) -> Option<Self::State>;

    /// Takes up what is there, or says why not; then what was taken up before stays in force.
    fn take_up(&self) -> Result<(), String>;

    /// What it is, for the log.
    fn name(&self) -> String;
}

/// What was last found wrong.
struct Complaint<S> {
    about: S,
    why: String,
    told: bool,
    /// How often it was seen again.
    looks: u32,
}

/// Polls for as long as it is polled itself.
pub(crate) async fn poll<P: Polled>(polled: Arc<P>) {
    let mut complaint: Option<Complaint<P::State>> = None;
    loop {
        sleep(EVERY).await;
        let Some(news) = work(&polled, P::news).await else {
            if complaint.take().is_some_and(|complaint| complaint.told) {
                info!(what = polled.name(), "is as it was before");
            }
            continue;
        };
        if let Some(known) = complaint.as_mut().filter(|known| known.about == news) {
            // A moment's inconsistency is normal while files are being replaced; one that stays is not.
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

/// Waits until two looks see the same.
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

/// Does it on a blocking thread, however long that takes.
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
        warn!(what = polled.name(), %failure, "could not look at it");
        None
    })
}

#[cfg(test)]
mod tests;
