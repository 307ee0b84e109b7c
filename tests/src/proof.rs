//! Proof that a connection went through the daemon, or that it did not: the client, the server, BPF's counters and the
//! daemon's log must agree.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;

use crate::apps::client::exchange;
use crate::apps::server::Server;
use crate::ca;
use crate::daemon::Daemon;
use crate::logs::{Access, Direction, canonical};
use crate::process::Launch;
use crate::testbed::Testbed;
use crate::topology::Pod;
use crate::wait;

/// The exchanged bytes.
const MESSAGE: &[u8] = b"hello";

/// Connects from an enrolled pod with `connect`, exchanges, closes, and proves that its daemon carried the connection.
/// The server is an echo in an unlabelled pod, so the bytes that arrive there are those that left the client's pod.
///
/// # Errors
/// Says which witness disagrees.
pub fn outbound(
    bed: &Testbed,
    client: &str,
    server: &Server,
    connect: impl Fn(&Pod, SocketAddr) -> Result<TcpStream>,
) -> Result<Access> {
    let (pod, target) = (bed.pod(client)?, canonical(server.address()));
    let daemon = bed.daemon(&pod.node)?;
    let count = || Ok::<_, anyhow::Error>((daemon.verdict(client, "captured")?, daemon.verdict(client, "outbound")?));
    let (before, seen) = (count()?, daemon.access()?.len());
    let mut stream = connect(pod, target)?;
    ensure!(canonical(stream.peer_addr()?) == target, "asked for {target}, getpeername says {}", stream.peer_addr()?);
    let own = canonical(stream.local_addr()?);
    ensure!(target.is_ipv4() == own.is_ipv4() && [pod.v4.into(), pod.v6.into()].contains(&own.ip()), "own is {own}");
    exchange(&mut stream, MESSAGE)?;
    drop(stream);
    let last = canonical(*server.peers().last().context("the server accepted no connection")?);
    ensure!(last.ip() == own.ip(), "the server saw {last}, not an address of {client}");
    ensure!(last != own, "the server saw the client's own socket {own}: it was not captured");
    let line = daemon.wait_connection_after(seen, Direction::Outbound, own, target)?;
    ensure!(line.error.is_none() && !line.is_tunnelled(), "{}", line.line);
    ensure!(line.sent >= 5 && line.received == line.sent, "wrong byte counts: {}", line.line);
    let after = count()?;
    ensure!(after.0 > before.0 && after.1 > before.1, "verdicts (captured, outbound): {before:?} then {after:?}");
    Ok(line)
}

/// Connects from an unlabelled pod to an echo in an enrolled one, exchanges, closes, and proves that the daemon of the
/// server's pod carried it and that the server saw the client's address.
///
/// # Errors
/// Says which witness disagrees.
pub fn inbound(bed: &Testbed, client: &str, pod: &str, server: &Server, target: SocketAddr) -> Result<Access> {
    let daemon = bed.daemon(&bed.pod(pod)?.node)?;
    let count = || Ok::<_, anyhow::Error>((daemon.verdict(pod, "inbound")?, daemon.verdict(pod, "delivered")?));
    let (before, seen) = (count()?, daemon.access()?.len());
    let mut stream = bed.pod(client)?.connect(target)?;
    let own = stream.local_addr()?;
    exchange(&mut stream, MESSAGE)?;
    drop(stream);
    let last = canonical(*server.peers().last().context("the server accepted no connection")?);
    ensure!(last.ip() == own.ip(), "the server saw {last}, not the client's address {own}");
    ensure!(last.port() != own.port(), "the server saw the client's own socket {own}: it was not captured");
    let line = daemon.wait_connection_after(seen, Direction::Inbound, own, target)?;
    ensure!(line.error.is_none() && !line.is_tunnelled(), "{}", line.line);
    ensure!(line.sent == 5 && line.received == 5, "wrong byte counts: {}", line.line);
    let after = count()?;
    ensure!(after.0 > before.0 && after.1 > before.1, "verdicts (inbound, delivered): {before:?} then {after:?}");
    Ok(line)
}

/// Connects from an enrolled pod with `connect` to an echo in another enrolled pod, exchanges, closes, and proves that
/// the connection went through HBONE: both daemons know both identities, and the server saw the client's address.
/// Returns the lines of the client's and of the server's daemon.
///
/// # Errors
/// Says which witness disagrees.
pub fn tunnelled(
    bed: &Testbed,
    (client, pod): (&str, &str),
    server: &Server,
    connect: impl Fn(&Pod, SocketAddr) -> Result<TcpStream>,
) -> Result<(Access, Access)> {
    let (from, to) = (bed.pod(client)?, bed.pod(pod)?);
    let (near, far) = (bed.daemon(&from.node)?, bed.daemon(&to.node)?);
    let (target, lines_before) = (canonical(server.address()), far.access()?.len());
    let seen = near.access()?.len();
    let delivered = far.verdict(pod, "delivered")?;
    let mut stream = connect(from, target)?;
    let own = canonical(stream.local_addr()?);
    exchange(&mut stream, MESSAGE)?;
    drop(stream);
    let last = canonical(*server.peers().last().context("the server accepted no connection")?);
    ensure!(last.ip() == own.ip() && last != own, "the server saw {last}, the client is {own}");
    let out = near.wait_access_after(seen, &format!("the outbound line of {own}"), |line| {
        line.direction == Direction::Outbound && line.src == own
    })?;
    wait::until_true(&format!("an inbound line about {target}"), wait::PATIENCE, || {
        Ok(far.access()?.iter().skip(lines_before).any(|line| is_inbound(line, own, target)))
    })
    .with_context(|| far.tail())?;
    let inbound = far.access()?.into_iter().skip(lines_before).find(|line| is_inbound(line, own, target));
    let inbound = inbound.context("the line is gone")?;
    for line in [&out, &inbound] {
        ensure!(line.error.is_none(), "{}", line.line);
        ensure!(line.is_tunnelled() && line.asked() == target, "not through a tunnel to {target}: {}", line.line);
        ensure!(line.sent == 5 && line.received == 5, "wrong byte counts: {}", line.line);
        let identities = (line.field("src.identity"), line.field("dst.identity"));
        ensure!(identities == (ca::identity(client).as_str(), ca::identity(pod).as_str()), "{}", line.line);
    }
    ensure!(out.dst == SocketAddr::new(target.ip(), HBONE_PORT), "{}", out.line);
    let (delivered_now, tunnels) = (far.verdict(pod, "delivered")?, far.verdict(pod, "hbone")?);
    ensure!(delivered_now > delivered && tunnels > 0, "delivered {delivered_now}, tunnels {tunnels}");
    Ok((out, inbound))
}

fn is_inbound(line: &Access, own: SocketAddr, target: SocketAddr) -> bool {
    line.direction == Direction::Inbound && line.asked() == target && line.src.ip() == own.ip()
}

/// Connects with `connect` to an echo, exchanges, closes, and proves that nothing was in between: the server saw the
/// client's own socket address.
///
/// # Errors
/// When something was in between, or when a step fails.
pub fn direct(server: &Server, connect: impl FnOnce() -> Result<TcpStream>) -> Result<SocketAddr> {
    let mut stream = connect()?;
    let own = canonical(stream.local_addr()?);
    exchange(&mut stream, MESSAGE)?;
    let last = canonical(*server.peers().last().context("the server accepted no connection")?);
    ensure!(last == own, "the server saw the client {last} instead of {own}: the connection was not direct");
    Ok(own)
}

/// Proves that a node's daemon steered at least `least` connections of a pod.
///
/// # Errors
/// When it steered fewer.
pub fn steered(bed: &Testbed, pod: &str, direction: Direction, least: u64) -> Result<()> {
    let name = if direction == Direction::Outbound { "outbound" } else { "inbound" };
    let count = bed.daemon(&bed.pod(pod)?.node)?.verdict(pod, name)?;
    ensure!(count >= least, "only {count} {name} connections of {pod} were captured, not {least}");
    Ok(())
}

/// Proves that a node's daemon delivered at least `least` connections to a pod's application, in plaintext or from
/// HBONE.
///
/// # Errors
/// When it delivered fewer.
pub fn delivered(bed: &Testbed, pod: &str, least: u64) -> Result<()> {
    let count = bed.daemon(&bed.pod(pod)?.node)?.verdict(pod, "delivered")?;
    ensure!(count >= least, "only {count} connections were delivered to {pod}, not {least}");
    Ok(())
}

/// Proves that other nodes had HBONE connections to a pod.
///
/// # Errors
/// When there was none.
pub fn had_tunnels(bed: &Testbed, pod: &str) -> Result<()> {
    let count = bed.daemon(&bed.pod(pod)?.node)?.verdict(pod, "hbone")?;
    ensure!(count > 0, "{pod} never had a tunnel");
    Ok(())
}

/// The number of a pod's present TCP connections to HBONE ports of peers.
///
/// # Errors
/// When `ss` fails.
pub fn tunnels(pod: &Pod) -> Result<usize> {
    let to_tunnels = format!("dport = :{HBONE_PORT}");
    let done = Launch::new("ss").args(["-Htn", "state", "established", &to_tunnels]).inside(&pod.netns).finish()?;
    ensure!(done.success, "{}", done.stderr);
    Ok(done.stdout.lines().count())
}

/// Proves that a daemon has no line about a connection. The daemon has already written a later line.
///
/// # Errors
/// When it has a line.
pub fn no_line(daemon: &Daemon, own: SocketAddr) -> Result<()> {
    let lines = daemon.access()?;
    let found = lines.iter().find(|line| line.src == own);
    ensure!(found.is_none(), "{} logged a connection that it should not know: {:?}", daemon.node, found);
    Ok(())
}
