//! `ztunnel observe`: connections of this node's pods while they open, end, or are refused.

use std::{
    io::{self, Write},
    ops::ControlFlow,
};

use anyhow::Context as _;

use super::{
    ask,
    output::{Colour, Style, print},
    table::{bytes, duration},
};
use crate::{
    app::admin::{
        EVENTS,
        stream::{End, Filter, Line},
    },
    config::live::{ObserveArgs, View},
    explain::printable,
    flow::events::{ConnectionEvent, EventKind, Party},
};

/// Prints events until the time is over; the text is empty then.
///
/// # Errors
/// If no daemon answers, or the daemon ends the stream.
pub(super) fn observe(args: &ObserveArgs) -> anyhow::Result<String> {
    follow(args, Style::of_stdout(), &mut io::stdout(), &mut io::stderr())?;
    Ok(String::new())
}

fn follow(args: &ObserveArgs, style: Style, out: &mut impl Write, err: &mut impl Write) -> anyhow::Result<()> {
    let filter = Filter {
        denied: args.denied,
        refused: args.refused,
        from: args.from.as_deref().map(End::new),
        to: args.to.as_deref().map(End::new),
    };
    let path = format!("{EVENTS}?{}", filter.query());
    let limit = if args.follow { None } else { Some(args.duration.duration()) };
    ask::lines(args.daemon.admin, &path, limit, |text| {
        let line: Line = serde_json::from_str(text)
            .context("a line is no event: is the daemon of another version than this command?")?;
        let written = match (args.daemon.output, &line) {
            (_, Line::Idle) => Ok(()),
            (View::Json, _) => writeln!(out, "{}", crate::explain::printable_json(text)),
            (View::Table | View::Wide, Line::Started { node, .. }) => {
                print(err, &format!("connections of the pods of node {} from now on:\n", printable(node)));
                Ok(())
            }
            (View::Table | View::Wide, Line::Lost { events }) => {
                print(
                    err,
                    &format!("{events} event(s) were lost: this command is too slow; filters make them fewer\n"),
                );
                Ok(())
            }
            (view, Line::Connection(event)) => writeln!(out, "{}", shown(event, view == View::Wide, style)),
        };
        // A reader that has closed the pipe is no error.
        Ok(if written.and_then(|()| out.flush()).is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
}

fn shown(event: &ConnectionEvent, is_wide: bool, style: Style) -> String {
    let (colour, word) = match event.event {
        EventKind::Opened => (Colour::Blue, "OPENED "),
        EventKind::Closed if event.error.is_none() => (Colour::Green, "CLOSED "),
        EventKind::Closed => (Colour::Yellow, "CLOSED "),
        EventKind::Refused if event.is_denied() => (Colour::Red, "DENIED "),
        EventKind::Refused => (Colour::Red, "REFUSED"),
    };
    let carried = if event.protocol == "HBONE" { "mTLS" } else { "plaintext" };
    let (source, destination) = (party(&event.source, is_wide), party(&event.destination, is_wide));
    let mut text = format!("{source} -> {destination} {} {carried}", event.direction);
    if let Some(service) = &event.service {
        text.push_str(&format!(" service={service}"));
    }
    if is_wide {
        text.push_str(&format!(" requested={}", event.requested));
    }
    if event.event != EventKind::Opened {
        let age = match event.duration_ms {
            short @ 0..1000 => format!("{short}ms"),
            long => duration(long / 1000),
        };
        text.push_str(&format!(
            " after {age} received={} sent={}",
            bytes(event.bytes_received as f64).replace(' ', ""),
            bytes(event.bytes_sent as f64).replace(' ', "")
        ));
    }
    if let Some(reason) = event.reason.as_deref().filter(|reason| *reason != "complete") {
        text.push_str(&format!(" {reason}"));
    }
    if let Some(error) = &event.error {
        text.push_str(&format!(": {error}"));
    }
    format!("{} {} {}", printable(&event.time), style.paint(colour, word), printable(&text))
}

/// One end: its pod if it has one, and its address.
fn party(party: &Party, is_wide: bool) -> String {
    let identity =
        party.identity.as_ref().filter(|_| is_wide).map(|identity| format!("[{identity}]")).unwrap_or_default();
    match (&party.namespace, &party.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}({}){identity}", party.address),
        _ => format!("{}{identity}", party.address),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{Style, follow};
    use crate::{
        app::{
            admin::stream::Line,
            cli::ask::tests::{answering, http},
        },
        config::{
            live::{DaemonArgs, ObserveArgs, View},
            units::Seconds,
        },
        flow::events::{ConnectionEvent, EventKind, Party},
    };

    fn args(admin: SocketAddr, output: View) -> ObserveArgs {
        ObserveArgs {
            daemon: DaemonArgs { admin, output },
            denied: true,
            refused: false,
            from: Some("demo/client".to_owned()),
            to: None,
            follow: true,
            duration: Seconds(10),
        }
    }

    fn event(kind: EventKind, reason: Option<&'static str>, error: Option<&str>) -> ConnectionEvent {
        let party = |address: &str, pod: Option<&str>| Party {
            address: address.to_owned(),
            namespace: pod.map(|_| "demo".to_owned()),
            pod: pod.map(str::to_owned),
            identity: pod.map(|pod| format!("spiffe://cluster.local/ns/demo/sa/{pod}")),
        };
        ConnectionEvent {
            time: "2026-12-01T00:00:00.5Z".to_owned(),
            event: kind,
            direction: "inbound".into(),
            source: party("10.0.0.1:4000", Some("client")),
            destination: party("10.0.0.2:80", None),
            requested: "10.0.0.2:80".to_owned(),
            protocol: "HBONE".into(),
            bytes_received: 5,
            bytes_sent: 2048,
            duration_ms: 12,
            reason: reason.map(Into::into),
            error: error.map(str::to_owned),
            ..ConnectionEvent::default()
        }
    }

    fn boxed(kind: EventKind, reason: Option<&'static str>, error: Option<&str>) -> Box<ConnectionEvent> {
        Box::new(event(kind, reason, error))
    }

    fn run(lines: &[Line], output: View) -> (String, String, String) {
        let mut body: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        body.insert_str(0, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        let admin = answering(move |request| {
            assert_eq!(request, "GET /events?denied&from=demo/client HTTP/1.1");
            body.clone()
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let error = follow(&args(admin, output), Style::default(), &mut out, &mut err).unwrap_err();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), format!("{error:#}"))
    }

    #[test]
    fn each_event_is_a_line_and_lost_ones_are_told() {
        let lines = [
            Line::Started { schema_version: 1, node: "node-a".to_owned() },
            Line::Connection(boxed(EventKind::Opened, None, None)),
            Line::Idle,
            Line::Connection(boxed(EventKind::Closed, Some("complete"), None)),
            Line::Lost { events: 3 },
            Line::Connection(boxed(EventKind::Refused, Some("denied"), Some("denied by policy\u{1b}"))),
        ];
        let (out, err, error) = run(&lines, View::Table);
        let start = "demo/client(10.0.0.1:4000) -> 10.0.0.2:80 inbound mTLS";
        assert_eq!(
            out,
            format!(
                "2026-12-01T00:00:00.5Z OPENED  {start}\n\
                 2026-12-01T00:00:00.5Z CLOSED  {start} after 12ms received=5B sent=2.0KiB\n\
                 2026-12-01T00:00:00.5Z DENIED  {start} after 12ms received=5B sent=2.0KiB denied: denied by policy\\u{{1b}}\n"
            )
        );
        assert_eq!(
            err,
            "connections of the pods of node node-a from now on:\n3 event(s) were lost: this command is too slow; filters make them fewer\n"
        );
        assert!(error.contains("has ended the stream"), "{error}");
        let (out, ..) = run(&lines, View::Wide);
        assert!(
            out.contains("[spiffe://cluster.local/ns/demo/sa/client]") && out.contains("requested=10.0.0.2:80"),
            "{out}"
        );
    }

    #[test]
    fn programs_get_the_lines_with_the_schema_first() {
        let lines = [
            Line::Started { schema_version: 1, node: "node-a".to_owned() },
            Line::Idle,
            Line::Connection(boxed(EventKind::Opened, None, None)),
            Line::Lost { events: 3 },
        ];
        let (out, err, _) = run(&lines, View::Json);
        let read: Vec<Line> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&read[0], read.len(), &read[2]), (&lines[0], 3, &lines[3]));
        assert!(out.starts_with("{\"type\":\"started\",\"schemaVersion\":1,"), "{out}");
        assert_eq!(err, "");
    }

    #[test]
    fn a_daemon_that_has_enough_readers_is_told() {
        let admin = answering(|_| http("503 Service Unavailable", "as many clients read events as may"));
        let error = follow(&args(admin, View::Table), Style::default(), &mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert!(format!("{error:#}").contains("as many clients read events as may"), "{error:#}");
    }
}
