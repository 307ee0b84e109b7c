//! Pauses between attempts to reach a control plane, or an API server.

use std::time::Duration;

/// The pause after a first failure.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause. Also the lifetime from which on a connection resets the pause: a control plane that accepts
/// connections and closes them at once must not be asked more and more often.
pub(in crate::control) const LONGEST: Duration = Duration::from_secs(15);

/// The pause doubles with every failure. A random time between one half and the whole of it is used, so that the
/// daemons of a cluster do not all reconnect at the same moment.
#[derive(Debug)]
pub(in crate::control) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// The pause after one more failure of a connection that lived for `lived`.
    pub(in crate::control) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= LONGEST {
            *self = Self::default();
        }
        let whole = self.0;
        self.0 = whole.saturating_mul(2).min(LONGEST);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, FIRST, LONGEST};
    use std::time::Duration;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_calm_time() {
        let mut backoff = Backoff::default();
        let mut whole = FIRST;
        for _ in 0..20 {
            let pause = backoff.after(Duration::ZERO);
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
            whole = (whole * 2).min(LONGEST);
        }
        assert_eq!(whole, LONGEST);
        assert!(backoff.after(LONGEST) <= FIRST);
    }
}
