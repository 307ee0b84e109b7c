//! A daemon was told to stop, and no other daemon has taken over: it continues for a while, because captured pods are closed without
//! a daemon.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::{join_all, pending};
use tokio::time::{Instant, sleep_until};

use crate::pods::worker::{Load, WorkerHandle};

/// Interval of the check for open connections.
const LOOK: Duration = Duration::from_millis(100);
/// The last part of the time: no new connections are accepted, and short ones may end.
const LAST: Duration = Duration::from_millis(500);

/// The state of the stop.
pub(super) struct Leaving {
    time: Duration,
    successor: Duration,
    begun: Option<Instant>,
}

impl Leaving {
    /// The stop has not begun. It takes at most `time`, and at most `successor` while another daemon prepares to take over.
    pub(super) fn new(time: Duration, successor: Duration) -> Self {
        Self { time, successor, begun: None }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    pub(super) fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Waits until no connection is open, or until the last part of the time begins; for ever if the stop has not begun.
    /// `expecting`: whether another daemon prepares to take over. `awaiting`: whether another daemon is about to start; the whole time passes
    /// then, also if no connection is open. The future can be dropped without loss.
    pub(super) async fn is_over(&self, workers: &[WorkerHandle], expecting: &AtomicBool, awaiting: &AtomicBool) {
        let Some(begun) = self.begun else { return pending().await };
        let last_step = LAST.min(self.time / 4);
        loop {
            let is_expecting = expecting.load(Ordering::Relaxed);
            let time = if is_expecting { self.successor.max(self.time) } else { self.time };
            let last = begun + time.saturating_sub(last_step);
            if Instant::now() >= last {
                return;
            }
            let loads = join_all(workers.iter().map(WorkerHandle::load)).await;
            let is_awaiting = is_expecting || awaiting.load(Ordering::Relaxed);
            if !is_awaiting && loads.into_iter().all(|load| load == Load::default()) {
                return;
            }
            sleep_until(last.min(Instant::now() + LOOK)).await;
        }
    }

    /// The rest of the time, in which no new connections are accepted.
    pub(super) fn rest(&self) -> Duration {
        let rest = self.begun.map_or(self.time, |begun| self.time.saturating_sub(begun.elapsed()));
        rest.max(LAST.min(self.time / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_without_connections_waits_only_for_a_successor() {
        for (expecting, awaiting, millis) in [(false, false, 0), (false, true, 19_500), (true, false, 59_500)] {
            let mut leaving = Leaving::new(Duration::from_secs(20), Duration::from_secs(60));
            leaving.begin();
            let begun = Instant::now();
            leaving.is_over(&[], &AtomicBool::new(expecting), &AtomicBool::new(awaiting)).await;
            assert_eq!(begun.elapsed().as_millis(), millis, "{expecting} {awaiting}");
        }
    }
}
