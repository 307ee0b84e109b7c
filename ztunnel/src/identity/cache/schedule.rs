//! The time of the next attempt.

use std::time::{Duration, SystemTime};

use super::settings::CacheSettings;
use crate::identity::Credentials;

/// The shortest pause between two fetches, even of certificates with a short validity.
const SHORTEST: Duration = Duration::from_secs(1);
/// The last attempt is this long before the expiry, so that the new certificate is there when the old one expires.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// The time from now until a certificate is renewed: half of its validity, varied by 10 %, so that the pods of a node do not
/// renew at the same time.
///
/// Half of the validity may be over already: short-lived certificates are backdated, and files may be old. Then the next
/// attempt comes after a quarter of the remaining time.
pub(super) fn renewal(credentials: &Credentials, now: SystemTime) -> Duration {
    let validity = credentials.not_after.duration_since(credentials.not_before).unwrap_or_default();
    let half = credentials.not_before.checked_add(validity / 2);
    let until_half = half.and_then(|half| half.duration_since(now).ok()).unwrap_or_default();
    let wait = until_half.max(rest(credentials, now) / 4);
    before_the_end(wait.mul_f64(between(0.9, 1.1)), credentials, now)
}

/// The time from now until the next attempt, after this number of failures in a row.
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
    // This close to the expiry, attempts continue at the usual pace.
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
