//! The log lines of connections.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::with_default,
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt as _},
    registry,
};

use super::{FIELDS, Facts, Live, Own, log_ended, log_opened};
use crate::model::{
    addr::{OrigDst, PeerAddr},
    close::CloseReason,
    flow::{Direction, Flow},
    identity::SpiffeId,
    workload::NamespacedName,
};

/// Collects lines as `LEVEL name=value name=value`, with strings in quotes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        assert_eq!(event.metadata().target(), "access");
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

fn flow(direction: Direction) -> Flow {
    let peer = PeerAddr::new("10.0.0.1:4000".parse().unwrap());
    Flow { direction, peer, dst: OrigDst::new("10.96.0.1:80".parse().unwrap()) }
}

/// The only line, without the values that differ between runs.
fn line(log: impl FnOnce(Own<'_>)) -> String {
    let lines = Lines::default();
    let pod = NamespacedName::new("demo", "client-a");
    with_default(registry().with(lines.clone()), || log(Own { pod: &pod, cluster: "Kubernetes" }));
    let lines = lines.0.lock().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0]
        .split(' ')
        .map(|word| if word.starts_with("duration=") { "duration=…" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

fn tunnel() -> Facts {
    let identity = |text: &str| Some(text.parse::<SpiffeId>().unwrap());
    Facts {
        direction: Direction::Outbound,
        src_addr: "10.0.0.1:4000".parse().unwrap(),
        source: None,
        source_identity: identity("spiffe://cluster.local/ns/demo/sa/client"),
        dst_addr: "10.0.0.2:15008".parse().unwrap(),
        hbone_addr: Some("10.0.0.2:8080".into()),
        service: None,
        destination: None,
        destination_identity: identity("spiffe://cluster.local/ns/demo/sa/web"),
    }
}

#[test]
fn what_was_never_decided_is_a_failed_connection_to_where_the_client_wanted() {
    let live = Live::new(flow(Direction::Outbound));
    assert_eq!(
        line(|own| log_ended(own, &live, CloseReason::NoHealthyUpstream, None, 0)),
        r#"WARN message=connection failed src.addr=10.0.0.1:4000 src.workload="client-a" src.namespace="demo" src.cluster="Kubernetes" dst.addr=10.96.0.1:80 direction="outbound" bytes_sent=0 bytes_recv=0 duration=… error="no healthy upstream" reason="no_healthy_upstream""#
    );
    let live = Live::new(flow(Direction::Inbound));
    assert_eq!(
        line(|own| log_ended(own, &live, CloseReason::Recursive, Some("x".into()), 0)),
        r#"WARN message=connection failed src.addr=10.0.0.1:4000 dst.addr=10.96.0.1:80 dst.workload="client-a" dst.namespace="demo" dst.cluster="Kubernetes" direction="inbound" bytes_sent=0 bytes_recv=0 duration=… error="x" reason="recursive""#
    );
}

#[test]
fn a_tunnelled_connection_names_both_identities_and_both_addresses() {
    let live = Live::new(flow(Direction::Outbound));
    live.learn(tunnel());
    const FACTS: &str = r#"src.addr=10.0.0.1:4000 src.workload="client-a" src.namespace="demo" src.identity="spiffe://cluster.local/ns/demo/sa/client" src.cluster="Kubernetes" dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.identity="spiffe://cluster.local/ns/demo/sa/web" direction="outbound""#;
    assert_eq!(line(|own| log_opened(own, &live)), format!("DEBUG message=connection opened {FACTS}"));
    assert_eq!(
        line(|own| log_ended(own, &live, CloseReason::Complete, None, 0)),
        format!(r#"INFO message=connection complete {FACTS} bytes_sent=0 bytes_recv=0 duration=… reason="complete""#)
    );
    assert_eq!(
        line(|own| log_ended(own, &live, CloseReason::TunnelRefused, Some("http_status:_401".into()), 0)),
        format!(
            r#"ERROR message=connection complete {FACTS} bytes_sent=0 bytes_recv=0 duration=… error="http_status:_401" reason="tunnel_refused""#
        )
    );
}

#[test]
fn a_source_without_a_workload_has_its_identitys_namespace() {
    let live = Live::new(flow(Direction::Inbound));
    live.learn(Facts { direction: Direction::Inbound, ..tunnel() });
    let line = line(|own| log_ended(own, &live, CloseReason::Complete, None, 0));
    assert!(line.contains(r#"src.addr=10.0.0.1:4000 src.namespace="demo" src.identity="#), "{line}");
    assert!(line.contains(r#"dst.workload="client-a" dst.namespace="demo""#), "{line}");
}

#[test]
fn who_asked_for_what_is_told_of_what_was_refused_then() {
    let live = Live::new(flow(Direction::Inbound));
    live.hear(Facts { direction: Direction::Inbound, ..tunnel() });
    let line = line(|own| log_ended(Own { cluster: "east", ..own }, &live, CloseReason::NotThisPod, None, 0));
    assert!(line.starts_with("WARN message=connection failed src.addr=10.0.0.1:4000 "), "{line}");
    assert!(line.contains(r#"src.identity="spiffe://cluster.local/ns/demo/sa/client""#), "{line}");
    assert!(line.contains(r#"dst.cluster="east""#), "{line}");
}

#[test]
fn another_server_than_expected_is_called_by_what_it_proved() {
    let live = Live::new(flow(Direction::Outbound));
    live.learn(tunnel());
    live.prove("spiffe://cluster.local/ns/demo/sa/allowed".parse().unwrap());
    let line = line(|own| log_ended(own, &live, CloseReason::Complete, None, 0));
    assert!(line.contains(r#"dst.identity="spiffe://cluster.local/ns/demo/sa/allowed""#), "{line}");
}

/// The names of the fields that lines can have.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<&'static str>>>);

impl<S: Subscriber> Layer<S> for Names {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut names = self.0.lock().unwrap();
        for name in event.metadata().fields().iter().map(|field| field.name()).filter(|name| *name != "message") {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
}

#[test]
fn the_table_of_fields_has_the_fields_of_all_lines_in_their_order() {
    let names = Names::default();
    let (pod, live) = (NamespacedName::new("demo", "client-a"), Live::new(flow(Direction::Inbound)));
    with_default(registry().with(names.clone()), || {
        let own = || Own { pod: &pod, cluster: "" };
        log_opened(own(), &live);
        log_ended(own(), &live, CloseReason::Denied, None, 1);
        live.learn(tunnel());
        log_ended(own(), &live, CloseReason::Complete, None, 0);
        log_ended(own(), &live, CloseReason::ServerReset, None, 0);
    });
    assert_eq!(*names.0.lock().unwrap(), FIELDS.map(|(name, _)| name));
}
