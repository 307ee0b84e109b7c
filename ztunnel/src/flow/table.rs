//! The live connections of one pod on one worker. By this table the worker chooses free source ports for deliveries, and
//! detects its own connections that were routed back to the daemon.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use ebpf_common::worker_of;

use super::record::Live;
use crate::model::{
    addr::{OrigDst, PeerAddr},
    flow::Direction,
};

/// The source ports of deliveries. The kernel gives clients ports from 32768 up, and NodePorts begin at 30000.
const DELIVERY_PORTS: std::ops::Range<u16> = 1024..30000;

/// The index of a worker, and the number of workers.
#[derive(Clone, Copy, Debug)]
pub struct WorkerId {
    /// From 0.
    pub index: u32,
    /// The number of workers.
    pub of: u32,
}

/// The live connections of one pod on one worker.
#[derive(Debug)]
pub struct Table {
    worker: WorkerId,
    live: RefCell<HashMap<u64, Rc<Live>>>,
    next_id: Cell<u64>,
    next_port: Cell<u16>,
    /// Inbound connections by client and destination, with their number: a tuple may be used again before its last connection
    /// has left the table. A delivery with the reversed tuple of a connection would collide with it in the pod's network
    /// namespace and end it.
    inbound: RefCell<HashMap<(SocketAddr, SocketAddr), u32>>,
    /// Deliveries, by source and destination.
    deliveries: RefCell<HashSet<(SocketAddr, SocketAddr)>>,
}

/// A connection in the table; dropping this value removes the connection.
#[derive(Debug)]
pub struct TableEntry {
    table: Rc<Table>,
    id: u64,
    live: Rc<Live>,
}

/// A delivery in the table; dropping this value removes the delivery.
#[derive(Debug)]
pub struct DeliveryEntry {
    table: Rc<Table>,
    tuple: (SocketAddr, SocketAddr),
}

impl Table {
    /// An empty table for a worker.
    #[must_use]
    pub fn new(worker: WorkerId) -> Rc<Self> {
        Rc::new(Self {
            worker,
            live: RefCell::default(),
            next_id: Cell::new(0),
            next_port: Cell::new(DELIVERY_PORTS.start),
            inbound: RefCell::default(),
            deliveries: RefCell::default(),
        })
    }

    /// Adds a connection.
    #[must_use]
    pub fn register(self: &Rc<Self>, live: Rc<Live>) -> TableEntry {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let flow = live.flow();
        self.live.borrow_mut().insert(id, Rc::clone(&live));
        if flow.direction == Direction::Inbound {
            *self.inbound.borrow_mut().entry((flow.peer.socket(), flow.dst.socket())).or_default() += 1;
        }
        TableEntry { table: Rc::clone(self), id, live }
    }

    /// All live connections.
    #[must_use]
    pub fn live(&self) -> Vec<Rc<Live>> {
        self.live.borrow().values().cloned().collect()
    }

    /// Adds a delivery to `dst`, with the client's address and a port that no other connection uses. `None`: all ports are in
    /// use.
    ///
    /// Ports are used in turn, so that each is unused as long as possible. Only ports that lead to this worker are used: then a
    /// plaintext connection with the same port is in this table.
    #[must_use]
    pub fn register_delivery(self: &Rc<Self>, client: IpAddr, dst: OrigDst) -> Option<(SocketAddr, DeliveryEntry)> {
        for _ in DELIVERY_PORTS {
            let port = self.next_port.get();
            let following = if port + 1 < DELIVERY_PORTS.end { port + 1 } else { DELIVERY_PORTS.start };
            self.next_port.set(following);
            let from = SocketAddr::new(client, port);
            if worker_of(port, self.worker.of) != self.worker.index
                || self.inbound.borrow().contains_key(&(from, dst.socket()))
                || !self.deliveries.borrow_mut().insert((from, dst.socket()))
            {
                continue;
            }
            return Some((from, DeliveryEntry { table: Rc::clone(self), tuple: (from, dst.socket()) }));
        }
        None
    }

    /// Continues the search for ports at another one. The ports next to the last one may be in use by connections that are not in this
    /// table: a daemon that has handed over has used a range of them.
    pub fn jump(&self, distance: u16) {
        let ports = u32::from(DELIVERY_PORTS.end - DELIVERY_PORTS.start);
        let offset = u32::from(self.next_port.get() - DELIVERY_PORTS.start) + u32::from(distance);
        let port = u32::from(DELIVERY_PORTS.start) + offset % ports;
        self.next_port.set(u16::try_from(port).unwrap_or(DELIVERY_PORTS.start));
    }

    /// Whether an inbound connection is a delivery of this table that the pod's routing has sent back to the daemon.
    #[must_use]
    pub fn is_own_delivery(&self, peer: PeerAddr, dst: OrigDst) -> bool {
        self.deliveries.borrow().contains(&(peer.socket(), dst.socket()))
    }
}

impl TableEntry {
    /// The connection.
    #[must_use]
    pub fn live(&self) -> &Rc<Live> {
        &self.live
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.table.live.borrow_mut().remove(&self.id);
        let flow = self.live.flow();
        if flow.direction == Direction::Inbound {
            let tuple = (flow.peer.socket(), flow.dst.socket());
            let mut inbound = self.table.inbound.borrow_mut();
            if let Some(count) = inbound.get_mut(&tuple) {
                *count -= 1;
                if *count == 0 {
                    inbound.remove(&tuple);
                }
            }
        }
    }
}

impl Drop for DeliveryEntry {
    fn drop(&mut self) {
        self.table.deliveries.borrow_mut().remove(&self.tuple);
    }
}

/// The upstream connections of a pod, by source and destination, over all workers: the kernel chooses the source ports, so any
/// worker may accept a connection that is routed back. The lock is taken for each connection, not for its bytes.
///
/// The key contains both ends, because the application may use the same port for a connection to another destination.
#[derive(Clone, Debug, Default)]
pub struct Upstreams(Arc<Mutex<HashSet<(SocketAddr, SocketAddr)>>>);

/// An upstream connection in the set; dropping this value removes the connection.
#[derive(Debug)]
pub struct UpstreamEntry {
    set: Upstreams,
    tuple: (SocketAddr, SocketAddr),
}

impl Upstreams {
    /// Adds an upstream connection.
    #[must_use]
    pub fn register(&self, local: SocketAddr, to: SocketAddr) -> UpstreamEntry {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((local, to));
        UpstreamEntry { set: self.clone(), tuple: (local, to) }
    }

    /// Whether an outbound connection is one of these that the pod's routing has sent back to the daemon.
    #[must_use]
    pub fn contains(&self, peer: PeerAddr, dst: OrigDst) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(peer.socket(), dst.socket()))
    }
}

impl Drop for UpstreamEntry {
    fn drop(&mut self) {
        self.set.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tuple);
    }
}

#[cfg(test)]
mod tests {
    use super::{DELIVERY_PORTS, Live, Table, Upstreams, WorkerId};
    use crate::model::{
        addr::{OrigDst, PeerAddr},
        flow::{Direction, Flow},
    };
    use ebpf_common::worker_of;
    use std::{net::SocketAddr, rc::Rc};

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_delivery_never_reverses_a_live_connection_of_its_client() {
        let worker = WorkerId { index: 0, of: 1 };
        let table = Table::new(worker);
        let dst = OrigDst::new(addr("10.0.0.1:80"));
        // A client behind NAT whose port is in the range of deliveries.
        let first = SocketAddr::new(addr("10.0.0.9:0").ip(), DELIVERY_PORTS.start);
        let flow = Flow { direction: Direction::Inbound, peer: PeerAddr::new(first), dst };
        let entry = table.register(Rc::new(Live::new(flow)));
        let (from, delivery) = table.register_delivery(first.ip(), dst).unwrap();
        assert_eq!(from.port(), DELIVERY_PORTS.start + 1);
        assert!(table.is_own_delivery(PeerAddr::new(from), dst));
        drop(delivery);
        assert!(!table.is_own_delivery(PeerAddr::new(from), dst));
        assert_eq!(table.live().len(), 1);
        drop(entry);
        assert!(table.live().is_empty() && table.inbound.borrow().is_empty());
    }

    #[test]
    fn every_port_is_used_once_before_any_twice_and_only_those_of_the_worker() {
        let worker = WorkerId { index: 1, of: 3 };
        let table = Table::new(worker);
        let dst = OrigDst::new(addr("[fd00::1]:80"));
        let mut held = Vec::new();
        while let Some((from, entry)) = table.register_delivery(addr("[fd00::9]:0").ip(), dst) {
            assert_eq!(worker_of(from.port(), 3), 1);
            held.push(entry);
        }
        let expected = DELIVERY_PORTS.filter(|port| worker_of(*port, 3) == 1).count();
        assert_eq!(held.len(), expected);
        held.pop();
        assert!(table.register_delivery(addr("[fd00::9]:0").ip(), dst).is_some());
        assert!(table.register_delivery(addr("[fd00::8]:0").ip(), dst).is_some(), "another client has its own ports");
    }

    #[test]
    fn a_jump_stays_within_the_ports_of_deliveries() {
        let table = Table::new(WorkerId { index: 0, of: 1 });
        let dst = OrigDst::new(addr("10.0.0.1:80"));
        let mut ports = std::collections::HashSet::new();
        for distance in [0, 1, 100, 28_975, 28_976, u16::MAX] {
            table.jump(distance);
            let (from, _entry) = table.register_delivery(addr("10.0.0.9:0").ip(), dst).unwrap();
            assert!(DELIVERY_PORTS.contains(&from.port()), "{from} after {distance}");
            ports.insert(from.port());
        }
        assert!(ports.len() >= 5, "{ports:?}");
    }

    #[test]
    fn upstreams_are_known_until_they_end() {
        let set = Upstreams::default();
        let (local, to) = (addr("10.0.0.1:40000"), addr("10.0.0.2:80"));
        let entry = set.register(local, to);
        assert!(set.contains(PeerAddr::new(local), OrigDst::new(to)));
        let elsewhere = OrigDst::new(addr("10.0.0.3:80"));
        assert!(!set.contains(PeerAddr::new(local), elsewhere), "a port may be in use twice, for two destinations");
        drop(entry);
        assert!(!set.contains(PeerAddr::new(local), OrigDst::new(to)));
    }
}
