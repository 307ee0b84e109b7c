//! Limits how often a node may do something.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A token bucket for each node: `burst` operations at once, and one more after each `every`.
#[derive(Debug)]
pub struct Quota {
    burst: u32,
    every: Duration,
    /// The time at which the node has its whole burst again.
    full_at: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Quota {
    /// Allows `burst` operations at once. One more becomes available after each `every`.
    #[must_use]
    pub fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, full_at: Mutex::default() }
    }

    /// Takes one operation of a node's quota.
    ///
    /// # Errors
    /// The quota is used up. The error is the time after which the node may try again.
    pub fn take(&self, node: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let mut nodes = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        // A node that has its whole burst needs no entry.
        const SWEEP: usize = 1024;
        if nodes.len() >= SWEEP && !nodes.contains_key(node) {
            nodes.retain(|_, full_at| *full_at > now);
        }
        let full_at = nodes.get(node).copied().unwrap_or(now).max(now) + self.every;
        let most = now + self.every * self.burst;
        if full_at > most {
            return Err(full_at - most);
        }
        nodes.insert(Arc::clone(node), full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Quota;
    use std::{sync::Arc, time::Duration};
    use tokio::time::Instant;

    #[test]
    fn a_burst_is_taken_once_and_comes_back_one_by_one() {
        let quota = Quota::new(3, Duration::from_secs(10));
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let start = Instant::now();
        for _ in 0..3 {
            quota.take(&one, start).unwrap();
        }
        assert_eq!(quota.take(&one, start), Err(Duration::from_secs(10)));
        assert_eq!(quota.take(&one, start + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        quota.take(&other, start).unwrap();
        quota.take(&one, start + Duration::from_secs(10)).unwrap();
        assert!(quota.take(&one, start + Duration::from_secs(10)).is_err());
        for _ in 0..3 {
            quota.take(&one, start + Duration::from_secs(1000)).unwrap();
        }
        assert!(quota.take(&one, start + Duration::from_secs(1000)).is_err());
    }
}
