//! Each connection is logged once and counted once, whatever ends it.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};

use tokio::time::Instant;
use tracing::{Level, event};

pub use super::live::Live;
use super::{
    PodContext,
    events::{ConnectionEvent, EventKind, Party as Told, timestamp},
    table::TableEntry,
};
pub use crate::metrics::facts::Facts;
use crate::{
    metrics::facts::Protocol,
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
        identity::SpiffeId,
        workload::{NamespacedName, Workload},
    },
    net::copy::Transferred,
};

/// Writes a line with Istio's fields in Istio's order, followed by the variables with the given names.
macro_rules! access {
    ($level:ident, $message:literal, $line:ident $(, $field:ident)*) => {
        event!(
            target: "access",
            parent: None,
            Level::$level,
            src.addr = %$line.src_addr,
            src.workload = $line.source.name,
            src.namespace = $line.source.namespace,
            src.identity = $line.source.identity.map(ToString::to_string),
            src.cluster = $line.source.cluster,
            dst.addr = %$line.dst_addr,
            dst.hbone_addr = $line.hbone_addr.map(tracing::field::display),
            dst.service = $line.service,
            dst.workload = $line.destination.name,
            dst.namespace = $line.destination.namespace,
            dst.identity = $line.destination.identity.map(ToString::to_string),
            dst.cluster = $line.destination.cluster,
            direction = $line.direction,
            $($field,)*
            $message
        )
    };
}

/// The fields of the access log in their order, and the meaning of each, for the documents.
pub const FIELDS: [(&str, &str); 20] = [
    ("src.addr", "Address and port of the client."),
    ("src.workload", "The pod that the mesh knows at the client's address."),
    ("src.namespace", "Its namespace, or that of the client's identity."),
    ("src.identity", "The identity that the client has proved with its certificate."),
    ("src.cluster", "The cluster of the client's pod."),
    (
        "dst.addr",
        "Through HBONE, in both directions: port 15008 of the destination's pod. In plaintext: the address and port to which the \
         daemon connects.",
    ),
    ("dst.hbone_addr", "The destination that the CONNECT request names; only of connections through HBONE."),
    ("dst.service", "The host name of the service that the client asked for."),
    ("dst.workload", "The pod that the mesh knows at the destination."),
    ("dst.namespace", "Its namespace."),
    ("dst.identity", "The identity that the destination must prove, or has proved."),
    ("dst.cluster", "The cluster of the destination's pod."),
    ("direction", "`outbound`: a pod of this node connects; `inbound`: a pod of this node is connected to."),
    ("bytes_sent", "Bytes that the pod's side has sent."),
    ("bytes_recv", "Bytes that the pod's side has received."),
    ("duration", "Time from accept, or from the SYN of a held connect, to close, in milliseconds."),
    ("error", "Why the connection failed: the text of the close reason, or a longer text."),
    ("reason", "The close reason."),
    ("policy", "Why policy did not decide about the connection: a probe of the kubelet, or an excluded port."),
    ("untold", "Number of suppressed lines about refused connections since the last one written."),
];

/// The fields of every line about a connection.
struct Line<'a> {
    src_addr: SocketAddr,
    source: Party<'a>,
    dst_addr: SocketAddr,
    hbone_addr: Option<&'a str>,
    service: Option<&'a str>,
    destination: Party<'a>,
    direction: &'static str,
}

/// The pod of the connection on this node, and its cluster.
#[derive(Clone, Copy)]
struct Own<'a> {
    pod: &'a NamespacedName,
    cluster: &'a str,
}

impl<'a> Own<'a> {
    fn of(context: &'a PodContext) -> Self {
        Self { pod: &context.name, cluster: &context.cluster }
    }
}

#[derive(Default)]
struct Party<'a> {
    name: Option<&'a str>,
    namespace: Option<&'a str>,
    identity: Option<&'a SpiffeId>,
    cluster: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(Own { pod, cluster }: Own<'a>, live: &Live, facts: Option<&'a Facts>) -> Self {
        let flow = live.flow();
        let party = |workload: Option<&'a Arc<Workload>>| {
            let mut party = Party::default();
            if let Some(workload) = workload {
                party.fill(&workload.name, cluster);
            }
            party
        };
        let mut source = party(facts.and_then(|facts| facts.source.as_ref()));
        let mut destination = party(facts.and_then(|facts| facts.destination.as_ref()));
        // The connection's pod on this node needs no look-up.
        match flow.direction {
            Direction::Outbound => source.fill(pod, cluster),
            Direction::Inbound => destination.fill(pod, cluster),
        }
        source.identity = facts.and_then(|facts| facts.source_identity.as_ref());
        destination.identity = facts.and_then(|facts| facts.destination_identity.as_ref());
        source.namespace = source.namespace.or(source.identity.map(|identity| &*identity.namespace));
        Self {
            src_addr: facts.map_or_else(|| flow.peer.socket(), |facts| facts.src_addr),
            source,
            dst_addr: facts.map_or_else(|| flow.dst.socket(), |facts| facts.dst_addr),
            hbone_addr: facts.and_then(|facts| facts.hbone_addr.as_deref()),
            service: facts.and_then(|facts| Some(&*facts.service.as_deref()?.hostname)),
            destination,
            direction: flow.direction.name(),
        }
    }
}

impl<'a> Party<'a> {
    fn told(&self, address: String) -> Told {
        Told {
            address,
            namespace: self.namespace.map(str::to_owned),
            pod: self.name.map(str::to_owned),
            identity: self.identity.map(ToString::to_string),
        }
    }

    fn fill(&mut self, name: &'a NamespacedName, cluster: &'a str) {
        self.name.get_or_insert(&name.name);
        self.namespace.get_or_insert(&name.namespace);
        self.cluster = Some(cluster).filter(|cluster| !cluster.is_empty());
    }
}

/// A connection that is recorded when this value is dropped. Without a reason by then, the connection was cut.
///
/// With [facts](Self::facts) the connection counts in Istio's series, and its line is `connection complete`, whatever its end.
/// Without facts it was refused before its destination was decided, and its line is `connection failed`.
pub struct Recorded {
    pod: Rc<PodContext>,
    entry: TableEntry,
    end: Option<(CloseReason, Option<String>)>,
    /// The destination has accepted the connection.
    connected: bool,
}

impl Recorded {
    /// Starts the record of a connection.
    #[must_use]
    pub fn open(pod: Rc<PodContext>, flow: Flow) -> Self {
        pod.meter.traffic().accepted(flow.direction);
        let entry = pod.table.register(Rc::new(Live::new(flow)));
        Self { pod, entry, end: None, connected: false }
    }

    /// Sets the facts of the request, before the destination is decided.
    pub fn asked(&mut self, facts: Facts) {
        self.live().hear(facts);
    }

    /// Sets the facts with the decided destination. If several candidates are tried, the last one counts.
    pub fn facts(&mut self, facts: Facts) {
        self.live().learn(facts);
    }

    /// Sets the identity that the server has proved.
    pub fn proved(&mut self, server: SpiffeId) {
        self.live().prove(server);
    }

    /// Records that the destination has accepted the connection. From now on bytes are copied, and the facts are final.
    pub fn connected(&mut self) {
        self.connected = true;
        self.live().count(&self.pod.meter);
        let direction = self.live().flow().direction;
        let protocol = self.live().facts().map_or(Protocol::Tcp, |facts| facts.protocol());
        self.pod.meter.traffic().connected(direction, protocol, self.live().age());
        self.publish(EventKind::Opened, None, None);
        log_opened(Own::of(&self.pod), self.live());
    }

    /// Tells the readers of events, if there are any.
    fn publish(&self, kind: EventKind, reason: Option<CloseReason>, detail: Option<&str>) {
        if self.pod.events.is_read() {
            self.pod.events.publish(event_of(Own::of(&self.pod), self.live(), kind, reason, detail));
        }
    }

    /// The state that the table of live connections shares.
    #[must_use]
    pub fn live(&self) -> &Rc<Live> {
        self.entry.live()
    }

    /// The pod of the connection on this node.
    #[must_use]
    pub fn pod(&self) -> &PodContext {
        &self.pod
    }

    /// The number of bytes carried so far.
    #[must_use]
    pub fn bytes(&self) -> &Transferred {
        self.live().bytes()
    }

    /// Records the end of the connection; `detail` is more specific than the reason.
    pub fn end(mut self, reason: CloseReason, detail: Option<String>) {
        self.end = Some((reason, detail));
    }

    /// The number of suppressed lines since the last one written. `None`: this line is suppressed as well. Only refused inbound
    /// connections are limited, because a client can try any number of times. The metrics count all of them.
    fn may_tell(&self, reason: CloseReason) -> Option<u64> {
        let is_refused = !self.connected && !reason.is_clean() && self.live().flow().direction == Direction::Inbound;
        if is_refused { self.pod.failures.may_tell(Instant::now()) } else { Some(0) }
    }
}

fn log_opened(own: Own<'_>, live: &Live) {
    let facts = live.facts();
    let line = Line::of(own, live, facts.as_deref());
    access!(DEBUG, "connection opened", line);
}

fn log_ended(own: Own<'_>, live: &Live, reason: CloseReason, detail: Option<String>, untold: u64) {
    let facts = live.facts();
    let line = Line::of(own, live, facts.as_deref());
    let error = (!reason.is_clean()).then(|| detail.unwrap_or_else(|| reason.to_string()));
    let (bytes_sent, bytes_recv) = live.sent_and_received();
    let duration = format!("{}ms", live.age().as_millis());
    let (reason, policy) = (reason.label(), live.without_policy());
    let untold = (untold > 0).then_some(untold);
    match (live.is_decided(), &error) {
        (true, None) => {
            access!(INFO, "connection complete", line, bytes_sent, bytes_recv, duration, error, reason, policy);
        }
        (true, _) => {
            access!(
                ERROR,
                "connection complete",
                line,
                bytes_sent,
                bytes_recv,
                duration,
                error,
                reason,
                policy,
                untold
            );
        }
        (false, _) => {
            access!(WARN, "connection failed", line, bytes_sent, bytes_recv, duration, error, reason, policy, untold);
        }
    }
}

fn event_of(
    own: Own<'_>,
    live: &Live,
    event: EventKind,
    reason: Option<CloseReason>,
    detail: Option<&str>,
) -> ConnectionEvent {
    let facts = live.facts();
    let line = Line::of(own, live, facts.as_deref());
    let failure = reason.filter(|reason| !reason.is_clean());
    ConnectionEvent {
        time: timestamp(SystemTime::now()),
        event,
        direction: line.direction.into(),
        source: line.source.told(line.src_addr.to_string()),
        destination: line.destination.told(line.hbone_addr.map_or_else(|| line.dst_addr.to_string(), str::to_owned)),
        requested: live.flow().dst.to_string(),
        service: line.service.map(str::to_owned),
        protocol: facts.as_deref().map_or(Protocol::Tcp, Facts::protocol).name().into(),
        bytes_received: live.bytes().to_server(),
        bytes_sent: live.bytes().to_client(),
        duration_ms: u64::try_from(live.age().as_millis()).unwrap_or(u64::MAX),
        reason: reason.map(|reason| reason.label().into()),
        error: failure.map(|reason| detail.map_or_else(|| reason.to_string(), str::to_owned)),
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let (reason, detail) = self.end.take().unwrap_or_else(|| (self.pod.ending.get(), None));
        // A connection without an answer of its destination counts as opened as well.
        self.live().count(&self.pod.meter);
        self.live().close(reason);
        self.pod.meter.traffic().ended(self.live().flow().direction, reason);
        let kind = if self.connected { EventKind::Closed } else { EventKind::Refused };
        if self.connected {
            self.pod.meter.traffic().lasted(self.live().flow().direction, self.live().age());
        }
        self.publish(kind, Some(reason), detail.as_deref());
        if let Some(untold) = self.may_tell(reason) {
            log_ended(Own::of(&self.pod), self.live(), reason, detail, untold);
        }
    }
}

#[cfg(test)]
mod tests;
