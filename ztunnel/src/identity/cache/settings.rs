//! How certificates are kept.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What the time is. Tests have their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that shows what the function returns.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How certificates are kept. The defaults are Istio's where it has one.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Renewals at once, and as many first fetches beside them: a new pod never waits behind renewals.
    pub at_once: usize,
    /// When a silent source has failed. A CA across the world that is busy needs a few seconds.
    pub patience: Duration,
    /// The pause after a first failure; it doubles with every further one.
    pub first_pause: Duration,
    /// The longest pause between two tries.
    pub longest_pause: Duration,
    /// What the time is.
    pub clock: Clock,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            at_once: 8,
            patience: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(150),
            clock: Clock::default(),
        }
    }
}
