//! The results of a decision.

use std::{net::SocketAddr, sync::Arc};

use crate::model::{close::CloseReason, identity::SpiffeId, service::Service, workload::Workload};

/// Where a connection out of a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The pod that connects.
    pub source: Option<Arc<Workload>>,
    /// The service that has the requested address.
    pub service: Option<Arc<Service>>,
    /// The candidates, in the order in which they are tried; never empty, at most [`MOST`](super::balance::MOST), all different.
    pub candidates: Vec<Candidate>,
}

/// One possible route of a connection out of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address of the application or host to be reached.
    pub target: SocketAddr,
    /// The workload that has this address.
    pub workload: Option<Arc<Workload>>,
    /// How the target is reached.
    pub hop: Hop,
}

/// How a target is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Through an HBONE connection.
    Tunnel {
        /// The address of the HBONE connection: the target's address, port [`HBONE_PORT`](ebpf_common::HBONE_PORT).
        to: SocketAddr,
        /// The identities that the peer may have; never empty.
        expected: Arc<[SpiffeId]>,
    },
    /// Directly, in plaintext.
    Plain,
}

/// Where a plaintext connection into a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The application's address.
    pub to: SocketAddr,
    /// The workload that has the client's address. This is not an identity: addresses can be forged.
    pub source: Option<Arc<Workload>>,
    /// The pod.
    pub destination: Option<Arc<Workload>>,
    /// A service that leads to this port of the pod.
    pub service: Option<Arc<Service>>,
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRefusal {
    /// The reason.
    pub reason: CloseReason,
    /// The object concerned, if any.
    pub detail: Option<String>,
}

impl RouteRefusal {
    pub(super) fn because(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: Some(detail.into()) }
    }
}

impl From<CloseReason> for RouteRefusal {
    fn from(reason: CloseReason) -> Self {
        Self { reason, detail: None }
    }
}
