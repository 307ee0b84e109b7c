//! When the next try is due.

use std::time::{Duration, SystemTime};

use super::settings::CacheSettings;
use crate::identity::Credentials;

/// Nothing is fetched more often than this, however short-lived it is.
const SHORTEST: Duration = Duration::from_secs(1);
/// The last try comes this long before the end, so that the new certificate is there when the old one ends.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// How long after now a certificate is renewed: at half of its validity, give or take 10 %, so that a node's pods don't
/// renew at once.
///
/// Half of the validity may be over already: short-lived certificates are backdated, and files may have lain for a while.
/// Then a quarter of the rest is used before the next try.
pub(super) fn renewal(credentials: &Credentials, now: SystemTime) -> Duration {
    let validity = credentials.not_after.duration_since(credentials.not_before).unwrap_or_default();
    let half = credentials.not_before.checked_add(validity / 2);
    let until_half = half.and_then(|half| half.duration_since(now).ok()).unwrap_or_default();
    let wait = until_half.max(rest(credentials, now) / 4);
    before_the_end(wait.mul_f64(between(0.9, 1.1)), credentials, now)
}

/// How long after now the next try comes, when so many have failed in a row.
pub(super) fn retry(
    failures: u32,
    settings: &CacheSettings,
    credentials: Option<&Credentials>,
    now: SystemTime,
) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    let pause = settings.first_pause.saturating_mul(doubled).min(settings.longest_pause);
    let pause = pause.mul_f64(between(0.8, 1.2));
    credentials.map_or(pause, |credentials| before_the_end(pause, credentials, now).min(pause))
}

fn before_the_end(wait: Duration, credentials: &Credentials, now: SystemTime) -> Duration {
    // When the end is that close, the usual pace goes on.
    match rest(credentials, now).checked_sub(BEFORE_THE_END) {
        Some(left) if left >= SHORTEST => wait.clamp(SHORTEST, left),
        _ => wait.max(SHORTEST),
    }
}

fn rest(credentials: &Credentials, now: SystemTime) -> Duration {
    credentials.not_after.duration_since(now).unwrap_or_default()
}

fn between(low: f64, high: f64) -> f64 {
    low + fastrand::f64() * (high - low)
}
