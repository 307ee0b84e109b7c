//! How many tunnels a pod takes, and from whom: a neighbour that opens connections and says nothing must not keep others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;

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
    /// [`Limits::handshakes`].
    #[error("{0} handshakes with the pod are pending; --hbone-max-handshakes allows no more")]
    Handshakes(u32),
    /// [`Limits::handshakes_per_peer`].
    #[error("{0} handshakes of the client are pending; --hbone-max-handshakes-per-peer allows no more")]
    HandshakesOfPeer(u32),
}

impl Full {
    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections(_) => "connections",
            Self::ConnectionsOfPeer(_) => "connections_of_peer",
            Self::Handshakes(_) => "handshakes",
            Self::HandshakesOfPeer(_) => "handshakes_of_peer",
        }
    }
}

/// Counts the tunnels to one pod, over all workers: one short lock when a tunnel comes, gets ready or goes.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    by_peer: HashMap<IpAddr, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    handshakes: u32,
    connections: u32,
}

/// The place of one tunnel; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    peer: IpAddr,
    ready: bool,
}

impl Admission {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Takes a client in, who begins a handshake.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit(&self, peer: IpAddr) -> Result<Place, Full> {
        let limits = self.limits;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.by_peer.get(&peer).copied().unwrap_or_default();
        let all = counts.all;
        let full = [
            // The peer's own first: who is refused for what it does itself shall read that.
            (of_peer.handshakes >= limits.handshakes_per_peer, Full::HandshakesOfPeer(of_peer.handshakes)),
            (
                of_peer.connections + of_peer.handshakes >= limits.connections_per_peer,
                Full::ConnectionsOfPeer(of_peer.connections),
            ),
            (all.handshakes >= limits.handshakes, Full::Handshakes(all.handshakes)),
            (all.connections + all.handshakes >= limits.connections, Full::Connections(all.connections)),
        ];
        if let Some((_, full)) = full.into_iter().find(|(reached, _)| *reached) {
            return Err(full);
        }
        counts.all.handshakes += 1;
        counts.by_peer.entry(peer).or_default().handshakes += 1;
        Ok(Place { admission: self.clone(), peer, ready: false })
    }
}

impl Place {
    /// The handshake is done.
    pub fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.change(|count| {
                count.handshakes = count.handshakes.saturating_sub(1);
                count.connections += 1;
            });
        }
    }

    fn change(&self, change: impl Fn(&mut Count)) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts.all);
        if let Some(count) = counts.by_peer.get_mut(&self.peer) {
            change(count);
            if count.handshakes == 0 && count.connections == 0 {
                counts.by_peer.remove(&self.peer);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ready = self.ready;
        self.change(|count| {
            let taken = if ready { &mut count.connections } else { &mut count.handshakes };
            *taken = taken.saturating_sub(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Admission, Full, Limits};
    use std::net::IpAddr;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn every_limit_holds_and_places_come_back() {
        let limits = Limits { connections: 4, connections_per_peer: 3, handshakes: 3, handshakes_per_peer: 2 };
        let pod = Admission::new(limits);
        let (mut a, mut b) = (pod.admit(ip(1)).unwrap(), pod.admit(ip(1)).unwrap());
        assert_eq!(pod.admit(ip(1)).unwrap_err(), Full::HandshakesOfPeer(2));
        let c = pod.admit(ip(2)).unwrap();
        assert_eq!(pod.admit(ip(2)).unwrap_err(), Full::Handshakes(3));
        a.ready();
        a.ready();
        b.ready();
        let mut d = pod.admit(ip(1)).unwrap();
        d.ready();
        assert_eq!(pod.admit(ip(1)).unwrap_err(), Full::ConnectionsOfPeer(3));
        assert_eq!(pod.admit(ip(3)).unwrap_err(), Full::Connections(3));
        drop((a, b));
        assert!(pod.admit(ip(3)).is_ok(), "it is given back at once, as nobody keeps it");
        drop((c, d));
        let counts = pod.counts.lock().unwrap();
        assert_eq!((counts.all.handshakes, counts.all.connections, counts.by_peer.len()), (0, 0, 0));
    }
}
