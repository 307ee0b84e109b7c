//! Connections and their traffic.
//!
//! [`Traffic`] is shared by the threads. Each worker has its own [`Meter`], which remembers the series of the label sets that
//! it has used: counting a connection takes one look-up there and a few atomic additions.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    facts::{Facts, Protocol},
    labels::{Labels, reporter},
    latency::Latency,
    policy::Decisions,
    reasons,
    series::{Series, SeriesCollector, SeriesTable},
};
use crate::model::{close::CloseReason, flow::Direction, identity::SpiffeId, service::Service, workload::Workload};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReporter {
    reporter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProtocol {
    direction: &'static str,
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Series of one direction, which exist from the start.
#[derive(Clone, Debug)]
struct Way {
    /// The same number as `open`, under Istio's name.
    sockets: Gauge,
    open: Gauge,
    closed: Vec<(CloseReason, Counter)>,
    connect_tcp: Latency,
    connect_hbone: Latency,
    handshake: Latency,
    lasted: Latency,
    tunnels_open: Gauge,
    tunnels_opened: Counter,
}

/// Counters of the data path, shared by all workers.
#[derive(Clone, Debug)]
pub struct Traffic(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outbound: Way,
    inbound: Way,
    handshake_failures: Family<ByReason, Counter>,
    refused: Family<ReasonLabel, Counter>,
    abused: Family<ByReason, Counter>,
    decisions: Decisions,
    series: Arc<SeriesTable>,
    cluster: Arc<str>,
    /// The last handshake that failed because a certificate was not valid at that time.
    untimely: Mutex<Option<Instant>>,
}

/// The families of the series of both directions.
#[derive(Default)]
struct Families {
    sockets: Family<ByReporter, Gauge>,
    open: Family<ByDirection, Gauge>,
    closed: Family<ByReason, Counter>,
    connect: Family<ByProtocol, Latency>,
    handshake: Family<ByDirection, Latency>,
    lasted: Family<ByDirection, Latency>,
    tunnels_open: Family<ByDirection, Gauge>,
    tunnels_opened: Family<ByDirection, Counter>,
}

impl Families {
    fn way(&self, way: Direction) -> Way {
        let direction = way.name();
        let label = ByDirection { direction };
        let connect =
            |protocol: Protocol| self.connect.get_or_create_owned(&ByProtocol { direction, protocol: protocol.name() });
        let by_reason = |reason: CloseReason| {
            let label = ByReason { direction, reason: reason.label() };
            (reason, self.closed.get_or_create_owned(&label))
        };
        Way {
            sockets: self.sockets.get_or_create_owned(&ByReporter { reporter: reporter(way) }),
            open: self.open.get_or_create_owned(&label),
            closed: CloseReason::ALL.into_iter().map(by_reason).collect(),
            connect_tcp: connect(Protocol::Tcp),
            connect_hbone: connect(Protocol::Hbone),
            handshake: self.handshake.get_or_create_owned(&label),
            lasted: self.lasted.get_or_create_owned(&label),
            tunnels_open: self.tunnels_open.get_or_create_owned(&label),
            tunnels_opened: self.tunnels_opened.get_or_create_owned(&label),
        }
    }

    fn register(self, registry: &mut Registry) {
        registry.register(
            "istio_tcp_sockets_open",
            "Open connections of pods; Istio calls this metric unstable",
            self.sockets,
        );
        registry.register("ztunnel_connections_open", "Open connections of pods", self.open);
        registry.register("ztunnel_connections_closed", "Connections of pods that ended, by close reason", self.closed);
        registry.register(
            "ztunnel_connect_duration_seconds",
            "Time from the accept of a connection until its destination had answered",
            self.connect,
        );
        registry.register(
            "ztunnel_connection_duration_seconds",
            "Time from accept to close of connections whose destination had answered",
            self.lasted,
        );
        registry.register(
            "ztunnel_tls_handshake_duration_seconds",
            "Duration of successful TLS handshakes",
            self.handshake,
        );
        registry.register("ztunnel_tunnel_connections_open", "Open HBONE connections", self.tunnels_open);
        registry.register(
            "ztunnel_tunnel_connections_opened",
            "HBONE connections that were opened",
            self.tunnels_opened,
        );
    }
}

impl Traffic {
    /// Registers the series. Series of workloads name this cluster, and are dropped when they were not used for the time
    /// `kept`.
    pub fn register(registry: &mut Registry, kept: Duration, cluster: Arc<str>) -> Self {
        let lasted = Family::new_with_constructor(Latency::of_connections as fn() -> Latency);
        let families = Families { lasted, ..Families::default() };
        let (handshake_failures, abused) = (Family::default(), Family::default());
        for direction in [Direction::Outbound, Direction::Inbound] {
            let series = |family: &Family<ByReason, Counter>, reason| {
                drop(family.get_or_create(&ByReason { direction: direction.name(), reason }));
            };
            reasons::of_handshake(direction).for_each(|reason| series(&handshake_failures, reason));
            reasons::of_abuse(direction).for_each(|reason| series(&abused, reason));
        }
        let refused = Family::<ReasonLabel, Counter>::default();
        for reason in CloseReason::ALL.into_iter().filter(|reason| !reason.is_clean()) {
            drop(refused.get_or_create(&ReasonLabel { reason: reason.label() }));
        }
        let shared = Shared {
            outbound: families.way(Direction::Outbound),
            inbound: families.way(Direction::Inbound),
            handshake_failures,
            refused,
            abused,
            decisions: Decisions::register(registry),
            series: Arc::new(SeriesTable::new(kept)),
            cluster,
            untimely: Mutex::default(),
        };
        families.register(registry);
        registry.register(
            "ztunnel_tls_handshake_failures",
            "Failed TLS handshakes, by reason",
            shared.handshake_failures.clone(),
        );
        registry.register(
            "ztunnel_hbone_refused",
            "Refused streams of authenticated peers, by close reason",
            shared.refused.clone(),
        );
        registry.register(
            "ztunnel_hbone_abuse",
            "HBONE connections that this node ended because the peer abused them, by kind of abuse",
            shared.abused.clone(),
        );
        registry.register_collector(Box::new(SeriesCollector(Arc::clone(&shared.series))));
        Self(Arc::new(shared))
    }

    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Outbound => &self.0.outbound,
            Direction::Inbound => &self.0.inbound,
        }
    }

    /// A meter for one worker.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter(Rc::new(Cache { traffic: self.clone(), known: RefCell::default(), prune_at: Cell::new(PRUNE_FROM) }))
    }

    /// A connection was accepted.
    pub fn accepted(&self, direction: Direction) {
        let way = self.way(direction);
        way.open.inc();
        way.sockets.inc();
    }

    /// An accepted connection ended.
    pub fn ended(&self, direction: Direction, reason: CloseReason) {
        let way = self.way(direction);
        way.open.dec();
        way.sockets.dec();
        if let Some((_, counter)) = way.closed.iter().find(|(other, _)| *other == reason) {
            counter.inc();
        }
    }

    /// A connection's destination answered, at this time after the connection was accepted.
    pub fn connected(&self, direction: Direction, protocol: Protocol, after: Duration) {
        let way = self.way(direction);
        match protocol {
            Protocol::Tcp => way.connect_tcp.observe(after),
            Protocol::Hbone => way.connect_hbone.observe(after),
        }
    }

    /// A connection whose destination had answered has ended, at this time after it was accepted.
    pub fn lasted(&self, direction: Direction, duration: Duration) {
        self.way(direction).lasted.observe(duration);
    }

    /// A TLS handshake succeeded.
    pub fn handshake(&self, direction: Direction, duration: Duration) {
        self.way(direction).handshake.observe(duration);
    }

    /// A TLS handshake failed; `reason` is from a closed list.
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        debug_assert!(reasons::of_handshake(direction).any(|listed| listed == reason), "{reason} is not listed");
        let label = ByReason { direction: direction.name(), reason };
        self.0.handshake_failures.get_or_create(&label).inc();
        if reasons::UNTIMELY.contains(&reason) {
            *self.0.untimely.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// The time since a handshake failed because a certificate was not valid at that time. `None`: there was none.
    #[must_use]
    pub fn clock_doubt(&self) -> Option<Duration> {
        let last = *self.0.untimely.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }

    /// The number of open connections of pods.
    #[must_use]
    pub fn open(&self) -> u64 {
        let open = [&self.0.outbound, &self.0.inbound].map(|way| way.open.get());
        u64::try_from(open.iter().sum::<i64>()).unwrap_or_default()
    }

    /// An HBONE connection is open while the value exists.
    #[must_use]
    pub fn tunnel(&self, direction: Direction) -> OpenTunnel {
        let way = self.way(direction);
        way.tunnels_opened.inc();
        way.tunnels_open.inc();
        OpenTunnel(way.tunnels_open.clone())
    }

    /// The counters of policy decisions.
    #[must_use]
    pub fn decisions(&self) -> &Decisions {
        &self.0.decisions
    }

    /// An HBONE connection was ended because of abuse by its peer; `reason` is from a closed list.
    pub fn abused(&self, direction: Direction, reason: &'static str) {
        debug_assert!(reasons::of_abuse(direction).any(|listed| listed == reason), "{reason} is not listed");
        self.0.abused.get_or_create(&ByReason { direction: direction.name(), reason }).inc();
    }

    /// A stream of a peer was refused.
    pub fn refused(&self, reason: CloseReason) {
        self.0.refused.get_or_create(&ReasonLabel { reason: reason.label() }).inc();
    }
}

/// Counts an HBONE connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A worker's handle for counting; clones share the state.
#[derive(Clone, Debug)]
pub struct Meter(Rc<Cache>);

#[derive(Debug)]
struct Cache {
    traffic: Traffic,
    known: RefCell<HashMap<Key, Known>>,
    /// At this size, entries whose objects have left the mesh, or whose series have left the table, are removed.
    prune_at: Cell<usize>,
}

/// The smallest size at which removing entries is worth the time.
const PRUNE_FROM: usize = 256;

/// The objects from which the labels are made, by address. While a [`Known`] of the same key holds the objects weakly, no other
/// object can have their addresses.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    protocol: Protocol,
    source: *const Workload,
    source_identity: Option<SpiffeId>,
    service: *const Service,
    destination: *const Workload,
    destination_identity: Option<SpiffeId>,
}

impl Key {
    fn of(facts: &Facts) -> Self {
        fn pointer<T>(object: Option<&Arc<T>>) -> *const T {
            object.map_or(std::ptr::null(), Arc::as_ptr)
        }
        Self {
            direction: facts.direction,
            protocol: facts.protocol(),
            source: pointer(facts.source.as_ref()),
            source_identity: facts.source_identity.clone(),
            service: pointer(facts.service.as_ref()),
            destination: pointer(facts.destination.as_ref()),
            destination_identity: facts.destination_identity.clone(),
        }
    }
}

#[derive(Debug)]
struct Known {
    series: Arc<Series>,
    source: Option<Weak<Workload>>,
    service: Option<Weak<Service>>,
    destination: Option<Weak<Workload>>,
}

impl Known {
    fn is_alive(&self) -> bool {
        fn alive<T>(object: Option<&Weak<T>>) -> bool {
            object.is_none_or(|object| object.strong_count() > 0)
        }
        !self.series.is_retired()
            && alive(self.source.as_ref())
            && alive(self.service.as_ref())
            && alive(self.destination.as_ref())
    }
}

impl Meter {
    /// The counters that all workers share.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// Counts a connection whose facts are sufficient for a series.
    #[must_use]
    pub fn open(&self, facts: &Facts) -> Counted {
        let key = Key::of(facts);
        if let Some(known) = self.0.known.borrow().get(&key)
            && known.series.open()
        {
            return Counted::new(Arc::clone(&known.series));
        }
        let shared = &self.0.traffic.0;
        let series = shared.series.open(Labels::of(facts, &shared.cluster));
        let known = Known {
            series: Arc::clone(&series),
            source: facts.source.as_ref().map(Arc::downgrade),
            service: facts.service.as_ref().map(Arc::downgrade),
            destination: facts.destination.as_ref().map(Arc::downgrade),
        };
        let mut all = self.0.known.borrow_mut();
        all.insert(key, known);
        if all.len() >= self.0.prune_at.get() {
            all.retain(|_, known| known.is_alive());
            self.0.prune_at.set(PRUNE_FROM.max(all.len().saturating_mul(2)));
        }
        Counted::new(series)
    }
}

/// A connection in its series: open until it is closed or dropped.
#[derive(Debug)]
pub struct Counted {
    series: Arc<Series>,
    received: Cell<u64>,
    sent: Cell<u64>,
    reason: Cell<CloseReason>,
}

impl Counted {
    fn new(series: Arc<Series>) -> Self {
        Self { series, received: Cell::new(0), sent: Cell::new(0), reason: Cell::new(CloseReason::LocalFault) }
    }

    /// Adds the bytes since the last call. The arguments are totals: `received` from the client and `sent` to the client,
    /// independent of the reporting side.
    pub fn flush(&self, received: u64, sent: u64) {
        let new = |last: &Cell<u64>, now: u64| now.saturating_sub(last.replace(now));
        self.series.add(new(&self.received, received), new(&self.sent, sent));
    }

    /// The connection ended.
    pub fn close(self, reason: CloseReason) {
        self.reason.set(reason);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.series.close(self.reason.get());
    }
}

#[cfg(test)]
mod tests;
