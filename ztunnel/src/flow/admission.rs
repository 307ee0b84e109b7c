//! How many tunnels a pod takes, and from whom: a neighbour that opens connections and says nothing must not keep others out.
//!
//! Places for handshakes are never refused, but taken from the oldest handshake of the client that has the most: a client that
//! means it needs its place for milliseconds, and a silent one would keep it for seconds. Half of the places is for the addresses
//! of pods of the mesh, whatever strangers do. Strangers of one IPv6 /64 count as one client: a machine there has as many
//! addresses as it likes.

mod counts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::Notify;

pub use counts::Client;
use counts::Counts;

/// Limits of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tunnels.
    pub connections: u32,
    /// Tunnels from one client address.
    pub connections_per_peer: u32,
    /// Handshakes that are not finished.
    pub handshakes: u32,
    /// Handshakes from one client address that are not finished.
    pub handshakes_per_peer: u32,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// [`Limits::connections`].
    #[error("the pod has {0} tunnels; --hbone-max-connections allows no more")]
    Connections(u32),
    /// [`Limits::connections_per_peer`].
    #[error("the client has {0} tunnels to the pod; --hbone-max-connections-per-peer allows no more")]
    ConnectionsOfPeer(u32),
}

impl Full {
    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections(_) => "connections",
            Self::ConnectionsOfPeer(_) => "connections_of_peer",
        }
    }
}

/// A handshake has lost its place to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the handshake was not finished when others needed its place; \
     --hbone-max-handshakes and --hbone-max-handshakes-per-peer allow no more at once"
)]
pub struct Evicted;

impl Evicted {
    /// The value of the metric label `reason`.
    pub const LABEL: &'static str = "evicted";
}

/// The budget of memory, or the share of the pod or of its peer, is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the pod, or its peer, has its share of the daemon's memory; --memory-budget allows no more")]
pub struct NoMemory;

impl NoMemory {
    /// The value of the metric label `reason`.
    pub const LABEL: &'static str = "memory";
}

/// Counts the tunnels to one pod, over all workers: one short lock when a tunnel comes, gets ready or goes.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    counts: Arc<Mutex<Counts>>,
}

/// The place of one tunnel; free again when it is dropped.
#[derive(Debug)]
pub struct AdmissionPermit {
    admission: Admission,
    client: Client,
    /// The number of its handshake, until that is done.
    handshake: Option<u64>,
    evicted: Arc<Notify>,
}

impl Admission {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Takes a client in, who begins a handshake. Another handshake may lose its place by that.
    ///
    /// # Errors
    /// Which limit is reached, by tunnels that are ready.
    pub fn admit(&self, client: Client) -> Result<AdmissionPermit, Full> {
        let limits = self.limits;
        let mut counts = self.lock();
        let (of_client, all) = (counts.of(client), counts.all());
        // The client's own first: who is refused for what it does itself shall read that.
        if of_client.connections >= limits.connections_per_peer {
            return Err(Full::ConnectionsOfPeer(of_client.connections));
        }
        if all.connections >= limits.connections {
            return Err(Full::Connections(all.connections));
        }
        let strangers = (limits.handshakes / 2).max(1);
        if of_client.handshakes >= limits.handshakes_per_peer
            || of_client.connections.saturating_add(of_client.handshakes) >= limits.connections_per_peer
        {
            counts.evict_of(client);
        } else if client.is_stranger() && counts.strangers() >= strangers {
            counts.evict(Client::is_stranger);
        } else if all.handshakes >= limits.handshakes
            || all.connections.saturating_add(all.handshakes) >= limits.connections
        {
            counts.evict(|_| true);
        }
        let (handshake, evicted) = counts.begin(client);
        Ok(AdmissionPermit { admission: self.clone(), client, handshake: Some(handshake), evicted })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdmissionPermit {
    /// Waits until a later handshake has taken the place.
    pub async fn evicted(&self) -> Evicted {
        self.evicted.notified().await;
        Evicted
    }

    /// The handshake is done.
    ///
    /// # Errors
    /// When it has lost its place before.
    pub fn ready(&mut self) -> Result<(), Evicted> {
        let Some(handshake) = self.handshake.take() else { return Ok(()) };
        if self.admission.lock().finish(self.client, handshake) {
            return Ok(());
        }
        self.handshake = Some(handshake);
        Err(Evicted)
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        match self.handshake {
            Some(handshake) => counts.give_up(self.client, handshake),
            None => counts.leave(self.client),
        }
    }
}

#[cfg(test)]
mod tests;
