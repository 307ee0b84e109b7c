//! The limits of an HBONE connection to the pod and of each of its streams: numbers and memory. Each limit is checked in one
//! place, before the daemon does any work for the peer.

use thiserror::Error;

use super::{
    FlowRefusal, PodContext,
    admission::{self, Client, Full, NoMemory},
};
use crate::{
    hbone::Windows,
    model::{addr::PeerAddr, close::CloseReason, flow::Direction, workload::Membership},
    net::{
        memory::{Account, Claim},
        open,
    },
};

/// The memory that a stream uses besides its buffers, in bytes: tasks, tables and the state of HTTP/2.
const STREAM: usize = 12 << 10;

/// The resources of an admitted HBONE connection.
pub(super) struct Admitted {
    pub place: admission::AdmissionPermit,
    pub memory: Account,
    pub windows: Windows,
}

/// The limit that is reached.
#[derive(Debug, Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Memory(#[from] NoMemory),
}

impl Refused {
    /// The value of the metric label `reason`.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Full(full) => full.label(),
            Self::Memory(NoMemory) => NoMemory::LABEL,
        }
    }
}

/// Admits an HBONE connection before its handshake.
pub(super) fn hbone_connection(pod: &PodContext, peer: PeerAddr) -> Result<Admitted, Refused> {
    let is_known =
        pod.mesh.load().workload_at(peer.ip()).is_some_and(|workload| workload.membership == Membership::InMesh);
    let place = pod.admission.admit(Client::new(peer.ip(), is_known))?;
    let memory = pod.memory.of_peer(peer.ip());
    let windows = Windows::claim(&pod.hbone, &memory).ok_or(NoMemory)?;
    Ok(Admitted { place, memory, windows })
}

/// Admits a stream that policy allows. `memory`: the account of the peer.
pub(super) fn stream(pod: &PodContext, memory: &Account) -> Result<(open::OpenPermit, Claim), FlowRefusal> {
    let too_many = |detail| FlowRefusal::new(CloseReason::TooMany, detail);
    let place = pod.open.stream(Direction::Inbound).ok_or_else(|| {
        too_many("the pod has reached the limit of open connections (--max-connections-per-pod)".to_owned())
    })?;
    let memory = memory.claim(STREAM).ok_or_else(|| too_many(NoMemory.to_string()))?;
    Ok((place, memory))
}
