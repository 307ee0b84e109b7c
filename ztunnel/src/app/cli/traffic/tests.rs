//! Two scrapes of a daemon, and what the commands make of them.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{edges_after, plaintext, stat_after};
use crate::{
    app::cli::{
        ask::tests::{answering, http},
        pods::tests::{connection, list, pod},
    },
    config::{
        live::{TrafficArgs, View},
        units::Seconds,
    },
    pods::describe::ConnectionInfo,
};

/// A sample: reporter, source, destination, security and flags, and the value.
fn sample(name: &str, [reporter, source, destination, security, flags]: [&str; 5], value: u64) -> String {
    let ends = |end: &str, side: &str| match end.split_once('/') {
        Some((namespace, name)) => format!(r#"{side}_workload="{name}",{side}_workload_namespace="{namespace}""#),
        None => format!(r#"{side}_workload="unknown",{side}_workload_namespace="unknown""#),
    };
    let (source, destination) = (ends(source, "source"), ends(destination, "destination"));
    format!(
        "istio_tcp_{name}_total{{reporter=\"{reporter}\",{source},source_principal=\"unknown\",destination_service=\"web.demo.svc.\
         cluster.local\",{destination},response_flags=\"{flags}\",connection_security_policy=\"{security}\"}} {value}\n"
    )
}

/// The counters of one end of an edge: opened, closed well, denied, and bytes in each direction.
fn edge(
    reporter: &str,
    source: &str,
    destination: &str,
    security: &str,
    [opened, closed, denied, bytes]: [u64; 4],
) -> String {
    let of = |name: &str, flags: &str, value| sample(name, [reporter, source, destination, security, flags], value);
    of("connections_opened", "-", opened)
        + &of("connections_closed", "-", closed)
        + &of("connections_closed", "DENY", denied)
        + &of("received_bytes", "-", bytes)
        + &of("sent_bytes", "-", 2 * bytes)
}

fn scrape(more: u64) -> String {
    let histogram = |le: &str, count: u64| {
        format!(
            "ztunnel_connect_duration_seconds_bucket{{le=\"{le}\",direction=\"outbound\",protocol=\"HBONE\"}} {count}\n"
        )
    };
    edge("source", "demo/client", "demo/web", "mutual_tls", [10 + more, 8 + more, 0, 1024])
        + &edge("destination", "demo/client", "demo/web", "mutual_tls", [10 + more, 8 + more, 0, 1024])
        + &edge("destination", "unknown", "demo/web", "unknown", [4, 1, 2, 10])
        + &edge("destination", "prod/batch", "demo/db", "unknown", [3, 0, 3, 0])
        + &histogram("0.001", 5)
        + &histogram("0.01", 9)
        + &histogram("+Inf", 10)
        + "# EOF\n"
}

fn daemon() -> SocketAddr {
    let scrapes = AtomicUsize::new(0);
    answering(move |request| match request {
        "GET /metrics HTTP/1.1" => {
            let first = scrapes.fetch_add(1, Ordering::Relaxed) == 0;
            http("200 OK", &scrape(if first { 0 } else { 20 }))
        }
        "GET /config_dump?only=pods HTTP/1.1" => {
            let plain = |allowed_by: &str| ConnectionInfo {
                protocol: "TCP".into(),
                peer: None,
                allowed_by: Some(allowed_by.to_owned()),
                ..connection(1)
            };
            let connections =
                vec![plain("no ALLOW policy applies"), plain("not enforced: probe of the kubelet"), connection(1)];
            http("200 OK", &serde_json::json!({"node": "node-a", "pods": [pod("web", connections)]}).to_string())
        }
        _ => http("404 Not Found", ""),
    })
}

fn args(output: View, namespace: Option<&str>, interval: u64) -> TrafficArgs {
    TrafficArgs { list: list(daemon(), output, namespace), interval: Seconds(interval) }
}

fn pause(expected: u64) -> impl FnOnce(Duration) {
    move |pause| assert_eq!(pause, Duration::from_secs(expected))
}

fn words(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn an_edge_is_shown_once_with_its_rates() {
    let text = edges_after(&args(View::Table, None, 10), pause(10)).unwrap();
    assert_eq!(
        words(&text),
        [
            "SOURCE DESTINATION SECURITY OPENED OPENED/S OPEN FAILED RECEIVED SENT BYTES/S",
            "demo/client demo/web mTLS 30 2.0 2 0 1.0 KiB 2.0 KiB 0 B",
            "prod/batch demo/db plaintext 3 0.0 0 3 0 B 0 B 0 B",
            "unknown demo/web plaintext 4 0.0 1 2 10 B 20 B 0 B",
        ]
    );
    let once = edges_after(&args(View::Wide, Some("prod"), 0), pause(0)).unwrap();
    assert_eq!(words(&once)[1], "prod/batch demo/db plaintext 3 - 0 3 0 B 0 B - web.demo.svc.cluster.local - - 3");
    let json: Value = serde_json::from_str(&edges_after(&args(View::Json, None, 10), pause(10)).unwrap()).unwrap();
    assert_eq!(json["schemaVersion"], 1);
    assert_eq!((&json["edges"][0]["openedPerSecond"], &json["edges"][0]["security"]), (&2.0.into(), &"mTLS".into()));
}

#[test]
fn a_workload_has_its_success_and_the_node_its_latencies() {
    let text = stat_after(&args(View::Table, None, 10), pause(10)).unwrap();
    assert_eq!(
        words(&text),
        [
            "WORKLOAD DIRECTION OPENED OPENED/S OPEN SUCCESS FAILED RECEIVED SENT BYTES/S",
            "demo/client outbound 30 2.0 2 100.00% 0 1.0 KiB 2.0 KiB 0 B",
            "demo/db inbound 3 0.0 0 0.00% 3 0 B 0 B 0 B",
            "demo/web inbound 34 2.0 3 93.55% 2 1.0 KiB 2.0 KiB 0 B",
            "",
            "DURATION OF DIRECTION CARRIED COUNT P50 P90 P99",
            "connect outbound HBONE 10 1.00ms 10.00ms 10.00ms",
        ]
    );
    let json: Value = serde_json::from_str(&stat_after(&args(View::Json, Some("none"), 0), pause(0)).unwrap()).unwrap();
    assert_eq!((&json["schemaVersion"], json["workloads"].as_array().unwrap().len()), (&1.into(), 0));
    assert_eq!(json["latencies"][0]["count"], 10.0);
}

#[test]
fn what_strict_would_refuse_is_what_was_accepted_in_plaintext() {
    let text = plaintext::after(&args(View::Table, None, 0), pause(0)).unwrap();
    assert_eq!(
        words(&text),
        [
            "DESTINATION SOURCE ACCEPTED OPEN RECEIVED SENT",
            // The connections of prod/batch were all denied already.
            "demo/web unknown 2 1 10 B 20 B",
            "",
            "OPEN NOW TO PORT CLIENT POD OF THE CLIENT",
            "demo/web 80 10.0.0.1:4000 -",
        ]
    );
    let json: Value = serde_json::from_str(&plaintext::after(&args(View::Json, None, 0), pause(0)).unwrap()).unwrap();
    assert_eq!((&json["accepted"][0]["destination"], json["open"].as_array().unwrap().len()), (&"demo/web".into(), 1));
    let none = plaintext::after(&args(View::Table, Some("other"), 0), pause(0)).unwrap();
    assert!(none.starts_with("nobody: "), "{none}");
}

#[test]
fn what_is_no_daemon_is_told() {
    let admin = answering(|_| http("200 OK", "<html>"));
    let args = TrafficArgs { list: list(admin, View::Table, None), interval: Seconds(0) };
    let error = format!("{:#}", edges_after(&args, pause(0)).unwrap_err());
    assert!(error.contains("this line is no metric: <html>"), "{error}");
}
