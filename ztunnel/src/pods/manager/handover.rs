//! The handover of all pods from one daemon to another daemon of the same node.
//!
//! The old daemon stops all changes and continues to serve. The new daemon enrols every pod: its listeners replace the listeners in the
//! map, one by one, and its programs replace the programs of the pinned links. Then the old daemon retires: it serves the connections
//! that it has accepted, and applies changes of the mesh to them. Until then the old daemon can restore everything for itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ebpf_common::Purpose;
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Manager, TICK, WorkerLost, node, state::Enrolled};
use crate::{
    lifecycle::tasks::TaskSet,
    model::{cause::causes, workload::NamespacedName},
    pods::{
        handle::STOPPING,
        handover::{Frozen, Order, TakenOver},
        kernel::{Kernel, Namespace as _},
        reconcile::{Action, Desired, plan, wanted},
        worker::WorkerHandle,
    },
};

/// Time in which connections may still arrive at replaced listeners, because their first packet arrived at the old
/// listener. The kernel repeats its answer to that packet after 1 and 3 seconds.
const HANDSHAKES: Duration = Duration::from_secs(4);

impl<K: Kernel> Manager<K> {
    /// Takes over the pods of another daemon, which has stopped all changes. The mesh and the local facts have to be
    /// known. `connections_before`: see [`Frozen`]. Pods that have left the mesh are released later, when the other
    /// daemon can no longer restore them.
    pub async fn take_over(&mut self, connections_before: HashMap<u64, usize>) -> TakenOver {
        self.others_due = false;
        self.taken_over = Some(connections_before);
        self.reconcile().await;
        self.taken_over = None;
        self.others_due = true;
        TakenOver { enrolled: self.enrolled.len(), refused: self.refused.len() }
    }

    /// Stops all changes until the other daemon has taken over or has failed to. Returns whether it has taken over.
    pub(super) async fn hand_over(&mut self, order: Order) -> Result<bool, WorkerLost> {
        let Order::Freeze(reply) = order else { return Ok(false) };
        // These tasks would restore rules and routes of this daemon.
        self.enrolled.values_mut().for_each(|enrolled| enrolled.following = TaskSet::new(self.parts.tasks.clone()));
        let before = |enrolled: &Enrolled<K>| (enrolled.pod.netns.cookie(), enrolled.pod.connections_before);
        let connections_before = self.enrolled.values().map(before).filter(|(_, count)| *count > 0).collect();
        if reply.send(Frozen { pods: self.enrolled.len(), connections_before }).is_err() {
            self.regain().await;
            return Ok(false);
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Retire(reply)) => {
                        self.progress.retired.store(true, Ordering::Relaxed);
                        self.progress.reconciled.store(STOPPING, Ordering::Relaxed);
                        let _asker_gone = reply.send(());
                        return Ok(true);
                    }
                    Some(Order::Resume(reply)) => {
                        self.regain().await;
                        let _asker_gone = reply.send(());
                        return Ok(false);
                    }
                    // Changes have stopped already.
                    Some(Order::Freeze(_)) => {}
                    None => {
                        self.regain().await;
                        return Ok(false);
                    }
                },
                Some(reply) = self.inbox.recv() => {
                    let description = self.describe().await;
                    drop(reply.send(description));
                }
                _ = tick.tick() => {
                    if self.parts.workers.iter().any(WorkerHandle::is_lost) {
                        return Err(WorkerLost);
                    }
                    self.report();
                }
            }
        }
    }

    /// Restores everything that another daemon may have changed before it failed to take over.
    async fn regain(&mut self) {
        if let Err(error) = self.parts.kernel.regain() {
            warn!(
                error = causes(&error),
                "another daemon began to take over, and the daemon cannot restore the BPF programs that it \
                 had before; trying again"
            );
        }
        let mut listeners: HashMap<u64, Vec<(usize, Purpose, std::net::TcpListener)>> = HashMap::new();
        for (index, worker) in self.parts.workers.iter().enumerate() {
            for (cookie, purpose, listener) in worker.listeners().await {
                listeners.entry(cookie).or_default().push((index, purpose, listener));
            }
        }
        for (name, mut enrolled) in std::mem::take(&mut self.enrolled) {
            let own = listeners.remove(&enrolled.pod.netns.cookie()).unwrap_or_default();
            let regained = node(&mut self.parts).regain(&name, &mut enrolled.pod, own).await;
            enrolled.following = self.watch(&name, &enrolled.pod, &enrolled.addresses);
            if let Err(error) = regained {
                // Its listeners may be missing in the map.
                warn!(
                    pod = %name, error = causes(&error),
                    "cannot restore the listeners of the pod after an aborted handover; the daemon enrols the pod \
                     again"
                );
                enrolled.pod.deaf.tell();
            }
            self.enrolled.insert(name, enrolled);
        }
        // Changes since the freeze were not followed.
        self.seen = None;
        self.resync();
        self.reconcile().await;
    }

    /// Serves the open connections until the last one has ended or the linger time is over.
    pub(super) async fn linger(mut self) -> Result<(), WorkerLost> {
        let begun = Instant::now();
        self.refused.clear();
        self.parts.kernel.retire();
        join_all(self.parts.workers.iter().map(WorkerHandle::hand_over)).await;
        let mut changes = self.parts.mesh.subscribe();
        self.leave_unwanted().await;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained: Option<BoxFuture<'static, ()>> = None;
        loop {
            tokio::select! {
                () = async {
                    match &mut drained {
                        Some(drained) => drained.await,
                        None => std::future::pending().await,
                    }
                } => return Ok(()),
                Some(_) = changes.changed() => self.leave_unwanted().await,
                () = self.parts.local.changed() => self.leave_unwanted().await,
                // There is no answer: another daemon has the pods.
                Some(reply) = self.inbox.recv() => drop(reply),
                _ = tick.tick() => {
                    if self.parts.workers.iter().any(WorkerHandle::is_lost) {
                        return Err(WorkerLost);
                    }
                    self.leave_gone().await;
                    if drained.is_none() && self.has_accepted_all(begun).await {
                        let rest = self.parts.linger.saturating_sub(begun.elapsed());
                        let drains = join_all(self.parts.workers.iter().map(|worker| worker.drain(rest)));
                        drained = Some(drains.map(drop).boxed());
                    }
                    self.report();
                }
            }
        }
    }

    /// Whether no more connections can arrive at the listeners, or the linger time is over.
    async fn has_accepted_all(&self, since: Instant) -> bool {
        if since.elapsed() < HANDSHAKES.min(self.parts.linger) {
            return false;
        }
        let loads = join_all(self.parts.workers.iter().map(WorkerHandle::load)).await;
        let connections: usize = loads.iter().map(|load| load.connections).sum();
        let is_empty = loads.iter().all(|load| load.waiting == 0);
        if is_empty {
            info!(
                connections,
                "all new connections go to the new daemon; this daemon keeps the open \
                 connections"
            );
        }
        is_empty || since.elapsed() >= self.parts.linger
    }

    /// Resets the connections of pods that have left the mesh, or that have another identity or network namespace now.
    async fn leave_unwanted(&mut self) {
        let snapshot = self.parts.mesh.load();
        let Some(local) = self.parts.local.current() else { return };
        self.wanted = wanted(&snapshot, &self.parts.node, &local, |pod| self.parts.local.missing_netns(pod));
        let actual = self.enrolled.iter().map(|(name, enrolled)| (name.clone(), Ok(enrolled.pod.desired.clone())));
        let actual: BTreeMap<_, _> = actual.collect();
        for action in plan(&self.wanted, &actual) {
            match action {
                Action::Update(name, desired) => self.follow_left(&name, &desired).await,
                Action::Release(name) | Action::Enrol(name, _) | Action::Refuse(name, _) => self.leave(&name).await,
            }
        }
    }

    async fn follow_left(&mut self, name: &NamespacedName, desired: &Desired) {
        if let Some(mut enrolled) = self.enrolled.remove(name) {
            enrolled.addresses.store(Arc::new(desired.addresses.clone()));
            node(&mut self.parts).follow_left(&mut enrolled.pod, desired).await;
            self.enrolled.insert(name.clone(), enrolled);
        }
    }

    /// Resets the connections of pods whose network namespaces are gone, because a namespace that is held open here
    /// would outlive its pod. Also resets those of pods that the other daemon has released.
    async fn leave_gone(&mut self) {
        let kernel = &self.parts.kernel;
        let is_gone = |enrolled: &Enrolled<K>| {
            !enrolled.pod.netns.is_current() || !kernel.has_captured(enrolled.pod.netns.cookie())
        };
        let gone = self.enrolled.iter().filter(|(_, enrolled)| is_gone(enrolled));
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.leave(&name).await;
        }
    }

    /// Resets the connections of a pod.
    async fn leave(&mut self, name: &NamespacedName) {
        if let Some(Enrolled { pod, .. }) = self.enrolled.remove(name) {
            node(&mut self.parts).close(&pod.netns).await;
            info!(
                pod = %name,
                "the connections of a pod were reset: the pod left the mesh, or another pod has replaced it"
            );
        }
    }
}
