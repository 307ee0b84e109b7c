//! Log lines about connections that failed at their beginning: one line for each, with a rate limit for each pod and for
//! the node, so that they cannot displace other lines.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Level, event};

use crate::model::{
    addr::{OrigDst, PeerAddr},
    close::CloseReason,
    flow::Direction,
};

const PERIOD: Duration = Duration::from_secs(10);
/// The number of lines of one pod on one worker in one [`PERIOD`], possibly all at once: a person who looks for a cause makes
/// only a few attempts. The metrics count all failures.
const LINES: u32 = 200;
/// The number of lines of all pods of the node in one [`PERIOD`].
const LINES_OF_NODE: u32 = 1000;
/// So many of a pod's lines are written even if other pods have used up the lines of the node.
const LINES_KEPT: u32 = 5;

/// Lines in the current period.
#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Instant,
    told: u32,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { begun: now, told: 0 }
    }

    /// Counts one line more, unless there are `limit` in this period.
    fn take(&mut self, now: Instant, limit: u32) -> bool {
        if now.duration_since(self.begun) >= PERIOD {
            *self = Self::new(now);
        }
        let taken = self.told < limit;
        self.told += u32::from(taken);
        taken
    }
}

/// The lines that all pods of the node may write, on all workers.
#[derive(Clone, Debug)]
pub struct NodeLines(Arc<Mutex<Window>>);

impl NodeLines {
    /// No line is written yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Window::new(now))))
    }

    fn take(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(now, LINES_OF_NODE)
    }
}

/// Logs failed connections to one pod on one worker.
#[derive(Debug)]
pub struct Failures {
    node: NodeLines,
    own: Cell<Window>,
    untold: Cell<u64>,
}

impl Failures {
    /// No line is written yet; `node` is shared by all pods.
    #[must_use]
    pub fn new(node: NodeLines, now: Instant) -> Self {
        Self { node, own: Cell::new(Window::new(now)), untold: Cell::new(0) }
    }

    /// Logs an HBONE connection that ended without a request.
    pub fn tell(&self, peer: PeerAddr, dst: OrigDst, reason: CloseReason, error: &str) {
        let Some(untold) = self.may_tell(Instant::now()) else { return };
        let untold = (untold > 0).then_some(untold);
        let (direction, reason) = (Direction::Inbound.name(), reason.label());
        event!(
            target: "access",
            Level::WARN,
            src.addr = %peer,
            dst.addr = %dst,
            direction,
            untold,
            reason,
            error,
            "connection failed"
        );
    }

    /// The number of suppressed lines since the last one written. `None`: this line is suppressed as well.
    pub(super) fn may_tell(&self, now: Instant) -> Option<u64> {
        let mut own = self.own.get();
        let taken = own.take(now, LINES) && (self.node.take(now) || own.told <= LINES_KEPT);
        self.own.set(own);
        if !taken {
            self.untold.set(self.untold.get() + 1);
            return None;
        }
        Some(self.untold.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::{Failures, LINES, LINES_KEPT, LINES_OF_NODE, NodeLines, PERIOD};
    use tokio::time::Instant;

    #[test]
    fn a_flood_is_summed_up() {
        let now = Instant::now();
        let failures = Failures::new(NodeLines::new(now), now);
        for _ in 0..LINES {
            assert_eq!(failures.may_tell(now), Some(0));
        }
        assert_eq!((failures.may_tell(now), failures.may_tell(now)), (None, None));
        assert_eq!(failures.may_tell(now + PERIOD), Some(2));
        assert_eq!(failures.may_tell(now + PERIOD), Some(0));
    }

    #[test]
    fn a_flood_to_all_pods_of_a_node_is_bounded_and_hides_no_other_pod() {
        let now = Instant::now();
        let node = NodeLines::new(now);
        let attacked: Vec<_> = (0..100).map(|_| Failures::new(node.clone(), now)).collect();
        let told = |at| attacked.iter().map(|pod| (0..LINES).filter(|_| pod.may_tell(at).is_some()).count()).sum();
        let (first, most): (usize, u32) = (told(now), LINES_OF_NODE + 100 * LINES_KEPT);
        assert!((LINES_OF_NODE..=most).contains(&u32::try_from(first).unwrap()), "{first} lines");
        let other = Failures::new(node, now);
        for _ in 0..LINES_KEPT {
            assert_eq!(other.may_tell(now), Some(0));
        }
        assert_eq!(other.may_tell(now), None);
        assert!(attacked[99].may_tell(now + PERIOD).is_some_and(|untold| untold > 0));
    }
}
