//! The mesh from a watched folder of Kubernetes manifests.
//!
//! Read are `*.yaml`, `*.yml` and `*.json` right in the folder, in the order of their names, but no hidden ones.
//! Symbolic links are followed, so that a mounted ConfigMap works. What can't be read never empties the mesh: a broken
//! file keeps saying what it last said, and a missing folder keeps the whole mesh; both are problems in the snapshot.
//!
//! A change counts when its writer closes the file, renames it or removes it. Writers that matter should write beside
//! the folder and rename into it: then nobody can meet a half-written file.
//!
//! A file that makes no sense from the start may hold policies. As long as there has been no state in which everything made
//! sense, nobody knows whom they keep out: see [`UnreadPolicies`](crate::model::policy::UnreadPolicies).

mod folder;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use self::folder::Folder;
use self::watch::{Sign, Watch};
use super::manifests::{Assembled, assemble, origins};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::model::policy::{Action, Scope};
use crate::model::problem::{Problem, Severity};
use crate::model::service::ServiceKind;
use crate::model::workload::NamespacedName;
use crate::store::local::LocalPublisher;
use crate::store::publish::Publisher;
use crate::store::snapshot::Snapshot;

/// How long the folder must be quiet before it is read: a tool that writes several files is then read once.
const QUIET: Duration = Duration::from_millis(75);
/// How long a folder that never gets quiet is waited for.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How often the folder is read without a sign of change. inotify may lose events and doesn't see what happens behind
/// symbolic links; this bounds the harm.
const REREAD: Duration = Duration::from_secs(30);
/// The same where the folder can't be watched at all: a label should still take effect within a second or so.
const REREAD_UNWATCHED: Duration = Duration::from_secs(1);

/// Why the mesh folder can't be used.
#[derive(Debug, Error)]
pub enum OpenFolderError {
    /// It is not there, or not accessible.
    #[error("cannot read the mesh folder {}: create it or correct --mesh", dir.display())]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is something else.
    #[error("the mesh folder {} is not a directory: name the directory that holds the manifests", dir.display())]
    NotADirectory {
        /// What was given.
        dir: PathBuf,
    },
}

/// Where the local facts of this node's pods go: a Pod's annotations, and the ports of its probes.
#[derive(Debug)]
pub struct Local {
    /// This node: facts about pods of other nodes are not published.
    pub node: Arc<str>,
    /// Receives the facts.
    pub publisher: LocalPublisher,
}

/// A folder of manifests and what is known of it; [`MeshFolder::run`] keeps a publisher up to date with it.
#[derive(Debug)]
pub struct MeshFolder {
    folder: Folder,
    watch: Watch,
    trust_domain: TrustDomain,
    /// What the published snapshot was made of; `None` before the first.
    published: Option<Published>,
    /// There was a state in which everything made sense.
    complete: bool,
    version: u64,
}

#[derive(Debug, PartialEq)]
struct Published {
    mesh: Assembled,
    partial: bool,
    blind: bool,
    read: bool,
}

impl Published {
    /// What a folder says, and what of it is missing. `complete`: there was a state before in which nothing was.
    fn new(folder: &Folder, mut mesh: Assembled, complete: bool) -> Self {
        mesh.problems.extend(folder.problems());
        mesh.problems.sort();
        let partial = folder.is_partial();
        let blind = partial && !complete;
        if blind {
            mesh.policies.unread = folder.unread(&mesh.root_namespace);
            if let Some(file) = folder.first_unread() {
                close_unknown_targets(&mut mesh, &file);
            }
        }
        Self { mesh, partial, blind, read: folder.was_read() }
    }

    /// The local facts of a node's pods.
    fn local(&self, node: &str) -> LocalPods {
        let here = self.mesh.workloads.iter().filter(|workload| workload.node.as_deref() == Some(node));
        here.filter_map(|workload| Some((workload.name.clone(), self.mesh.local.get(&workload.name)?.clone())))
            .collect()
    }

    fn snapshot(&self, version: u64) -> Snapshot {
        let mesh = self.mesh.clone();
        Snapshot::build(version, mesh.workloads, mesh.services, mesh.problems)
            .with_partial(self.partial)
            .with_blind(self.blind)
            .with_registry_only(mesh.registry_only)
            .with_namespaces(mesh.namespaces)
            .with_policies(mesh.policies)
    }
}

/// The mesh that a folder describes now, as a daemon sees it right after its start: version 1, or 0 if the folder went away
/// meanwhile; and the local facts of the pods of all nodes. Blocks on the file system.
///
/// # Errors
/// The folder can't be used.
pub fn read_once(dir: &Path, trust_domain: TrustDomain) -> Result<(Snapshot, LocalPods), OpenFolderError> {
    let MeshFolder { mut folder, trust_domain, .. } = MeshFolder::open(dir, trust_domain)?;
    folder.read();
    let mesh = assemble(folder.contents(), &trust_domain);
    let origins = origins(folder.contents());
    let local = mesh.local.clone();
    let snapshot = Published::new(&folder, mesh, false).snapshot(u64::from(folder.was_read())).with_origins(origins);
    Ok((snapshot, local))
}

impl MeshFolder {
    /// Takes a folder that exists now. Later it may go and come back.
    ///
    /// Identities get this trust domain.
    pub fn open(dir: &Path, trust_domain: TrustDomain) -> Result<Self, OpenFolderError> {
        let unreadable = |source| OpenFolderError::Unreadable { dir: dir.to_owned(), source };
        // Not canonical: the folder may be a symbolic link that is turned to another folder later.
        let absolute = std::path::absolute(dir).map_err(unreadable)?;
        let metadata = std::fs::metadata(&absolute).map_err(unreadable)?;
        if !metadata.is_dir() {
            return Err(OpenFolderError::NotADirectory { dir: dir.to_owned() });
        }
        std::fs::read_dir(&absolute).map_err(unreadable)?;
        Ok(Self {
            folder: Folder::new(absolute.clone()),
            watch: Watch::new(absolute),
            trust_domain,
            published: None,
            complete: false,
            version: 0,
        })
    }

    /// Publishes the folder's mesh, and the local facts of one node's pods, at once and whenever the folder's content has
    /// changed, until `shutdown` is over. A reader that sees a version of the mesh sees the local facts of its pods as well.
    ///
    /// The first mesh read has version 1. If the folder is gone before it could be read once, a snapshot of version 0
    /// tells the problem. What exists but could never be read makes the snapshot partial, and
    /// blind as well when it was there from the start.
    pub async fn run(mut self, publisher: Publisher, local: Local, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            // Reading on while shutting down is harmless; it is short and leaves nothing behind.
            let watched = self.refresh(&publisher, &local).await;
            let pause = if watched { REREAD } else { REREAD_UNWATCHED };
            tokio::select! {
                () = &mut shutdown => return,
                () = changed(&mut self.watch, pause) => {}
            }
        }
    }

    /// Reads the folder on a blocking thread and publishes what is new. Says whether the folder is being watched.
    async fn refresh(&mut self, publisher: &Publisher, local: &Local) -> bool {
        let (mut folder, mut watch) = (self.folder.clone(), std::mem::take(&mut self.watch));
        let trust_domain = self.trust_domain.clone();
        let work = move || {
            // Watch first: what changes after this is told, what changed before is read.
            let watched = watch.arm();
            folder.read();
            let mesh = assemble(folder.contents(), &trust_domain);
            (folder, watch, watched, mesh)
        };
        let (folder, watch, watched, mesh) = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(failure) => {
                error!(%failure, "reading the mesh folder failed; the last good mesh stays");
                self.watch = Watch::new(self.folder.path().to_owned());
                return false;
            }
        };
        (self.folder, self.watch) = (folder, watch);
        self.publish(publisher, local, mesh);
        watched
    }

    fn publish(&mut self, publisher: &Publisher, local: &Local, mesh: Assembled) {
        let next = Published::new(&self.folder, mesh, self.complete);
        if self.published.as_ref() == Some(&next) {
            return;
        }
        self.complete |= !next.partial;
        log_problems(self.published.as_ref().map_or(&[], |last| &last.mesh.problems), &next.mesh.problems);
        if next.read {
            self.version += 1;
        }
        let snapshot = next.snapshot(self.version);
        let counts = snapshot.counts();
        info!(
            version = self.version,
            workloads = counts.workloads,
            in_mesh = counts.in_mesh,
            services = counts.services,
            registry_only = snapshot.is_registry_only(),
            problems = counts.problems,
            "mesh published"
        );
        let of_node = next.read.then(|| next.local(&local.node));
        of_node.iter().for_each(|pods| local.publisher.extend(pods));
        publisher.publish(snapshot);
        of_node.into_iter().for_each(|pods| local.publisher.replace(pods));
        self.published = Some(next);
    }
}

/// Closes the namespaces of policies that name a service whose pods are not known: those may be told of in what could never
/// be read, and whoever they are, what protects them must not wait for that.
fn close_unknown_targets(mesh: &mut Assembled, file: &Arc<str>) {
    let known = |name: &NamespacedName| {
        let service = mesh.services.iter().find(|one| one.kind == ServiceKind::Kubernetes && one.name == *name);
        // Without a selector only slices tell of its pods.
        service.is_some_and(|service| !service.selector.is_empty())
    };
    let mut told = Vec::new();
    for policy in &mesh.policies.authorization {
        let Scope::Services(names) = &policy.scope else { continue };
        if policy.dry_run || policy.action == Action::Audit {
            continue;
        }
        let Some(unknown) = names.iter().find(|name| !known(name)) else { continue };
        let namespace = &policy.name.namespace;
        mesh.policies.unread.namespaces.entry(Arc::clone(namespace)).or_insert_with(|| Arc::clone(file));
        told.push(Problem {
            origin: policy.origin.clone(),
            object: Some(format!("AuthorizationPolicy {}", policy.name)),
            message: format!(
                "spec.targetRefs: {file} could never be read, and may say which pods stand behind Service {unknown}: until it \
                 is repaired, nobody is let in in namespace {namespace}"
            ),
            severity: Severity::Error,
        });
    }
    mesh.problems.extend(told);
    mesh.problems.sort();
}

/// Returns when the folder has changed and is quiet again, or after `pause`.
async fn changed(watch: &mut Watch, pause: Duration) {
    let complete = async { while watch.sign().await == Sign::Busy {} };
    tokio::select! {
        () = sleep(pause) => return,
        () = complete => {}
    }
    let deadline = Instant::now() + LONGEST_WAIT;
    loop {
        tokio::select! {
            () = sleep_until(deadline) => return,
            () = sleep(QUIET) => return,
            _ = watch.sign() => {}
        }
    }
}

/// Each problem is logged when it appears and when it is over, not at every reading in between.
fn log_problems(before: &[Problem], now: &[Problem]) {
    let (before, now): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), now.iter().collect());
    for problem in now.difference(&before) {
        warn!("{problem}");
    }
    for problem in before.difference(&now) {
        info!("no longer: {problem}");
    }
}

#[cfg(test)]
mod tests;
