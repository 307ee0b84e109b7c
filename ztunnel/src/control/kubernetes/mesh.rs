//! The mesh from the Kubernetes API.
//!
//! Each type of objects is [watched](Watch), and each object is read like a manifest of a folder. Nothing is published before
//! all types have been listed, because a mesh without its policies would be open. After a later failure the last good state
//! stays in force.
//!
//! If an object can't be read, its last valid version stays in force. If there is none, an object that may contain a policy
//! closes its namespace, and an object that may name pods marks the mesh as partial, as an unreadable manifest does.

mod objects;
mod standing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll, unfold};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::objects::Objects;
pub use self::standing::{Followed, State, TypeStanding};
use super::client::Cluster;
use super::resource::{
    AUTHORIZATION_POLICIES, CONFIG_MAPS, ENDPOINT_SLICES, NAMESPACES, NODES, PEER_AUTHENTICATIONS, PODS, ResourceType,
    SERVICE_ENTRIES, SERVICES, WORKLOAD_ENTRIES,
};
use super::watch::{Report, Selection, Watch};
use crate::control::objects::{Kind, MESH_CONFIG};
use crate::control::source::MeshSource;
use crate::model::identity::TrustDomain;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::store::change::{Batch, Gaps};

/// Changes are combined until there is no further change for this time: a rollout changes pods and slices at once.
const QUIET: Duration = Duration::from_millis(20);
/// The longest time that a change waits for others.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// The types of objects of a mesh, and the kind as which each is read.
const TYPES: [(ResourceType, Kind); 10] = [
    (NAMESPACES, Kind::Namespace),
    (NODES, Kind::Node),
    (PODS, Kind::Pod),
    (SERVICES, Kind::Service),
    (ENDPOINT_SLICES, Kind::Slice),
    (CONFIG_MAPS, Kind::Mesh),
    (SERVICE_ENTRIES, Kind::Entry),
    (WORKLOAD_ENTRIES, Kind::WorkloadEntry),
    (AUTHORIZATION_POLICIES, Kind::Authorization),
    (PEER_AUTHENTICATIONS, Kind::PeerAuthentication),
];

/// The index of a type, a report about it, and the number of its objects after the report.
type Told = (usize, Report, usize);

/// A source of the mesh: the objects of an API server.
pub struct KubernetesMesh {
    reports: SelectAll<BoxStream<'static, Told>>,
    objects: Objects,
    followed: Followed,
    server: Arc<str>,
    /// The last published gaps and problems; `None`: nothing was published yet.
    told: Option<(Gaps, Arc<[Problem]>)>,
    /// All types have been listed.
    is_read: bool,
}

impl KubernetesMesh {
    /// Follows the objects of an API server. Identities have the given trust domain; the mesh's settings are in the given
    /// namespace.
    #[must_use]
    pub fn new(cluster: &Cluster, trust_domain: TrustDomain, namespace: &str) -> Self {
        let streams = TYPES.iter().enumerate().map(|(index, (resource, kind))| {
            let watch = Watch::new(cluster.clone(), *resource, selection(*kind, namespace));
            let reports = unfold(watch, move |mut watch| async move {
                let report = watch.next().await;
                let count = watch.len();
                Some(((index, report, count), watch))
            });
            reports.boxed()
        });
        Self {
            reports: streams.collect(),
            objects: Objects::new(trust_domain),
            followed: Followed::new(TYPES.map(|(resource, _)| resource)),
            server: cluster.server().into(),
            told: None,
            is_read: false,
        }
    }

    /// The state of each type of objects, which is updated later.
    #[must_use]
    pub fn followed(&self) -> Followed {
        self.followed.clone()
    }

    fn take(&mut self, (index, report, count): Told) {
        let Some((resource, kind)) = TYPES.get(index) else { return };
        match report {
            Report::Applied(object) => self.objects.apply(*kind, *object),
            Report::Gone(name) => self.objects.remove(*kind, &name),
            Report::Synced => {
                if self.followed.synced(resource, count) {
                    info!(%resource, objects = count, "objects are up to date again");
                }
                return;
            }
            Report::Absent if is_optional(resource) => {
                info!(
                    %resource, server = &*self.server,
                    "the Kubernetes API does not have this type, so the mesh has no objects of it; looking for the \
                     type again every half a minute"
                );
                return self.followed.absent(resource);
            }
            Report::Absent => {
                let why = format!(
                    "cannot list {resource} at {}: the server does not have this type, so it is not a \
                     Kubernetes API server; correct the address of the server",
                    self.server
                );
                warn!("{why}");
                return self.followed.failed(resource, why, "not_found");
            }
            Report::Failed(failure) => {
                let why = failure.to_string();
                warn!(%resource, "{why}; the last good state stays in force");
                return self.followed.failed(resource, why, failure.reason.label());
            }
        }
        self.followed.counts(resource, count);
    }

    /// Processes the reports that follow a first one closely.
    async fn gather(&mut self) {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let quiet = (Instant::now() + QUIET).min(deadline);
            let told = tokio::select! {
                biased;
                told = self.reports.next() => told,
                () = sleep_until(quiet) => None,
            };
            match told {
                Some(told) => self.take(told),
                None => return,
            }
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// The changes since the last batch.
    fn batch(&mut self) -> Option<Batch> {
        let mut problems: Vec<Problem> = self
            .followed
            .failing()
            .map(|(resource, why)| Problem {
                origin: Origin::Resource { name: resource.to_string().into() },
                object: None,
                message: format!("{why}; the last good state stays in force"),
                severity: Severity::Error,
            })
            .collect();
        // A cluster of which every object is rejected counts like one that cannot be read.
        self.is_read |= self.followed.is_listed() && !self.objects.is_nonsense();
        let (mut changes, mut gaps) = (Vec::new(), Gaps::default());
        if self.is_read {
            let (joined, missing, wrong) = self.objects.join();
            (changes, gaps) = (joined, missing);
            problems.extend(wrong);
        } else if self.followed.is_listed() {
            problems.extend(self.objects.problems());
        }
        problems.sort();
        let last = self.told.as_ref();
        let batch = Batch {
            changes,
            is_whole: false,
            gaps: last.is_none_or(|(last, _)| *last != gaps).then(|| gaps.clone()),
            problems: last.is_none_or(|(_, last)| **last != *problems).then(|| problems.into()),
            is_read: self.is_read,
        };
        // Before all types are listed, only problems are published.
        let is_news = match &batch.problems {
            Some(problems) if !self.is_read && last.is_none() => !problems.is_empty(),
            _ => !batch.is_empty(),
        };
        if !is_news {
            return None;
        }
        let before = last.map(|(_, problems)| Arc::clone(problems)).unwrap_or_default();
        let now = batch.problems.clone().unwrap_or_else(|| Arc::clone(&before));
        log(&before, &now);
        self.told = Some((gaps, now));
        Some(batch)
    }
}

impl MeshSource for KubernetesMesh {
    /// The first complete batch comes when all types have been listed. Before that, a batch contains problems only.
    async fn next(&mut self) -> Option<Batch> {
        loop {
            let told = self.reports.next().await?;
            self.take(told);
            self.gather().await;
            // While lists are read there is no batch.
            if let Some(batch) = self.batch() {
                return Some(batch);
            }
        }
    }
}

/// Whether a type is Istio's, which a cluster need not have.
fn is_optional(resource: &ResourceType) -> bool {
    resource.group.ends_with(".istio.io")
}

/// The selection of objects. The mesh's settings are one object in one namespace: a user who may write in another namespace
/// must not be able to change them.
fn selection(kind: Kind, namespace: &str) -> Selection {
    match kind {
        Kind::Mesh => Selection {
            namespace: Some(namespace.to_owned()),
            fields: Some(format!("metadata.name={MESH_CONFIG}")),
            labels: None,
        },
        _ => Selection::default(),
    }
}

/// Logs each problem of an object when it appears and when it is solved. Failures to follow a type are logged when they occur.
fn log(before: &[Problem], now: &[Problem]) {
    let of_objects = |problems: &'_ [Problem]| -> BTreeSet<Problem> {
        problems.iter().filter(|problem| matches!(problem.origin, Origin::Object { .. })).cloned().collect()
    };
    let (before, now) = (of_objects(before), of_objects(now));
    for problem in now.difference(&before) {
        match problem.severity {
            Severity::Info => info!("{problem}"),
            Severity::Error | Severity::Warning => warn!("{problem}"),
        }
    }
    for problem in before.difference(&now) {
        info!("solved: {problem}");
    }
}

impl std::fmt::Debug for KubernetesMesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesMesh")
            .field("server", &self.server)
            .field("is_read", &self.is_read)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
