//! The mesh from a watched folder of Kubernetes manifests.
//!
//! The daemon reads `*.yaml`, `*.yml` and `*.json` in the folder itself, in the order of their names, without hidden
//! files. Symbolic links are followed, so that a mounted ConfigMap works. A file that can't be read never empties the
//! mesh: the last valid content of a broken file stays in force, and so does the whole mesh when the folder is missing.
//! Both are reported as problems in the snapshot.
//!
//! A change takes effect when its writer closes the file, renames it or removes it. A writer should write the file
//! outside of the folder and rename it into the folder: then no half-written file is ever read.
//!
//! A file that is invalid from the start may hold policies. Until everything was valid at least once, nobody knows
//! which connections those policies deny: see [`UnreadPolicies`]. That everything was valid once is kept on disk, so
//! that a restart with a new invalid file closes nothing that the running daemon did not close.

mod content;
mod folder;
mod kept;
mod last;
mod sources;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use self::folder::{Folder, FolderLimits, Reading};
pub use self::sources::{Manifests, Source, read_sources};
use self::watch::{Sign, Watch};
use super::join::{Joined, Joiner};
use super::manifests::AddressesIn;
use super::source::MeshSource;
use crate::lifecycle::keeps::Keeps;
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};
use crate::store::change::{Batch, Gaps};
use crate::store::local::LocalPublisher;
use crate::store::snapshot::Snapshot;

/// How long the folder must be quiet before it is read, so that a tool that writes several files causes one reading
/// only.
const QUIET: Duration = Duration::from_millis(75);
/// The longest wait for a folder that never gets quiet.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How often the folder is read without a sign of change. inotify may lose events and doesn't see changes behind
/// symbolic links; this bounds the delay.
const REREAD: Duration = Duration::from_secs(30);
/// The same where the folder can't be watched at all: a changed label should still take effect within about a second.
const REREAD_UNWATCHED: Duration = Duration::from_secs(1);

/// Why the mesh folder can't be used.
#[derive(Debug, Error)]
pub enum OpenFolderError {
    /// The folder does not exist, or is not accessible.
    #[error("cannot read the mesh folder {}: create it or correct --mesh", dir.display())]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file or a folder that was named as an argument can't be read.
    #[error("cannot read {}", path.display())]
    Argument {
        /// The path that was given, or a folder below it.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The path leads to something that is not a directory.
    #[error("the mesh folder {} is not a directory: name the directory that holds the manifests", dir.display())]
    NotADirectory {
        /// The path that was given.
        dir: PathBuf,
    },
}

/// Receiver of the local facts of this node's pods: a Pod's annotations, and the ports of its probes.
#[derive(Debug)]
pub struct Local {
    /// This node: facts about pods of other nodes are not published.
    pub node: Arc<str>,
    /// Receives the facts.
    pub publisher: LocalPublisher,
}

/// A watched folder of manifests, as a source of the mesh.
#[derive(Debug)]
pub struct MeshFolder {
    dir: PathBuf,
    trust_domain: TrustDomain,
    local: Option<Local>,
    /// Directory for copies of the last valid content of each file.
    kept: Option<PathBuf>,
    /// Whether this daemon keeps them.
    keeps: Keeps,
    limits: FolderLimits,
    /// Local facts that take effect when the batch that was yielded last has been published.
    local_due: Option<LocalPods>,
    /// `None` while the folder is being read.
    content: Option<Content>,
    watch: Watch,
    /// Whether the folder could be watched the last time; `None`: it has not been read yet.
    watched: Option<bool>,
    /// What was reported last; `None` before the first report.
    told: Option<Told>,
    /// Every file was valid at least once, in this process or an earlier one.
    complete: bool,
    /// The last reading was not finished, and how the folder is read.
    unfinished: Option<Reading>,
    /// A reading failed because of a bug in this program, and the knowledge about the files was lost with it.
    is_lost: bool,
}

/// The state of the folder's content.
#[derive(Debug)]
struct Content {
    folder: Folder,
    joiner: Joiner,
}

/// The difference since the last reading.
#[derive(Debug)]
struct News {
    joined: Joined,
    /// All problems, in their order.
    problems: Vec<Problem>,
}

impl Content {
    /// The difference since the last call. Takes long when much has changed.
    fn take(&mut self) -> News {
        let joined = self.joiner.take();
        let mut problems = self.joiner.problems();
        problems.extend(self.folder.problems());
        problems.sort();
        News { joined, problems }
    }
}

#[derive(Debug)]
struct Told {
    gaps: Gaps,
    problems: Arc<[Problem]>,
    read: bool,
}

/// The mesh that a folder describes now, as a daemon sees it right after its start, and the local facts of the pods of
/// all nodes. The snapshot has version 1, or 0 if the folder disappeared meanwhile. Blocks on the file system.
///
/// # Errors
/// The folder can't be used.
pub fn read_once(dir: &Path, trust_domain: TrustDomain) -> Result<(Snapshot, LocalPods), OpenFolderError> {
    let mut folder = MeshFolder::open(dir, trust_domain)?;
    let mut content = folder.content.take().unwrap_or_else(|| folder.nothing());
    content.folder.read(&mut content.joiner, Reading::Thorough);
    let news = content.take();
    let batch = folder.batch(&content, news).unwrap_or_default();
    let local = content.joiner.local().clone();
    Ok((Snapshot::default().apply(batch).with_origins(content.joiner.origins()), local))
}

impl MeshFolder {
    /// Opens a folder, which has to exist now. Later it may disappear and come back.
    ///
    /// Identities get this trust domain.
    pub fn open(dir: &Path, trust_domain: TrustDomain) -> Result<Self, OpenFolderError> {
        let unreadable = |source| OpenFolderError::Unreadable { dir: dir.to_owned(), source };
        // Not made canonical: the folder may be a symbolic link that is changed to another folder later.
        let absolute = std::path::absolute(dir).map_err(unreadable)?;
        let metadata = std::fs::metadata(&absolute).map_err(unreadable)?;
        if !metadata.is_dir() {
            return Err(OpenFolderError::NotADirectory { dir: dir.to_owned() });
        }
        std::fs::read_dir(&absolute).map_err(unreadable)?;
        Ok(Self::at(absolute, trust_domain))
    }

    fn at(dir: PathBuf, trust_domain: TrustDomain) -> Self {
        Self {
            watch: Watch::new(dir.clone()),
            dir,
            trust_domain,
            local: None,
            kept: None,
            keeps: Keeps::default(),
            limits: FolderLimits::default(),
            local_due: None,
            content: None,
            watched: None,
            told: None,
            complete: false,
            unfinished: None,
            is_lost: false,
        }
    }

    /// Publishes the local facts of one node's pods as well. A reader that sees a version of the mesh also sees the
    /// local facts of the pods in it.
    #[must_use]
    pub fn with_local(self, local: Local) -> Self {
        Self { local: Some(local), ..self }
    }

    /// Keeps copies of the last valid content of each file in a directory, for a process that starts while a file is
    /// broken.
    #[must_use]
    pub fn with_kept(self, dir: PathBuf) -> Self {
        Self { kept: Some(dir), ..self }
    }

    /// Keeps copies only as long as this daemon does.
    #[must_use]
    pub fn kept_by(self, keeps: Keeps) -> Self {
        Self { keeps, ..self }
    }

    fn nothing(&self) -> Content {
        let node = self.local.as_ref().map(|local| Arc::clone(&local.node));
        Content {
            folder: Folder::new(self.dir.clone(), self.kept.clone(), self.limits).kept_by(self.keeps.clone()),
            joiner: Joiner::new(self.trust_domain.clone(), node),
        }
    }

    /// Reads the folder on a blocking thread, and returns the difference if there is one.
    async fn refresh(&mut self, reading: Reading) -> Option<Batch> {
        let mut content = self.content.take().unwrap_or_else(|| self.nothing());
        let mut watch = std::mem::take(&mut self.watch);
        let is_lost = self.is_lost;
        let work = move || {
            // Watch first: a change after this raises an event, a change before it is read.
            let watched = watch.arm();
            let is_finished = content.folder.read_part(&mut content.joiner, reading);
            // The last valid content of broken files is lost: until they are repaired, the published mesh stays in
            // force.
            let counts = !is_lost || (content.folder.was_read() && !content.folder.is_incomplete());
            // Joined on this thread as well: with many objects it takes longer than an asynchronous task may.
            let news = counts.then(|| content.take());
            (content, news, watch, watched, is_finished)
        };
        self.unfinished = None;
        let (content, news, watch, watched, is_finished) = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(failure) => {
                error!(%failure, "reading the mesh folder failed: this is a bug, please report it; the last good mesh stays");
                self.watch = Watch::new(self.dir.clone());
                (self.watched, self.is_lost) = (Some(false), true);
                return None;
            }
        };
        (self.watch, self.watched) = (watch, Some(watched));
        self.unfinished = (!is_finished).then_some(reading);
        let batch = news.and_then(|news| self.batch(&content, news));
        self.content = Some(content);
        batch
    }

    /// What is missing. Adds the problems of what is refused because of it.
    fn gaps(&mut self, Content { folder, joiner }: &Content, problems: &mut Vec<Problem>) -> Gaps {
        let (partial, incomplete) = (folder.is_partial(), folder.is_incomplete());
        self.complete |= !incomplete || folder.was_complete();
        let is_new = partial && !self.complete;
        let hidden = if is_new { folder.hidden() } else { AddressesIn::Nowhere };
        let blind = hidden == AddressesIn::Anywhere;
        let addresses = match hidden {
            AddressesIn::These(addresses) => addresses.into_iter().collect(),
            AddressesIn::Nowhere | AddressesIn::Anywhere => Arc::default(),
        };
        let mut unread =
            if self.complete { UnreadPolicies::default() } else { folder.unread(&joiner.root_namespace()) };
        let closed = match folder.first_unread() {
            Some(file) if is_new => close_unknown_targets(joiner, &mut unread, &file),
            _ => Vec::new(),
        };
        if !closed.is_empty() {
            problems.extend(closed);
            problems.sort();
        }
        Gaps { partial, blind, addresses, unread }
    }

    /// The difference since the last batch.
    fn batch(&mut self, content: &Content, news: News) -> Option<Batch> {
        let Content { folder, joiner } = content;
        let News { joined, mut problems } = news;
        let is_whole = std::mem::take(&mut self.is_lost);
        let gaps = match &self.told {
            // Only at its end a reading says whether something is missing.
            Some(told) if self.unfinished.is_some() => told.gaps.clone(),
            _ => self.gaps(content, &mut problems),
        };
        let last = self.told.as_ref();
        // A folder without any valid object counts like a folder that can't be read.
        let is_nonsense = !joiner.has_objects() && problems.iter().any(|problem| problem.severity == Severity::Error);
        let read = folder.was_read() && (!is_nonsense || last.is_some_and(|last| last.read));
        let now = Told { gaps, problems: problems.into(), read };
        let batch = Batch {
            changes: joined.changes,
            is_whole,
            gaps: (last.is_none_or(|last| last.gaps != now.gaps)).then(|| now.gaps.clone()),
            problems: last.is_none_or(|last| last.problems != now.problems).then(|| Arc::clone(&now.problems)),
            is_read: now.read,
        };
        let is_first_read = now.read && last.is_none_or(|last| !last.read);
        if joined.local || is_first_read {
            self.local_due = now.read.then(|| joiner.local().clone());
        }
        if batch.is_empty() && last.is_some_and(|last| last.read == now.read) {
            return None;
        }
        log_problems(last.map_or(&[], |last| &last.problems), &now.problems);
        self.told = Some(now);
        Some(batch)
    }
}

impl MeshSource for MeshFolder {
    /// Reads the folder at once, and again whenever it has changed.
    ///
    /// If the folder disappears before the first reading, or nothing in it is valid, the first batch reports the
    /// problem, and its `is_read` is false. A file that exists but could never be read makes the mesh partial. If it
    /// was there from the start, the mesh is blind as well.
    async fn next(&mut self) -> Option<Batch> {
        loop {
            // The batch that was yielded before is published by now.
            if let (Some(local), Some(pods)) = (&self.local, self.local_due.take()) {
                local.publisher.replace(pods);
            }
            let reading = match (self.unfinished, self.watched) {
                (Some(reading), _) => reading,
                (None, None) => Reading::Thorough,
                (None, Some(watched)) => {
                    changed(&mut self.watch, if watched { REREAD } else { REREAD_UNWATCHED }).await
                }
            };
            if let Some(batch) = self.refresh(reading).await {
                // Before the mesh: no pod may be visible without its facts.
                if let (Some(local), Some(pods)) = (&self.local, &self.local_due) {
                    local.publisher.extend(pods);
                }
                return Some(batch);
            }
        }
    }
}

/// Closes the namespaces of policies that name a service whose pods are not known. A file that could never be read may
/// say which pods those are; until it is readable, every pod of the namespace is protected in their place. Returns the
/// problems to report.
fn close_unknown_targets(joiner: &Joiner, unread: &mut UnreadPolicies, file: &Arc<str>) -> Vec<Problem> {
    let mut told = Vec::new();
    for (name, origin, services) in joiner.targeted() {
        // For a service without a selector only slices say which pods are behind it.
        let Some(unknown) = services.iter().find(|service| !joiner.has_selector(service)) else { continue };
        let namespace = &name.namespace;
        unread.namespaces.entry(Arc::clone(namespace)).or_insert_with(|| Arc::clone(file));
        told.push(Problem {
            origin,
            object: Some(format!("AuthorizationPolicy {name}")),
            message: format!(
                "spec.targetRefs: {file} has never been readable and may name the pods of Service {unknown}: until \
                 it is repaired, pods of namespace {namespace} accept only health probes"
            ),
            severity: Severity::Error,
        });
    }
    told
}

/// Returns when the folder has changed and is quiet again, or after `pause`. Returns how the folder is to be read.
async fn changed(watch: &mut Watch, pause: Duration) -> Reading {
    let complete = async { while watch.sign().await == Sign::Busy {} };
    tokio::select! {
        () = sleep(pause) => return Reading::Thorough,
        () = complete => {}
    }
    let deadline = Instant::now() + LONGEST_WAIT;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return Reading::Changed,
            () = sleep(QUIET) => return Reading::Changed,
            _ = watch.sign() => {}
        }
    }
}

/// Logs each problem when it appears and when it is over, not at every reading in between.
fn log_problems(before: &[Problem], now: &[Problem]) {
    let (before, now): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), now.iter().collect());
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

#[cfg(test)]
mod tests;
