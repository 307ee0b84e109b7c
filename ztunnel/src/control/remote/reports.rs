//! Reports the refused pods of this node to the control plane, which writes Events about them.
//!
//! A pod is reported when it has been refused for [`AFTER`], again when the reason changes, every [`AGAIN`] while the refusal lasts, and
//! once more when the pod is enrolled. A control plane that does not know the call, such as Istio's, is asked again after
//! [`UNKNOWN_CALL`]. Nothing waits for a report: the log and the metrics of this node have the same information.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::connection::{ConnectError, Connection, request};
use super::plane::ControlPlane;
use crate::istio::report::{PodReport, ReportedPod, ReportedState};
use crate::lifecycle::tasks::TaskCount;
use crate::model::cause::causes;
use crate::model::workload::NamespacedName;

/// How often the states of the pods are compared.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A pod is reported when it has been refused, or enrolled again, for this time: most refusals at the start of a pod end by themselves.
const AFTER: Duration = Duration::from_secs(10);
/// Shortest time between two reports of a pod whose reason changes.
const OTHER_REASON: Duration = Duration::from_secs(60);
/// Time after which a pod that is still refused is reported again. Its Event is counted, and does not expire.
const AGAIN: Duration = Duration::from_secs(600);
/// Pause between two reports. It is the quota of the control plane.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest pause after failures, each of which doubles it.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Pause after the control plane has answered that it does not know the call. A newer version may run by then.
const UNKNOWN_CALL: Duration = Duration::from_secs(3600);
/// Pods in one report.
const MOST_PODS: usize = 128;
/// Characters of a reason.
const REASON: usize = 900;
/// Deadline for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStanding {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.uid`, empty if it is not known.
    pub uid: Arc<str>,
    /// Why it is refused; `None`: it is enrolled, or is refused for a reason that needs no action.
    pub refusal: Option<Arc<str>>,
}

/// Reports to a control plane, for ever. `look` returns the pods of this node.
pub async fn report_pods(plane: Arc<ControlPlane>, look: impl Fn() -> Vec<PodStanding> + Send, tasks: TaskCount) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ledger = Ledger::default();
    let mut line = Line { not_before: Instant::now(), pause: PAUSE, told: None };
    loop {
        ticks.tick().await;
        let now = Instant::now();
        ledger.see(look(), now);
        if now < line.not_before {
            continue;
        }
        let due = ledger.due(now);
        if due.is_empty() {
            continue;
        }
        let report = PodReport { pods: due.iter().map(Due::message).collect() };
        match send(&plane, report, &tasks).await {
            Ok(()) => {
                ledger.told(&due, Instant::now());
                (line.pause, line.told) = (PAUSE, None);
                line.not_before = Instant::now() + PAUSE;
            }
            Err(error) => line.failed(&plane, &error),
        }
    }
}

/// Why a report failed.
#[derive(Debug)]
enum SendError {
    Connect(ConnectError),
    Refused(Status),
}

async fn send(plane: &ControlPlane, report: PodReport, tasks: &TaskCount) -> Result<(), SendError> {
    let message = request(plane, report).await.map_err(SendError::Connect)?;
    let mut connection = Connection::open(plane, tasks.clone()).await.map_err(SendError::Connect)?;
    let answer = timeout(ANSWER_WITHIN, connection.client.report_pods(message)).await;
    let silent = |_elapsed| Status::deadline_exceeded(format!("no answer within {} s", ANSWER_WITHIN.as_secs()));
    let response = answer.map_err(silent).flatten().map_err(SendError::Refused)?.into_inner();
    debug!(taken = response.taken, ignored = response.ignored, "refused pods reported to the control plane");
    Ok(())
}

/// The pauses between reports.
struct Line {
    not_before: Instant,
    pause: Duration,
    /// The last failure that was logged.
    told: Option<String>,
}

impl Line {
    fn failed(&mut self, plane: &ControlPlane, error: &SendError) {
        let now = Instant::now();
        let is_unknown = matches!(error, SendError::Refused(status) if status.code() == Code::Unimplemented);
        let why = match error {
            SendError::Connect(error) => causes(error),
            SendError::Refused(status) => format!("{}: {}", status.code(), status.message()),
        };
        let is_news = self.told.as_ref() != Some(&why);
        if is_unknown {
            self.not_before = now + UNKNOWN_CALL;
            if is_news {
                info!(
                    control_plane = %plane.url, reason = why,
                    "the control plane does not support reports of refused pods: no Events are written about them"
                );
            }
        } else {
            self.not_before = now + self.pause.mul_f64(0.75 + fastrand::f64() / 2.0);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            if is_news {
                warn!(control_plane = %plane.url, error = why, "cannot report refused pods to the control plane: no Events are written about them until then");
            }
        }
        self.told = Some(why);
    }
}

/// The states of the pods, and the last report of each.
#[derive(Debug, Default)]
struct Ledger(BTreeMap<NamespacedName, Entry>);

#[derive(Debug)]
struct Entry {
    uid: Arc<str>,
    refusal: Option<Arc<str>>,
    /// Since when it has been refused, or enrolled.
    since: Instant,
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    refusal: Option<Arc<str>>,
    at: Instant,
}

/// A report of one pod that is due.
#[derive(Debug)]
struct Due {
    name: NamespacedName,
    uid: Arc<str>,
    refusal: Option<Arc<str>>,
}

impl Due {
    fn message(&self) -> ReportedPod {
        let state = if self.refusal.is_some() { ReportedState::Refused } else { ReportedState::Enrolled };
        ReportedPod {
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
            uid: self.uid.to_string(),
            state: state.into(),
            reason: self.refusal.as_deref().unwrap_or_default().chars().take(REASON).collect(),
        }
    }
}

impl Ledger {
    /// Updates the states of all pods.
    fn see(&mut self, pods: Vec<PodStanding>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for PodStanding { name, uid, refusal } in pods {
            let known = before.remove(&name).filter(|known| known.uid == uid || known.uid.is_empty() || uid.is_empty());
            let entry = match known {
                Some(known) => {
                    let since = if known.refusal.is_some() == refusal.is_some() { known.since } else { now };
                    let uid = if uid.is_empty() { known.uid } else { uid };
                    Entry { uid, refusal, since, told: known.told }
                }
                None => Entry { uid, refusal, since: now, told: None },
            };
            // No entry is needed for a pod that was always enrolled.
            if entry.refusal.is_some() || entry.told.is_some() {
                self.0.insert(name, entry);
            }
        }
    }

    /// The reports that are due, oldest first.
    fn due(&self, now: Instant) -> Vec<Due> {
        let mut due: Vec<_> = self.0.iter().filter(|(_, entry)| entry.is_due(now)).collect();
        due.sort_by_key(|(_, entry)| entry.told.as_ref().map(|told| told.at));
        due.truncate(MOST_PODS);
        let due = due.into_iter().map(|(name, entry)| Due {
            name: name.clone(),
            uid: Arc::clone(&entry.uid),
            refusal: entry.refusal.clone(),
        });
        due.collect()
    }

    /// Records that these pods were reported.
    fn told(&mut self, reported: &[Due], now: Instant) {
        for Due { name, refusal, .. } in reported {
            if refusal.is_none() {
                self.0.remove(name);
            } else if let Some(entry) = self.0.get_mut(name) {
                entry.told = Some(Told { refusal: refusal.clone(), at: now });
            }
        }
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        if now < self.since + AFTER {
            return false;
        }
        match (&self.told, &self.refusal) {
            (None, refusal) => refusal.is_some(),
            (Some(_), None) => true,
            (Some(told), Some(_)) => {
                let pause = if told.refusal == self.refusal { AGAIN } else { OTHER_REASON };
                now >= told.at + pause
            }
        }
    }
}

#[cfg(test)]
mod tests;
