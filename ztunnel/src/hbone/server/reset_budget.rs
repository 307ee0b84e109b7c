//! Limits the streams that a peer resets before they are answered (rapid reset, CVE-2023-44487).

use tokio::time::Instant;

/// The allowed burst: a client that dies, or a whole Deployment that cancels its connects.
const BURST: u32 = 1000;
/// The allowed steady rate per second.
const PER_SECOND: u32 = 100;

/// A leaky bucket.
#[derive(Debug)]
pub(super) struct ResetBudget {
    level: u32,
    leaked: Instant,
}

impl ResetBudget {
    pub(super) fn new() -> Self {
        Self { level: 0, leaked: Instant::now() }
    }

    /// Adds this many resets, and returns whether the limit is exceeded.
    pub(super) fn is_over(&mut self, more: u32, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.leaked).as_secs();
        if seconds > 0 {
            let leak = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            self.level = self.level.saturating_sub(leak);
            self.leaked = now;
        }
        self.level = self.level.saturating_add(more);
        self.level > BURST
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, PER_SECOND, ResetBudget};
    use std::time::Duration;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_a_steady_rate_are_borne_and_no_more() {
        let mut reset_budget = ResetBudget::new();
        let start = Instant::now();
        assert!(!reset_budget.is_over(BURST, start));
        assert!(reset_budget.is_over(1, start));
        let mut reset_budget = ResetBudget::new();
        for second in 0..10_000 {
            assert!(!reset_budget.is_over(PER_SECOND, start + Duration::from_secs(second)), "{second}");
        }
        let later = start + Duration::from_secs(10_000);
        assert!((0..30).any(|second| reset_budget.is_over(2 * PER_SECOND, later + Duration::from_secs(second))));
    }
}
