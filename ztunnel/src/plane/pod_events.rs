//! Events on pods that a node refuses: `kubectl describe pod` shows why a pod is not enrolled.
//!
//! A node reports its pods by a call ([`REPORT_PODS`](crate::istio::report::REPORT_PODS)), and the control plane writes the Events. So
//! nodes need no right to write to the API, and an attacker on a node cannot have Events written about pods of other nodes. The control
//! plane compares each report with the mesh that it reads from the API server. It ignores pods that are not bound to the
//! caller's node, that have another UID, or that are ending.
//!
//! At most one Event waits for each pod, with the latest state of the pod, and nodes take turns. The name of an Event is derived from its
//! content. So all replicas write the same Event and increment its count.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    caller::Caller,
    grpc::{Code, Status},
    metrics::PlaneMetrics,
    quota::Quota,
};
use crate::{
    control::kubernetes::{Cluster, EventWritten, Failure, PodEvent, Reason, event_note},
    istio::{
        read::{self, PodFacts, ReportFlaw},
        report::{PodReport, PodReportResponse},
    },
    model::workload::{NamespacedName, Workload},
    store::publish::Reader,
};

/// Reports that a node may send at once, and the time after which it may send one more.
const REPORTS: (u32, Duration) = (6, Duration::from_secs(10));
/// Events that may be written for one node at once, and the time after which one more may be written. Each text is an Event of its own,
/// which the API server keeps for an hour.
const WRITES: (u32, Duration) = (64, Duration::from_secs(10));
/// Pause between two writes, over all nodes.
const EVERY: Duration = Duration::from_millis(100);
/// Pause after a failure of the API server.
const AGAIN: Duration = Duration::from_secs(30);
/// Pause while a right is missing.
const WITHOUT_RIGHT: Duration = Duration::from_secs(300);
/// Reason of the Event of a pod that is refused.
const REFUSED: &str = "MeshRefused";
/// Reason of the Event of a pod that is enrolled after it was refused.
const ENROLLED: &str = "MeshEnrolled";

/// Takes reports, and writes Events. Clones share their state.
#[derive(Clone, Debug)]
pub struct PodEvents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    mesh: Reader,
    reports: Quota,
    writes: Quota,
    queue: Mutex<Queue>,
    news: Notify,
    metrics: PlaneMetrics,
}

/// Events that wait to be written.
#[derive(Debug, Default)]
struct Queue {
    nodes: HashMap<Arc<str>, NodeQueue>,
    /// The nodes, in the order of their turns.
    turns: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct NodeQueue {
    pods: BTreeMap<NamespacedName, PodEvent>,
    /// The time until which the quota of the node is used up.
    not_before: Option<Instant>,
}

/// Why a report is refused.
#[derive(Debug, Error)]
pub enum ReportRefusal {
    /// The node reports too often.
    #[error("node {node} has reached the limit of pod reports for a node: try again in {} s", wait.as_secs() + 1)]
    Quota {
        /// The node.
        node: Arc<str>,
        /// The time after which it may report again.
        wait: Duration,
    },
    /// The report is not valid.
    #[error(transparent)]
    Flaw(#[from] ReportFlaw),
    /// The control plane has not read the mesh yet.
    #[error("cannot tell which pods run on node {0}: the mesh has not been read yet; try again")]
    NoMesh(Arc<str>),
}

impl ReportRefusal {
    /// The label of the metric.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Quota { .. } => "quota",
            Self::Flaw(_) => "invalid",
            Self::NoMesh(_) => "no_mesh",
        }
    }

    /// The gRPC status for the caller.
    #[must_use]
    pub fn status(&self) -> Status {
        let code = match self {
            Self::Quota { .. } => Code::ResourceExhausted,
            Self::Flaw(_) => Code::InvalidArgument,
            Self::NoMesh(_) => Code::Unavailable,
        };
        Status::new(code, self.to_string())
    }
}

impl PodEvents {
    /// Writes Events to an API server. `mesh` is the mesh that is read from this API server.
    #[must_use]
    pub fn new(cluster: Cluster, mesh: Reader, metrics: PlaneMetrics) -> Self {
        Self(Arc::new(Shared {
            cluster,
            mesh,
            reports: Quota::new(REPORTS.0, REPORTS.1),
            writes: Quota::new(WRITES.0, WRITES.1),
            queue: Mutex::default(),
            news: Notify::new(),
            metrics,
        }))
    }

    /// Accepts a report of a node. The Events are written later.
    ///
    /// # Errors
    /// The node reports too often, or the report is not valid.
    pub fn take(&self, caller: &Caller, report: &PodReport) -> Result<PodReportResponse, ReportRefusal> {
        let taken = self.0.take(&caller.node, report);
        match &taken {
            Ok(response) => {
                self.0.metrics.reported("taken", response.taken);
                self.0.metrics.reported("ignored", response.ignored);
            }
            Err(refusal) => {
                self.0.metrics.reported(refusal.label(), 1);
                debug!(node = %caller.node, reason = %refusal, "a report of pods was refused");
            }
        }
        taken
    }

    /// Writes the Events, for ever.
    pub async fn write(self) {
        let mut writer = Writer { not_before: Instant::now(), told: None };
        loop {
            // The Event is chosen after the pause, so that it has the latest state.
            sleep_until(writer.not_before).await;
            match self.0.next(Instant::now()) {
                Next::Write(event) => {
                    writer.not_before = Instant::now() + EVERY;
                    // The pod may have ended while its Event waited.
                    if self.0.of_mesh(&event.node, &event.pod).is_some_and(|pod| *pod.uid == *event.uid) {
                        writer.write(&self.0, event).await;
                    } else {
                        self.0.metrics.event("gone");
                    }
                }
                Next::At(at) => {
                    tokio::select! {
                        () = sleep_until(at) => {}
                        () = self.0.news.notified() => {}
                    }
                }
                Next::Nothing => self.0.news.notified().await,
            }
        }
    }
}

enum Next {
    Write(PodEvent),
    At(Instant),
    Nothing,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, node: &Arc<str>, report: &PodReport) -> Result<PodReportResponse, ReportRefusal> {
        // The quota comes before everything that costs time.
        let quota = self.reports.take(node, Instant::now());
        quota.map_err(|wait| ReportRefusal::Quota { node: Arc::clone(node), wait })?;
        let pods = read::pods(report)?;
        if self.mesh.load().version() == 0 {
            return Err(ReportRefusal::NoMesh(Arc::clone(node)));
        }
        let mut response = PodReportResponse::default();
        for PodFacts { name, uid, refusal } in pods {
            let known = self.of_mesh(node, &name);
            let known = known.filter(|known| uid.is_empty() || *uid == *known.uid);
            let Some(known) = known else {
                response.ignored += 1;
                continue;
            };
            response.taken += 1;
            self.queue().put(event(node, &known, refusal));
        }
        if response.ignored > 0 {
            warn!(
                %node,
                pods = response.ignored,
                "a node reports pods that the API server does not have on this node, or that have ended: no Event is written for them"
            );
        }
        self.news.notify_one();
        Ok(response)
    }

    /// A pod of a node, unless it is ending.
    fn of_mesh(&self, node: &str, name: &NamespacedName) -> Option<Arc<Workload>> {
        let mesh = self.mesh.load();
        let mut pods = mesh.pods_on(node);
        let pod = pods.find(|pod| pod.name == *name && !pod.is_entry && !pod.finished && !pod.leaving);
        pod.filter(|pod| !pod.uid.is_empty()).cloned()
    }

    /// The Event to write next. Nodes take turns.
    fn next(&self, now: Instant) -> Next {
        let mut queue = self.queue();
        let mut earliest: Option<Instant> = None;
        for _ in 0..queue.turns.len() {
            let Some(node) = queue.turns.pop_front() else { break };
            let Some(waiting) = queue.nodes.get_mut(&node) else { continue };
            if let Some(at) = waiting.not_before.filter(|at| *at > now) {
                earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
                queue.turns.push_back(node);
                continue;
            }
            if let Err(wait) = self.writes.take(&node, now) {
                let at = now + wait;
                waiting.not_before = Some(at);
                earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
                queue.turns.push_back(node);
                continue;
            }
            let event = waiting.pods.pop_first().map(|(_, event)| event);
            if waiting.pods.is_empty() {
                queue.nodes.remove(&node);
            } else {
                queue.turns.push_back(node);
            }
            if let Some(event) = event {
                return Next::Write(event);
            }
        }
        earliest.map_or(Next::Nothing, Next::At)
    }
}

impl Queue {
    /// Replaces an Event that waits for the same pod: there are no more Events than pods of the node.
    fn put(&mut self, event: PodEvent) {
        let node = Arc::clone(&event.node);
        if !self.nodes.contains_key(&node) {
            self.turns.push_back(Arc::clone(&node));
        }
        self.nodes.entry(node).or_default().pods.insert(event.pod.clone(), event);
    }
}

fn event(node: &Arc<str>, pod: &Workload, refusal: Option<&str>) -> PodEvent {
    let note = match refusal {
        Some(reason) => {
            let reason = if reason.trim().is_empty() { "the node gives no reason" } else { reason };
            format!("The pod is not enrolled in the mesh: {reason}")
        }
        None => "The pod is enrolled in the mesh; it was refused before".to_owned(),
    };
    let is_warning = refusal.is_some();
    PodEvent {
        pod: pod.name.clone(),
        uid: pod.uid.to_string(),
        node: Arc::clone(node),
        is_warning,
        reason: if is_warning { REFUSED } else { ENROLLED },
        note: event_note(&note),
    }
}

/// The state of the writer.
struct Writer {
    /// The time of the next write.
    not_before: Instant,
    /// The last failure that was logged.
    told: Option<String>,
}

impl Writer {
    async fn write(&mut self, shared: &Shared, event: PodEvent) {
        match shared.cluster.write_event(&event).await {
            Ok(written) => {
                let label = match written {
                    EventWritten::Created => "created",
                    EventWritten::Counted => "counted",
                    EventWritten::Recent => "recent",
                    EventWritten::NoNamespace => "gone",
                };
                debug!(pod = %event.pod, node = %event.node, result = label, "Event on a pod");
                shared.metrics.event(label);
                self.told = None;
            }
            Err(failure) => {
                shared.metrics.event("failed");
                let pause = match failure.reason {
                    Reason::Forbidden(_) | Reason::NotFound(_) => WITHOUT_RIGHT,
                    _ => AGAIN,
                };
                self.tell(&failure);
                self.not_before = Instant::now() + pause;
                // An Event that the API server rejects would be rejected again. The node repeats its report while the refusal lasts.
                if !matches!(failure.reason, Reason::Refused(_) | Reason::Answer(_)) {
                    shared.queue().put_back(event);
                }
            }
        }
    }

    fn tell(&mut self, failure: &Failure) {
        let text = failure.to_string();
        if self.told.as_ref() != Some(&text) {
            warn!(
                "{text}; until then the control plane writes no Events about refused pods; the logs of the \
                 nodes have the reasons"
            );
            self.told = Some(text);
        }
    }
}

impl Queue {
    /// Puts an Event back, unless a newer one waits for the pod.
    fn put_back(&mut self, event: PodEvent) {
        let is_newer = self.nodes.get(&event.node).is_some_and(|node| node.pods.contains_key(&event.pod));
        if !is_newer {
            self.put(event);
        }
    }
}

#[cfg(test)]
mod tests;
