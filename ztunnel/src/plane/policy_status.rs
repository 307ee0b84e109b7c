//! Writes into the status of each policy whether the mesh enforces the policy exactly as written.
//!
//! A status depends on the policy only, so that all replicas compute the same status. A status that is already right is
//! not written. A write names the version of the object that was read: when two replicas write at once, the API server
//! refuses one of the writes. When another program overwrites the status, the pauses between writes grow.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{BoxStream, SelectAll, unfold},
};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::{
    control::kubernetes::{
        AUTHORIZATION_POLICIES, Cluster, Failure, PEER_AUTHENTICATIONS, Reason, Report, ResourceType, Selection,
        StatusWrite, Watch,
    },
    model::workload::NamespacedName,
};

const TYPES: [ResourceType; 2] = [AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS];
/// A write waits for a random part of this time. So mostly one replica writes, and the others see its write.
const SPREAD: Duration = Duration::from_secs(2);
/// The first pause between two writes to one policy. It doubles while writes follow each other.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The pause between two writes to any policies.
const EVERY: Duration = Duration::from_millis(50);
/// The pause after a failure of the API server.
const AGAIN: Duration = Duration::from_secs(30);
/// The pause while a right is missing.
const WITHOUT_RIGHT: Duration = Duration::from_secs(300);

type Key = (usize, NamespacedName);

/// The writer.
#[derive(Debug)]
pub struct PolicyStatus {
    cluster: Cluster,
    /// The writes that are due, and their times.
    due: BTreeMap<Key, (Instant, StatusWrite)>,
    past: HashMap<Key, Past>,
    /// The earliest time of the next write.
    not_before: Instant,
    /// The last failure that was logged.
    told: Option<String>,
}

/// The writes to one policy.
#[derive(Debug)]
struct Past {
    last: Instant,
    pause: Duration,
}

impl PolicyStatus {
    /// Writes to this API server. Has to be called within a runtime.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, due: BTreeMap::new(), past: HashMap::new(), not_before: Instant::now(), told: None }
    }

    /// Keeps the status of every policy right, for ever.
    pub async fn write(mut self) {
        let streams = TYPES.into_iter().enumerate().map(|(index, resource)| {
            let watch = Watch::new(self.cluster.clone(), resource, Selection::default());
            unfold(watch, move |mut watch| async move { Some(((index, watch.next().await), watch)) }).boxed()
        });
        let mut reports: SelectAll<BoxStream<'static, (usize, Report)>> = streams.collect();
        loop {
            let next = self.due.values().map(|(at, _)| *at).min().map(|at| at.max(self.not_before));
            let wake = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                report = reports.next() => match report {
                    Some((index, report)) => self.take(index, report, Instant::now()),
                    None => return,
                },
                () = wake => self.write_one().await,
            }
        }
    }

    fn take(&mut self, index: usize, report: Report, now: Instant) {
        match report {
            Report::Applied(policy) => {
                let Some(resource) = TYPES.get(index) else { return };
                let key = (index, policy.name.clone());
                match StatusWrite::needed(*resource, &policy) {
                    None => drop(self.due.remove(&key)),
                    Some(write) => {
                        let at = self.earliest(&key, now);
                        self.due.insert(key, (at, write));
                    }
                }
            }
            Report::Gone(name) => {
                let key = (index, name);
                self.due.remove(&key);
                self.past.remove(&key);
            }
            // The source of the mesh reports these.
            Report::Synced | Report::Absent | Report::Failed(_) => {}
        }
    }

    /// The earliest time at which the status of a policy may be written.
    fn earliest(&self, key: &Key, now: Instant) -> Instant {
        let drawn = now + SPREAD.mul_f64(fastrand::f64());
        self.past.get(key).map_or(drawn, |past| drawn.max(past.last + past.pause))
    }

    async fn write_one(&mut self) {
        let now = Instant::now();
        let next = self.due.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
        let Some((key, (_, write))) = next.and_then(|key| self.due.remove_entry(&key)) else { return };
        self.not_before = now + EVERY;
        match self.cluster.write_status(&write).await {
            Ok(()) => {
                debug!(policy = write.title(), "status written");
                self.told = None;
                self.note(key, now);
            }
            // The policy has another version, or is gone: the watch will report it.
            Err(Failure { reason: Reason::Conflict(_), .. }) => {
                debug!(policy = write.title(), "its status is for an older version");
            }
            Err(failure) => {
                let pause = match failure.reason {
                    Reason::Forbidden(_) | Reason::NotFound(_) => WITHOUT_RIGHT,
                    _ => AGAIN,
                };
                self.tell(&failure);
                self.not_before = now + pause;
                self.due.insert(key, (now + pause, write));
            }
        }
    }

    fn note(&mut self, key: Key, now: Instant) {
        let past = self.past.entry(key).or_insert(Past { last: now, pause: Duration::ZERO });
        let is_fight = now.duration_since(past.last) < past.pause * 4;
        past.pause = if is_fight { (past.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        past.last = now;
    }

    fn tell(&mut self, failure: &Failure) {
        let text = failure.to_string();
        if self.told.as_ref() != Some(&text) {
            warn!(
                "{text}; until then the control plane does not write the status of policies; the nodes \
                 enforce the policies"
            );
            self.told = Some(text);
        }
    }
}

#[cfg(test)]
mod tests;
