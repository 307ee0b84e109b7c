//! The wall clock, which decides whether a certificate is valid.

use std::time::SystemTime;

/// The current time. In a test with simulated time, it advances with the simulated time.
pub(crate) fn now() -> SystemTime {
    SystemTime::now() + simulated()
}

#[cfg(not(test))]
const fn simulated() -> std::time::Duration {
    std::time::Duration::ZERO
}

#[cfg(test)]
fn simulated() -> std::time::Duration {
    let timers = tokio::time::Instant::now().into_std();
    timers.saturating_duration_since(std::time::Instant::now())
}
