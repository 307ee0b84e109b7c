//! `ztunnel connections`: the open connections of the pods of this node, once or again and again with their rates.

use std::{
    collections::HashMap,
    io::{self, Write},
    thread::sleep,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    output::{Style, json, print},
    pods::{Pods, ask_for},
    table::{Table, bytes, duration},
};
use crate::{
    config::live::{ConnectionsArgs, View},
    pods::describe::ConnectionInfo,
};

/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// The result.
#[derive(Debug, Serialize)]
struct Connections {
    node: String,
    connections: Vec<Shown>,
}

/// A connection of a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    /// The pod of this node.
    pod: String,
    #[serde(flatten)]
    connection: ConnectionInfo,
    /// Bytes in a second since the last view: from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    received_per_second: Option<f64>,
    /// See above: to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_per_second: Option<f64>,
}

/// A connection among those that are open at the same time.
type Key = (String, String, String, String);

impl Shown {
    fn key(&self) -> Key {
        let ConnectionInfo { direction, src, dst, .. } = &self.connection;
        (self.pod.clone(), direction.to_string(), src.clone(), dst.clone())
    }
}

/// Prints the connections; the text is empty then.
///
/// # Errors
/// If no daemon answers.
pub(super) fn connections(args: &ConnectionsArgs) -> anyhow::Result<String> {
    if !args.watch {
        let shown = of(ask_for(&args.list)?, args.pod.as_deref());
        return Ok(text(&shown, args.list.daemon.output, false));
    }
    let mut out = io::stdout();
    let clear = if Style::of_stdout().width.is_some() { CLEAR } else { "" };
    watch(args, clear, &mut out, &mut |pause| sleep(pause))?;
    Ok(String::new())
}

fn watch(
    args: &ConnectionsArgs,
    clear: &str,
    out: &mut impl Write,
    pause: &mut impl FnMut(Duration),
) -> anyhow::Result<()> {
    let mut last: Option<(Instant, Connections)> = None;
    let mut views = 0;
    loop {
        let begun = Instant::now();
        let mut now = of(ask_for(&args.list)?, args.pod.as_deref());
        if let Some((at, before)) = &last {
            add_rates(&mut now.connections, &before.connections, begun.duration_since(*at));
        }
        let view = args.list.daemon.output;
        let shown = match view {
            // One view is one line.
            View::Json => one_line(&now),
            View::Table | View::Wide => format!("{clear}{}\n", text(&now, view, true)),
        };
        print(out, &shown);
        views += 1;
        if args.times.is_some_and(|times| views >= times) {
            return Ok(());
        }
        last = Some((begun, now));
        pause(args.interval.duration());
    }
}

fn one_line(shown: &Connections) -> String {
    let mut line: String = json(shown).lines().map(str::trim_start).collect();
    line.push('\n');
    line
}

fn of(Pods { node, pods }: Pods, wanted: Option<&str>) -> Connections {
    let mut connections = Vec::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if wanted.is_some_and(|wanted| wanted != pod.name && wanted != name) {
            continue;
        }
        connections.extend(pod.connections.into_iter().map(|connection| Shown {
            pod: name.clone(),
            connection,
            received_per_second: None,
            sent_per_second: None,
        }));
    }
    connections.sort_by_cached_key(Shown::key);
    Connections { node, connections }
}

/// Adds the rates of connections that were there before. A new connection with the addresses of an old one has fewer bytes, or
/// is younger than the time in between.
fn add_rates(now: &mut [Shown], before: &[Shown], between: Duration) {
    let before: HashMap<Key, &Shown> = before.iter().map(|shown| (shown.key(), shown)).collect();
    let seconds = between.as_secs_f64().max(0.001);
    for shown in now {
        let Some(last) = before.get(&shown.key()).map(|last| &last.connection) else { continue };
        if shown.connection.duration_ms < last.duration_ms {
            continue;
        }
        let rate = |now: u64, last: u64| Some(now.saturating_sub(last) as f64 / seconds);
        shown.received_per_second = rate(shown.connection.bytes_received, last.bytes_received);
        shown.sent_per_second = rate(shown.connection.bytes_sent, last.bytes_sent);
    }
}

fn text(shown: &Connections, view: View, has_rates: bool) -> String {
    if view == View::Json {
        return json(shown);
    }
    let rates = if has_rates { &["RECEIVED/S", "SENT/S"][..] } else { &[] };
    let mut columns = vec!["POD", "DIRECTION", "PEER", "DESTINATION", "CARRIED", "AGE", "RECEIVED", "SENT"];
    columns.extend(rates);
    columns.push("ALLOWED BY");
    let more = ["PEER IDENTITY", "SERVICE", "CLIENT", "REQUESTED"];
    let mut table = Table::new(&columns, &more, view == View::Wide);
    for one in &shown.connections {
        let Shown { pod, connection, received_per_second, sent_per_second } = one;
        let start = [
            pod.clone(),
            connection.direction.to_string(),
            peer(connection),
            connection.actual_dst.clone().unwrap_or_else(|| connection.dst.clone()),
            carried(connection).to_owned(),
            duration(connection.duration_ms / 1000),
            bytes(connection.bytes_received as f64),
            bytes(connection.bytes_sent as f64),
        ];
        let rate = |rate: Option<f64>| rate.map(bytes).unwrap_or_default();
        let end = [
            connection.allowed_by.clone().unwrap_or_default(),
            connection.peer_identity.clone().unwrap_or_default(),
            connection.service.clone().unwrap_or_default(),
            connection.src.clone(),
            connection.dst.clone(),
        ];
        let [a, b, c, d, e, f, g, h] = start;
        let [i, j, k, l, m] = end;
        if has_rates {
            table.row([a, b, c, d, e, f, g, h, rate(*received_per_second), rate(*sent_per_second), i, j, k, l, m]);
        } else {
            table.row([a, b, c, d, e, f, g, h, i, j, k, l, m]);
        }
    }
    table.text(&format!("no open connections on node {}", shown.node))
}

/// The other side: its pod, else its address.
fn peer(connection: &ConnectionInfo) -> String {
    let address = || match &*connection.direction {
        "inbound" => connection.src.clone(),
        _ => connection.dst.clone(),
    };
    connection.peer.clone().unwrap_or_else(address)
}

/// How it is carried between the nodes, in words.
fn carried(connection: &ConnectionInfo) -> &str {
    match &*connection.protocol {
        "HBONE" => "mTLS",
        "TCP" => "plaintext",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use serde_json::Value;

    use super::{Shown, add_rates, connections, watch};
    use crate::{
        app::cli::pods::tests::{connection, daemon, list, pod},
        config::{
            live::{ConnectionsArgs, View},
            units::Seconds,
        },
        pods::describe::ConnectionInfo,
    };

    fn args(admin: SocketAddr, output: View, pod: Option<&str>) -> ConnectionsArgs {
        ConnectionsArgs {
            list: list(admin, output, None),
            pod: pod.map(str::to_owned),
            watch: false,
            interval: Seconds(2),
            times: None,
        }
    }

    fn plaintext() -> ConnectionInfo {
        ConnectionInfo {
            direction: "outbound".into(),
            protocol: "TCP".into(),
            peer: None,
            peer_identity: None,
            allowed_by: None,
            ..connection(2048)
        }
    }

    #[test]
    fn connections_tell_with_whom_how_and_why() {
        let admin = daemon(&[pod("web", vec![connection(5)]), pod("client", vec![plaintext()])]);
        assert_eq!(
            connections(&args(admin, View::Table, None)).unwrap(),
            "POD          DIRECTION  PEER         DESTINATION  CARRIED    AGE   RECEIVED  SENT     ALLOWED BY\n\
             demo/client  outbound   10.0.0.2:80  10.0.0.2:80  plaintext  1m5s  2.0 KiB   4.0 KiB  -\n\
             demo/web     inbound    demo/client  10.0.0.2:80  mTLS       1m5s  5 B       10 B     \
             AuthorizationPolicy demo/allow rules[0]\n"
        );
        let wide = connections(&args(admin, View::Wide, Some("demo/web"))).unwrap();
        assert!(wide.contains("spiffe://cluster.local/ns/demo/sa/client") && !wide.contains("plaintext"), "{wide}");
        let json: Value = serde_json::from_str(&connections(&args(admin, View::Json, Some("web"))).unwrap()).unwrap();
        let [one] = &json["connections"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!((&one["pod"], &one["protocol"]), (&"demo/web".into(), &"HBONE".into()));
        assert_eq!((&json["schemaVersion"], one.get("sentPerSecond")), (&1.into(), None));
        let none = connections(&args(admin, View::Table, Some("other"))).unwrap();
        assert_eq!(none, "no open connections on node node-a\n");
    }

    #[test]
    fn rates_are_those_of_the_same_connection() {
        let shown = |connection| Shown {
            pod: "demo/web".to_owned(),
            connection,
            received_per_second: None,
            sent_per_second: None,
        };
        let later = ConnectionInfo { duration_ms: 67_000, ..connection(1005) };
        let again = ConnectionInfo { duration_ms: 10, ..connection(3) };
        let other = ConnectionInfo { src: "10.0.0.1:4001".to_owned(), ..connection(9) };
        let rates = |now| {
            let mut now = [shown(now)];
            add_rates(&mut now, &[shown(connection(5))], Duration::from_secs(2));
            (now[0].received_per_second, now[0].sent_per_second)
        };
        assert_eq!(rates(later), (Some(500.0), Some(1000.0)));
        assert_eq!(rates(again), (None, None), "it is another connection");
        assert_eq!(rates(other), (None, None));
    }

    #[test]
    fn a_watch_ends_after_its_views() {
        let admin = daemon(&[pod("web", vec![connection(5)])]);
        for (output, lines) in [(View::Json, 3), (View::Table, 9)] {
            let args = ConnectionsArgs { watch: true, times: Some(3), ..args(admin, output, None) };
            let (mut out, mut pauses) = (Vec::new(), 0);
            watch(&args, "", &mut out, &mut |pause| {
                assert_eq!(pause, Duration::from_secs(2));
                pauses += 1;
            })
            .unwrap();
            let text = String::from_utf8(out).unwrap();
            assert_eq!((pauses, text.lines().count()), (2, lines), "{text}");
            let last = text.lines().rfind(|line| !line.is_empty()).unwrap();
            match output {
                View::Json => {
                    let json: Value = serde_json::from_str(last).unwrap();
                    assert_eq!(json["connections"][0]["receivedPerSecond"], 0.0);
                }
                _ => assert!(last.contains("0 B  "), "{last}"),
            }
        }
    }
}
