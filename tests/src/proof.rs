//! Proof that a connection went through the daemon, or that it did not: what the client, the server, BPF's counters and
//! the daemon's log say must agree.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};

use crate::apps::client::exchange;
use crate::apps::server::Server;
use crate::daemon::Daemon;
use crate::logs::{Access, Direction, canonical};
use crate::testbed::Testbed;
use crate::topology::Pod;

/// What is exchanged.
const MESSAGE: &[u8] = b"hello";

/// Connects from an enrolled pod as `connect` does, exchanges, closes, and proves that its daemon carried it. The server
/// is an echo in an unlabelled pod, so what arrives there is what left the client's pod.
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
    let before = count()?;
    let mut stream = connect(pod, target)?;
    ensure!(canonical(stream.peer_addr()?) == target, "asked for {target}, getpeername says {}", stream.peer_addr()?);
    let own = canonical(stream.local_addr()?);
    ensure!(target.is_ipv4() == own.is_ipv4() && [pod.v4.into(), pod.v6.into()].contains(&own.ip()), "own is {own}");
    exchange(&mut stream, MESSAGE)?;
    drop(stream);
    let last = canonical(*server.peers().last().context("nobody came to the server")?);
    ensure!(last.ip() == own.ip(), "the server saw {last}, not an address of {client}");
    ensure!(last != own, "the server saw the client's own socket {own}: it was not captured");
    let line = daemon.wait_connection(Direction::Outbound, own, target)?;
    ensure!(line.error.is_none(), "{}", line.line);
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
    let before = count()?;
    let mut stream = bed.pod(client)?.connect(target)?;
    let own = stream.local_addr()?;
    exchange(&mut stream, MESSAGE)?;
    drop(stream);
    let last = canonical(*server.peers().last().context("nobody came to the server")?);
    ensure!(last.ip() == own.ip(), "the server saw {last}, not the client's address {own}");
    ensure!(last.port() != own.port(), "the server saw the client's own socket {own}: it was not captured");
    let line = daemon.wait_connection(Direction::Inbound, own, target)?;
    ensure!(line.error.is_none(), "{}", line.line);
    ensure!(line.sent == 5 && line.received == 5, "wrong byte counts: {}", line.line);
    let after = count()?;
    ensure!(after.0 > before.0 && after.1 > before.1, "verdicts (inbound, delivered): {before:?} then {after:?}");
    Ok(line)
}

/// Connects as `connect` does to an echo, exchanges, closes, and proves that nobody was in between: the server saw the
/// client's very socket.
///
/// # Errors
/// When somebody was, or when it fails.
pub fn direct(server: &Server, connect: impl FnOnce() -> Result<TcpStream>) -> Result<SocketAddr> {
    let mut stream = connect()?;
    let own = canonical(stream.local_addr()?);
    exchange(&mut stream, MESSAGE)?;
    let last = canonical(*server.peers().last().context("nobody came to the server")?);
    ensure!(last == own, "the server saw {last} instead of {own}: somebody was in between");
    Ok(own)
}

/// Proves that a node's daemon steered at least so many connections of a pod.
///
/// # Errors
/// When it steered fewer.
pub fn steered(bed: &Testbed, pod: &str, direction: Direction, least: u64) -> Result<()> {
    let name = if direction == Direction::Outbound { "outbound" } else { "inbound" };
    let count = bed.daemon(&bed.pod(pod)?.node)?.verdict(pod, name)?;
    ensure!(count >= least, "only {count} {name} connections of {pod} were captured, not {least}");
    Ok(())
}

/// Proves that a daemon has no line about a connection, now that it has written a later one.
///
/// # Errors
/// When it has.
pub fn no_line(daemon: &Daemon, own: SocketAddr) -> Result<()> {
    let lines = daemon.access()?;
    let found = lines.iter().find(|line| line.src == own);
    ensure!(found.is_none(), "{} logged a connection that it should not know: {:?}", daemon.node, found);
    Ok(())
}
