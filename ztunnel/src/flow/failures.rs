//! Log lines about connections that failed at their beginning: one line for each, with a rate limit, so that they can't
//! displace other lines.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;
use tracing::{Level, event};

use crate::model::{
    addr::{OrigDst, PeerAddr},
    close::CloseReason,
    flow::Direction,
};

/// The number of lines in one [`PERIOD`], possibly all at once: a person who looks for a cause makes only a few attempts. The
/// metrics count all failures.
const LINES: u32 = 200;
const PERIOD: Duration = Duration::from_secs(10);

/// Logs failed connections to one pod on one worker.
#[derive(Debug)]
pub struct Failures {
    begun: Cell<Instant>,
    told: Cell<u32>,
    untold: Cell<u64>,
}

impl Failures {
    /// No line is written yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { begun: Cell::new(now), told: Cell::new(0), untold: Cell::new(0) }
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
        if now.duration_since(self.begun.get()) >= PERIOD {
            self.begun.set(now);
            self.told.set(0);
        }
        if self.told.get() >= LINES {
            self.untold.set(self.untold.get() + 1);
            return None;
        }
        self.told.set(self.told.get() + 1);
        Some(self.untold.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::{Failures, LINES, PERIOD};
    use tokio::time::Instant;

    #[test]
    fn a_flood_is_summed_up() {
        let now = Instant::now();
        let failures = Failures::new(now);
        for _ in 0..LINES {
            assert_eq!(failures.may_tell(now), Some(0));
        }
        assert_eq!((failures.may_tell(now), failures.may_tell(now)), (None, None));
        assert_eq!(failures.may_tell(now + PERIOD), Some(2));
        assert_eq!(failures.may_tell(now + PERIOD), Some(0));
    }
}
