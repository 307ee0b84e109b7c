//! The objects of one type, and their changes.
//!
//! A list in pages comes first, then a watch from the version of the list on. A watch that ends is begun again from the last
//! version that was seen; when the API server does not remember that version (410), the list is read again, and only what differs
//! is told. Whatever fails is told once and tried again, after pauses that grow and are drawn, so that the replicas and nodes of a
//! cluster do not all return at once; what was told before stays as it is meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::client::Cluster;
use super::failure::{Failure, Reason};
use super::object::{Object, Raw};
use super::resource::ResourceType;
use crate::control::backoff::Backoff;
use crate::model::workload::NamespacedName;

/// Objects of a page. A Pod has some 9 kB as JSON, and five times that while it is read.
const PAGE: u32 = 100;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// How long the API server may take to begin a watch.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// After this time the API server ends a watch, which is begun again: a connection that is dead in silence is noticed by then.
const WATCH_SECONDS: u32 = 100;
/// How much later than that the end may come.
const GRACE: Duration = Duration::from_secs(15);
/// Between two looks for a type that the API server does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Failures in a row before they are told: a connection may break once.
const TOLD_FROM: u32 = 2;

/// Which objects of a type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of this namespace; `None`: of all.
    pub namespace: Option<String>,
    /// With these fields, such as `spec.nodeName=NAME`.
    pub fields: Option<String>,
    /// With these labels.
    pub labels: Option<String>,
}

/// What a watch says.
#[derive(Debug)]
pub enum Report {
    /// An object is there, or has changed.
    Applied(Box<Object>),
    /// An object is gone.
    Gone(NamespacedName),
    /// All that there is has been told, at the start or after a failure; from now on changes follow.
    Synced,
    /// The API server does not know the type, as when a CRD is not installed: there are no objects of it. It is looked for again.
    Absent,
    /// It can't be followed now. What was told before stays as it is, until `Synced` says that it is up to date again.
    Failed(Failure),
}

/// The objects of one type, and their changes.
pub struct Watch {
    cluster: Cluster,
    resource: ResourceType,
    selection: Selection,
    /// Which of the versions of the type is asked for.
    version: usize,
    phase: Phase,
    /// What has been told, by name: a digest of the object's identity and version.
    told: HashMap<NamespacedName, u64>,
    reports: VecDeque<Report>,
    standing: Standing,
    backoff: Backoff,
    strikes: u32,
    /// No request before.
    pause: Option<Instant>,
}

/// What was told last of the type as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Waiting,
    Synced,
    Absent,
    Failed,
}

/// What the API server sends on a watch.
type Events = BoxStream<'static, Result<WatchEvent<Raw>, kube::Error>>;

/// A request, unless the selection can't be written as one.
type Asking = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

async fn list(cluster: Cluster, request: Asking) -> Result<Page, Reason> {
    let request = request.map_err(|error| Reason::Refused(error.to_string()))?;
    cluster.client.request(request).await.map_err(|error| Reason::of(&error))
}

async fn begin(cluster: Cluster, request: Asking) -> Result<Events, Reason> {
    let request = request.map_err(|error| Reason::Refused(error.to_string()))?;
    let stream = cluster.client.request_events::<Raw>(request).await.map_err(|error| Reason::of(&error))?;
    Ok(stream.boxed())
}

enum Phase {
    List(Listing),
    /// A watch is to be begun from this version on.
    Begin {
        from: String,
        is_news: bool,
    },
    Watch {
        stream: Events,
        version: String,
        since: Instant,
    },
}

#[derive(Default)]
struct Listing {
    page: Option<String>,
    /// Those of the pages before.
    seen: HashMap<NamespacedName, u64>,
}

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<Raw>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

impl Watch {
    /// A watch that has not begun.
    #[must_use]
    pub fn new(cluster: Cluster, resource: ResourceType, selection: Selection) -> Self {
        Self {
            cluster,
            resource,
            selection,
            version: 0,
            phase: Phase::List(Listing::default()),
            told: HashMap::new(),
            reports: VecDeque::new(),
            standing: Standing::Waiting,
            backoff: Backoff::default(),
            strikes: 0,
            pause: None,
        }
    }

    /// The type.
    #[must_use]
    pub const fn resource(&self) -> ResourceType {
        self.resource
    }

    /// How many objects have been told of and are not gone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether no object is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Waits for what is next. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Report {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            if let Some(pause) = self.pause {
                sleep_until(pause).await;
                self.pause = None;
            }
            self.step().await;
        }
    }

    async fn step(&mut self) {
        match &mut self.phase {
            Phase::List(listing) => {
                let params = self.selection.list(listing.page.clone());
                let request = Request::new(self.path()).list(&params);
                match timeout(PAGE_WITHIN, list(self.cluster.clone(), request)).await {
                    Ok(Ok(page)) => self.page(page),
                    Ok(Err(reason)) => self.failed("list", reason),
                    Err(_) => self.failed("list", Reason::Silent),
                }
            }
            Phase::Begin { from, is_news } => {
                let (from, is_news) = (from.clone(), *is_news);
                let request = Request::new(self.path()).watch(&self.selection.watch(), &from);
                match timeout(BEGIN_WITHIN, begin(self.cluster.clone(), request)).await {
                    Ok(Ok(stream)) => {
                        self.phase = Phase::Watch { stream, version: from, since: Instant::now() };
                        if is_news || self.standing != Standing::Synced {
                            self.stand(Standing::Synced, Report::Synced);
                        }
                    }
                    Ok(Err(reason)) => self.failed("watch", reason),
                    Err(_) => self.failed("watch", Reason::Silent),
                }
            }
            Phase::Watch { stream, since, .. } => {
                let until = *since + Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
                let event = tokio::select! {
                    event = stream.next() => event,
                    () = sleep_until(until) => None,
                };
                self.event(event);
            }
        }
    }

    fn api_version(&self) -> &'static str {
        self.resource.versions.get(self.version).copied().unwrap_or("v1")
    }

    fn path(&self) -> String {
        self.resource.path(self.api_version(), self.selection.namespace.as_deref())
    }

    fn object(&self, raw: Raw) -> Object {
        Object::of(raw, &self.resource.api_version(self.api_version()), self.resource.kind)
    }

    /// Takes a page over.
    fn page(&mut self, page: Page) {
        let objects: Vec<Object> = page.items.into_iter().flatten().map(|raw| self.object(raw)).collect();
        let Phase::List(listing) = &mut self.phase else { return };
        for object in objects {
            let stamp = stamp(&object);
            listing.seen.insert(object.name.clone(), stamp);
            if self.told.insert(object.name.clone(), stamp) != Some(stamp) {
                self.reports.push_back(Report::Applied(Box::new(object)));
            }
        }
        listing.page = page.metadata.r#continue.filter(|token| !token.is_empty());
        if listing.page.is_some() {
            return;
        }
        let seen = std::mem::take(&mut listing.seen);
        self.told.retain(|name, _| {
            let is_there = seen.contains_key(name);
            if !is_there {
                self.reports.push_back(Report::Gone(name.clone()));
            }
            is_there
        });
        let from = page.metadata.resource_version.unwrap_or_default();
        self.phase = Phase::Begin { from, is_news: true };
    }

    /// Takes over what a watch says; `None`: it has ended.
    fn event(&mut self, event: Option<Result<WatchEvent<Raw>, kube::Error>>) {
        let Phase::Watch { version, since, .. } = &mut self.phase else { return };
        let lived = since.elapsed();
        let (event, is_deleted) = match event {
            Some(Ok(WatchEvent::Added(raw) | WatchEvent::Modified(raw))) => (raw, false),
            Some(Ok(WatchEvent::Deleted(raw))) => (raw, true),
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                *version = bookmark.metadata.resource_version;
                return;
            }
            Some(Ok(WatchEvent::Error(status))) => return self.broken(Reason::of_status(&status), lived),
            Some(Err(error)) => return self.broken(Reason::of(&error), lived),
            // The usual end, unless it comes at once.
            None => {
                self.phase = Phase::Begin { from: std::mem::take(version), is_news: false };
                match lived < Duration::from_secs(1) {
                    true => self.pause = Some(Instant::now() + self.backoff.after(lived)),
                    false => self.calm(),
                }
                return;
            }
        };
        let object = self.object(event);
        if let Phase::Watch { version, .. } = &mut self.phase
            && !object.version.is_empty()
        {
            *version = object.version.to_string();
        }
        self.calm();
        if is_deleted {
            self.told.remove(&object.name);
            self.reports.push_back(Report::Gone(object.name));
        } else {
            self.told.insert(object.name.clone(), stamp(&object));
            self.reports.push_back(Report::Applied(Box::new(object)));
        }
    }

    /// A watch broke.
    fn broken(&mut self, reason: Reason, lived: Duration) {
        if let Phase::Watch { version, .. } = &mut self.phase {
            self.phase = Phase::Begin { from: std::mem::take(version), is_news: false };
        }
        self.strike("watch", reason, lived);
    }

    /// A request failed.
    fn failed(&mut self, verb: &'static str, reason: Reason) {
        if let Reason::NotFound(_) = reason
            && self.told.is_empty()
        {
            return self.unknown();
        }
        self.strike(verb, reason, Duration::ZERO);
    }

    fn strike(&mut self, verb: &'static str, reason: Reason, lived: Duration) {
        debug!(resource = %self.resource, verb, ?reason, "a request to the Kubernetes API failed");
        self.strikes += 1;
        self.pause = Some(Instant::now() + self.backoff.after(lived));
        match (&reason, &self.phase) {
            // What was seen is too old for it, as after a long time without a connection.
            (Reason::Expired(_), _) if self.strikes < TOLD_FROM => {
                self.phase = Phase::List(Listing::default());
                return;
            }
            // A new list also finds out whether it is something else that is wrong.
            (Reason::Expired(_) | Reason::NotFound(_) | Reason::Answer(_), _) => {
                self.phase = Phase::List(Listing::default());
            }
            (_, Phase::List(_)) => self.phase = Phase::List(Listing::default()),
            _ => {}
        }
        // A right that is missing does not come back by itself.
        let is_passing = matches!(reason, Reason::Unreachable(_) | Reason::Silent | Reason::Expired(_));
        if is_passing && self.strikes < TOLD_FROM && self.standing == Standing::Synced {
            return;
        }
        let failure = Failure { verb, resource: self.resource, server: Arc::clone(&self.cluster.server), reason };
        self.stand(Standing::Failed, Report::Failed(failure));
    }

    /// The API server does not know the type in this version.
    fn unknown(&mut self) {
        self.phase = Phase::List(Listing::default());
        self.version += 1;
        if self.version < self.resource.versions.len() {
            return;
        }
        self.version = 0;
        self.pause = Some(Instant::now() + LOOK_AGAIN.mul_f64(0.5 + fastrand::f64() / 2.0));
        if self.standing != Standing::Absent {
            self.stand(Standing::Absent, Report::Absent);
        }
    }

    /// All is well.
    fn calm(&mut self) {
        self.strikes = 0;
        self.backoff = Backoff::default();
    }

    fn stand(&mut self, standing: Standing, report: Report) {
        if standing == Standing::Synced {
            self.strikes = 0;
        }
        self.standing = standing;
        self.reports.push_back(report);
    }
}

impl Selection {
    fn list(&self, page: Option<String>) -> ListParams {
        ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            continue_token: page,
            ..ListParams::default()
        }
    }

    fn watch(&self) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        }
    }
}

/// What tells one state of an object from another.
fn stamp(object: &Object) -> u64 {
    use std::hash::BuildHasher as _;
    FixedState::default().hash_one((&*object.uid, &*object.version))
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("resource", &self.resource)
            .field("selection", &self.selection)
            .field("standing", &self.standing)
            .field("objects", &self.told.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
