//! What is known about a connection once it is decided where it goes: log, metrics and `/config_dump` tell the same.

use std::{net::SocketAddr, sync::Arc};

use crate::model::{
    flow::{Direction, Flow},
    identity::SpiffeId,
    service::Service,
    workload::Workload,
};

/// Who is connected with whom, and how.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which way, seen from the pod.
    pub direction: Direction,
    /// Who connected.
    pub src_addr: SocketAddr,
    /// The pod that connected: the daemon's own for outbound, for inbound as far as it is known.
    pub source: Option<Arc<Workload>>,
    /// Who connected, proved by mTLS. `None` in plaintext.
    pub source_identity: Option<SpiffeId>,
    /// The TCP peer that the daemon connected to: port 15008 of a pod for a tunnel, the original destination before that
    /// is chosen, the application for inbound.
    pub dst_addr: SocketAddr,
    /// What the CONNECT of a tunnel names. `None` in plaintext.
    pub hbone_addr: Option<String>,
    /// The service that the client addressed.
    pub service: Option<Arc<Service>>,
    /// The pod that is connected to, as far as it is known.
    pub destination: Option<Arc<Workload>>,
    /// Who is connected to: expected, or proved by mTLS. `None` in plaintext.
    pub destination_identity: Option<SpiffeId>,
}

/// How a connection goes between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// As it came.
    Tcp,
    /// In an mTLS tunnel.
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
    /// What the sockets tell, and no more.
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

    /// How it goes between nodes.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        if self.hbone_addr.is_some() { Protocol::Hbone } else { Protocol::Tcp }
    }
}
