//! The number of places of each client, and the order of the handshakes.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use tokio::sync::Notify;

/// A client, as the limits count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// A known address: of a pod of the mesh, or of another client that is trusted not to use many addresses.
    Known(IpAddr),
    /// An IPv4 address, or an IPv6 /64.
    Stranger(IpAddr),
}

impl Client {
    /// The client with this address. `is_known`: the address is a [`Self::Known`] one.
    #[must_use]
    pub fn new(address: IpAddr, is_known: bool) -> Self {
        match address.to_canonical() {
            known if is_known => Self::Known(known),
            IpAddr::V6(address) => {
                const NETWORK: u128 = u128::MAX << 64;
                Self::Stranger(Ipv6Addr::from_bits(address.to_bits() & NETWORK).into())
            }
            stranger => Self::Stranger(stranger),
        }
    }

    pub(super) fn is_stranger(self) -> bool {
        matches!(self, Self::Stranger(_))
    }
}

/// All places of a pod.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: u32,
    next: u64,
    strangers: u32,
    handshakes: u32,
    by_client: HashMap<Client, OfClient>,
}

#[derive(Debug, Default)]
struct OfClient {
    connections: u32,
    /// Oldest first.
    handshakes: BTreeMap<u64, Arc<Notify>>,
}

impl OfClient {
    fn pending(&self) -> u32 {
        u32::try_from(self.handshakes.len()).unwrap_or(u32::MAX)
    }
}

/// The number of taken places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) handshakes: u32,
    pub(super) connections: u32,
}

impl Counts {
    pub(super) fn all(&self) -> Count {
        Count { handshakes: self.handshakes, connections: self.connections }
    }

    pub(super) fn of(&self, client: Client) -> Count {
        let count = |of: &OfClient| Count { handshakes: of.pending(), connections: of.connections };
        self.by_client.get(&client).map(count).unwrap_or_default()
    }

    /// The number of handshakes of strangers.
    pub(super) fn strangers(&self) -> u32 {
        self.strangers
    }

    /// Adds a handshake. Returns its number, and the signal of its eviction.
    pub(super) fn begin(&mut self, client: Client) -> (u64, Arc<Notify>) {
        let (number, evicted) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        self.handshakes += 1;
        self.strangers += u32::from(client.is_stranger());
        self.by_client.entry(client).or_default().handshakes.insert(number, Arc::clone(&evicted));
        (number, evicted)
    }

    /// Records that a handshake is finished; `false`: it was evicted before.
    pub(super) fn finish(&mut self, client: Client, number: u64) -> bool {
        let is_there = self.take(client, number).is_some();
        if is_there {
            self.connections += 1;
            self.by_client.entry(client).or_default().connections += 1;
        }
        is_there
    }

    /// Removes a failed handshake. An evicted handshake is not counted any more.
    pub(super) fn give_up(&mut self, client: Client, number: u64) {
        let _had_lost_it = self.take(client, number).is_none();
        self.forget(client);
    }

    /// Removes a connection that has ended.
    pub(super) fn leave(&mut self, client: Client) {
        self.connections = self.connections.saturating_sub(1);
        if let Some(of_client) = self.by_client.get_mut(&client) {
            of_client.connections = of_client.connections.saturating_sub(1);
        }
        self.forget(client);
    }

    /// Evicts the oldest handshake of this client.
    pub(super) fn evict_of(&mut self, client: Client) {
        let oldest = self.by_client.get(&client).and_then(|of| of.handshakes.keys().next().copied());
        if let Some(evicted) = oldest.and_then(|number| self.take(client, number)) {
            evicted.notify_one();
        }
        self.forget(client);
    }

    /// Evicts the oldest handshake of the client that has the most of them, among these clients.
    pub(super) fn evict(&mut self, among: impl Fn(Client) -> bool) {
        let among = self.by_client.iter().filter(|(client, _)| among(**client));
        // If two clients have the same number, the one with the oldest handshake.
        let rank = |of: &OfClient| (of.handshakes.len(), of.handshakes.keys().next().map(|oldest| u64::MAX - oldest));
        let most = among.max_by_key(|(_, of)| rank(of)).map(|(client, _)| *client);
        if let Some(client) = most {
            self.evict_of(client);
        }
    }

    fn take(&mut self, client: Client, number: u64) -> Option<Arc<Notify>> {
        let evicted = self.by_client.get_mut(&client)?.handshakes.remove(&number)?;
        self.handshakes = self.handshakes.saturating_sub(1);
        self.strangers = self.strangers.saturating_sub(u32::from(client.is_stranger()));
        Some(evicted)
    }

    fn forget(&mut self, client: Client) {
        if self.by_client.get(&client).is_some_and(|of| of.connections == 0 && of.handshakes.is_empty()) {
            self.by_client.remove(&client);
        }
    }

    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.by_client.len()
    }
}
