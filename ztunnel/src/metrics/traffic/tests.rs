//! The output of a scrape after some connections.

use std::{sync::Arc, time::Duration};

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{Meter, Traffic};
use crate::{
    metrics::facts::{Facts, Protocol},
    model::{
        close::CloseReason,
        flow::Direction,
        identity::{SpiffeId, TrustDomain},
        locality::Locality,
        service::Service,
        workload::{Controller, ControllerKind, Membership, NamespacedName, Workload},
    },
};

fn traffic() -> (Registry, Meter) {
    let mut registry = Registry::default();
    let traffic = Traffic::register(&mut registry, Duration::from_secs(900), "Kubernetes".into());
    (registry, traffic.meter())
}

fn scrape(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

#[track_caller]
fn says(registry: &Registry, lines: &[&str]) {
    let text = scrape(registry);
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "{line} not in {text}");
    }
}

fn workload(name: &str, region: &str) -> Arc<Workload> {
    let pod = NamespacedName::new("demo", format!("{name}-abc-xyz"));
    Arc::new(Workload {
        controller: Controller { kind: ControllerKind::Deployment, name: name.into() },
        canonical_name: format!("{name}-app").into(),
        canonical_revision: "v1".into(),
        locality: Locality { region: region.into(), ..Locality::default() },
        membership: Membership::InMesh,
        ..Workload::new(pod, SpiffeId::new(TrustDomain::default(), "demo", name))
    })
}

fn plain(direction: Direction) -> Facts {
    Facts {
        direction,
        src_addr: "10.0.0.1:4000".parse().unwrap(),
        source: None,
        source_identity: None,
        dst_addr: "10.0.0.2:80".parse().unwrap(),
        hbone_addr: None,
        service: None,
        destination: None,
        destination_identity: None,
    }
}

fn tunnelled() -> Facts {
    let (source, destination) = (workload("client", ""), workload("web", "r1"));
    Facts {
        source_identity: Some(source.identity.clone()),
        destination_identity: Some(destination.identity.clone()),
        source: Some(source),
        destination: Some(destination),
        dst_addr: "10.0.0.2:15008".parse().unwrap(),
        hbone_addr: Some("10.0.0.2:80".into()),
        service: Some(Arc::new(Service::new(NamespacedName::new("demo", "web"), "web.demo.svc.cluster.local"))),
        ..plain(Direction::Outbound)
    }
}

#[test]
fn a_tunnelled_connection_has_istios_labels_in_istios_order() {
    let (registry, meter) = traffic();
    let counted = meter.open(&tunnelled());
    counted.flush(5, 7);
    const LABELS: &str = concat!(
        r#"reporter="source",source_workload="client",source_canonical_service="client-app","#,
        r#"source_canonical_revision="v1",source_workload_namespace="demo","#,
        r#"source_principal="spiffe://cluster.local/ns/demo/sa/client",source_app="client-app",source_version="v1","#,
        r#"source_cluster="Kubernetes",destination_service="web.demo.svc.cluster.local","#,
        r#"destination_service_namespace="demo",destination_service_name="web",destination_workload="web","#,
        r#"destination_canonical_service="web-app",destination_canonical_revision="v1","#,
        r#"destination_workload_namespace="demo",destination_principal="spiffe://cluster.local/ns/demo/sa/web","#,
        r#"destination_app="web-app",destination_version="v1",destination_cluster="Kubernetes","#,
        r#"request_protocol="tcp",response_flags="FLAGS",connection_security_policy="mutual_tls","#,
        r#"source_region="unknown",source_zone="unknown",destination_region="r1",destination_zone="unknown""#
    );
    let line = |name: &str, flags: &str, value: u64| format!("{name}{{{}}} {value}", LABELS.replace("FLAGS", flags));
    says(
        &registry,
        &[
            &line("istio_tcp_connections_opened_total", "-", 1),
            &line("istio_tcp_received_bytes_total", "-", 5),
            &line("istio_tcp_sent_bytes_total", "-", 7),
        ],
    );
    assert!(!scrape(&registry).contains("connections_closed_total{reporter"), "nothing is closed yet");
    counted.flush(6, 7);
    counted.close(CloseReason::TlsFailed);
    says(
        &registry,
        &[
            &line("istio_tcp_connections_closed_total", "TLS_FAILURE", 1),
            &line("istio_tcp_connections_failed_total", "TLS_FAILURE", 1),
            &line("istio_tcp_received_bytes_total", "-", 6),
        ],
    );
}

#[test]
fn what_is_not_known_says_so_and_a_source_in_plaintext_has_no_principal() {
    let (registry, meter) = traffic();
    let source = Some(workload("client", ""));
    meter.open(&Facts { source, ..plain(Direction::Inbound) }).close(CloseReason::Complete);
    let text = scrape(&registry);
    let opened = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    for label in [
        r#"reporter="destination""#,
        r#"source_principal="unknown""#,
        r#"destination_workload="unknown""#,
        r#"destination_cluster="unknown""#,
        r#"connection_security_policy="unknown""#,
        r#"source_region="unknown""#,
        r#"destination_zone="unknown""#,
    ] {
        assert!(opened.contains(label), "{label} not in {opened}");
    }
    assert!(!text.contains("istio_tcp_connections_failed"), "an empty family is left out");
}

#[test]
fn connections_that_somebody_wanted_to_end_are_no_failures() {
    let (registry, meter) = traffic();
    for reason in [
        CloseReason::Complete,
        CloseReason::ClientReset,
        CloseReason::ServerReset,
        CloseReason::Drained,
        CloseReason::Released,
    ] {
        meter.open(&tunnelled()).close(reason);
    }
    assert!(!scrape(&registry).contains("istio_tcp_connections_failed"));
    meter.open(&tunnelled()).close(CloseReason::PeerLost);
    assert!(scrape(&registry).contains("istio_tcp_connections_failed_total{"));
}

#[test]
fn workers_count_into_one_series_and_look_it_up_once() {
    let (registry, meter) = traffic();
    let other = meter.traffic().meter();
    let facts = tunnelled();
    let open = [meter.open(&facts), meter.open(&facts), other.open(&facts)];
    assert_eq!((meter.0.known.borrow().len(), other.0.known.borrow().len()), (1, 1));
    drop(open);
    let text = scrape(&registry);
    let opened: Vec<_> = text.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total")).collect();
    assert!(opened.len() == 1 && opened[0].ends_with(" 3"), "{opened:?}");
}

#[test]
fn a_worker_forgets_what_has_left_the_mesh() {
    let (_registry, meter) = traffic();
    for _ in 0..10 * super::PRUNE_FROM {
        meter.open(&tunnelled()).close(CloseReason::Complete);
    }
    assert!(meter.0.known.borrow().len() <= super::PRUNE_FROM, "{}", meter.0.known.borrow().len());
}

#[test]
fn own_series_say_why_and_how_long() {
    let (registry, meter) = traffic();
    let traffic = meter.traffic();
    traffic.accepted(Direction::Outbound);
    traffic.accepted(Direction::Outbound);
    traffic.ended(Direction::Outbound, CloseReason::ServerReset);
    traffic.connected(Direction::Outbound, Protocol::Hbone, Duration::from_millis(2));
    traffic.connected(Direction::Outbound, Protocol::Hbone, Duration::from_secs(60));
    traffic.handshake(Direction::Inbound, Duration::from_micros(400));
    traffic.handshake_failed(Direction::Inbound, "deadline");
    traffic.refused(CloseReason::NotThisPod);
    drop(traffic.tunnel(Direction::Inbound));
    let _open = traffic.tunnel(Direction::Inbound);
    says(
        &registry,
        &[
            r#"ztunnel_connections_open{direction="outbound"} 1"#,
            r#"istio_tcp_sockets_open{reporter="source"} 1"#,
            r#"istio_tcp_sockets_open{reporter="destination"} 0"#,
            r#"ztunnel_connections_closed_total{direction="outbound",reason="server_reset"} 1"#,
            r#"ztunnel_connections_closed_total{direction="inbound",reason="server_reset"} 0"#,
            r#"ztunnel_connect_duration_seconds_sum{direction="outbound",protocol="HBONE"} 60.002"#,
            r#"ztunnel_connect_duration_seconds_count{direction="outbound",protocol="HBONE"} 2"#,
            r#"ztunnel_connect_duration_seconds_bucket{le="0.001",direction="outbound",protocol="HBONE"} 0"#,
            r#"ztunnel_connect_duration_seconds_bucket{le="0.0025",direction="outbound",protocol="HBONE"} 1"#,
            r#"ztunnel_connect_duration_seconds_bucket{le="10.0",direction="outbound",protocol="HBONE"} 1"#,
            r#"ztunnel_connect_duration_seconds_bucket{le="+Inf",direction="outbound",protocol="HBONE"} 2"#,
            r#"ztunnel_tls_handshake_duration_seconds_bucket{le="0.0005",direction="inbound"} 1"#,
            r#"ztunnel_tls_handshake_failures_total{direction="inbound",reason="deadline"} 1"#,
            r#"ztunnel_tls_handshake_failures_total{direction="outbound",reason="deadline"} 0"#,
            r#"ztunnel_tls_handshake_failures_total{direction="inbound",reason="evicted"} 0"#,
            r#"ztunnel_hbone_abuse_total{direction="inbound",reason="resets"} 0"#,
            r#"ztunnel_hbone_refused_total{reason="denied"} 0"#,
            r#"ztunnel_hbone_refused_total{reason="not_this_pod"} 1"#,
            r#"ztunnel_tunnel_connections_open{direction="inbound"} 1"#,
            r#"ztunnel_tunnel_connections_opened_total{direction="inbound"} 2"#,
        ],
    );
}

#[test]
fn what_has_left_the_book_leaves_the_meters_as_well() {
    let mut registry = Registry::default();
    let traffic = Traffic::register(&mut registry, Duration::ZERO, "east".into());
    let meter = traffic.meter();
    let open = |number: usize| {
        let identity = SpiffeId::new(TrustDomain::default(), "demo", format!("peer-{number}"));
        meter
            .open(&Facts { source_identity: Some(identity), ..plain(Direction::Inbound) })
            .close(CloseReason::Complete);
    };
    // The facts have no objects: only the state of the series shows that the entries are not needed any more.
    (0..10 * super::PRUNE_FROM).for_each(open);
    let known = meter.0.known.borrow().len();
    assert!(known <= super::PRUNE_FROM, "{known}");
}

#[test]
fn workloads_are_of_the_cluster_that_is_configured() {
    let mut registry = Registry::default();
    let meter = Traffic::register(&mut registry, Duration::from_secs(900), "east".into()).meter();
    meter.open(&tunnelled()).close(CloseReason::Complete);
    meter.open(&plain(Direction::Outbound)).close(CloseReason::Complete);
    let text = scrape(&registry);
    assert!(text.contains(r#"source_cluster="east""#) && text.contains(r#"destination_cluster="east""#), "{text}");
    assert!(text.contains(r#"source_cluster="unknown""#) && !text.contains("Kubernetes"), "{text}");
}
