//! Keeps the pods of this node as the mesh wants them. The owner of the redirection and of every enrolled pod.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

pub use super::handle::ManagerHandle;
use super::{
    arrivals::Arrival,
    claims::Named,
    describe::Description,
    handle::{Progress, STOPPING},
    handover::Order,
    kernel::{Kernel, Namespace as _},
    local::LocalSource,
    node_name::UnknownNode,
    pod::{Node, PodSettings},
    reconcile::{Action, Wanted, plan, wanted},
    relapses::Relapses,
    worker::WorkerHandle,
};
use crate::{
    flow::enforcement::EnforcementPoints,
    identity::cache::Certificates,
    lifecycle::{drain::DrainWatch, tasks::TaskCount},
    model::{cause::causes, local::LocalPods, workload::NamespacedName},
    store::{publish::Reader, snapshot::Snapshot},
};

mod describe;
mod enrolment;
mod follow;
mod handover;
mod leaving;
mod namespace;
mod state;

use self::{
    leaving::Leaving,
    namespace::Found,
    state::{Enrolled, Refused},
};

/// How often the manager checks that namespaces still exist, and whether refused pods may be tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often a pod's namespace is examined without a notification of a change: netlink may lose messages.
const RESYNC: Duration = Duration::from_secs(30);
/// The pause before a refused pod is tried again. It doubles up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// The reason for a pod that is not served because somebody has closed one of its listeners.
const DEAF: &str = "another process closed a listener of the daemon in the pod's network namespace; the \
     daemon enrols the pod again";

/// The parts of the manager.
pub struct ManagerParts<K> {
    /// This node.
    pub node: String,
    /// The mesh.
    pub mesh: Reader,
    /// The facts that this node has of its own pods.
    pub local: Box<dyn LocalSource>,
    /// The kernel of this node.
    pub kernel: K,
    /// The data workers.
    pub workers: Vec<WorkerHandle>,
    /// The cookie of the node's own network namespace.
    pub host_cookie: u64,
    /// How pods are set up.
    pub settings: PodSettings,
    /// The enforcement points of the pods.
    pub enforcement_points: EnforcementPoints,
    /// The source of the pods' certificates.
    pub certificates: Certificates,
    /// Tasks of the whole daemon.
    pub tasks: TaskCount,
    /// How long connections may stay open after the drain has begun.
    pub drain_timeout: Duration,
    /// How long connections may stay open after another daemon has taken over.
    pub linger: Duration,
}

/// The manager; [`Manager::run`] is its task.
pub struct Manager<K: Kernel> {
    parts: ManagerParts<K>,
    inbox: mpsc::Receiver<oneshot::Sender<Description>>,
    orders: mpsc::Receiver<Order>,
    /// While the pods of another daemon are taken over: the number of their connections from before their enrolment, by
    /// cookie.
    taken_over: Option<HashMap<u64, usize>>,
    wanted: BTreeMap<NamespacedName, Wanted>,
    enrolled: BTreeMap<NamespacedName, Enrolled<K>>,
    refused: BTreeMap<NamespacedName, Refused>,
    /// The network namespaces that the pods named at the last look.
    named: Named,
    changed: (mpsc::Sender<Found>, mpsc::Receiver<Found>),
    /// Pods with a change in their namespace that could not be followed: the time of the next attempt, and the pause
    /// that led to it.
    unfollowed: BTreeMap<NamespacedName, (Instant, Duration)>,
    /// Pods that were closed because of changes in their namespaces.
    relapses: Relapses,
    /// The mesh and the local facts of the last reconciliation.
    seen: Option<(Arc<Snapshot>, Arc<LocalPods>)>,
    /// The number of changes of the local facts.
    local_facts: u64,
    progress: Arc<Progress>,
    /// A pod may be captured that should not be.
    others_due: bool,
}

/// A data worker has ended, and with it its connections.
#[derive(Debug, thiserror::Error)]
#[error(
    "a data worker ended: this is a bug, please report it with the log lines before this one; captured pods \
     are closed until the daemon is restarted"
)]
pub struct WorkerLost;

impl<K: Kernel> Manager<K> {
    /// A manager and its handle.
    #[must_use]
    pub fn new(parts: ManagerParts<K>) -> (Self, ManagerHandle) {
        let (asks, inbox) = mpsc::channel(16);
        let (orders, ordered) = mpsc::channel(1);
        let progress = Progress { deaf: parts.settings.deaf.clone(), ..Progress::default() };
        let manager = Self {
            parts,
            inbox,
            orders: ordered,
            taken_over: None,
            wanted: BTreeMap::new(),
            enrolled: BTreeMap::new(),
            refused: BTreeMap::new(),
            named: Named::default(),
            changed: mpsc::channel(256),
            unfollowed: BTreeMap::new(),
            relapses: Relapses::default(),
            seen: None,
            local_facts: 0,
            progress: Arc::new(progress),
            others_due: true,
        };
        let handle =
            ManagerHandle { asks, orders, mesh: manager.parts.mesh.clone(), progress: Arc::clone(&manager.progress) };
        (manager, handle)
    }

    /// Follows the mesh. After the order to stop, the manager continues until the connections have ended or the time
    /// for that is over, because no other daemon serves the pods. The pods then stay captured and are closed. If the
    /// daemon stops for good, all pods are released instead. When another daemon has taken over the pods, the manager
    /// serves only the open connections.
    ///
    /// # Errors
    /// A worker is lost.
    pub async fn run(mut self, mut drain: DrainWatch) -> Result<(), WorkerLost> {
        let mut changes = self.parts.mesh.subscribe();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving = Leaving::new(self.parts.drain_timeout, self.parts.linger);
        let mut removal = drain.clone();
        loop {
            tokio::select! {
                () = removal.for_good() => break,
                () = drain.started(), if !leaving.has_begun() => {
                    if drain.is_for_good() {
                        break;
                    }
                    self.progress.leaving.store(true, Ordering::Relaxed);
                    leaving.begin();
                }
                () = leaving.is_over(&self.parts.workers, &self.progress.expecting, &self.progress.awaiting) => break,
                changed = changes.changed() => match changed {
                    Some(_) => self.reconcile().await,
                    None => break,
                },
                () = self.parts.local.changed() => self.reconcile().await,
                Some(found) = self.changed.1.recv() => self.follow(found).await,
                Some(reply) = self.inbox.recv() => {
                    let description = self.describe().await;
                    self.report();
                    // The caller may have gone away.
                    drop(reply.send(description));
                }
                Some(order) = self.orders.recv() => {
                    if self.hand_over(order).await? {
                        return self.linger().await;
                    }
                }
                _ = tick.tick() => {
                    if self.parts.workers.iter().any(WorkerHandle::is_lost) {
                        return Err(WorkerLost);
                    }
                    self.tick().await;
                    self.report();
                }
                _ = resync.tick() => self.resync(),
            }
        }
        self.progress.reconciled.store(STOPPING, Ordering::Relaxed);
        self.orders.close();
        if !drain.is_for_good() && !self.drain_workers(leaving.rest(), &mut removal).await {
            return Ok(());
        }
        self.release_all().await;
        self.report();
        Ok(())
    }

    /// Waits until the connections have ended. Whether the daemon was removed for good meanwhile.
    async fn drain_workers(&mut self, rest: Duration, removal: &mut DrainWatch) -> bool {
        // The workers drain at the same time: one after the other would add up the deadlines.
        let drains = self.parts.workers.iter().map(|worker| worker.drain(rest));
        let mut drained = std::pin::pin!(futures_util::future::join_all(drains));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = removal.for_good() => return true,
                _ = &mut drained => return removal.is_for_good(),
                // There is no answer; the caller takes that as the stop of the daemon.
                Some(reply) = self.inbox.recv() => drop(reply),
                _ = tick.tick() => self.report(),
            }
        }
    }

    async fn reconcile(&mut self) {
        // The mesh is loaded first, because local facts are published before the mesh to which they belong.
        let snapshot = self.parts.mesh.load();
        let problem = self.parts.local.problem().map(|problem| Arc::new(problem.to_string()));
        self.progress.local_problem.store(problem);
        // Without local facts no pod could be enrolled.
        let Some(local) = self.parts.local.current() else { return };
        self.look_up_node(&snapshot);
        let is_new = self.seen.as_ref().is_none_or(|(_, facts)| !Arc::ptr_eq(facts, &local));
        self.local_facts += u64::from(is_new);
        let is_as_before = self.seen.as_ref().is_some_and(|(mesh, facts)| {
            Arc::ptr_eq(facts, &local) && mesh.has_same_pods_on(&snapshot, &self.parts.node)
        });
        if !is_as_before {
            self.reconcile_pods(&snapshot, &local).await;
        }
        for refused in self.refused.values_mut().filter(|refused| refused.is_claimed) {
            refused.retry = refused.retry.map(|(_, pause)| (Instant::now(), pause));
        }
        self.release_others(snapshot.is_partial()).await;
        self.progress.local.store(Some(Arc::clone(&local)));
        self.progress.reconciled.store(snapshot.version(), Ordering::Relaxed);
        self.seen = Some((snapshot, local));
        self.tell_arrivals();
    }

    /// Updates the state of the pods whose enrolment is awaited.
    fn tell_arrivals(&self) {
        self.progress.arrivals.tell(|pod| match (self.enrolled.get(pod), self.refused.get(pod)) {
            (Some(enrolled), _) => Arrival::Enrolled(enrolled.pod.netns.id()),
            (None, Some(refused)) => Arrival::Refused(refused.reason.clone()),
            (None, None) => Arrival::Unknown,
        });
    }

    /// Logs once that the mesh does not know the node's name. Otherwise no pod would be captured, and nobody would
    /// notice.
    fn look_up_node(&self, mesh: &Snapshot) {
        let unknown = UnknownNode::in_mesh(mesh, &self.parts.node).map(Arc::new);
        let before = self.progress.unknown_node.swap(unknown.clone());
        match (before, unknown) {
            (before, Some(unknown)) if before.as_ref() != Some(&unknown) => warn!("{unknown}"),
            (Some(_), None) => info!(node = self.parts.node, "the mesh has this node now"),
            _ => {}
        }
    }

    /// Acts on the mesh and the local facts of this node's pods. This does not run for every change of a large mesh.
    async fn reconcile_pods(&mut self, snapshot: &Snapshot, local: &LocalPods) {
        self.named = Named::by(snapshot, local, |netns| self.parts.kernel.identify(netns));
        self.wanted = wanted(snapshot, &self.parts.node, local, |pod| self.parts.local.missing_netns(pod));
        for action in plan(&self.wanted, &self.actual()) {
            match action {
                Action::Release(name) => self.release(&name).await,
                Action::Update(name, desired) => self.update(&name, desired).await,
                Action::Enrol(name, desired) => {
                    self.close(&name).await;
                    self.try_enrol(&name, desired, RETRY_FIRST).await;
                }
                Action::Refuse(name, reason) => {
                    if reason.leaves_alone() {
                        self.release(&name).await;
                    } else {
                        self.close(&name).await;
                    }
                    self.refuse(&name, reason);
                }
            }
        }
        // A pod that was refused because a map was full may have room now.
        for refused in self.refused.values_mut() {
            refused.retry = refused.retry.map(|(_, pause)| (Instant::now(), pause));
        }
    }

    fn actual(&self) -> BTreeMap<NamespacedName, Wanted> {
        let enrolled = self.enrolled.iter().map(|(name, enrolled)| (name.clone(), Ok(enrolled.pod.desired.clone())));
        let refused = self.refused.iter().map(|(name, refused)| (name.clone(), refused.wanted.clone()));
        enrolled.chain(refused).collect()
    }

    async fn tick(&mut self) {
        self.mend();
        let now = Instant::now();
        self.follow_due(now);
        let moved = |enrolled: &Enrolled<K>| enrolled.pod.deaf.is_so() || !enrolled.pod.netns.is_current();
        let gone: Vec<_> =
            self.enrolled.iter().filter(|(_, enrolled)| moved(enrolled)).map(|(name, _)| name.clone()).collect();
        if !(gone.is_empty() && self.refused.is_empty()) {
            self.look_at_names();
        }
        for name in gone {
            let before = self.enrolled.get(&name).map(|enrolled| &enrolled.pod);
            // The pod counts as deaf until the end of this block.
            let (desired, _deaf) = before.map(|pod| (pod.desired.clone(), pod.deaf.clone())).unzip();
            let cause = if self.enrolled.get(&name).is_some_and(|enrolled| enrolled.pod.deaf.is_so()) {
                warn!(pod = %name, "{DEAF}");
                "another process closed a listener of the daemon in the pod's network namespace"
            } else {
                info!(
                    pod = %name,
                    "the path of the pod's network namespace does not exist any more, or names another network \
                     namespace"
                );
                "the path of the pod's network namespace changed"
            };
            self.close(&name).await;
            if let Some(desired) = desired {
                self.enrol_again(&name, desired, cause).await;
            }
        }
        let due: Vec<_> = self
            .refused
            .iter()
            .filter_map(|(name, refused)| {
                let (_, pause) = refused.retry.filter(|(at, _)| *at <= now)?;
                Some((name.clone(), refused.wanted.clone().ok()?, pause))
            })
            .collect();
        for (name, desired, pause) in due {
            self.try_enrol(&name, desired, pause).await;
        }
        if self.progress.reconciled.load(Ordering::Relaxed) > 0 {
            let partial = self.parts.mesh.load().is_partial();
            self.release_others(partial).await;
        }
        self.tell_arrivals();
    }

    /// Checks that the parts of the capture are still in the kernel. While they are not, the daemon is not ready: pods
    /// may be open.
    fn mend(&mut self) {
        let mended = self.parts.kernel.mend();
        let was_unhooked = self.progress.unhooked.swap(mended.is_err(), Ordering::Relaxed);
        match mended {
            Err(error) if !was_unhooked => {
                error!(
                    error = causes(&error),
                    "BPF links were removed, and the daemon cannot attach them \
                     again: captured pods may be open"
                );
            }
            Ok(()) if was_unhooked => info!("all BPF links are attached again"),
            _ => {}
        }
    }

    /// Reads again which network namespaces the pods name: paths may lead elsewhere by now.
    fn look_at_names(&mut self) {
        if let Some((mesh, local)) = &self.seen {
            self.named = Named::by(mesh, local, |netns| self.parts.kernel.identify(netns));
        }
    }
}

fn node<K: Kernel>(parts: &mut ManagerParts<K>) -> Node<'_, K> {
    Node {
        kernel: &mut parts.kernel,
        workers: &parts.workers,
        host_cookie: parts.host_cookie,
        settings: &parts.settings,
        enforcement_points: &parts.enforcement_points,
        mesh: &parts.mesh,
        certificates: &parts.certificates,
        taken_over: None,
    }
}
