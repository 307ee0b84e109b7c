//! What every connection of one pod on one worker needs.

use std::{
    cell::{Cell, RefCell},
    future::pending,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    admission::Admission,
    enforcement::EnforcementPoint,
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
    /// The pod.
    pub name: NamespacedName,
    /// Its addresses.
    pub addresses: Addresses,
    /// Connects from within its network namespace.
    pub dialer: Dialer,
    /// Its side of TLS.
    pub tls: tls::Endpoint,
    /// Its tunnels to other pods.
    pub pool: Pool<TunnelDialer>,
    /// HTTP/2 of the tunnels.
    pub hbone: hbone::Settings,
    /// Who may connect to it.
    pub enforcement_point: EnforcementPoint,
    /// Tells the kubelet from others, where the kernel can.
    pub node: Option<Arc<dyn NodeConnections>>,
    /// Tunnels to it.
    pub admission: Admission,
    /// What its connections may use.
    pub open: OpenLimit,
    /// Its tasks on this worker.
    pub tasks: TaskCount,
    /// The mesh.
    pub mesh: Reader,
    /// Its live connections on this worker.
    pub table: Rc<Table>,
    /// Its upstream connections on all workers.
    pub upstreams: Upstreams,
    /// The worker's copy buffers, at the expense of the pod.
    pub buffers: BufferPool,
    /// The pod's share of the daemon's memory.
    pub memory: Account,
    /// The cluster's name, for telemetry.
    pub cluster: Arc<str>,
    /// Tells of tunnels that came to nothing.
    pub failures: Failures,
    /// The worker's counters.
    pub meter: Meter,
    /// Why connections end that are cut from outside.
    pub ending: Cell<CloseReason>,
}

/// A pod's addresses, as the mesh has them now.
#[derive(Debug)]
pub struct Addresses {
    current: RefCell<Vec<IpAddr>>,
    changed: Notify,
}

impl Addresses {
    /// The addresses that a pod begins with.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        Self { current: RefCell::new(addresses), changed: Notify::new() }
    }

    /// Replaces them. Gives those that are not the pod's any more.
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
    /// The first of its addresses that is of the same family as this one.
    pub(super) fn first_address(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.current.borrow().iter().copied().find(|own| own.is_ipv4() == like.is_ipv4())
    }

    /// Waits until an address that is the pod's now is taken from it.
    pub(super) async fn lost(&self, address: IpAddr) {
        if !self.addresses.contains(address) {
            pending::<()>().await;
        }
        loop {
            // Whoever waits before the change is told, also if this is not polled in between.
            let changed = self.addresses.changed.notified();
            if !self.addresses.contains(address) {
                return;
            }
            changed.await;
        }
    }

    /// Replaces the pod's addresses. Connections of those that are gone end; others notice nothing.
    pub fn readdress(&self, addresses: Vec<IpAddr>) {
        let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let before = families.map(|family| self.first_address(family));
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
        let moved = families.map(|family| self.first_address(family)).into_iter().zip(before);
        let moved: Vec<_> = moved.filter(|(now, before)| now != before).filter_map(|(_, before)| before).collect();
        self.pool.retain(|key, _| match key.from {
            Some(from) => !removed.contains(&from),
            // A tunnel that is bound to no address has come from the pod's first one of that family.
            None => !moved.iter().any(|first| first.is_ipv4() == key.to.is_ipv4()),
        });
    }
}
