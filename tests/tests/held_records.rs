//! What log and metrics have of connects that are held: one line and one count for each, with the reason of those that fail.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use ztunnel_tests::apps::server::{Server, finish_sending, read_all};
use ztunnel_tests::attempt::{End, Pending, Way};
use ztunnel_tests::logs::{Access, Direction};
use ztunnel_tests::modes::{Connect, Path, Silence, answered_after, enrolled, unlimited_icmp};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::Family;
use ztunnel_tests::wait;
use ztunnel_tests::watch::OWN_PORTS;

const PORT: u16 = 7000;
const CLOSED: u16 = 7001;
const OWN: u16 = OWN_PORTS.start;

const OPENED: &str = "istio_tcp_connections_opened_total";
const ENDED: &str = "istio_tcp_connections_closed_total";
const BY_REASON: &str = "ztunnel_connections_closed_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";

/// The connections of the pods of `node-a` that ended for a reason.
fn ended(bed: &Testbed, reason: &str) -> Result<f64> {
    Ok(bed.daemon("node-a")?.metrics()?.sum(BY_REASON, &[("direction", "outbound"), ("reason", reason)]))
}

/// The one line about connects to a destination; a later connection has its line, so no further line can come.
fn only_line(bed: &Testbed, target: SocketAddr, later: SocketAddr) -> Result<Access> {
    let daemon = bed.daemon("node-a")?;
    let is = |line: &Access| line.direction == Direction::Outbound && line.asked() == target;
    let line = daemon.wait_access(&format!("a line about {target}"), is)?;
    let seen = daemon.access()?.len();
    let attempt = Way::Blocking.attempt(bed.pod("client-a")?, later)?;
    ensure!(attempt.end == End::Exchanged, "{attempt:?}");
    daemon.wait_access_after(seen, "the later line", |line| line.asked() == later)?;
    let count = daemon.access()?.iter().filter(|line| is(line)).count();
    ensure!(count == 1, "{count} lines about one connect to {target}");
    Ok(line)
}

/// A connect that fails has one line and one count, with this reason and no bytes.
fn recorded(bed: &Testbed, target: SocketAddr, later: SocketAddr, reason: &str, codes: &[i32]) -> Result<Access> {
    let before = ended(bed, reason)?;
    let attempt = Way::Blocking.attempt(bed.pod("client-a")?, target)?;
    ensure!(matches!(attempt.end, End::Failed(code) if codes.contains(&code)), "{attempt:?}");
    let line = only_line(bed, target, later)?;
    ensure!(line.field("reason") == reason && line.error.is_some(), "{}", line.line);
    ensure!(line.sent == 0 && line.received == 0, "{}", line.line);
    ensure!(line.field("src.workload") == "client-a", "{}", line.line);
    let after = ended(bed, reason)?;
    ensure!(after - before == 1.0, "{reason} was counted {} times", after - before);
    Ok(line)
}

/// The duration in a line.
fn duration(line: &Access) -> Result<Duration> {
    let text = line.field("duration").strip_suffix("ms").with_context(|| line.line.to_string())?;
    Ok(Duration::from_millis(text.parse()?))
}

#[test]
fn a_refused_connect_has_one_line_with_the_reason() -> Result<()> {
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &[])?;
        let web = bed.pod("web-b")?;
        for family in Family::BOTH {
            let later = Server::echo(web, web.at(family, PORT))?;
            let target = web.at(family, CLOSED);
            let line = recorded(&bed, target, later.address(), "connect_refused", &[libc::ECONNREFUSED])
                .with_context(|| format!("{path:?}"))?;
            ensure!(line.is_tunnelled() == (path == Path::Tunnel), "{}", line.line);
            ensure!(duration(&line)? < Duration::from_secs(1), "{}", line.line);
            if path == Path::Tunnel {
                let far = bed.daemon("node-b")?.wait_access("the line of the destination's node", |line| {
                    line.direction == Direction::Inbound && line.asked() == target
                })?;
                ensure!(far.field("reason") == "connect_refused", "{}", far.line);
            }
        }
    }
    Ok(())
}

#[test]
fn an_unreachable_destination_has_one_line_with_the_reason() -> Result<()> {
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    unlimited_icmp(&bed, "node-a")?;
    bed.topology
        .node("node-a")?
        .netns
        .ip("route add unreachable 10.20.1.0/24\nroute add unreachable fd00:20:1::/64\n")?;
    let web = bed.pod("web-b")?;
    for (family, target) in Family::BOTH.into_iter().zip(["10.20.1.7:7001", "[fd00:20:1::7]:7001"]) {
        let later = Server::echo(web, web.at(family, PORT))?;
        let codes = [libc::EHOSTUNREACH, libc::ENETUNREACH];
        recorded(&bed, target.parse()?, later.address(), "unreachable", &codes)?;
    }
    Ok(())
}

/// The client gives up before the destination has answered: one line, which says that the connection was not made.
#[test]
fn a_connect_that_the_client_gave_up_has_one_line() -> Result<()> {
    const SILENT: u16 = 7002;
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &[])?;
        let web = bed.pod("web-b")?;
        let _silence = Silence::at(web, SILENT)?;
        for family in Family::BOTH {
            let later = Server::echo(web, web.at(family, PORT))?;
            let target = web.at(family, SILENT);
            let pending = Pending::start(bed.pod("client-a")?, OWN, target)?;
            wait::pass(Duration::from_millis(200));
            drop(pending);
            let line = only_line(&bed, target, later.address()).with_context(|| format!("{path:?}"))?;
            let reasons = ["client_reset", "connect_timed_out"];
            ensure!(reasons.contains(&line.field("reason")), "{path:?}: {}", line.line);
            ensure!(line.sent == 0 && line.received == 0, "{}", line.line);
        }
    }
    Ok(())
}

/// The duration of a connection begins with its SYN.
#[test]
fn the_duration_begins_at_the_syn() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(700);
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &[])?;
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let servers: Vec<Server> =
            Family::BOTH.into_iter().map(|family| Server::echo(web, web.at(family, PORT))).collect::<Result<_>>()?;
        for server in &servers {
            let target = server.address();
            let attempt = answered_after(&bed, "web-b", DELAY, || Way::Blocking.attempt(client, target))??;
            ensure!(attempt.end == End::Exchanged && attempt.took >= DELAY / 2, "{path:?}: {attempt:?}");
            let line = bed
                .daemon("node-a")?
                .wait_access("its line", |line| line.direction == Direction::Outbound && line.asked() == target)?;
            ensure!(line.field("reason") == "complete" && line.sent == 5 && line.received == 5, "{}", line.line);
            ensure!(duration(&line)? >= attempt.took.saturating_sub(DELAY / 10), "{attempt:?}: {}", line.line);
        }
    }
    Ok(())
}

/// Bytes in log and metrics are those that the applications counted, through half-closes.
#[test]
fn bytes_are_those_that_the_applications_counted() -> Result<()> {
    const UP: usize = 300_000;
    const DOWN: usize = 70_000;
    for (connect, path) in Connect::BOTH.into_iter().flat_map(|connect| Path::BOTH.map(|path| (connect, path))) {
        let bed = enrolled(connect, path, &[])?;
        let web = bed.pod("web-b")?;
        let daemon = bed.daemon("node-a")?;
        for family in Family::BOTH {
            let server = Server::start(web, web.at(family, PORT), |mut stream, _| {
                let received = read_all(&mut stream)?.len();
                let answer = vec![b'x'; if received == UP { DOWN } else { 0 }];
                stream.write_all(&answer)
            })?;
            let count = || -> Result<[f64; 4]> {
                let metrics = daemon.metrics()?;
                let labels = [("reporter", "source"), ("source_workload", "client-a")];
                Ok([OPENED, ENDED, RECEIVED, SENT].map(|name| metrics.sum(name, &labels)))
            };
            let before = count()?;
            let mut stream: TcpStream = bed.pod("client-a")?.connect(server.address())?;
            let own = stream.local_addr()?;
            stream.write_all(&vec![b'y'; UP])?;
            finish_sending(&stream)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer.len() == DOWN, "--connect {connect}, {path:?}: {} bytes came", answer.len());
            drop(stream);
            let line = daemon.wait_connection(Direction::Outbound, own, server.address())?;
            let bytes = (line.sent, line.received);
            ensure!(line.field("reason") == "complete", "{}", line.line);
            ensure!(
                bytes == (u64::try_from(UP)?, u64::try_from(DOWN)?),
                "--connect {connect}, {path:?}: {}",
                line.line
            );
            let after = count()?;
            let more: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            ensure!(more == [1.0, 1.0, UP as f64, DOWN as f64], "--connect {connect}, {path:?}: counted {more:?}");
        }
    }
    Ok(())
}
