//! One connection, one log line, one count: whatever ends it.

use std::{rc::Rc, time::Instant};

use tracing::{Level, event};

use super::{PodContext, table::Entry};
use crate::{
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::copy::Transferred,
    route::decide::Route,
};

/// A connection that will be recorded when this is dropped; by then it has a reason, or was cut.
pub struct Recorded {
    pod: Rc<PodContext>,
    _entry: Entry,
    flow: Flow,
    opened: Instant,
    route: Option<Route>,
    /// Bytes so far.
    pub bytes: Transferred,
    end: Option<(CloseReason, Option<String>)>,
}

impl Recorded {
    /// A connection begins.
    #[must_use]
    pub fn open(pod: Rc<PodContext>, flow: Flow) -> Self {
        pod.traffic.opened(flow.direction);
        let entry = pod.table.register(flow);
        Self { pod, _entry: entry, flow, opened: Instant::now(), route: None, bytes: Transferred::default(), end: None }
    }

    /// It is known where it goes.
    pub fn routed(&mut self, route: Route) {
        self.route = Some(route);
    }

    /// It ended; `detail` says more than the reason does.
    pub fn end(mut self, reason: CloseReason, detail: Option<String>) {
        self.end = Some((reason, detail));
    }

    fn log(&self, reason: CloseReason, detail: Option<String>) {
        let route = self.route.as_ref();
        let source = route.and_then(|route| route.source.as_deref()).map(|workload| &workload.name);
        let destination = route.and_then(|route| route.destination.as_deref()).map(|workload| &workload.name);
        let (source, destination) = match self.flow.direction {
            Direction::Outbound => (Some(&self.pod.name), destination),
            Direction::Inbound => (source, Some(&self.pod.name)),
        };
        let service = route.and_then(|route| route.service.as_deref()).map(|service| service.name.to_string());
        let (up, down) = (self.bytes.to_server(), self.bytes.to_client());
        // As Istio logs it: sent and received as the reporting side sees them.
        let (sent, received) = if self.flow.direction == Direction::Outbound { (up, down) } else { (down, up) };
        let error = (!reason.is_clean()).then(|| detail.unwrap_or_else(|| reason.to_string()));
        let duration = format!("{}ms", self.opened.elapsed().as_millis());
        macro_rules! line {
            ($level:ident, $message:literal) => {
                event!(
                    target: "access",
                    Level::$level,
                    src.addr = %self.flow.peer,
                    src.workload = source.map(|name| &*name.name),
                    src.namespace = source.map(|name| &*name.namespace),
                    dst.addr = %self.flow.dst,
                    dst.service = service,
                    dst.workload = destination.map(|name| &*name.name),
                    dst.namespace = destination.map(|name| &*name.namespace),
                    direction = self.flow.direction.name(),
                    bytes_sent = sent,
                    bytes_recv = received,
                    duration,
                    reason = reason.label(),
                    error,
                    $message
                )
            };
        }
        if reason.is_clean() {
            line!(INFO, "connection complete");
        } else if was_open(reason) {
            line!(INFO, "connection closed");
        } else {
            line!(WARN, "connection failed");
        }
    }
}

/// Whether the two sides had been connected when it ended for this reason.
fn was_open(reason: CloseReason) -> bool {
    use CloseReason as R;
    matches!(reason, R::ClientReset | R::ServerReset | R::PeerLost | R::Released | R::Drained)
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let (reason, detail) = self.end.take().unwrap_or_else(|| (self.pod.ending.get(), None));
        self.pod.traffic.closed(self.flow.direction, reason, self.bytes.to_server(), self.bytes.to_client());
        self.log(reason, detail);
    }
}
