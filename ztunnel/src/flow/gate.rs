//! Who may connect to a pod: judged when a connection comes, and again whenever the mesh or the pod's local facts change.
//!
//! A connection enters *before* it is judged, and is judged by a snapshot that is loaded after that. So a new snapshot is
//! never missed: either the judgement was made by it, or the recheck that it starts finds the connection, wherever that is
//! on its way.

use std::{
    collections::HashMap,
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    model::{local::LocalPod, workload::NamespacedName},
    policy::{Beside, Connection, Denial, Guard, Permit},
    store::{publish::Reader, snapshot::Snapshot},
};

/// The gates of the pods of this node; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Gates(Arc<All>);

#[derive(Debug, Default)]
struct All {
    gates: Mutex<Vec<Weak<Inner>>>,
    /// The local facts of a pod have changed.
    changed: Arc<Notify>,
}

/// One pod's gate, shared by its workers; clones are the same.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pod: NamespacedName,
    mesh: Reader,
    /// What is in force of the pod's local facts.
    local: ArcSwap<LocalPod>,
    changed: Arc<Notify>,
    current: ArcSwapOption<Current>,
    entered: Mutex<HashMap<u64, Arc<Entered>>>,
    next: AtomicU64,
}

/// The guard of the newest snapshot, as soon as the recheck that it starts has been here. Only that, which is no data
/// worker, puts another in its place: to free what the last one held takes its time, with many policies.
#[derive(Debug)]
struct Current {
    snapshot: Arc<Snapshot>,
    local: Arc<LocalPod>,
    /// None: that snapshot does not know the pod.
    guard: Option<Arc<Guard>>,
}

#[derive(Debug)]
struct Entered {
    connection: Connection,
    /// Its client is the kubelet.
    probe: AtomicBool,
    stop: Mutex<Option<oneshot::Sender<Box<Denial>>>>,
}

/// A connection at the gate, and behind it; it leaves with this value.
#[derive(Debug)]
pub struct Visit {
    gate: Gate,
    id: u64,
    entered: Arc<Entered>,
    stopped: oneshot::Receiver<Box<Denial>>,
}

/// What became of the connections of a pod, or of all, when the mesh changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Judged again.
    pub judged: usize,
    /// Of them, those that may not be any more.
    pub cut: usize,
}

impl Gates {
    /// A gate for a pod, as long as a clone of it lives. `local`: what is in force of the pod's local facts.
    #[must_use]
    pub fn gate(&self, pod: NamespacedName, mesh: Reader, local: LocalPod) -> Gate {
        let inner = Inner {
            pod,
            mesh,
            local: ArcSwap::from_pointee(local),
            changed: Arc::clone(&self.0.changed),
            current: ArcSwapOption::empty(),
            entered: Mutex::default(),
            next: AtomicU64::default(),
        };
        let gate = Gate(Arc::new(inner));
        {
            let mut all = lock(&self.0.gates);
            all.retain(|gate| gate.strong_count() > 0);
            all.push(Arc::downgrade(&gate.0));
        }
        // The recheck of this mesh may be over already.
        gate.renew();
        gate
    }

    /// Judges every connection again whenever the mesh or the local facts of a pod change, as long as it may. The data workers are not asked, and wait
    /// for nothing.
    pub async fn follow(self, mesh: Reader, decisions: Decisions) {
        let mut changes = mesh.subscribe();
        let mut newest = Some(mesh.load());
        while let Some(snapshot) = newest {
            let (gates, decisions) = (self.clone(), decisions.clone());
            let rechecked = spawn_blocking(move || {
                decisions.retain(&snapshot);
                gates.recheck(&decisions)
            });
            match rechecked.await {
                Ok(Rechecked { cut: 0, .. }) => {}
                Ok(Rechecked { judged, cut }) => info!(judged, cut, "connections were cut, because policy has changed"),
                Err(failure) => {
                    error!(%failure, "judging the live connections again failed: this is a bug, please report it");
                }
            }
            newest = tokio::select! {
                newest = changes.changed() => newest,
                () = self.0.changed.notified() => Some(mesh.load()),
            };
        }
    }

    /// Judges every connection by the newest snapshot.
    pub fn recheck(&self, decisions: &Decisions) -> Rechecked {
        let gates: Vec<Gate> = lock(&self.0.gates).iter().filter_map(Weak::upgrade).map(Gate).collect();
        // All of them before any connection, so that no worker makes its own for long.
        let guards: Vec<_> = gates.iter().map(Gate::renew).collect();
        let mut all = Rechecked::default();
        for (gate, guard) in gates.into_iter().zip(guards) {
            // A pod that has left is released, and its connections with it.
            let Some(guard) = guard else { continue };
            let Rechecked { judged, cut } = gate.recheck(&guard, decisions);
            all.judged += judged;
            all.cut += cut;
        }
        all
    }
}

impl Gate {
    /// Lets a connection come to be judged.
    #[must_use]
    pub fn enter(&self, connection: Connection) -> Visit {
        let (stop, stopped) = oneshot::channel();
        let entered = Arc::new(Entered { connection, probe: AtomicBool::new(false), stop: Mutex::new(Some(stop)) });
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.entered).insert(id, Arc::clone(&entered));
        Visit { gate: self.clone(), id, entered, stopped }
    }

    /// The guard by the newest snapshot; none when that does not know the pod.
    #[must_use]
    pub fn guard(&self) -> Option<Arc<Guard>> {
        let (snapshot, local) = (self.0.mesh.load(), self.0.local.load());
        self.kept(&snapshot, &local).unwrap_or_else(|| self.guard_by(&snapshot, &local))
    }

    /// Changes what is in force of the pod's local facts: from now on connections are judged by it, and those that are open
    /// are judged again by [`Gates::follow`].
    pub fn set_local(&self, local: LocalPod) {
        if **self.0.local.load() != local {
            self.0.local.store(Arc::new(local));
            self.0.changed.notify_one();
        }
    }

    /// What is kept, if it is of that snapshot and of these facts.
    fn kept(&self, snapshot: &Arc<Snapshot>, local: &Arc<LocalPod>) -> Option<Option<Arc<Guard>>> {
        let current = self.0.current.load();
        let is_of =
            |current: &&Arc<Current>| Arc::ptr_eq(&current.snapshot, snapshot) && Arc::ptr_eq(&current.local, local);
        current.as_ref().filter(is_of).map(|current| current.guard.clone())
    }

    fn guard_by(&self, snapshot: &Snapshot, local: &LocalPod) -> Option<Arc<Guard>> {
        snapshot.workload(&self.0.pod).map(|workload| Arc::new(Guard::of(snapshot, workload, local)))
    }

    /// Makes the guard by the newest snapshot the one that is asked.
    fn renew(&self) -> Option<Arc<Guard>> {
        loop {
            let (snapshot, local) = (self.0.mesh.load(), self.0.local.load_full());
            let guard = self.guard_by(&snapshot, &local);
            let current = Current { snapshot: Arc::clone(&snapshot), local: Arc::clone(&local), guard: guard.clone() };
            self.0.current.store(Some(Arc::new(current)));
            // Someone else may have renewed it meanwhile, by a newer one.
            if Arc::ptr_eq(&snapshot, &self.0.mesh.load()) && Arc::ptr_eq(&local, &self.0.local.load()) {
                return guard;
            }
        }
    }

    fn recheck(&self, guard: &Guard, decisions: &Decisions) -> Rechecked {
        let mut rechecked = Rechecked::default();
        let entered: Vec<_> = lock(&self.0.entered).values().cloned().collect();
        for entered in entered {
            rechecked.judged += 1;
            if guard.judge(&entered.connection).is_ok() {
                continue;
            }
            // It may have been let in by a mesh that came meanwhile: only by the newest anyone is cut.
            let newest = self.kept(&self.0.mesh.load(), &self.0.local.load()).unwrap_or_else(|| self.renew());
            let Some(newest) = newest else { return rechecked };
            let Err(denied) = newest.judge(&entered.connection) else { continue };
            let denial = denied.told(&entered.connection);
            if denial.at_probe && entered.probe.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(stop) = lock(&entered.stop).take() {
                rechecked.cut += 1;
                decisions.cut(&denial, &self.0.pod.namespace);
                // Whoever has ended meanwhile needs no telling.
                let _ended = stop.send(Box::new(denial));
            }
        }
        rechecked
    }
}

impl Visit {
    /// Whether the connection may be, by the newest snapshot; `found` hears what policies without effect have to say.
    ///
    /// # Errors
    /// Why not. `None`: the mesh does not know the pod.
    pub fn judge(&self, found: impl FnMut(Beside<'_>)) -> Result<Permit, Option<Denial>> {
        let guard = self.gate.guard().ok_or(None)?;
        guard.beside(&self.entered.connection, found);
        guard.judge(&self.entered.connection).map_err(|denied| Some(denied.told(&self.entered.connection)))
    }

    /// What is known of it.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.entered.connection
    }

    /// Says that the client is the kubelet, which may ask at the ports of probes whatever policy says.
    pub fn is_probe(&self) {
        self.entered.probe.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection may not be any more.
    pub async fn stopped(&mut self) -> Denial {
        poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// As [`Self::stopped`]; comes once.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Denial> {
        if self.stopped.is_terminated() {
            return Poll::Pending;
        }
        match Pin::new(&mut self.stopped).poll(cx) {
            Poll::Ready(Ok(denial)) => Poll::Ready(*denial),
            // Never: the sender is in what this value holds.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        lock(&self.gate.0.entered).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
