//! The pause before a pod is enrolled again that was closed because of changes in its network namespace. A process with
//! CAP_NET_ADMIN in a pod can cause such changes at any rate, and other pods wait for each enrolment.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::model::workload::NamespacedName;

/// The first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// After this time without a relapse, the history of a pod is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The pods that were recently closed for this reason.
#[derive(Debug, Default)]
pub(super) struct Relapses(BTreeMap<NamespacedName, Relapse>);

#[derive(Debug)]
struct Relapse {
    /// The time at which it may be enrolled again.
    over: Instant,
    pause: Duration,
}

impl Relapses {
    /// The pause of the pod now: none the first time, then twice as long each time, within [`PAUSES`].
    pub(super) fn pause(&mut self, pod: &NamespacedName, now: Instant) -> Duration {
        self.0.retain(|_, relapse| now < relapse.over + FORGOTTEN);
        let (first, most) = PAUSES;
        let pause = self.0.get(pod).map_or(Duration::ZERO, |relapse| (relapse.pause * 2).clamp(first, most));
        self.0.insert(pod.clone(), Relapse { over: now + pause, pause });
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::{FORGOTTEN, Relapses};
    use crate::model::workload::NamespacedName;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn a_pod_that_does_not_let_itself_be_enrolled_waits_longer_each_time_and_no_other_does() {
        let (mut relapses, mut now) = (Relapses::default(), Instant::now());
        let (hostile, other) = (NamespacedName::new("demo", "hostile"), NamespacedName::new("demo", "other"));
        for seconds in [0, 1, 2, 4, 8, 16, 30, 30] {
            let pause = relapses.pause(&hostile, now);
            assert_eq!(pause.as_secs(), seconds);
            now += pause + Duration::from_millis(100);
        }
        assert!(relapses.pause(&other, now).is_zero());
        assert!(relapses.pause(&hostile, now + FORGOTTEN * 2).is_zero());
    }
}
