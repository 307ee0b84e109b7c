//! The settings of the cache.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{identity::clock, metrics::fetches::Fetches};

/// The current time. Tests use a clock of their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that returns the result of the function.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(clock::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The settings of the cache. A default is Istio's where Istio has the setting.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// The maximum number of concurrent renewals. The same number of first fetches may run in addition, so that a new pod never
    /// waits for renewals.
    pub at_once: usize,
    /// The time after which a request without an answer has failed. A distant, busy CA needs a few seconds.
    pub timeout: Duration,
    /// The pause after the first failure; it doubles with every further failure.
    pub first_pause: Duration,
    /// The longest pause between two attempts.
    pub longest_pause: Duration,
    /// The clock.
    pub clock: Clock,
    /// Counts requests.
    pub fetches: Fetches,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            at_once: 8,
            timeout: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            // Shorter than Istio's 150 s: pods that wait for an authority to return get their certificates soon after it has.
            longest_pause: Duration::from_secs(15),
            clock: Clock::default(),
            fetches: Fetches::default(),
        }
    }
}
