//! Admission of HBONE connections to a pod: limits for the pod and for each peer. A client that opens connections and sends
//! nothing must not shut others out.
//!
//! A new handshake is never refused because of other handshakes. If there are too many, the oldest handshake of the client with
//! the most handshakes is evicted: a working client finishes within milliseconds, but a silent one would keep its place for
//! seconds. Half of the places is reserved for the addresses of pods of the mesh; other addresses are strangers. Strangers of
//! one IPv6 /64 count as one client, because one machine there can use any number of addresses.

mod counts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::Notify;

pub use counts::Client;
use counts::Counts;

/// Limits of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// HBONE connections.
    pub connections: u32,
    /// HBONE connections from one client.
    pub connections_per_peer: u32,
    /// Unfinished handshakes.
    pub handshakes: u32,
    /// Unfinished handshakes from one client.
    pub handshakes_per_peer: u32,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// [`Limits::connections`].
    #[error("the pod has {0} HBONE connections; --hbone-max-connections allows no more")]
    Connections(u32),
    /// [`Limits::connections_per_peer`].
    #[error("the client has {0} HBONE connections to the pod; --hbone-max-connections-per-peer allows no more")]
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

/// A handshake was evicted in favour of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the handshake was closed in favour of a newer handshake; the limits are --hbone-max-handshakes and \
     --hbone-max-handshakes-per-peer"
)]
pub struct Evicted;

impl Evicted {
    /// The value of the metric label `reason`.
    pub const LABEL: &'static str = "evicted";
}

/// The memory budget, or the share of the pod or of its peer, is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the pod or its peer has used its share of the daemon's memory (--memory-budget)")]
pub struct NoMemory;

impl NoMemory {
    /// The value of the metric label `reason`.
    pub const LABEL: &'static str = "memory";
}

/// Counts the HBONE connections to one pod, over all workers. It takes a short lock when a connection begins, finishes its
/// handshake, or ends.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    counts: Arc<Mutex<Counts>>,
}

/// The place of one HBONE connection; dropping the permit frees the place.
#[derive(Debug)]
pub struct AdmissionPermit {
    admission: Admission,
    client: Client,
    /// The number of the handshake, until it is finished.
    handshake: Option<u64>,
    evicted: Arc<Notify>,
}

impl Admission {
    /// No connection is counted yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Admits a client that begins a handshake. That may evict another handshake.
    ///
    /// # Errors
    /// The limit that is reached by HBONE connections with a finished handshake.
    pub fn admit(&self, client: Client) -> Result<AdmissionPermit, Full> {
        let limits = self.limits;
        let mut counts = self.lock();
        let (of_client, all) = (counts.of(client), counts.all());
        // The limit of the client comes first, so that a client over its own limit gets the right reason.
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
    /// Waits until the handshake is evicted.
    pub async fn evicted(&self) -> Evicted {
        self.evicted.notified().await;
        Evicted
    }

    /// Records that the handshake is finished.
    ///
    /// # Errors
    /// If the handshake was evicted before.
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
