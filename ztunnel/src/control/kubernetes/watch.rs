//! The objects of one type, and their changes.
//!
//! First the objects are listed in pages; then a watch follows from the version of the list. A watch that ends is started again
//! from the last seen version. If the API server does not have that version any more (410), the list is read again, and only
//! the differences are reported. A failure is reported once and retried after a pause. The pauses grow and are random, so that
//! the replicas and nodes of a cluster do not retry at the same time. Meanwhile the reported objects stay valid.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use futures_util::StreamExt as _;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::answer::{Event, Events, LONGEST_OBJECT, LONGEST_PAGE, NoPage, Page, begin, list};
use super::client::Cluster;
use super::failure::{Failure, Reason};
use super::object::Object;
use super::resource::ResourceType;
use crate::control::backoff::Backoff;
use crate::model::workload::NamespacedName;

/// The most objects in a page. A Pod has some 9 kB as JSON. Large objects come in smaller pages.
const PAGE: u32 = 100;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// How long the API server may take to begin a watch.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// The API server ends a watch after this time, and the watch is started again. So a dead connection is noticed.
const WATCH_SECONDS: u32 = 100;
/// How much later the end of a watch may come.
const GRACE: Duration = Duration::from_secs(15);
/// The time between two requests for a type that the API server does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The number of failures in a row from which they are reported: a connection may break once.
const TOLD_FROM: u32 = 2;

/// A selection of objects of a type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The namespace; `None`: all namespaces.
    pub namespace: Option<String>,
    /// A field selector, such as `spec.nodeName=NAME`.
    pub fields: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
}

/// A report of a watch.
#[derive(Debug)]
pub enum Report {
    /// An object is new or has changed.
    Applied(Box<Object>),
    /// An object is deleted.
    Gone(NamespacedName),
    /// All objects have been reported, at the start or after a failure; from now on changes follow.
    Synced,
    /// The API server does not know the type, for example because a CRD is not installed: the type has no objects. The request
    /// is repeated later.
    Absent,
    /// The type can't be followed now. The reported objects stay valid, and `Synced` reports when they are up to date again.
    Failed(Failure),
}

/// The objects of one type, and their changes.
pub struct Watch {
    cluster: Cluster,
    resource: ResourceType,
    selection: Selection,
    /// The index of the requested version of the type.
    version: usize,
    phase: Phase,
    /// The reported objects, by name: a digest of the object's UID and version.
    told: HashMap<NamespacedName, u64>,
    reports: VecDeque<Report>,
    standing: Standing,
    backoff: Backoff,
    strikes: u32,
    /// The earliest time of the next request.
    pause: Option<Instant>,
}

/// The last report about the type as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Waiting,
    Synced,
    Absent,
    Failed,
}

enum Phase {
    List(Listing),
    /// A watch has to be started from this version.
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

struct Listing {
    page: Option<String>,
    /// The number of objects for which the next page is asked.
    limit: u32,
    /// The objects of the last page that have not been processed.
    objects: VecDeque<Box<RawValue>>,
    /// The version of the list, when its last page has come.
    version: Option<String>,
    /// The objects of the previous pages.
    seen: HashMap<NamespacedName, u64>,
}

impl Default for Listing {
    fn default() -> Self {
        Self { page: None, limit: PAGE, objects: VecDeque::new(), version: None, seen: HashMap::new() }
    }
}

impl Watch {
    /// A watch that has not started.
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

    /// The number of reported objects that exist.
    #[must_use]
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Waits for the next report. Dropping the future loses no report.
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
                if let Some(text) = listing.objects.pop_front() {
                    return self.listed(&text);
                }
                if let Some(version) = listing.version.take() {
                    return self.end_of_list(version);
                }
                let limit = listing.limit;
                let params = self.selection.list(listing.page.clone(), limit);
                let request = Request::new(self.path()).list(&params);
                let most = if limit == 1 { LONGEST_OBJECT } else { LONGEST_PAGE };
                match timeout(PAGE_WITHIN, list(self.cluster.clone(), request, most)).await {
                    Ok(Ok(page)) => self.page(page),
                    Ok(Err(NoPage::Failed(reason))) => self.failed("list", reason),
                    Ok(Err(NoPage::TooLong)) if limit == 1 => {
                        let why = format!("an object has more than {LONGEST_OBJECT} bytes");
                        self.failed("list", Reason::Answer(why));
                    }
                    Ok(Err(NoPage::TooLong)) => {
                        debug!(resource = %self.resource, limit, "a page of a list has too many bytes: a smaller one is asked for");
                        if let Phase::List(listing) = &mut self.phase {
                            listing.limit = (limit / 10).max(1);
                        }
                    }
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

    fn object(&self, text: &RawValue) -> Result<Object, Reason> {
        let object = Object::parse(text.get(), &self.resource.api_version(self.api_version()), self.resource.kind);
        object.map_err(|error| Reason::Answer(error.to_string()))
    }

    /// Takes a page of a list. Its objects are processed one by one.
    fn page(&mut self, page: Page) {
        let Phase::List(listing) = &mut self.phase else { return };
        listing.limit = (listing.limit * 2).min(PAGE);
        listing.objects = page.objects;
        listing.version = page.next.is_none().then_some(page.version);
        listing.page = page.next;
    }

    /// Processes an object of a list.
    fn listed(&mut self, text: &RawValue) {
        let object = match self.object(text) {
            Ok(object) => object,
            Err(reason) => return self.failed("list", reason),
        };
        let Phase::List(listing) = &mut self.phase else { return };
        let stamp = stamp(&object);
        listing.seen.insert(object.name.clone(), stamp);
        if self.told.insert(object.name.clone(), stamp) != Some(stamp) {
            self.reports.push_back(Report::Applied(Box::new(object)));
        }
    }

    /// Reports the objects that are gone since the last list, and starts a watch.
    fn end_of_list(&mut self, from: String) {
        let Phase::List(listing) = &mut self.phase else { return };
        let seen = std::mem::take(&mut listing.seen);
        self.told.retain(|name, _| {
            let is_there = seen.contains_key(name);
            if !is_there {
                self.reports.push_back(Report::Gone(name.clone()));
            }
            is_there
        });
        self.phase = Phase::Begin { from, is_news: true };
    }

    /// Processes an event of a watch; `None`: the watch has ended.
    fn event(&mut self, event: Option<Result<Event, Reason>>) {
        let Phase::Watch { version, since, .. } = &mut self.phase else { return };
        let lived = since.elapsed();
        let (text, is_deleted) = match event {
            Some(Ok(Event::Applied(text))) => (text, false),
            Some(Ok(Event::Deleted(text))) => (text, true),
            Some(Ok(Event::Bookmark(seen))) => {
                *version = seen;
                return;
            }
            Some(Err(reason)) => return self.broken(reason, lived),
            // The regular end of a watch, unless it comes at once.
            None => {
                self.phase = Phase::Begin { from: std::mem::take(version), is_news: false };
                match lived < Duration::from_secs(1) {
                    true => self.pause = Some(Instant::now() + self.backoff.after(lived)),
                    false => self.calm(),
                }
                return;
            }
        };
        let object = match self.object(&text) {
            Ok(object) => object,
            Err(reason) => return self.broken(reason, lived),
        };
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

    /// Processes the failure of a watch.
    fn broken(&mut self, reason: Reason, lived: Duration) {
        if let Phase::Watch { version, .. } = &mut self.phase {
            self.phase = Phase::Begin { from: std::mem::take(version), is_news: false };
        }
        self.strike("watch", reason, lived);
    }

    /// Processes the failure of a request.
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
            // The last seen version is too old for the API server, for example after a long time without a connection.
            (Reason::Expired(_), _) if self.strikes < TOLD_FROM => {
                self.phase = Phase::List(Listing::default());
                return;
            }
            // A new list also shows whether there is another fault.
            (Reason::Expired(_) | Reason::NotFound(_) | Reason::Answer(_), _) => {
                self.phase = Phase::List(Listing::default());
            }
            (_, Phase::List(_)) => self.phase = Phase::List(Listing::default()),
            _ => {}
        }
        // Other failures, for example a missing right, do not pass by themselves and are reported at once.
        let is_passing = matches!(reason, Reason::Unreachable(_) | Reason::Silent | Reason::Expired(_));
        if is_passing && self.strikes < TOLD_FROM && self.standing == Standing::Synced {
            return;
        }
        let failure = Failure { verb, resource: self.resource, server: Arc::clone(&self.cluster.server), reason };
        self.stand(Standing::Failed, Report::Failed(failure));
    }

    /// Processes the answer that the API server does not know the type in this version.
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

    /// Resets the pauses and failures after a success.
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
    fn list(&self, page: Option<String>, limit: u32) -> ListParams {
        ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(limit),
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

/// A digest that differs between two states of an object.
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
