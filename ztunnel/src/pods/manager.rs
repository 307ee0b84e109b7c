//! Keeps the pods of this node as the mesh wants them. The owner of the redirection and of every enrolled pod.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::{Span, error, info, warn};

pub use super::handle::ManagerHandle;
use super::{
    arrivals::Arrival,
    claims::{Claims, Named},
    describe::{Description, MapInfo, PodInfo, PodState, PoliciesInfo, ProblemInfo, SnapshotInfo},
    handle::{Progress, STOPPING, pending},
    handover::Order,
    kernel::{Kernel, Link, Namespace as _},
    local::LocalSource,
    node_name::UnknownNode,
    pod::{Node, Pod, PodError, PodSettings, UpdateError},
    reconcile::{Action, CannotEnrol, Desired, Wanted, plan, wanted},
    relapses::Relapses,
    status::{PodStatus, Status},
    worker::{Connections, WorkerHandle},
};
use crate::{
    flow::enforcement::EnforcementPoints,
    identity::cache::Certificates,
    lifecycle::{
        drain::DrainWatch,
        tasks::{TaskCount, TaskSet},
    },
    model::{cause::causes, local::LocalPods, workload::NamespacedName},
    redirect::{EnrolError, ForeignError, NetnsFacts, link::LinkError},
    store::{publish::Reader, snapshot::Snapshot},
};

mod handover;
mod leaving;

use self::leaving::Leaving;

/// How often the manager checks that namespaces still exist, and whether refused pods may be tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often a pod's namespace is examined without a notification of a change: netlink may lose messages.
const RESYNC: Duration = Duration::from_secs(30);
/// The shortest pause between two reactions to changes in one pod's namespace, whatever the pod does to it. It doubles
/// up to [`FOLLOW_PAUSE_MOST`] while the changes do not end.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
const FOLLOW_PAUSE_MOST: Duration = Duration::from_secs(2);
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

/// A pod that could not be enrolled.
struct Refused {
    reason: String,
    /// The state that was wanted for the pod.
    wanted: Wanted,
    retry: Option<(Instant, Duration)>,
    /// Another pod claims its network namespace or one of its addresses. Any change of the mesh may end that.
    is_claimed: bool,
}

/// A pod that is enrolled, and the task that waits for changes in its namespace.
struct Enrolled<K: Kernel> {
    pod: Pod<K>,
    /// Ends with the pod.
    following: TaskSet,
    /// The pod's current addresses, for the task that waits for changes.
    addresses: Arc<ArcSwap<Vec<IpAddr>>>,
}

/// The state of a pod's namespace after a change.
struct Found {
    pod: NamespacedName,
    /// The cookie of the namespace.
    cookie: u64,
    looked: Result<Looked, LinkError>,
}

/// The state of a namespace, and the repair of it.
struct Looked {
    facts: NetnsFacts,
    /// The result for rules and routes.
    routes: Result<(), LinkError>,
    /// The addresses of the pod at that time.
    addresses: Arc<Vec<IpAddr>>,
}

impl Looked {
    /// Reads the state of the namespace, and repairs rules and routes, unless the namespace may belong to another pod
    /// by now.
    async fn at(link: &impl Link, addresses: Arc<Vec<IpAddr>>, limit: usize) -> Result<Self, LinkError> {
        let facts = link.facts().await?.limited(&addresses, limit);
        let routes = match has_all(&facts, &addresses) {
            true => link.redirect(&facts, &addresses).await,
            false => Ok(()),
        };
        Ok(Self { facts, routes, addresses })
    }
}

fn has_all(facts: &NetnsFacts, addresses: &[IpAddr]) -> bool {
    addresses.iter().all(|address| facts.addresses.contains(address))
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
        loop {
            tokio::select! {
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
        if drain.is_for_good() {
            self.release_all().await;
            self.report();
            return Ok(());
        }
        // The workers drain at the same time: one after the other would add up the deadlines.
        let drains = self.parts.workers.iter().map(|worker| worker.drain(leaving.rest()));
        let mut drained = std::pin::pin!(futures_util::future::join_all(drains));
        loop {
            tokio::select! {
                _ = &mut drained => return Ok(()),
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

    /// Releases captured pods that are no pods of the mesh any more. A pod of the mesh that can't be served stays
    /// captured.
    async fn release_others(&mut self, partial: bool) {
        // A file that could never be read may contain pods that an earlier daemon has captured. They stay closed until
        // the file can be read.
        if partial || !self.others_due {
            return;
        }
        let taken = self.taken();
        let cookie_of = |name| self.enrolled.get(name).map(|enrolled| enrolled.pod.netns.cookie());
        let wanted: HashMap<_, _> = self.wanted.keys().map(|name| (name.to_string(), cookie_of(name))).collect();
        let is_wanted = |pod: &str, cookie| wanted.get(pod).is_some_and(|own| own.is_none_or(|own| own == cookie));
        let unserved = self.unserved();
        let may_be_wanted = |cookie| unserved.as_ref().is_none_or(|cookies| cookies.contains(&cookie));
        let keep = |pod: Option<&str>, cookie| {
            taken.contains(&cookie) || pod.map_or_else(|| may_be_wanted(cookie), |pod| is_wanted(pod, cookie))
        };
        self.parts.kernel.release_others(keep).await;
        self.others_due = false;
    }

    /// Cookies of the namespaces of pods of the mesh that are not enrolled. `None`: the namespace of one of them is not
    /// known.
    fn unserved(&self) -> Option<HashSet<u64>> {
        let of_pod = |refused: &Refused| match &refused.wanted {
            Ok(desired) => Some(Some(self.parts.kernel.open(&desired.netns).ok()?.cookie())),
            Err(reason) => reason.leaves_alone().then_some(None),
        };
        let cookies: Option<Vec<Option<u64>>> = self.refused.values().map(of_pod).collect();
        Some(cookies?.into_iter().flatten().collect())
    }

    /// Whether a pod that is not enrolled is captured. This follows from the records, or from the capture of its
    /// namespace.
    fn is_captured(&self, name: &NamespacedName, wanted: &Wanted) -> bool {
        let kernel = &self.parts.kernel;
        let in_namespace =
            |desired: &Desired| kernel.open(&desired.netns).is_ok_and(|netns| kernel.has_captured(netns.cookie()));
        !kernel.recorded(name).is_empty() || wanted.as_ref().is_ok_and(in_namespace)
    }

    async fn try_enrol(&mut self, name: &NamespacedName, desired: Desired, pause: Duration) {
        let before = self.refused.remove(name).map(|refused| refused.reason);
        let mesh = self.parts.mesh.load();
        let claims = claims(&mesh, &self.named, &self.enrolled, &self.wanted);
        let taken_over = self.taken_over.as_ref();
        let result = Node { taken_over, ..node(&mut self.parts) }.enrol(name, &desired, &claims).await;
        match result {
            Ok(pod) => {
                let own = pod.netns.cookie();
                self.others_due |= self.parts.kernel.recorded(name).iter().any(|cookie| *cookie != own);
                let addresses = Arc::new(ArcSwap::from_pointee(pod.desired.addresses.clone()));
                let following = self.watch(name, &pod, &addresses);
                self.enrolled.insert(name.clone(), Enrolled { pod, following, addresses });
            }
            Err(error) => {
                let reason = causes(&error);
                let wanted = Ok(desired);
                let captured = self.is_captured(name, &wanted);
                if before.as_deref() == Some(reason.as_str()) {
                    // It has been logged.
                } else if error.is_ending() {
                    info!(
                        pod = %name, reason, captured,
                        "pod refused: its network namespace is gone, because the pod has ended"
                    );
                } else {
                    error!(pod = %name, reason, captured, "pod refused: it is not enrolled; captured pods are closed");
                }
                // A closed pod waits for its enrolment, so its pause stays short.
                let next = if captured { RETRY_FIRST } else { (pause * 2).min(RETRY_MOST) };
                let retry = Some((Instant::now() + pause, next));
                let is_claimed = matches!(error, PodError::Claim(_));
                self.refused.insert(name.clone(), Refused { reason, wanted, retry, is_claimed });
            }
        }
    }

    /// Enrols a pod that was closed because of a change in its namespace, after the pause of its [`Relapses`].
    async fn enrol_again(&mut self, name: &NamespacedName, desired: Desired, cause: &str) {
        let now = Instant::now();
        let pause = self.relapses.pause(name, now);
        if pause.is_zero() {
            self.look_at_names();
            return self.try_enrol(name, desired, RETRY_FIRST).await;
        }
        let reason = format!("{cause} repeatedly; the daemon enrols the pod again after {} s", pause.as_secs());
        error!(pod = %name, reason, captured = true, "pod refused: it is not enrolled; captured pods are closed");
        let retry = Some((now + pause, RETRY_FIRST));
        self.refused.insert(name.clone(), Refused { reason, wanted: Ok(desired), retry, is_claimed: false });
    }

    fn refuse(&mut self, name: &NamespacedName, reason: CannotEnrol) {
        if reason.leaves_alone() {
            info!(pod = %name, %reason, "pod refused: the daemon changes nothing in the pod");
        } else if reason == CannotEnrol::NotInMesh
            || matches!(reason, CannotEnrol::NoNetns(_)) && self.parts.local.is_passing(name)
        {
            info!(pod = %name, %reason, "pod refused: it is not enrolled yet");
        } else {
            error!(pod = %name, %reason, "pod refused: it is not enrolled");
        }
        let (reason, wanted) = (reason.to_string(), Err(reason));
        self.refused.insert(name.clone(), Refused { reason, wanted, retry: None, is_claimed: false });
    }

    /// Closes a pod that is enrolled: it stays captured, and every connection is refused.
    async fn close(&mut self, name: &NamespacedName) {
        if let Some(Enrolled { pod, following, .. }) = self.enrolled.remove(name) {
            drop(following);
            node(&mut self.parts).close(&pod.netns).await;
            info!(pod = %name, "pod closed: it stays captured, and its connections are refused");
        }
    }

    async fn release(&mut self, name: &NamespacedName) {
        self.refused.remove(name);
        if let Some(Enrolled { pod, following, .. }) = self.enrolled.remove(name) {
            // The task would restore the rules and routes that are removed now.
            drop(following);
            node(&mut self.parts).release(&pod.netns, &pod.link).await;
            info!(pod = %name, "pod released");
        }
        // The pod may be closed, or may have been captured in another namespace before.
        let taken = self.taken();
        self.parts.kernel.release_recorded(name, &taken).await;
    }

    /// Releases every pod, because no daemon will serve them.
    async fn release_all(&mut self) {
        for name in self.enrolled.keys().cloned().collect::<Vec<_>>() {
            self.release(&name).await;
        }
        self.refused.clear();
        self.parts.kernel.release_others(|_, _| false).await;
    }

    /// Cookies of the namespaces of enrolled pods.
    fn taken(&self) -> HashSet<u64> {
        self.enrolled.values().map(|enrolled| enrolled.pod.netns.cookie()).collect()
    }

    /// Changes a pod in place if possible, so that its connections stay open.
    async fn update(&mut self, name: &NamespacedName, desired: Desired) {
        let Some(mut enrolled) = self.enrolled.remove(name) else {
            // It was refused. The change may have removed the reason.
            return self.try_enrol(name, desired, RETRY_FIRST).await;
        };
        let mesh = self.parts.mesh.load();
        let claims = claims(&mesh, &self.named, &self.enrolled, &self.wanted);
        enrolled.addresses.store(Arc::new(desired.addresses.clone()));
        match node(&mut self.parts).update(name, &mut enrolled.pod, &desired, &claims).await {
            Ok(()) => info!(pod = %name, "pod changed in place"),
            Err(UpdateError::NotYet(error)) => self.follow_later(name, &mut enrolled, &error),
            Err(UpdateError::Anew(error)) => {
                info!(pod = %name, reason = causes(&error), "the pod can't be changed in place");
                self.enrolled.insert(name.clone(), enrolled);
                self.close(name).await;
                return self.try_enrol(name, desired, RETRY_FIRST).await;
            }
        }
        self.enrolled.insert(name.clone(), enrolled);
    }

    /// Reads the state of a pod's namespace after every change in it, at a pace that the pod cannot increase, repairs
    /// rules and routes, and reports the state to the manager. The task belongs to the pod: however long its namespace
    /// keeps the kernel busy, no other pod waits.
    fn watch(&self, name: &NamespacedName, pod: &Pod<K>, addresses: &Arc<ArcSwap<Vec<IpAddr>>>) -> TaskSet {
        let (addresses, limit) = (Arc::clone(addresses), self.parts.kernel.per_pod_limit());
        let (link, changed, tell) = (pod.link.clone(), pod.link.changed(), self.changed.0.clone());
        let (name, cookie) = (name.clone(), pod.netns.cookie());
        let mut tasks = TaskSet::new(self.parts.tasks.clone());
        tasks.spawn(Span::none(), async move {
            let mut pause = FOLLOW_PAUSE;
            loop {
                let since = Instant::now();
                changed.notified().await;
                let is_quiet = since.elapsed() >= pause;
                pause = if is_quiet { FOLLOW_PAUSE } else { (pause * 2).min(FOLLOW_PAUSE_MOST) };
                let looked = Looked::at(&link, addresses.load_full(), limit).await;
                if tell.send(Found { pod: name.clone(), cookie, looked }).await.is_err() {
                    return;
                }
                sleep(pause).await;
            }
        });
        tasks
    }

    /// Reacts to a change in a pod's namespace.
    async fn follow(&mut self, found: Found) {
        let Found { pod: name, cookie, looked } = found;
        // The pod may be enrolled in another namespace by now.
        let Some(mut enrolled) = self.enrolled.remove(&name) else { return };
        if enrolled.pod.netns.cookie() != cookie {
            self.enrolled.insert(name, enrolled);
            return;
        }
        let pod = &mut enrolled.pod;
        let result = match looked {
            Ok(Looked { addresses, .. }) if *addresses != pod.desired.addresses => {
                // The pod has other addresses by now, so its namespace is read again.
                pod.link.changed().notify_one();
                Ok(())
            }
            Ok(Looked { facts, .. }) if !has_all(&facts, &pod.desired.addresses) => {
                // The owner of the namespace has to be proved again. Until then, no connection may use the pod's
                // identity.
                let desired = pod.desired.clone();
                self.enrolled.insert(name.clone(), enrolled);
                self.close(&name).await;
                return self
                    .enrol_again(
                        &name,
                        desired,
                        "the pod's network namespace lost an address of the \
                     pod",
                    )
                    .await;
            }
            Ok(Looked { facts, routes, .. }) => node(&mut self.parts).follow(&name, pod, facts, routes).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => drop(self.unfollowed.remove(&name)),
            // Another installation has the pod's connections now. The pod must not be reported as served.
            Err(PodError::Enrol(EnrolError::Foreign(ForeignError::Captured(_)))) => {
                let desired = enrolled.pod.desired.clone();
                self.enrolled.insert(name.clone(), enrolled);
                self.close(&name).await;
                return self.try_enrol(&name, desired, RETRY_FIRST).await;
            }
            Err(error) => self.follow_later(&name, &mut enrolled, &error),
        }
        self.enrolled.insert(name, enrolled);
    }

    fn follow_later(&mut self, name: &NamespacedName, enrolled: &mut Enrolled<K>, error: &PodError) {
        warn!(pod = %name, error = causes(error), "cannot follow a change in the pod's network namespace; trying again");
        let pause = self.unfollowed.get(name).map_or(RETRY_FIRST, |(_, pause)| (*pause * 2).min(RETRY_MOST));
        self.unfollowed.insert(name.clone(), (Instant::now() + pause, pause));
        // Netlink is opened again, in case its sockets are the cause.
        match self.parts.kernel.link(&enrolled.pod.netns) {
            Ok(link) => enrolled.pod.link = link,
            Err(error) => warn!(pod = %name, error = causes(&error), "cannot open a new netlink socket"),
        }
        enrolled.following = self.watch(name, &enrolled.pod, &enrolled.addresses);
    }

    async fn tick(&mut self) {
        self.mend();
        let now = Instant::now();
        self.unfollowed.retain(|name, _| self.enrolled.contains_key(name));
        for (name, (at, pause)) in self.unfollowed.iter_mut().filter(|(_, (at, _))| *at <= now) {
            *at = now + *pause;
            self.enrolled.get(name).into_iter().for_each(|enrolled| enrolled.pod.link.changed().notify_one());
        }
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

    /// Has every namespace read again, each by the task of its pod.
    fn resync(&mut self) {
        // This also retries releases that failed the last time.
        self.others_due = true;
        self.enrolled.values().for_each(|enrolled| enrolled.pod.link.changed().notify_one());
    }

    /// Reads again which network namespaces the pods name: paths may lead elsewhere by now.
    fn look_at_names(&mut self) {
        if let Some((mesh, local)) = &self.seen {
            self.named = Named::by(mesh, local, |netns| self.parts.kernel.identify(netns));
        }
    }

    /// Publishes the state of the pods for readers that do not wait for an answer.
    fn report(&self) {
        let enrolled = self.enrolled.iter().map(|(name, enrolled)| PodStatus {
            name: name.clone(),
            state: if enrolled.pod.deaf.is_so() { PodState::Refused } else { PodState::Enrolled },
            reason: enrolled.pod.deaf.is_so().then(|| DEAF.into()),
            connections_before_enrolment: enrolled.pod.connections_before,
            verdicts: self.parts.kernel.verdicts(enrolled.pod.netns.cookie()),
        });
        let refused = self.refused.iter().map(|(name, refused)| PodStatus {
            name: name.clone(),
            state: PodState::Refused,
            reason: refused
                .wanted
                .as_ref()
                .err()
                .is_none_or(CannotEnrol::is_fault)
                .then(|| refused.reason.as_str().into()),
            connections_before_enrolment: 0,
            verdicts: Vec::new(),
        });
        let status = Status {
            at: Instant::now(),
            pods: enrolled.chain(refused).collect(),
            maps: self.maps(),
            links_restored: self.parts.kernel.restored(),
        };
        self.progress.status.store(Arc::new(status));
    }

    fn maps(&self) -> Vec<MapInfo> {
        let usage = self.parts.kernel.map_usage().into_iter();
        usage.map(|map| MapInfo { name: map.name, used: map.used, capacity: map.capacity }).collect()
    }

    async fn describe(&self) -> Description {
        let snapshot = self.parts.mesh.load();
        let mut open: HashMap<u64, Connections> = HashMap::new();
        for worker in &self.parts.workers {
            for (cookie, connections) in worker.connections().await {
                let all = open.entry(cookie).or_default();
                all.live.extend(connections.live);
                all.tunnels += connections.tunnels;
            }
        }
        let counts = snapshot.counts();
        let enrolled = self.enrolled.iter().map(|(name, enrolled)| self.describe_enrolled(name, &enrolled.pod, &open));
        let refused = self.refused.iter().map(|(name, refused)| {
            let netns = refused.wanted.as_ref().ok().map(|desired| desired.netns.path().display().to_string());
            PodInfo {
                reason: Some(refused.reason.clone()),
                netns,
                captured: self.is_captured(name, &refused.wanted),
                ..PodInfo::new(name, PodState::Refused)
            }
        });
        Description {
            version: env!("CARGO_PKG_VERSION"),
            node: self.parts.node.clone(),
            unknown_node: self.progress.unknown_node.load().as_ref().map(ToString::to_string),
            local_problem: self.progress.local_problem.load().as_ref().map(ToString::to_string),
            snapshot: SnapshotInfo {
                version: snapshot.version(),
                local_facts: self.local_facts,
                partial: snapshot.is_partial(),
                workloads: counts.workloads,
                services: counts.services,
            },
            problems: snapshot.problems().iter().map(ProblemInfo::from).collect(),
            policies: PoliciesInfo::of(Arc::clone(&snapshot)),
            pods: enrolled.chain(refused).collect(),
            maps: self.maps(),
            links_restored: self.parts.kernel.restored(),
            tasks: self.parts.tasks.alive(),
            certificates: self.parts.certificates.describe().await,
            pending: pending(&self.parts.mesh, &self.progress).into_iter().map(str::to_owned).collect(),
        }
    }

    fn describe_enrolled(&self, name: &NamespacedName, pod: &Pod<K>, open: &HashMap<u64, Connections>) -> PodInfo {
        let cookie = pod.netns.cookie();
        let verdicts = self.parts.kernel.verdicts(cookie).into_iter();
        let open = open.get(&cookie).cloned().unwrap_or_default();
        let is_deaf = pod.deaf.is_so();
        PodInfo {
            reason: is_deaf.then(|| DEAF.to_owned()),
            netns: Some(pod.netns.path().display().to_string()),
            cookie: Some(cookie.to_string()),
            captured: true,
            addresses: pod.desired.addresses.iter().map(ToString::to_string).collect(),
            connect: Some(pod.connect.name().into()),
            connections_before_enrolment: pod.connections_before,
            verdicts: verdicts.map(|(verdict, count)| (verdict.name().to_owned(), count.into())).collect(),
            identity: Some(pod.desired.identity.to_string()),
            tunnels: open.tunnels,
            connections: open.live,
            ..PodInfo::new(name, if is_deaf { PodState::Refused } else { PodState::Enrolled })
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

fn claims<'a, K: Kernel>(
    mesh: &'a Snapshot,
    named: &'a Named,
    enrolled: &'a BTreeMap<NamespacedName, Enrolled<K>>,
    wanted: &'a BTreeMap<NamespacedName, Wanted>,
) -> Claims<'a> {
    let enrolled = enrolled.iter().map(|(name, enrolled)| (name, enrolled.pod.netns.cookie())).collect();
    Claims { mesh, named, enrolled, wanted }
}
