//! What every connection of one pod on one worker needs.

use std::{cell::Cell, net::IpAddr, rc::Rc, sync::Arc};

use tokio::sync::Semaphore;

use super::{
    admission::Admission,
    failures::Failures,
    gate::Gate,
    table::{Table, Upstreams},
    tunnel::TunnelDialer,
};
use crate::{
    hbone::{self, pool::Pool},
    lifecycle::tasks::TaskCount,
    metrics::traffic::Meter,
    model::{close::CloseReason, workload::NamespacedName},
    net::{buffer::BufferPool, dial::Dialer},
    redirect::NodeSockets,
    store::publish::Reader,
    tls,
};

/// The pod, as its connections see it.
pub struct PodContext {
    /// The pod.
    pub name: NamespacedName,
    /// Its addresses, as the mesh has them.
    pub addresses: Vec<IpAddr>,
    /// Connects from within its network namespace.
    pub dialer: Dialer,
    /// Its side of TLS.
    pub tls: tls::Endpoint,
    /// Its tunnels to other pods.
    pub pool: Pool<TunnelDialer>,
    /// HTTP/2 of the tunnels.
    pub hbone: hbone::Settings,
    /// Who may connect to it.
    pub gate: Gate,
    /// Tells the kubelet from others, where the kernel can.
    pub node: Option<NodeSockets>,
    /// Tunnels to it.
    pub admission: Admission,
    /// Connections to its applications that tunnels may still make.
    pub streams: Arc<Semaphore>,
    /// Its tasks on this worker.
    pub tasks: TaskCount,
    /// The mesh.
    pub mesh: Reader,
    /// Its live connections on this worker.
    pub table: Rc<Table>,
    /// Its upstream connections on all workers.
    pub upstreams: Upstreams,
    /// The worker's copy buffers.
    pub buffers: BufferPool,
    /// The cluster's name, for telemetry.
    pub cluster: Arc<str>,
    /// Tells of tunnels that came to nothing.
    pub failures: Failures,
    /// The worker's counters.
    pub meter: Meter,
    /// Why connections end that are cut from outside.
    pub ending: Cell<CloseReason>,
}
