//! Judges the connections to a pod: each at its beginning, and again whenever the mesh or the pod's local facts change.
//!
//! A connection is entered *before* it is judged, and the snapshot for the judgement is loaded after that. So no snapshot is
//! missed: either the judgement uses the new snapshot, or the recheck that this snapshot starts finds the connection, also
//! while the connection is still being set up.

use std::{
    collections::HashMap,
    fmt,
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    task::{Context, Poll},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, oneshot},
    task::spawn_blocking,
};
use tracing::{error, info};

use crate::{
    metrics::policy::Decisions,
    model::{
        local::LocalPod,
        workload::{NamespacedName, Workload},
    },
    net::node::{Client, NodeConnections},
    policy::{Connection, Denial, Permit, PodPolicies, UnenforcedMatch},
    store::{policies::Policies, publish::Reader, snapshot::Snapshot},
};

/// The enforcement points of all pods of this node. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct EnforcementPoints(Arc<All>);

#[derive(Default)]
struct All {
    points: Mutex<Vec<Weak<Inner>>>,
    /// Notified when the local facts of a pod have changed.
    changed: Arc<Notify>,
    /// Identifies connections of the kubelet, if the kernel supports it.
    node: Option<Arc<dyn NodeConnections>>,
}

impl fmt::Debug for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("All").field("points", &self.points).finish_non_exhaustive()
    }
}

/// The enforcement point of one pod. All workers share it; clones share it too.
#[derive(Clone, Debug)]
pub struct EnforcementPoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pod: NamespacedName,
    mesh: Reader,
    /// The pod's local facts that are in force.
    local: ArcSwap<LocalPod>,
    changed: Arc<Notify>,
    current: ArcSwapOption<Current>,
    /// The connections have to be judged again: since the last recheck, different policies have judged some of them or are now
    /// in force.
    is_due: AtomicBool,
    entered: Mutex<HashMap<u64, Arc<Entered>>>,
    next: AtomicU64,
}

/// The policies of the pod by the newest snapshot that a recheck has seen. A data worker never replaces this value, because
/// freeing the previous value takes long if there are many policies. The guard stays the same value as long as it would decide
/// the same, so a change that does not concern the pod costs nothing here.
#[derive(Debug)]
struct Current {
    snapshot: Arc<Snapshot>,
    local: Arc<LocalPod>,
    /// `None`: the snapshot does not know the pod.
    known: Option<Known>,
}

/// The guard of a pod, which decides by its policies, and the objects from which the guard was made.
#[derive(Clone, Debug)]
struct Known {
    guard: Arc<PodPolicies>,
    workload: Arc<Workload>,
    policies: Arc<Policies>,
}

#[derive(Debug)]
struct Entered {
    connection: Connection,
    /// The source port of a plaintext connection.
    port: Option<u16>,
    /// The client is the kubelet.
    probe: AtomicBool,
    stop: Mutex<Option<oneshot::Sender<Box<Denial>>>>,
}

/// A connection that is registered at the enforcement point until this value is dropped.
#[derive(Debug)]
pub struct Enforcement {
    point: EnforcementPoint,
    id: u64,
    entered: Arc<Entered>,
    stopped: oneshot::Receiver<Box<Denial>>,
}

/// The result of a recheck of the connections of one pod or of all pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Connections that were judged again.
    pub judged: usize,
    /// Connections of them that are not allowed any more.
    pub cut: usize,
}

impl EnforcementPoints {
    /// The enforcement points of a node. `node` identifies connections of the kubelet.
    #[must_use]
    pub fn of_node(node: Option<Arc<dyn NodeConnections>>) -> Self {
        Self(Arc::new(All { node, ..All::default() }))
    }

    /// An enforcement point for a pod, which exists as long as a clone of it. `local`: the pod's local facts that are in force.
    #[must_use]
    pub fn point(&self, pod: NamespacedName, mesh: Reader, local: LocalPod) -> EnforcementPoint {
        let inner = Inner {
            pod,
            mesh,
            local: ArcSwap::from_pointee(local),
            changed: Arc::clone(&self.0.changed),
            current: ArcSwapOption::empty(),
            is_due: AtomicBool::new(false),
            entered: Mutex::default(),
            next: AtomicU64::default(),
        };
        let point = EnforcementPoint(Arc::new(inner));
        {
            let mut all = lock(&self.0.points);
            all.retain(|point| point.strong_count() > 0);
            all.push(Arc::downgrade(&point.0));
        }
        // The recheck for this snapshot may have ended already. Another recheck creates the metric series of the pod's
        // policies.
        point.renew();
        self.0.changed.notify_one();
        point
    }

    /// Judges the connections again whenever the mesh or the local facts of a pod change. The data workers are not involved and
    /// do not wait.
    pub async fn follow(self, mesh: Reader, decisions: Decisions) {
        let mut changes = mesh.subscribe();
        let mut newest = Some(mesh.load());
        while let Some(snapshot) = newest {
            let (points, decisions) = (self.clone(), decisions.clone());
            let rechecked = spawn_blocking(move || {
                decisions.retain(&snapshot);
                points.recheck(&decisions)
            });
            match rechecked.await {
                Ok(Rechecked { cut: 0, .. }) => {}
                Ok(Rechecked { judged, cut }) => {
                    info!(judged, cut, "connections were closed, because policy has changed");
                }
                Err(failure) => {
                    error!(%failure, "evaluating policy for open connections failed: this is a bug, please report it");
                }
            }
            newest = tokio::select! {
                newest = changes.changed() => newest,
                () = self.0.changed.notified() => Some(mesh.load()),
            };
        }
    }

    /// Judges connections by the newest snapshot: those of the pods whose policies have changed.
    pub fn recheck(&self, decisions: &Decisions) -> Rechecked {
        let points: Vec<EnforcementPoint> =
            lock(&self.0.points).iter().filter_map(Weak::upgrade).map(EnforcementPoint).collect();
        // All guards are renewed before any connection is judged, so that workers need not make their own guards for long.
        let guards: Vec<_> = points.iter().map(|point| point.renew().filter(|_| point.takes_due())).collect();
        let of_pods = points.iter().zip(&guards);
        decisions.expect(of_pods.filter_map(|(point, guard)| Some((&point.0.pod.namespace, guard.as_deref()?))));
        let mut all = Rechecked::default();
        for (point, guard) in points.into_iter().zip(guards) {
            // `None`: the policies are unchanged, or the pod has left the mesh and will be released with its connections.
            let Some(guard) = guard else { continue };
            let Rechecked { judged, cut } = point.recheck(&guard, decisions, self.0.node.as_deref());
            all.judged += judged;
            all.cut += cut;
        }
        all
    }
}

impl EnforcementPoint {
    /// Enters a connection, which can then be judged.
    #[must_use]
    pub fn enter(&self, connection: Connection) -> Enforcement {
        self.let_in(connection, None)
    }

    /// Enters a plaintext connection with this source port: its client may be the kubelet.
    #[must_use]
    pub fn enter_in_plaintext(&self, connection: Connection, port: u16) -> Enforcement {
        self.let_in(connection, Some(port))
    }

    fn let_in(&self, connection: Connection, port: Option<u16>) -> Enforcement {
        let (stop, stopped) = oneshot::channel();
        let (probe, stop) = (AtomicBool::new(false), Mutex::new(Some(stop)));
        let entered = Arc::new(Entered { connection, port, probe, stop });
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.entered).insert(id, Arc::clone(&entered));
        Enforcement { point: self.clone(), id, entered, stopped }
    }

    /// The guard by the newest snapshot. `None`: the snapshot does not know the pod.
    #[must_use]
    pub fn guard(&self) -> Option<Arc<PodPolicies>> {
        loop {
            let (snapshot, local) = (self.0.mesh.load(), self.0.local.load_full());
            let current = self.0.current.load();
            let known = current.as_ref().and_then(|current| current.known.as_ref());
            if current.as_ref().is_some_and(|current| current.is_of(&snapshot, &local)) {
                return known.map(|known| Arc::clone(&known.guard));
            }
            let guard = self.known_by(&snapshot, &local).map(|known| known.guard);
            match (&guard, known) {
                (None, _) => return None,
                (Some(guard), Some(known)) if Arc::ptr_eq(guard, &known.guard) => {}
                (Some(_), _) => self.0.is_due.store(true, Ordering::SeqCst),
            }
            // Either this check sees a newer snapshot, or the recheck of that snapshot sees `is_due`.
            fence(Ordering::SeqCst);
            if Arc::ptr_eq(&snapshot, &self.0.mesh.load()) && Arc::ptr_eq(&local, &self.0.local.load()) {
                return guard;
            }
        }
    }

    /// Whether the mesh does not know the addresses of the pod yet: the pod was enrolled with those of its sandbox.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.0.local.load().sandbox.is_some()
    }

    /// Replaces the pod's local facts. New connections are judged by them from now on, and open connections are judged again by
    /// [`EnforcementPoints::follow`].
    pub fn set_local(&self, local: LocalPod) {
        if **self.0.local.load() != local {
            self.0.local.store(Arc::new(local));
            self.0.changed.notify_one();
        }
    }

    /// The guard by a snapshot and local facts. Returns the kept guard if it would be the same.
    fn known_by(&self, snapshot: &Snapshot, local: &Arc<LocalPod>) -> Option<Known> {
        let workload = snapshot.workload(&self.0.pod)?;
        let policies = snapshot.policies();
        let current = self.0.current.load();
        let kept = current.as_ref().filter(|current| Arc::ptr_eq(&current.local, local));
        let kept = kept.and_then(|current| current.known.as_ref());
        let is_untouched = |kept: &&Known| {
            let is_same = Arc::ptr_eq(&kept.workload, workload) && Arc::ptr_eq(&kept.policies, policies);
            // If policies name services, the services of the pod count as well.
            is_same && !policies.name_services()
        };
        if let Some(kept) = kept.filter(is_untouched) {
            return Some(kept.clone());
        }
        let made = PodPolicies::of(snapshot, workload, local);
        let guard = kept.map(|kept| &kept.guard).filter(|guard| guard.is_same(&made)).cloned();
        let (workload, policies) = (Arc::clone(workload), Arc::clone(policies));
        Some(Known { guard: guard.unwrap_or_else(|| Arc::new(made)), workload, policies })
    }

    /// Makes the guard by the newest snapshot, and keeps it as the current one.
    fn renew(&self) -> Option<Arc<PodPolicies>> {
        loop {
            let (snapshot, local) = (self.0.mesh.load(), self.0.local.load_full());
            let known = self.known_by(&snapshot, &local);
            let guard = known.as_ref().map(|known| Arc::clone(&known.guard));
            let current = Current { snapshot: Arc::clone(&snapshot), local: Arc::clone(&local), known };
            let before = self.0.current.swap(Some(Arc::new(current)));
            let before = before.as_ref().and_then(|before| before.known.as_ref());
            if !before.zip(guard.as_ref()).is_some_and(|(before, guard)| Arc::ptr_eq(&before.guard, guard)) {
                self.0.is_due.store(true, Ordering::SeqCst);
            }
            // Another thread may have renewed the guard meanwhile, by a newer snapshot.
            if Arc::ptr_eq(&snapshot, &self.0.mesh.load()) && Arc::ptr_eq(&local, &self.0.local.load()) {
                return guard;
            }
        }
    }

    /// Whether the connections have to be judged again. Resets the flag; the caller has to judge them.
    fn takes_due(&self) -> bool {
        // See `guard`.
        fence(Ordering::SeqCst);
        self.0.is_due.swap(false, Ordering::SeqCst)
    }

    /// The guard by the newest snapshot, kept as the current one.
    fn newest(&self) -> Option<Arc<PodPolicies>> {
        let current = self.0.current.load();
        match current.as_ref().filter(|current| current.is_of(&self.0.mesh.load(), &self.0.local.load())) {
            Some(current) => current.known.as_ref().map(|known| Arc::clone(&known.guard)),
            None => self.renew(),
        }
    }

    fn recheck(&self, guard: &PodPolicies, decisions: &Decisions, node: Option<&dyn NodeConnections>) -> Rechecked {
        let mut rechecked = Rechecked::default();
        let entered: Vec<_> = lock(&self.0.entered).values().cloned().collect();
        for entered in entered {
            rechecked.judged += 1;
            if guard.judge(&entered.connection).is_ok() {
                continue;
            }
            // A newer snapshot may allow the connection. Connections are cut only by the newest snapshot.
            let newest = self.newest();
            let Some(newest) = newest else { return rechecked };
            let Err(denied) = newest.judge(&entered.connection) else { continue };
            let denial = denied.told(&entered.connection);
            if denial.at_probe && entered.is_of_kubelet(node, decisions) {
                continue;
            }
            if let Some(stop) = lock(&entered.stop).take() {
                rechecked.cut += 1;
                decisions.cut(&denial, &self.0.pod.namespace);
                // A connection that has ended meanwhile does not receive the denial.
                let _ended = stop.send(Box::new(denial));
            }
        }
        rechecked
    }
}

impl Entered {
    /// Whether the client is the kubelet. While policy allowed all connections, this was not checked.
    fn is_of_kubelet(&self, node: Option<&dyn NodeConnections>, decisions: &Decisions) -> bool {
        if self.probe.load(Ordering::Relaxed) {
            return true;
        }
        let Connection { source_ip, destination, .. } = self.connection;
        let asked = self.port.zip(node).map(|(port, node)| node.client((source_ip, port).into(), destination));
        let is_probe = matches!(asked, Some(Ok(Client::Kubelet)));
        if is_probe && !self.probe.swap(true, Ordering::Relaxed) {
            decisions.probe();
        }
        is_probe
    }
}

impl Current {
    fn is_of(&self, snapshot: &Arc<Snapshot>, local: &Arc<LocalPod>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot) && Arc::ptr_eq(&self.local, local)
    }
}

impl Enforcement {
    /// Judges the connection by the newest snapshot. `found` is called for each match of a policy that is not enforced.
    ///
    /// # Errors
    /// Why the connection is denied. `None`: the mesh does not know the pod.
    pub fn judge(&self, found: impl FnMut(UnenforcedMatch<'_>)) -> Result<Permit, Option<Denial>> {
        let guard = self.point.guard().ok_or(None)?;
        guard.unenforced(&self.entered.connection, found);
        guard.judge(&self.entered.connection).map_err(|denied| Some(denied.told(&self.entered.connection)))
    }

    /// The facts by which policy judges the connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.entered.connection
    }

    /// Records that the client is the kubelet, which may connect to the ports of probes independent of policy.
    pub fn is_probe(&self) {
        self.entered.probe.store(true, Ordering::Relaxed);
    }

    /// Waits until policy does not allow the connection any more.
    pub async fn stopped(&mut self) -> Denial {
        poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// As [`Self::stopped`]; ready only once.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Denial> {
        if self.stopped.is_terminated() {
            return Poll::Pending;
        }
        match Pin::new(&mut self.stopped).poll(cx) {
            Poll::Ready(Ok(denial)) => Poll::Ready(*denial),
            // `Err` can't occur: this value holds the sender.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Enforcement {
    fn drop(&mut self) {
        lock(&self.point.0.entered).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
