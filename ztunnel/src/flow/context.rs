//! What every connection of one pod on one worker needs.

use std::{cell::Cell, net::IpAddr, rc::Rc};

use super::table::{Table, Upstreams};
use crate::{
    metrics::traffic::Traffic,
    model::{close::CloseReason, workload::NamespacedName},
    net::{copy::BufferPool, dial::Dialer, socket::Keepalive},
    store::publish::Reader,
};

/// The pod, as its connections see it.
pub struct PodContext {
    /// The pod.
    pub name: NamespacedName,
    /// Its addresses, as the mesh has them.
    pub addresses: Vec<IpAddr>,
    /// Connects from within its network namespace.
    pub dialer: Dialer,
    /// The mesh.
    pub mesh: Reader,
    /// Its live connections on this worker.
    pub table: Rc<Table>,
    /// Its upstream connections on all workers.
    pub upstreams: Upstreams,
    /// The worker's copy buffers.
    pub buffers: BufferPool,
    /// Counters.
    pub traffic: Traffic,
    /// For accepted connections.
    pub keepalive: Keepalive,
    /// Why connections end that are cut from outside.
    pub ending: Cell<CloseReason>,
}
