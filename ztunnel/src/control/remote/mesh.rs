//! The mesh of a control plane: one stream after the other. Between streams the last good state stays in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::contact::Contact;
use super::join::Taken as Changed;
use super::kept::{Journal, Keeper, Record, clear, set_apart};
use super::on_demand::OnDemand;
use super::plane::ControlPlane;
use super::problems::of_plane;
use super::resources::{REQUIRED, Resources, TYPES, Taken};
use super::stream::{Stream, StreamError};
use crate::control::backoff::{Backoff, LONGEST};
use crate::control::source::MeshSource;
use crate::identity::certificate::rfc3339;
use crate::istio::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::lifecycle::keeps::Keeps;
use crate::lifecycle::tasks::TaskCount;
use crate::model::cause::causes;
use crate::model::problem::{Problem, Severity};
use crate::store::change::{Batch, Change, Gaps};
use crate::store::demand::Demand;

/// Workloads and the policies that they name come in separate responses, shortly after each other. A batch that names a missing
/// policy waits this long for the policy; then the workload is closed.
const POLICY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first answer for a type of resources may take. A control plane that has just started needs some time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A control plane sends nothing if the kept state of the daemon is up to date. After this time of silence the state counts as
/// confirmed.
const CONFIRMED: Duration = Duration::from_secs(10);

/// A source of the mesh: a control plane.
pub struct RemoteMesh {
    plane: Arc<ControlPlane>,
    tasks: TaskCount,
    resources: Resources,
    /// The state of the mode in which addresses are requested one by one.
    on_demand: Option<OnDemand>,
    /// Requests for a stream that is being opened.
    unsent: Vec<DeltaDiscoveryRequest>,
    link: Link,
    backoff: Backoff,
    /// Keeps the last good state; `None` until that has been read.
    keeper: Option<Keeper>,
    /// Whether this daemon keeps it.
    keeps: Keeps,
    file: PathBuf,
    /// The time of the last response.
    heard: Option<SystemTime>,
    /// Why there is no stream, and since when.
    outage: Option<Outage>,
    /// Shows others whether there is an outage.
    contact: Contact,
    /// The types for which this control plane or an earlier one has answered.
    answered: [bool; REQUIRED],
    /// The types whose state comes from a stream or was confirmed by it, and is not only the kept one.
    confirmed: [bool; REQUIRED],
    /// The mesh has been complete at some time.
    complete: bool,
    /// The deadline for a missing policy that a workload names.
    hold: Option<Instant>,
    /// There may be changes for a batch.
    is_due: bool,
    /// The last published state.
    told: Option<Told>,
}

struct Outage {
    since: SystemTime,
    why: String,
}

struct Told {
    gaps: Gaps,
    problems: Arc<[Problem]>,
    read: bool,
}

enum Link {
    Waiting(Instant),
    Connecting(BoxFuture<'static, Result<Stream, StreamError>>),
    Streaming { stream: Box<Stream>, since: Instant },
}

enum Event {
    Due,
    Connected(Box<Result<Stream, StreamError>>),
    Response(Box<Result<DeltaDiscoveryResponse, StreamError>>),
}

impl RemoteMesh {
    /// The mesh of a control plane. The last good state is kept in `file`.
    #[must_use]
    pub fn new(plane: Arc<ControlPlane>, file: PathBuf, tasks: TaskCount) -> Self {
        Self {
            resources: Resources::new(Arc::clone(&plane)),
            plane,
            tasks,
            on_demand: None,
            unsent: Vec::new(),
            link: Link::Waiting(Instant::now()),
            backoff: Backoff::default(),
            keeper: None,
            keeps: Keeps::default(),
            file,
            heard: None,
            outage: None,
            contact: Contact::default(),
            answered: [false; REQUIRED],
            confirmed: [false; REQUIRED],
            complete: false,
            hold: None,
            is_due: false,
            told: None,
        }
    }

    /// Keeps the last good state only as long as this daemon does.
    #[must_use]
    pub fn kept_by(self, keeps: Keeps) -> Self {
        Self { keeps, ..self }
    }

    /// Shows in `contact` whether the control plane can be used.
    #[must_use]
    pub fn shown_in(self, contact: Contact) -> Self {
        Self { contact, ..self }
    }

    /// Requests only the pods of this node and the wanted addresses.
    #[must_use]
    pub fn on_demand(self, demand: Demand) -> Self {
        let on_demand = Some(OnDemand::new(demand, Arc::clone(&self.plane)));
        Self { on_demand, resources: Resources::new(Arc::clone(&self.plane)).on_demand(), ..self }
    }

    /// Empty resources.
    fn nothing(&self) -> Resources {
        let resources = Resources::new(Arc::clone(&self.plane));
        if self.on_demand.is_some() { resources.on_demand() } else { resources }
    }

    /// Waits until all accepted responses are kept.
    #[cfg(test)]
    pub(super) async fn settled(&mut self) {
        while let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.is_busy()) {
            keeper.written().await;
        }
    }

    /// Reads the kept state on a blocking thread.
    async fn recall(&mut self) {
        let (file, plane) = (self.file.clone(), self.plane.url.to_string());
        let mut resources = self.nothing();
        // On demand, there is no answer for addresses that were not requested.
        let first = self.first_answered();
        let has_predecessor = self.keeps.has_predecessor();
        let work = move || {
            let (mut at, mut answered) = (None, first);
            let apart = if has_predecessor { set_apart(&file) } else { clear(&file) };
            let journal = apart.and_then(|()| {
                Journal::open(&file, &plane, |record| {
                    at = Some(record.at);
                    let taken = record.response.map(|response| resources.take(response));
                    if let Some(known) = taken.and_then(|taken| answered.get_mut(taken.kind?)) {
                        *known = true;
                    }
                })
            });
            (journal, resources, at, answered)
        };
        let (journal, at) = match spawn_blocking(work).await {
            Ok((journal, resources, at, answered)) => {
                (self.resources, self.answered) = (resources, answered);
                (journal, at)
            }
            Err(failure) => (Err(std::io::Error::other(failure.to_string())), None),
        };
        if let Err(error) = &journal {
            warn!(
                file = %self.file.display(), %error,
                "cannot store the mesh of the control plane on disk: a daemon that starts while the control plane \
                 cannot be reached will have no mesh"
            );
        }
        self.keeper = Some(Keeper::new(journal).kept_by(self.keeps.clone()));
        self.heard = at.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        if self.answered == [true; REQUIRED] {
            (self.complete, self.is_due) = (!self.resources.has_unread(), true);
            let (addresses, policies) = self.resources.counts();
            let as_of = self.heard.map(rfc3339);
            info!(addresses, policies, as_of, "using the stored mesh until the control plane is reached");
        } else {
            // An incomplete state is not used.
            (self.resources, self.answered) = (self.nothing(), first);
        }
    }

    /// The types that count as answered from the start: on demand, the addresses.
    fn first_answered(&self) -> [bool; REQUIRED] {
        let mut answered = [false; REQUIRED];
        if let (Some(_), Some(addresses)) = (&self.on_demand, answered.first_mut()) {
            *addresses = true;
        }
        answered
    }

    /// The next batch, if there are changes.
    fn batch(&mut self) -> Option<Batch> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        let read = self.answered == [true; REQUIRED] && !self.is_nonsense();
        if read && self.resources.waits() {
            let now = Instant::now();
            let until = *self.hold.get_or_insert(now + POLICY_TIMEOUT);
            if now < until {
                self.is_due = true;
                return None;
            }
        }
        self.hold = None;
        let (changes, is_whole) = if read { self.changes() } else { (Vec::new(), false) };
        let lacks_own = self.on_demand.as_ref().is_some_and(|on_demand| !on_demand.knows_own());
        let partial = !read || self.confirmed != [true; REQUIRED] || self.resources.has_unread() || lacks_own;
        // On demand, missing resources are requested, so the mesh is not blind.
        let blind = partial && !self.complete && self.on_demand.is_none();
        self.complete |= !partial;
        let gaps = Gaps { partial, blind, unread: self.resources.unread_policies(), ..Gaps::default() };
        let mut problems = self.resources.problems();
        problems.extend(self.own_problems());
        problems.sort();
        let last = self.told.as_ref();
        let now = Told { gaps, problems: problems.into(), read };
        let batch = Batch {
            changes,
            is_whole,
            gaps: last.is_none_or(|last| last.gaps != now.gaps).then(|| now.gaps.clone()),
            problems: last.is_none_or(|last| last.problems != now.problems).then(|| Arc::clone(&now.problems)),
            is_read: now.read,
        };
        if batch.is_empty() && last.is_some_and(|last| last.read == now.read) {
            return None;
        }
        self.told = Some(now);
        Some(batch)
    }

    /// Whether every resource was refused. Then nothing is known of the mesh, as if no response had come. A mesh that was
    /// read once counts as read.
    fn is_nonsense(&self) -> bool {
        let was_read = self.told.as_ref().is_some_and(|told| told.read);
        !was_read && self.resources.counts() == (0, 0) && self.resources.has_refused()
    }

    fn changes(&mut self) -> (Vec<Change>, bool) {
        let Changed { mut changes, is_whole } = self.resources.changes();
        if is_whole || self.told.as_ref().is_none_or(|told| !told.read) {
            // A control plane does not send nodes. A node without pods must not look like a wrong name, so the own node is
            // added.
            changes.push(Change::Node(Arc::clone(&self.plane.node)));
        }
        changes.retain(|change| !matches!(change, Change::NodeGone(node) if *node == self.plane.node));
        (changes, is_whole)
    }

    fn own_problems(&self) -> Vec<Problem> {
        let url = self.plane.url.to_string();
        let mut problems = Vec::new();
        if let Some(Outage { since, why }) = &self.outage {
            let state = match self.heard {
                Some(heard) if self.answered == [true; REQUIRED] => {
                    format!("the mesh stays as it was at {}", rfc3339(heard))
                }
                _ => "until then the daemon has no mesh".to_owned(),
            };
            let message = format!(
                "the control plane cannot be used since {}: {why}; {state}, and the connection is tried again every few seconds",
                rfc3339(*since)
            );
            problems.push(of_plane(&url, message, Severity::Error));
        }
        if let Some(failure) = self.keeper.as_ref().and_then(Keeper::failure) {
            let message = format!(
                "the mesh cannot be stored in {} any more: {failure}; a daemon that starts while the control \
                 plane cannot be reached will have an older mesh or none; make the file writable, and \
                 restart the daemon",
                self.file.display()
            );
            problems.push(of_plane(&url, message, Severity::Warning));
        }
        problems
    }

    /// Waits for the next event, and processes it.
    async fn step(&mut self) {
        let keeper = self.keeper.get_or_insert_with(|| Keeper::new(Err(std::io::Error::other("not opened"))));
        let is_confirmed = self.confirmed == [true; REQUIRED] && self.outage.is_none();
        let deadline = answer_deadline(&self.link, self.answered == [true; REQUIRED], is_confirmed);
        let held = self.hold;
        let on_demand = &mut self.on_demand;
        let wanted = async {
            match on_demand {
                Some(on_demand) => on_demand.changed().await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = happens(&mut self.link) => event,
            () = keeper.written() => {
                self.is_due |= keeper.failure().is_some();
                return;
            }
            () = until(deadline) => return self.answer_timed_out(),
            () = until(held) => return,
            () = wanted => return self.want(),
        };
        match event {
            Event::Due => {
                let names = self.on_demand.as_mut().map(OnDemand::all);
                let first = self.resources.first_requests(names);
                self.unsent.clear();
                let opening = Stream::open(Arc::clone(&self.plane), first, self.tasks.clone());
                self.link = Link::Connecting(Box::pin(opening));
            }
            Event::Connected(result) => match *result {
                Ok(stream) => {
                    let first = self.first_answered();
                    for (confirmed, is_first) in self.confirmed.iter_mut().zip(first) {
                        *confirmed |= is_first;
                    }
                    info!(control_plane = %self.plane.url, "connected to the control plane");
                    let sent =
                        std::mem::take(&mut self.unsent).into_iter().try_for_each(|request| stream.send(request));
                    self.link = Link::Streaming { stream: Box::new(stream), since: Instant::now() };
                    if let Err(error) = sent {
                        self.failed(&error);
                    }
                }
                Err(error) => self.failed(&error),
            },
            Event::Response(result) => match *result {
                Ok(response) => self.take(response),
                Err(error) => self.failed(&error),
            },
        }
    }

    /// Processes the silence of the control plane: the state is up to date, or the control plane does not work.
    fn answer_timed_out(&mut self) {
        match (0..REQUIRED).find(|kind| self.answered.get(*kind) != Some(&true)) {
            Some(kind) => {
                let what = TYPES.get(kind).copied().unwrap_or_default();
                self.failed(&StreamError::Silent { what, seconds: ANSWER_TIMEOUT.as_secs() });
            }
            None => {
                self.confirmed = [true; REQUIRED];
                (self.outage, self.is_due) = (None, true);
            }
        }
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let emptied = self.resources.emptied().clone();
        let (resources, removed) = (response.resources.len(), response.removed_resources.len());
        let heard = self.on_demand.is_some().then(|| DeltaDiscoveryResponse {
            type_url: response.type_url.clone(),
            removed_resources: response.removed_resources.clone(),
            ..DeltaDiscoveryResponse::default()
        });
        let Taken { answer, kind, in_force } = self.resources.take(response);
        if let (Some(on_demand), Some(heard)) = (&mut self.on_demand, heard) {
            on_demand.hear(&heard, &in_force, &self.resources);
        }
        if let Some(nack) = &answer.error_detail {
            warn!(
                type_url = answer.type_url,
                reasons = nack.message,
                "resources of the control plane cannot be used; their last good state stays in force"
            );
        }
        for type_url in self.resources.emptied().difference(&emptied) {
            warn!(
                type_url,
                removed, "the control plane has removed all resources of this type, so the mesh has none of them"
            );
        }
        tracing::debug!(type_url = answer.type_url, resources, removed, "response of the control plane");
        (self.outage, self.is_due) = (None, true);
        if let Some(kind) = kind {
            for known in [&mut self.answered, &mut self.confirmed] {
                if let Some(known) = known.get_mut(kind) {
                    *known = true;
                }
            }
            let now = SystemTime::now();
            self.heard = Some(now);
            let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if let Some(keeper) = &mut self.keeper {
                keeper.put(&Record { at, response: Some(in_force) });
            }
        }
        if let Link::Streaming { stream, .. } = &self.link
            && let Err(error) = stream.send(answer)
        {
            self.failed(&error);
        }
    }

    /// Requests newly wanted resources, and forgets those that are not wanted any more.
    fn want(&mut self) {
        let Some(on_demand) = &mut self.on_demand else { return };
        let (request, forgotten) = on_demand.request(&mut self.resources);
        self.is_due = true;
        if !forgotten.is_empty()
            && let Some(keeper) = &mut self.keeper
        {
            let removed = DeltaDiscoveryResponse {
                type_url: TYPES.first().copied().unwrap_or_default().to_owned(),
                removed_resources: forgotten,
                ..DeltaDiscoveryResponse::default()
            };
            let at = self.heard.and_then(|heard| heard.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_secs();
            keeper.put(&Record { at, response: Some(removed) });
        }
        let Some(request) = request else { return };
        match &self.link {
            Link::Streaming { stream, .. } => {
                if let Err(error) = stream.send(request) {
                    self.failed(&error);
                }
            }
            // The first request of this stream has been made already.
            Link::Connecting(_) => self.unsent.push(request),
            // The first request of the next stream will contain everything that is wanted then.
            Link::Waiting(_) => {}
        }
    }

    /// Ends the stream; the next attempt comes after a pause.
    fn failed(&mut self, error: &StreamError) {
        let lived = match &self.link {
            Link::Streaming { since, .. } => since.elapsed(),
            Link::Waiting(_) | Link::Connecting(_) => Duration::ZERO,
        };
        let pause = self.backoff.after(lived);
        self.link = Link::Waiting(Instant::now() + pause);
        let why = causes(error);
        if lived >= LONGEST && matches!(error, StreamError::Ended(_) | StreamError::Closed) {
            // Control planes end streams from time to time, so that the daemons are distributed over all replicas.
            info!(
                control_plane = %self.plane.url, reason = why,
                "the stream of the control plane has ended; connecting again"
            );
            return;
        }
        let is_known = self.outage.as_ref().is_some_and(|outage| outage.why == why);
        if !is_known {
            warn!(control_plane = %self.plane.url, error = why, retry_in = ?pause, "no stream from the control plane; the last good mesh stays in force");
        }
        let since = self.outage.take().map_or_else(SystemTime::now, |outage| outage.since);
        self.outage = Some(Outage { since, why });
        self.is_due |= !is_known;
    }
}

impl RemoteMesh {
    fn published(&mut self) {
        if let Some(on_demand) = self.on_demand.as_mut().filter(|_| !self.is_due) {
            on_demand.published();
        }
    }
}

impl MeshSource for RemoteMesh {
    /// The first batch comes when the control plane has answered for all required types of resources, or at once with the kept
    /// state.
    async fn next(&mut self) -> Option<Batch> {
        if self.keeper.is_none() {
            self.recall().await;
        }
        // The last batch has been published.
        self.published();
        loop {
            if let Some(batch) = self.batch() {
                return Some(batch);
            }
            if !self.is_due {
                self.published();
            }
            self.step().await;
            self.contact.set_lost(self.outage.is_some());
        }
    }
}

/// Waits for the next event of the link. Dropping the future loses no event.
async fn happens(link: &mut Link) -> Event {
    match link {
        Link::Waiting(until) => {
            sleep_until(*until).await;
            Event::Due
        }
        Link::Connecting(connecting) => Event::Connected(Box::new(connecting.await)),
        Link::Streaming { stream, .. } => Event::Response(Box::new(stream.next().await)),
    }
}

/// The time until which the control plane may be silent.
fn answer_deadline(link: &Link, is_answered: bool, is_confirmed: bool) -> Option<Instant> {
    let Link::Streaming { since, .. } = link else { return None };
    let limit = if is_answered { CONFIRMED } else { ANSWER_TIMEOUT };
    (!is_answered || !is_confirmed).then(|| *since + limit)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
