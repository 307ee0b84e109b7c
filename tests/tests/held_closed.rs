//! Whatever happens while connects are held, no packet of them leaves the pod past the daemon, and policy decides about each
//! of them.
//!
//! The clients connect from ports that neither the kernel nor the daemon chooses ([`OWN_PORTS`]), so a packet from such a port
//! on the wire between the nodes, or such a port at a server, is a connection past the daemon.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::attempt::{End, Pending, Way};
use ztunnel_tests::capture::{Capture, Recording};
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::modes::{Connect, Path, Silence, connecting, enrolled, nobody_connects, tcp_counter};
use ztunnel_tests::policy::authorization;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;
use ztunnel_tests::watch::{OWN_PORTS, no_bypass};

const PORT: u16 = 7000;
const CLOSED: u16 = 7001;
/// The port from which a [`Pending`] connects.
const OWN: u16 = OWN_PORTS.start;
/// The kernel sends a SYN again after a second, and later in growing intervals: long enough for several more.
const SEVERAL_SYNS: Duration = Duration::from_secs(30);

fn echoes(bed: &Testbed) -> Result<Vec<Server>> {
    let web = bed.pod("web-b")?;
    Family::BOTH.into_iter().map(|family| Server::echo(web, web.at(family, PORT))).collect()
}

/// Connects of `client-a` in both families to the silent port of `web-b`, from this port.
fn pending(bed: &Testbed, port: u16) -> Result<Vec<Pending>> {
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    Family::BOTH.into_iter().map(|family| Pending::start(client, port, web.at(family, PORT))).collect()
}

/// Waits until the daemon connects to the destination in both families.
fn daemon_connects(bed: &Testbed, path: Path) -> Result<()> {
    let near = bed.pod(if path == Path::Outside { "client-a" } else { "web-b" })?;
    let clients: Vec<String> = OWN_PORTS.map(|port| format!(":{port} ")).collect();
    wait::until_true("the daemon to connect to the destination", wait::PATIENCE, || {
        let lines = connecting(near)?;
        Ok(lines.iter().filter(|line| !clients.iter().any(|client| line.contains(client))).count() >= 2)
    })
}

/// Waits until the kernel of `client-a` has sent SYNs again, of all its connects together.
fn sent_again(bed: &Testbed, more: u64) -> Result<()> {
    let client = bed.pod("client-a")?;
    let before = tcp_counter(client, "TCPSynRetrans")?;
    wait::until_true("SYNs to be sent again", wait::PATIENCE, || {
        Ok(tcp_counter(client, "TCPSynRetrans")? >= before + more)
    })
}

/// No packet from a client's own port was on the wire.
fn none_on_the_wire(recording: &Recording) -> Result<()> {
    let filter = format!("tcp and src portrange {}-{}", OWN_PORTS.start, OWN_PORTS.end - 1);
    let packets = recording.packets(&filter)?;
    ensure!(packets == 0, "{packets} packets left the node past the daemon");
    Ok(())
}

/// The pending connects succeed, and the servers see the daemon's connections.
fn all_served(bed: &Testbed, pending: Vec<Pending>, servers: &[Server]) -> Result<()> {
    for pending in pending {
        let own = pending.own();
        pending.exchanges(SEVERAL_SYNS).with_context(|| {
            let tail = bed.daemon("node-a").map(Daemon::tail).unwrap_or_default();
            format!("{own}\n{tail}")
        })?;
    }
    no_bypass(servers)
}

#[test]
fn killed_while_connects_are_held_the_next_daemon_serves_them() -> Result<()> {
    for path in Path::BOTH {
        let mut bed = enrolled(Connect::Held, path, &[])?;
        let servers = echoes(&bed)?;
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let capture = Capture::start(&bed.topology, "node-a", "node-b", "killed")?;
        let pending = pending(&bed, OWN)?;
        daemon_connects(&bed, path)?;
        bed.daemon_mut("node-a")?.kill9()?;
        // Whatever gets to the destination from now on is answered.
        silence.end()?;
        sent_again(&bed, 2)?;
        for pending in &pending {
            pending.is_unanswered().with_context(|| format!("{path:?}, without a daemon"))?;
        }
        none_on_the_wire(&capture.finish()?)?;
        let accepted: usize = servers.iter().map(Server::accepted).sum();
        ensure!(accepted == 0 || path == Path::Tunnel, "{accepted} connections without a daemon");

        let capture = Capture::start(&bed.topology, "node-a", "node-b", "served")?;
        bed.daemon_mut("node-a")?.restart()?;
        all_served(&bed, pending, &servers).with_context(|| format!("{path:?}"))?;
        none_on_the_wire(&capture.finish()?)?;
    }
    Ok(())
}

/// Stopped, not killed: the BPF program goes on holding, and nobody reads what it tells.
#[test]
fn stopped_while_connects_are_held_it_serves_them_when_it_goes_on() -> Result<()> {
    for path in Path::BOTH {
        let bed = enrolled(Connect::Held, path, &[])?;
        let servers = echoes(&bed)?;
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let capture = Capture::start(&bed.topology, "node-a", "node-b", "stopped")?;
        let before = pending(&bed, OWN)?;
        daemon_connects(&bed, path)?;
        bed.daemon("node-a")?.signal(Signal::SIGSTOP)?;
        let meanwhile = pending(&bed, OWN + 1)?;
        silence.end()?;
        sent_again(&bed, 4)?;
        for pending in before.iter().chain(&meanwhile) {
            pending.is_unanswered().with_context(|| format!("{path:?}, while the daemon is stopped"))?;
        }
        bed.daemon("node-a")?.signal(Signal::SIGCONT)?;
        all_served(&bed, before.into_iter().chain(meanwhile).collect(), &servers)
            .with_context(|| format!("{path:?}"))?;
        none_on_the_wire(&capture.finish()?)?;
    }
    Ok(())
}

/// More connects than the ring buffer has records, while nobody reads it: what finds no room is held as well.
#[test]
fn held_while_the_ring_buffer_is_full() -> Result<()> {
    const CONNECTS: u16 = 1_500;
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let servers = echoes(&bed)?;
    let client = bed.pod("client-a")?;
    bed.daemon("node-a")?.signal(Signal::SIGSTOP)?;
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "full")?;
    let mut all = Vec::new();
    for port in OWN..OWN + CONNECTS {
        for server in &servers {
            all.push(Pending::start(client, port, server.address())?);
        }
    }
    // Every SYN comes at least twice.
    sent_again(&bed, all.len() as u64)?;
    for pending in &all {
        pending.is_unanswered()?;
    }
    ensure!(servers.iter().all(|server| server.accepted() == 0), "connections without a daemon");
    none_on_the_wire(&capture.finish()?)?;
    // All but a few are given up, and what the ring buffer has of them is too old to be served.
    let rest = all.split_off(all.len() - 20);
    drop(all);
    wait::pass(Duration::from_secs(1));
    bed.daemon("node-a")?.signal(Signal::SIGCONT)?;
    all_served(&bed, rest, &servers)
}

#[test]
fn another_daemon_takes_over_while_connects_are_held() -> Result<()> {
    for path in Path::BOTH {
        let mut bed = enrolled(Connect::Held, path, &[])?;
        let servers = echoes(&bed)?;
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let capture = Capture::start(&bed.topology, "node-a", "node-b", "handover")?;
        let pending = pending(&bed, OWN)?;
        daemon_connects(&bed, path)?;
        let mut former = bed.daemon_mut("node-a")?.succeed()?;
        for pending in &pending {
            pending.is_unanswered()?;
        }
        silence.end()?;
        all_served(&bed, pending, &servers).with_context(|| format!("{path:?}: {}", former.tail()))?;
        none_on_the_wire(&capture.finish()?)?;
        former.exited(2 * SEVERAL_SYNS)?;
        // The new daemon refuses at once as well.
        for family in Family::BOTH {
            let target = bed.pod("web-b")?.at(family, CLOSED);
            let attempt = Way::Blocking.attempt(bed.pod("client-a")?, target)?;
            ensure!(attempt.end == End::Failed(libc::ECONNREFUSED), "{attempt:?}");
        }
    }
    Ok(())
}

/// The pod leaves the mesh and comes back. What waits is answered in time: it fails, or it connects as the pod's membership
/// allows at that moment.
#[test]
fn the_pod_leaves_the_mesh_while_its_connects_are_held() -> Result<()> {
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let servers = echoes(&bed)?;
    let silence = Silence::at(bed.pod("web-b")?, PORT)?;
    let left = pending(&bed, OWN)?;
    daemon_connects(&bed, Path::Outside)?;
    bed.release()?;
    silence.end()?;
    for pending in left {
        let (own, answer) = (pending.own(), pending.answered(SEVERAL_SYNS)?);
        if answer.is_ok() {
            pending.exchanges(wait::PATIENCE).with_context(|| format!("{own}"))?;
        }
    }
    // The pod is as without the mesh now.
    for server in &servers {
        proof::direct(server, || bed.pod("client-a")?.connect(server.address()))?;
    }
    for family in Family::BOTH {
        let attempt = Way::Blocking.attempt(bed.pod("client-a")?, bed.pod("web-b")?.at(family, CLOSED))?;
        ensure!(attempt.end == End::Failed(libc::ECONNREFUSED), "{attempt:?}");
    }
    nobody_connects(&bed, &["client-a"], wait::PATIENCE)?;

    // It comes back while connects wait, without and with the daemon, and leaves and comes back while they are held.
    let silence = Silence::at(bed.pod("web-b")?, PORT)?;
    let outside = pending(&bed, OWN + 1)?;
    bed.enrol()?;
    for pending in outside {
        let answer = pending.answered(wait::PATIENCE)?;
        ensure!(answer.is_err(), "a connect from before the enrolment: {answer:?}");
    }
    let seen = servers.iter().map(Server::accepted).collect::<Vec<_>>();
    let held = pending(&bed, OWN + 2)?;
    daemon_connects(&bed, Path::Outside)?;
    bed.release()?;
    bed.enrol()?;
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "back")?;
    silence.end()?;
    for pending in held {
        let _ended = pending.answered(SEVERAL_SYNS)?;
    }
    none_on_the_wire(&capture.finish()?)?;
    for (server, seen) in servers.iter().zip(seen) {
        let peers = server.peers().split_off(seen);
        ensure!(peers.iter().all(|peer| !OWN_PORTS.contains(&peer.port())), "past the daemon: {peers:?}");
        proof::outbound(&bed, "client-a", server, Pod::connect)?;
    }
    Ok(())
}

/// A policy at the destination denies what was under way, and what comes later. The refusal is a reset of the connection, or
/// of the connect.
#[test]
fn policy_changes_while_connects_are_held() -> Result<()> {
    for connect in Connect::BOTH {
        let bed = enrolled(connect, Path::Tunnel, &[])?;
        let servers = echoes(&bed)?;
        let silence = Silence::at(bed.pod("web-b")?, PORT)?;
        let pending = pending(&bed, OWN)?;
        daemon_connects(&bed, Path::Tunnel)?;
        let deny = "{selector: {matchLabels: {app: web-b}}, action: DENY, rules: [{}]}";
        bed.change(|mesh| mesh.policy("deny", &authorization("deny", deny)))?;
        silence.end()?;
        for pending in pending {
            let own = pending.own();
            let exchanged = pending.exchanges(SEVERAL_SYNS);
            ensure!(exchanged.is_err(), "--connect {connect}: {own} was let in");
        }
        for server in &servers {
            let later = Way::Blocking.attempt(bed.pod("client-a")?, server.address())?;
            ensure!(later.end != End::Exchanged && later.took < wait::PATIENCE / 3, "{later:?}");
            let line = bed.daemon("node-a")?.wait_access("the line about it", |line| {
                line.direction == Direction::Outbound
                    && line.asked() == server.address()
                    && line.field("reason") == "denied"
            })?;
            ensure!(line.sent == 0 && line.received == 0, "{}", line.line);
        }
        let accepted: usize = servers.iter().map(Server::accepted).sum();
        ensure!(accepted == 0, "--connect {connect}: {accepted} connections reached the application");
        bed.change(|mesh| mesh.remove_policy("deny"))?;
        for server in &servers {
            let attempt = Way::Blocking.attempt(bed.pod("client-a")?, server.address())?;
            ensure!(attempt.end == End::Exchanged, "--connect {connect}: {attempt:?}");
        }
    }
    Ok(())
}

/// One pod with the most connects that it may have pending takes nothing from the other pods of its node.
#[test]
fn a_pod_with_thousands_of_pending_connects_holds_no_other_pod_up() -> Result<()> {
    const CONNECTS: u16 = 3_000;
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let servers = echoes(&bed)?;
    let web = bed.pod("web-b")?;
    const SILENT: u16 = 7002;
    let _silence = Silence::at(web, SILENT)?;
    let mut all = Vec::new();
    for port in OWN..OWN + CONNECTS {
        all.push(Pending::start(bed.pod("client-a")?, port, web.at(Family::V4, SILENT))?);
    }
    for server in &servers {
        proof::outbound(&bed, "web-a", server, Pod::connect)?;
    }
    let attempt = Way::Blocking.attempt(bed.pod("web-a")?, web.at(Family::V6, CLOSED))?;
    ensure!(attempt.end == End::Failed(libc::ECONNREFUSED), "{attempt:?}");
    // Beyond its budget the pod's own connects are refused, and the log says so.
    let refused = all.iter().filter(|pending| matches!(pending.answer(), Ok(Some(Err(_))))).count();
    println!("{refused} of {CONNECTS} were refused");
    if refused > 0 {
        let lines = bed.daemon("node-a")?.lines_with(&["too_many"])?;
        ensure!(!lines.is_empty(), "{refused} were refused, and no line says so");
    }
    let connected = all.iter().filter(|pending| matches!(pending.answer(), Ok(Some(Ok(()))))).count();
    ensure!(connected == 0, "{connected} connects to a silent port succeeded");
    Ok(())
}

/// A pod that is refused at a restart of the daemon is closed, and so are its held connects.
#[test]
fn a_pod_that_is_closed_while_its_connects_are_held_stays_closed() -> Result<()> {
    let mut bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let servers = echoes(&bed)?;
    let silence = Silence::at(bed.pod("web-b")?, PORT)?;
    let pending = pending(&bed, OWN)?;
    daemon_connects(&bed, Path::Outside)?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).addresses(&["10.10.1.99"]))?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.shut("client-a")?;
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "closed")?;
    silence.end()?;
    let client = bed.pod("client-a")?;
    let before = tcp_counter(client, "TCPSynRetrans")?;
    wait::until_true("the connects to fail, or their SYNs to be sent again", wait::PATIENCE, || {
        let mut failed = 0;
        for pending in &pending {
            let answer = pending.answer()?;
            ensure!(answer != Some(Ok(())), "a closed pod connected");
            failed += u64::from(answer.is_some());
        }
        Ok(failed + tcp_counter(client, "TCPSynRetrans")? - before >= 2)
    })?;
    none_on_the_wire(&capture.finish()?)?;
    ensure!(servers.iter().all(|server| server.accepted() == 0), "a closed pod connected");
    Ok(())
}
