//! Connects that wait: a held connect of a captured pod waits as long as it would without the mesh, however the destination and
//! the client behave meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::attempt::{AT_ONCE, End, Pending, Way};
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::modes::{
    Connect, Path, Silence, answered_after, at_once, compared, connecting, enrolled, nobody_connects, tcp_counter,
    unlabelled,
};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;
use ztunnel_tests::watch::{OWN_PORTS, no_bypass};

const PORT: u16 = 7000;
/// A port at which nobody listens.
const CLOSED: u16 = 7001;
/// The first port from which a [`Pending`] connects.
const OWN: u16 = OWN_PORTS.start;

/// The addresses of `web-b` in both families.
fn web(bed: &Testbed, port: u16) -> Result<[SocketAddr; 2]> {
    let web = bed.pod("web-b")?;
    Ok(Family::BOTH.map(|family| web.at(family, port)))
}

fn echoes(bed: &Testbed) -> Result<Vec<Server>> {
    let web = bed.pod("web-b")?;
    Family::BOTH.into_iter().map(|family| Server::echo(web, web.at(family, PORT))).collect()
}

/// Silence stays silence: the client's own timeout decides.
#[test]
fn a_silent_destination_is_silent() -> Result<()> {
    for path in Path::BOTH {
        let bed = unlabelled(Connect::Held, path, &[])?;
        // One retransmission: the client's kernel gives up after 3 s.
        bed.pod("client-a")?.netns.sysctl("ipv4/tcp_syn_retries", "1")?;
        let _silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let targets = web(&bed, PORT)?;
        let ways = [Way::Blocking, Way::NonBlocking, Way::FromDevice, Way::Multipath];
        let attempts = compared(&bed, |pod| at_once(pod, &ways, &targets)).with_context(|| format!("{path:?}"))?;
        let other: Vec<_> = attempts.iter().filter(|attempt| attempt.end != End::Failed(libc::ETIMEDOUT)).collect();
        ensure!(other.is_empty(), "{path:?}: {other:?}");
        let early: Vec<_> = attempts.iter().filter(|attempt| attempt.took < Duration::from_millis(2_500)).collect();
        ensure!(early.is_empty(), "{path:?}: ended before the client's own timeout: {early:?}");
        nobody_connects(&bed, &["client-a", "web-b"], wait::PATIENCE).with_context(|| format!("{path:?}"))?;
    }
    Ok(())
}

/// The daemon's own timeout is over, and the client still waits: a retransmission of its SYN is a new chance.
#[test]
fn a_destination_that_is_silent_for_longer_than_the_daemon_waits() -> Result<()> {
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &["--connect-timeout", "2s"])?;
        let (servers, targets) = (echoes(&bed)?, web(&bed, PORT)?);
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let client = bed.pod("client-a")?;
        let pending = targets.iter().map(|target| Pending::start(client, OWN, *target)).collect::<Result<Vec<_>>>()?;
        wait::pass(Duration::from_secs(4));
        for pending in &pending {
            pending.is_unanswered().with_context(|| format!("{path:?}"))?;
        }
        silence.end()?;
        for pending in pending {
            pending.exchanges(wait::PATIENCE).with_context(|| format!("{path:?}"))?;
        }
        no_bypass(&servers)?;
    }
    Ok(())
}

/// A client that gives up takes its connection to the destination with it.
#[test]
fn nothing_is_left_of_a_connect_that_the_client_gave_up() -> Result<()> {
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &[])?;
        let (servers, targets) = (echoes(&bed)?, web(&bed, PORT)?);
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        // The pod from whose namespace the daemon of the destination's side connects.
        let near = if path == Path::Outside { "client-a" } else { "web-b" };
        for target in targets {
            let pending = Pending::start(bed.pod("client-a")?, OWN, target)?;
            let own = format!(":{OWN} ");
            wait::until_true("the daemon to connect to the destination", wait::PATIENCE, || {
                Ok(connecting(bed.pod(near)?)?.iter().any(|line| !line.contains(&own)))
            })?;
            pending.is_unanswered()?;
            drop(pending);
            let begin = Instant::now();
            nobody_connects(&bed, &["client-a", "web-b"], wait::PATIENCE)?;
            println!("{path:?}, {target}: nothing was left after {:?}", begin.elapsed());
        }
        silence.end()?;
        for node in path.nodes() {
            let what = "no connection to be left";
            bed.daemon(node)?.wait_dump(what, wait::PATIENCE, |dump| dump.pods().all(|pod| pod.connections() == 0))?;
        }
        let accepted: usize = servers.iter().map(Server::accepted).sum();
        ensure!(accepted == 0, "{path:?}: {accepted} connections were made for clients that had given up");
    }
    Ok(())
}

/// The destination answers the first packet after 700 ms; nothing is lost.
#[test]
fn a_slow_destination_is_waited_for() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(700);
    for path in Path::BOTH {
        let bed = unlabelled(Connect::Held, path, &[])?;
        let servers = echoes(&bed)?;
        let targets = web(&bed, PORT)?;
        let slowly = |pod: &Pod| {
            answered_after(&bed, "web-b", DELAY, || at_once(pod, &[Way::Blocking, Way::NonBlocking], &targets))?
        };
        let attempts = compared(&bed, slowly).with_context(|| format!("{path:?}"))?;
        for attempt in &attempts {
            ensure!(attempt.end == End::Exchanged && attempt.took >= DELAY / 2, "{path:?}: {attempt:?}");
        }
        for server in &servers {
            ensure!(server.accepted() == 4, "{path:?}: the server saw {:?}", server.peers());
        }
    }
    Ok(())
}

/// The SYN is sent again while the first one is held: still one connection.
#[test]
fn a_retransmitted_syn_makes_one_connection() -> Result<()> {
    for path in Path::BOTH {
        let bed = unlabelled(Connect::Held, path, &[])?;
        let (servers, targets) = (echoes(&bed)?, web(&bed, PORT)?);
        let retransmitted = || -> Result<Vec<Duration>> {
            let client = bed.pod("client-a")?;
            let before = tcp_counter(client, "TCPSynRetrans")?;
            let silence = Silence::at(bed.pod("web-b")?, PORT)?;
            let pending = targets.iter().map(|target| Pending::start(client, OWN, *target));
            let pending = pending.collect::<Result<Vec<_>>>()?;
            wait::pass(Duration::from_millis(1_500));
            for pending in &pending {
                pending.is_unanswered()?;
            }
            silence.end()?;
            let took = pending.into_iter().map(|pending| {
                pending.answered(wait::PATIENCE)?.map_err(|code| anyhow::anyhow!("error {code}"))?;
                let took = pending.age();
                pending.exchanges(wait::PATIENCE)?;
                Ok(took)
            });
            let took = took.collect::<Result<Vec<_>>>()?;
            ensure!(tcp_counter(client, "TCPSynRetrans")? >= before + 2, "no SYN was sent again");
            Ok(took)
        };
        let without = retransmitted().context("without the mesh")?;
        bed.enrol()?;
        let with = retransmitted().with_context(|| format!("{path:?}"))?;
        for (with, without) in with.iter().zip(&without) {
            ensure!(*with <= *without + AT_ONCE, "{path:?}: {with:?}, without the mesh {without:?}");
        }
        for (server, target) in servers.iter().zip(targets) {
            ensure!(server.accepted() == 2, "{path:?}: the server saw {:?}", server.peers());
            let daemon = bed.daemon("node-a")?;
            daemon.wait_access("the line of the connection", |line| line.asked() == target)?;
            let count = daemon.access()?.iter().filter(|line| line.asked() == target).count();
            ensure!(count == 1, "{path:?}: {count} lines about one connection to {target}");
        }
    }
    Ok(())
}

fn a_thousand_pending(path: Path) -> Result<()> {
    const EACH: u16 = 500;
    let bed = enrolled(Connect::Held, path, &[])?;
    let (servers, targets) = (echoes(&bed)?, web(&bed, PORT)?);
    let client = bed.pod("client-a")?;
    // The sockets and the tunnels that stay with the pod are there from now on.
    for target in [web(&bed, PORT)?, web(&bed, CLOSED)?].concat() {
        Way::Blocking.attempt(client, target)?;
    }
    let holdings = bed.daemon("node-a")?.settled_holdings()?;
    let before: usize = servers.iter().map(Server::accepted).sum();
    let silence = Silence::at(bed.pod("web-b")?, PORT)?;
    let mut pending = Vec::new();
    for port in OWN..OWN + EACH {
        for target in targets {
            pending.push(Pending::start(client, port, target)?);
        }
    }
    for pending in &pending {
        pending.is_unanswered()?;
    }
    // Every second port, with the connects of both families, is given up.
    let (kept, given_up): (Vec<_>, Vec<_>) =
        pending.into_iter().partition(|pending| pending.own().port().is_multiple_of(2));
    drop(given_up);
    silence.end()?;
    let begin = Instant::now();
    let mut streams = Vec::new();
    for pending in kept {
        streams.push(pending.exchanges(2 * wait::PATIENCE).with_context(|| {
            let tail = bed.daemon("node-a").map(Daemon::tail).unwrap_or_default();
            format!("{path:?}, after {} connections\n{tail}", streams.len())
        })?);
    }
    println!("{path:?}: {} connections after {:?}", streams.len(), begin.elapsed());
    for stream in &mut streams {
        exchange(stream, b"still here")?;
    }
    ensure!(streams.len() == usize::from(EACH), "{} connections", streams.len());
    drop(streams);
    no_bypass(&servers)?;
    let accepted = servers.iter().map(Server::accepted).sum::<usize>() - before;
    println!("{path:?}: the servers accepted {accepted} connections");
    nobody_connects(&bed, &["client-a", "web-b"], 2 * wait::PATIENCE)?;
    wait::until_true("the servers' connections to end", wait::PATIENCE, || {
        Ok(servers.iter().all(|server| server.open() == 0))
    })?;
    let daemon = bed.daemon("node-a")?;
    daemon
        .wait_dump("no connection to be left", wait::PATIENCE, |dump| dump.pods().all(|pod| pod.connections() == 0))?;
    let after = daemon.settled_holdings()?;
    // 100 connections share a tunnel, which stays for a while: two descriptors each, and a few for the sockets of the pod.
    let further = if path == Path::Tunnel { 2 * usize::from(2 * EACH) / 100 } else { 0 } + 4;
    ensure!(after.files <= holdings.files + further, "open files: before {holdings:?}, after {after:?}");
    Ok(())
}

#[test]
fn a_thousand_pending_connects_outside_the_mesh_half_of_them_given_up() -> Result<()> {
    a_thousand_pending(Path::Outside)
}

#[test]
fn a_thousand_pending_connects_to_a_pod_of_the_mesh_half_of_them_given_up() -> Result<()> {
    a_thousand_pending(Path::Tunnel)
}
