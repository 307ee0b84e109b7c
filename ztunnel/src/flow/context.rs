//! The state that all connections of one pod on one worker share.

use std::{
    cell::{Cell, RefCell},
    future::pending,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    admission::Admission,
    enforcement::EnforcementPoint,
    events::Events,
    failures::Failures,
    table::{Table, Upstreams},
    tunnel::TunnelDialer,
};
use crate::{
    hbone::{self, pool::Pool},
    lifecycle::tasks::TaskCount,
    metrics::traffic::Meter,
    model::{close::CloseReason, flow::Direction, workload::NamespacedName},
    net::{buffer::BufferPool, dial::Dialer, memory::Account, node::NodeConnections, open::OpenLimit},
    store::publish::Reader,
    tls,
};

/// The pod, as its connections see it.
pub struct PodContext {
    /// The name of the pod.
    pub name: NamespacedName,
    /// The pod's addresses.
    pub addresses: Addresses,
    /// Connects from within the pod's network namespace.
    pub dialer: Dialer,
    /// The pod's side of TLS.
    pub tls: tls::Endpoint,
    /// The HBONE connections to other pods.
    pub pool: Pool<TunnelDialer>,
    /// The HTTP/2 settings of HBONE connections.
    pub hbone: hbone::Settings,
    /// Judges the connections to the pod.
    pub enforcement_point: EnforcementPoint,
    /// Identifies connections of the kubelet, if the kernel supports it.
    pub node: Option<Arc<dyn NodeConnections>>,
    /// Admits HBONE connections to the pod.
    pub admission: Admission,
    /// The limit of the pod's open connections.
    pub open: OpenLimit,
    /// The number of the pod's tasks on this worker.
    pub tasks: TaskCount,
    /// The mesh.
    pub mesh: Reader,
    /// The pod's live connections on this worker.
    pub table: Rc<Table>,
    /// The pod's upstream connections on all workers.
    pub upstreams: Upstreams,
    /// The worker's copy buffers, charged to the pod.
    pub buffers: BufferPool,
    /// The pod's share of the daemon's memory.
    pub memory: Account,
    /// The cluster's name, for telemetry.
    pub cluster: Arc<str>,
    /// Logs failed HBONE connections.
    pub failures: Failures,
    /// The worker's counters.
    pub meter: Meter,
    /// Readers of connection events.
    pub events: Events,
    /// The close reason of connections whose task is dropped.
    pub ending: Cell<CloseReason>,
}

/// The current addresses of a pod, as the mesh has them.
#[derive(Debug)]
pub struct Addresses {
    current: RefCell<Vec<IpAddr>>,
    changed: Notify,
}

impl Addresses {
    /// The first addresses of a pod.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        Self { current: RefCell::new(addresses), changed: Notify::new() }
    }

    /// Replaces the addresses. Returns the ones that the pod does not have any more.
    pub fn replace(&self, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let before = self.current.replace(addresses);
        self.changed.notify_waiters();
        let current = self.current.borrow();
        before.into_iter().filter(|address| !current.contains(address)).collect()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.current.borrow().contains(&address)
    }
}

impl PodContext {
    /// The pod's first address of the same family as this one.
    pub(super) fn first_address(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.current.borrow().iter().copied().find(|own| own.is_ipv4() == like.is_ipv4())
    }

    /// Waits until the pod loses this address. Never returns for an address that the pod does not have now.
    pub(super) async fn lost(&self, address: IpAddr) {
        if !self.addresses.contains(address) {
            pending::<()>().await;
        }
        loop {
            // Created before the check, so that no change after the check is missed.
            let changed = self.addresses.changed.notified();
            if !self.addresses.contains(address) {
                return;
            }
            changed.await;
        }
    }

    /// Replaces the pod's addresses. Connections of removed addresses end; others continue.
    pub fn readdress(&self, addresses: Vec<IpAddr>) {
        let removed = self.addresses.replace(addresses);
        for live in self.table.live() {
            let flow = live.flow();
            let own = match flow.direction {
                Direction::Outbound => flow.peer.ip(),
                Direction::Inbound => flow.dst.ip(),
            };
            if removed.contains(&own) {
                live.cut(CloseReason::AddressRemoved);
            }
        }
        self.pool.retain(|key, _| key.from.is_none_or(|from| !removed.contains(&from)));
    }
}
