//! Asks the manager for its state, and reads its progress without asking.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{mpsc, oneshot};

#[cfg(test)]
use super::handover::Steps;
use super::{
    arrivals::Arrivals,
    describe::Description,
    handover::{Order, Orders},
    node_name::UnknownNode,
    status::Status,
};
use crate::{model::local::LocalPods, net::listen::DeafPods, store::publish::Reader};

/// The handle of the manager.
#[derive(Clone, Debug)]
pub struct ManagerHandle {
    pub(super) asks: mpsc::Sender<oneshot::Sender<Description>>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) mesh: Reader,
    pub(super) progress: Arc<Progress>,
}

/// The progress of the manager, for readers that do not wait for it.
#[derive(Debug)]
pub(super) struct Progress {
    /// The version of the mesh that the pods match.
    pub(super) reconciled: AtomicU64,
    /// The local facts that the pods match; `None`: the source has not sent any yet.
    pub(super) local: ArcSwapOption<LocalPods>,
    /// The fault of this node's name.
    pub(super) unknown_node: ArcSwapOption<UnknownNode>,
    /// The daemon has been told to stop, and continues until its connections have ended.
    pub(super) leaving: AtomicBool,
    /// Another daemon is running and prepares to take over the pods.
    pub(super) expecting: AtomicBool,
    /// Another daemon is about to start, and will take over the pods.
    pub(super) awaiting: AtomicBool,
    /// Another daemon has taken over the pods.
    pub(super) retired: AtomicBool,
    /// A part of the capture is gone from the kernel and could not be restored.
    pub(super) unhooked: AtomicBool,
    /// Pods that are not served until they are enrolled again, because somebody has closed one of their listeners.
    pub(super) deaf: DeafPods,
    /// Why the local facts may be outdated.
    pub(super) local_problem: ArcSwapOption<String>,
    /// The manager's last report of the pods.
    pub(super) status: ArcSwap<Status>,
    /// The pods whose enrolment is awaited.
    pub(super) arrivals: Arrivals,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            reconciled: AtomicU64::default(),
            local: ArcSwapOption::empty(),
            unknown_node: ArcSwapOption::empty(),
            leaving: AtomicBool::default(),
            expecting: AtomicBool::default(),
            awaiting: AtomicBool::default(),
            retired: AtomicBool::default(),
            unhooked: AtomicBool::default(),
            deaf: DeafPods::default(),
            local_problem: ArcSwapOption::empty(),
            status: ArcSwap::from_pointee(Status::unknown()),
            arrivals: Arrivals::default(),
        }
    }
}

/// This value in place of a version means that the daemon is stopping.
pub(super) const STOPPING: u64 = u64::MAX;

impl ManagerHandle {
    /// The current state; `None`: the daemon is stopping. Waits for the manager, which may be busy with a pod.
    pub async fn describe(&self) -> Option<Description> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(reply).await.ok()?;
        answer.await.ok()
    }

    /// A handle of a manager that has ended.
    #[cfg(test)]
    pub fn of_nobody(mesh: Reader) -> Self {
        let progress = Progress { reconciled: AtomicU64::new(STOPPING), ..Progress::default() };
        Self { asks: mpsc::channel(1).0, orders: mpsc::channel(1).0, mesh, progress: Arc::new(progress) }
    }

    /// A handle of a manager that takes part in a handover only. The receiver gets the orders.
    #[cfg(test)]
    pub fn of_handover(mesh: Reader) -> (Self, Steps) {
        let (orders, steps) = mpsc::channel(1);
        (Self { asks: mpsc::channel(1).0, orders, mesh, progress: Arc::default() }, Steps(steps))
    }

    /// A handle of a manager that is blocked. The receiver gets the questions.
    #[cfg(test)]
    pub fn of_blocked(mesh: Reader, status: Status) -> (Self, mpsc::Receiver<oneshot::Sender<Description>>) {
        let (asks, asked) = mpsc::channel(1);
        let progress = Progress { status: ArcSwap::from_pointee(status), ..Progress::default() };
        (Self { asks, orders: mpsc::channel(1).0, mesh, progress: Arc::new(progress) }, asked)
    }

    /// The orders for a handover of the pods to another daemon.
    #[must_use]
    pub fn orders(&self) -> Orders {
        Orders(self.orders.clone())
    }

    /// Sets whether another daemon prepares to take over the pods. Until it has taken over, this daemon does not stop.
    pub fn expect_successor(&self, is_there: bool) {
        self.progress.expecting.store(is_there, Ordering::Relaxed);
    }

    /// Has this daemon wait for another one, that is about to start, for the whole drain time when it has to stop.
    pub fn await_successor(&self) {
        self.progress.awaiting.store(true, Ordering::Relaxed);
    }

    /// Whether another daemon has taken over the pods. This daemon then serves only its open connections.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.progress.retired.load(Ordering::Relaxed)
    }

    /// What is missing until the daemon is ready; `None`: the daemon is ready. Never waits, however busy the manager
    /// is.
    #[must_use]
    pub fn pending(&self) -> Option<&'static str> {
        pending(&self.mesh, &self.progress)
    }

    /// The fault of this node's name, if the mesh does not know it. Never waits.
    #[must_use]
    pub fn unknown_node(&self) -> Option<Arc<UnknownNode>> {
        self.progress.unknown_node.load_full()
    }

    /// Why the local facts of this node's pods may be outdated. Never waits.
    #[must_use]
    pub fn local_problem(&self) -> Option<Arc<String>> {
        self.progress.local_problem.load_full()
    }

    /// The manager's last report of the pods. It is at most a second old unless the manager is busy or blocked. Never
    /// waits.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.progress.status.load_full()
    }

    /// The pods whose enrolment is awaited.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        self.progress.arrivals.clone()
    }

    /// The local facts that this node has of its own pods.
    #[must_use]
    pub fn local_pods(&self) -> Arc<LocalPods> {
        self.progress.local.load_full().unwrap_or_default()
    }
}

pub(super) fn pending(mesh: &Reader, progress: &Progress) -> Option<&'static str> {
    let version = mesh.load().version();
    if progress.leaving.load(Ordering::Relaxed) {
        return Some("shutdown");
    }
    match progress.reconciled.load(Ordering::Relaxed) {
        STOPPING => Some("shutdown"),
        _ if version == 0 => Some("mesh"),
        _ if progress.unhooked.load(Ordering::Relaxed) => {
            Some("BPF links: another process removed them, and the daemon cannot attach them again")
        }
        _ if progress.deaf.count() > 0 => {
            Some("listeners of a pod: another process closed them, and the daemon is enrolling the pod again")
        }
        _ if progress.local.load().is_none() => Some("local facts of the pods"),
        reconciled => (reconciled < version).then_some("mesh"),
    }
}
