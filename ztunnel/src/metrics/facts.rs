//! The facts about a connection whose destination is decided: log, metrics and `/config_dump` show the same facts.

use std::{net::SocketAddr, sync::Arc};

use crate::model::{
    flow::{Direction, Flow},
    identity::SpiffeId,
    service::Service,
    workload::Workload,
};

/// The two ends of a connection, and the protocol between them.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The direction, seen from the pod.
    pub direction: Direction,
    /// The socket that connected.
    pub src_addr: SocketAddr,
    /// The pod that connected. For outbound it is the daemon's own pod; for inbound it may be unknown.
    pub source: Option<Arc<Workload>>,
    /// The client's identity, proved by mTLS. `None` in plaintext.
    pub source_identity: Option<SpiffeId>,
    /// Through HBONE, in both directions: port 15008 of the destination's pod. In plaintext: the TCP peer to which the daemon
    /// connected. Before a destination is chosen it is the original destination.
    pub dst_addr: SocketAddr,
    /// The authority of the CONNECT request. `None` in plaintext.
    pub hbone_addr: Option<String>,
    /// The service that the client requested.
    pub service: Option<Arc<Service>>,
    /// The destination pod, if known.
    pub destination: Option<Arc<Workload>>,
    /// The server's identity, expected or proved by mTLS. `None` in plaintext.
    pub destination_identity: Option<SpiffeId>,
}

/// The protocol of a connection between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plaintext TCP.
    Tcp,
    /// A stream of an HBONE connection.
    Hbone,
}

impl Protocol {
    /// Its name in metrics and in `/config_dump`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
        }
    }
}

impl Facts {
    /// The facts that the sockets give, and nothing else.
    #[must_use]
    pub fn of(flow: &Flow) -> Self {
        Self {
            direction: flow.direction,
            src_addr: flow.peer.socket(),
            source: None,
            source_identity: None,
            dst_addr: flow.dst.socket(),
            hbone_addr: None,
            service: None,
            destination: None,
            destination_identity: None,
        }
    }

    /// The protocol between nodes.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        if self.hbone_addr.is_some() { Protocol::Hbone } else { Protocol::Tcp }
    }
}
