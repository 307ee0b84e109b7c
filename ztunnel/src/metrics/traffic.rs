//! Connections: opened, closed and why, open now, bytes. Every series exists from the start, so that counting is one
//! atomic addition and takes no lock.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::model::{close::CloseReason, flow::Direction};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    direction: &'static str,
    reason: &'static str,
}

/// Series of one direction.
#[derive(Clone, Debug)]
struct Series {
    opened: Counter,
    open: Gauge,
    client_bytes: Counter,
    server_bytes: Counter,
    closed: Vec<(CloseReason, Counter)>,
}

/// Counters of the data path, shared by all workers.
#[derive(Clone, Debug)]
pub struct Traffic {
    outbound: Series,
    inbound: Series,
}

impl Traffic {
    /// Registers the series.
    pub fn register(registry: &mut Registry) -> Self {
        let opened = Family::<ByDirection, Counter>::default();
        let open = Family::<ByDirection, Gauge>::default();
        let client_bytes = Family::<ByDirection, Counter>::default();
        let server_bytes = Family::<ByDirection, Counter>::default();
        let closed = Family::<ByReason, Counter>::default();
        let series = |direction: Direction| {
            let label = ByDirection { direction: direction.name() };
            let by_reason = |reason: CloseReason| {
                let label = ByReason { direction: direction.name(), reason: reason.label() };
                (reason, closed.get_or_create(&label).clone())
            };
            Series {
                opened: opened.get_or_create(&label).clone(),
                open: open.get_or_create(&label).clone(),
                client_bytes: client_bytes.get_or_create(&label).clone(),
                server_bytes: server_bytes.get_or_create(&label).clone(),
                closed: CloseReason::ALL.into_iter().map(by_reason).collect(),
            }
        };
        let traffic = Self { outbound: series(Direction::Outbound), inbound: series(Direction::Inbound) };
        registry.register("ztunnel_connections_opened", "Connections that were accepted from pods or for pods", opened);
        registry.register("ztunnel_connections_closed", "Connections that ended, by reason", closed);
        registry.register("ztunnel_connections_open", "Connections that are open now", open);
        registry.register(
            "ztunnel_client_bytes",
            "Bytes from the connecting side, when its connection ended",
            client_bytes,
        );
        registry.register(
            "ztunnel_server_bytes",
            "Bytes to the connecting side, when its connection ended",
            server_bytes,
        );
        traffic
    }

    fn series(&self, direction: Direction) -> &Series {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    /// A connection was accepted.
    pub fn opened(&self, direction: Direction) {
        let series = self.series(direction);
        series.opened.inc();
        series.open.inc();
    }

    /// A connection ended.
    pub fn closed(&self, direction: Direction, reason: CloseReason, to_server: u64, to_client: u64) {
        let series = self.series(direction);
        series.open.dec();
        series.client_bytes.inc_by(to_server);
        series.server_bytes.inc_by(to_client);
        if let Some((_, counter)) = series.closed.iter().find(|(other, _)| *other == reason) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Traffic;
    use crate::model::{close::CloseReason, flow::Direction};
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn a_connection_is_counted_once_with_its_reason() {
        let mut registry = Registry::default();
        let traffic = Traffic::register(&mut registry);
        traffic.opened(Direction::Outbound);
        traffic.closed(Direction::Outbound, CloseReason::ServerReset, 3, 5);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"ztunnel_connections_opened_total{direction="outbound"} 1"#,
            r#"ztunnel_connections_open{direction="outbound"} 0"#,
            r#"ztunnel_connections_closed_total{direction="outbound",reason="server_reset"} 1"#,
            r#"ztunnel_connections_closed_total{direction="inbound",reason="server_reset"} 0"#,
            r#"ztunnel_client_bytes_total{direction="outbound"} 3"#,
            r#"ztunnel_server_bytes_total{direction="outbound"} 5"#,
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}
