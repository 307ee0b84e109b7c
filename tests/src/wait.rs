//! The only place that waits: a bounded poll on a real condition.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for a loaded machine; a condition that holds is detected within [`INTERVAL`].
pub const PATIENCE: Duration = Duration::from_secs(15);

/// The interval between two checks of a condition.
pub const INTERVAL: Duration = Duration::from_millis(5);

/// Polls `probe` until it returns a value.
///
/// # Errors
/// When `patience` is over (the message names the condition), or as soon as `probe` fails.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if begin.elapsed() >= patience {
            bail!("waited {patience:?} in vain for: {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Polls until `holds` is true.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, patience, || Ok(holds()?.then_some(())))
}

/// Lets time pass if a test needs the time itself: the duration of a load, or proof that nothing happens.
pub fn pass(duration: Duration) {
    thread::sleep(duration);
}
