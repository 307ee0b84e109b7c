//! The enrolments for which a caller waits, and their results.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::{model::workload::NamespacedName, net::netns::NetnsId};

/// The state of a pod whose enrolment is awaited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Arrival {
    /// The manager has not tried to enrol the pod yet.
    #[default]
    Unknown,
    /// It is enrolled with this network namespace.
    Enrolled(NetnsId),
    /// It is not enrolled, and may be enrolled later; with the reason.
    Refused(String),
}

/// The pods whose enrolment is awaited. The manager and the waiting callers share them.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Arc<Mutex<HashMap<NamespacedName, watch::Sender<Arrival>>>>);

impl Arrivals {
    /// Awaits the enrolment of a pod, as long as a receiver exists.
    #[must_use]
    pub fn expect(&self, pod: &NamespacedName) -> watch::Receiver<Arrival> {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expected.entry(pod.clone()).or_insert_with(|| watch::channel(Arrival::Unknown).0).subscribe()
    }

    /// Updates the state of the pods whose enrolment is awaited.
    pub(crate) fn tell(&self, standing: impl Fn(&NamespacedName) -> Arrival) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expected.retain(|_, told| told.receiver_count() > 0);
        for (pod, told) in expected.iter() {
            let now = standing(pod);
            told.send_if_modified(|before| {
                *before != now && {
                    *before = now;
                    true
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrival, Arrivals};
    use crate::{model::workload::NamespacedName, net::netns::NetnsId};

    #[test]
    fn who_waits_is_told_and_who_has_left_is_forgotten() {
        let arrivals = Arrivals::default();
        let pod = NamespacedName::new("ns", "a");
        let (one, other) = (arrivals.expect(&pod), arrivals.expect(&pod));
        let enrolled = Arrival::Enrolled(NetnsId { device: 1, inode: 2 });
        arrivals.tell(|asked| if *asked == pod { enrolled.clone() } else { Arrival::Unknown });
        assert_eq!((&*one.borrow(), &*other.borrow()), (&enrolled, &enrolled));
        drop((one, other));
        arrivals.tell(|_| panic!("nobody is expected"));
        assert_eq!(*arrivals.expect(&pod).borrow(), Arrival::Unknown);
    }
}
