//! A daemon with HBONE connections stops, or dies and starts again: open connections end regularly, no new ones begin, and
//! other nodes continue without a failure.

use std::io::Read;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ebpf_common::HBONE_PORT;
use nix::sys::signal::Signal;
use ztunnel_tests::apps::client::{exchange, exchange_once};
use ztunnel_tests::apps::server::{Server, finish_sending, is_reset};
use ztunnel_tests::apps::transfer::both_ways;
use ztunnel_tests::hbone::{Caller, peer::HbonePeer};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, SOCKET_DEADLINE, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const NODES: [&str; 2] = ["node-a", "node-b"];

/// 32 MiB in each direction: more than all windows and buffers on the way.
const CHUNKS: usize = 512;

/// The number of connections, so that each worker has some.
const MANY: usize = 16;

/// A server that answers one byte and then transfers many bytes in both directions.
fn transferring(pod: &Pod) -> Result<Server> {
    Server::start(pod, pod.at(Family::V4, PORT), |mut stream, _| {
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        std::io::Write::write_all(&mut stream, &first)?;
        both_ways(&stream, CHUNKS, 1, 2)
    })
}

/// A connection through HBONE that has carried one byte so far.
fn begun(bed: &Testbed, server: &Server) -> Result<TcpStream> {
    let mut stream = bed.pod("client-a")?.connect(server.address())?;
    stream.set_read_timeout(Some(SOCKET_DEADLINE * 3))?;
    exchange(&mut stream, b"x")?;
    Ok(stream)
}

fn transfer(stream: TcpStream) -> JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || both_ways(&stream, CHUNKS, 2, 1))
}

/// One of the nodes drains while connections of both nodes are open. The open connections end regularly, and new ones are accepted
/// until then.
fn drained(node: &str) -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let (server, echo) = (transferring(web)?, Server::echo(web, web.at(Family::V4, PORT + 1))?);
    let (busy, quiet) = (begun(&bed, &server)?, begun(&bed, &server)?);
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    let busy = transfer(busy);
    let daemon = bed.daemon(node)?;
    daemon.signal(Signal::SIGTERM)?;
    wait::until_true("the drain", wait::PATIENCE, || Ok(!daemon.lines_with(&["draining"])?.is_empty()))?;
    let ready = daemon.get("/healthz/ready")?;
    ensure!(ready.status == 503 && ready.body.contains("shutdown"), "{ready:?}");
    for number in 0..20 {
        exchange_once(client, echo.address()).with_context(|| format!("number {number}\n{}", daemon.tail()))?;
    }
    for (what, transfer) in [("the busy one", busy), ("the quiet one", transfer(quiet))] {
        let done = transfer.join().map_err(|_| anyhow!("a client panicked"))?;
        done.with_context(|| format!("{what}; the server says {:?}", server.failures()))?;
    }
    bed.daemon_mut(node)?.exited(Duration::from_secs(5))?;
    ensure!(server.failures().is_empty(), "{:?}", server.failures());
    let cut: Vec<_> =
        bed.daemon(node)?.access()?.into_iter().filter(|line| line.field("reason") == "drained").collect();
    ensure!(cut.is_empty(), "{cut:?}");
    // Without a daemon nothing new begins, and nobody waits for it.
    let (client, seen) = (bed.pod("client-a")?, echo.accepted());
    for number in 0..20 {
        let begin = Instant::now();
        let error =
            exchange_once(client, echo.address()).err().with_context(|| format!("number {number} came through"))?;
        let after = begin.elapsed();
        ensure!(after < Duration::from_secs(2), "number {number} failed only after {after:?}: {error:#}");
    }
    ensure!(echo.accepted() == seen, "{} reached the server", echo.accepted() - seen);
    bed.daemon_mut(node)?.restart()?;
    for pod in bed.topology.pods().iter().filter(|pod| pod.node == node) {
        bed.daemon(node)?.enrolled(&pod.name)?;
    }
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect).context("after the restart")?;
    Ok(())
}

#[test]
fn the_clients_node_drains() -> Result<()> {
    drained("node-a")
}

#[test]
fn the_servers_node_drains() -> Result<()> {
    drained("node-b")
}

/// The end that sends last.
#[derive(Clone, Copy)]
enum Last {
    Client,
    Server,
}

/// The last bytes of the last stream of a draining node arrive. One end has finished long ago, and the other end sends many
/// bytes and closes.
fn last_bytes_arrive(node: &str, last: Last) -> Result<()> {
    const BYTES: usize = 8 << 20;
    let mut bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let send_last = |mut stream: &TcpStream| {
        // The other end has finished.
        ensure!(stream.read(&mut [0; 1])? == 0, "more came");
        std::io::Write::write_all(&mut stream, &vec![b'x'; BYTES])?;
        finish_sending(stream)?;
        Ok(())
    };
    let receive = |mut stream: &TcpStream| {
        finish_sending(stream)?;
        let mut count = 0;
        let mut chunk = vec![0; 65_536];
        loop {
            match stream.read(&mut chunk).with_context(|| format!("after {count} of {BYTES} bytes"))? {
                0 => break,
                more => count += more,
            }
        }
        ensure!(count == BYTES, "{count} of {BYTES} bytes came");
        Ok(())
    };
    let server = Server::start(web, web.at(Family::V4, PORT), move |mut stream, _| {
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        std::io::Write::write_all(&mut stream, &first)?;
        let done = match last {
            Last::Client => receive(&stream),
            Last::Server => send_last(&stream),
        };
        done.map_err(|error| std::io::Error::other(format!("{error:#}")))
    })?;
    let stream = begun(&bed, &server)?;
    let daemon = bed.daemon(node)?;
    daemon.signal(Signal::SIGTERM)?;
    wait::until_true("the drain", wait::PATIENCE, || Ok(!daemon.lines_with(&["draining"])?.is_empty()))?;
    match last {
        Last::Client => send_last(&stream)?,
        Last::Server => receive(&stream)?,
    }
    wait::until_true("the end at the server", wait::PATIENCE, || Ok(server.open() == 0))?;
    ensure!(server.failures().is_empty(), "{:?}", server.failures());
    bed.daemon_mut(node)?.exited(Duration::from_secs(5))
}

#[test]
fn the_last_bytes_arrive_when_the_clients_node_drains() -> Result<()> {
    last_bytes_arrive("node-a", Last::Client)?;
    last_bytes_arrive("node-a", Last::Server)
}

#[test]
fn the_last_bytes_arrive_when_the_servers_node_drains() -> Result<()> {
    last_bytes_arrive("node-b", Last::Client)?;
    last_bytes_arrive("node-b", Last::Server)
}

#[test]
fn what_outlives_the_drain_is_reset() -> Result<()> {
    for node in NODES {
        let mut bed = Testbed::new(TWO_NODES)?;
        for node in NODES {
            bed.start_with(node, |options| options.arguments = ["--drain-timeout", "1"].map(String::from).into())?;
        }
        bed.enrol()?;
        let web = bed.pod("web-b")?;
        let echo = Server::echo(web, web.at(Family::V6, PORT))?;
        let mut stream = bed.pod("client-a")?.connect(echo.address())?;
        exchange(&mut stream, b"hello")?;
        let begin = Instant::now();
        bed.daemon_mut(node)?.terminate()?;
        println!("{node} ended after {:?}", begin.elapsed());
        ensure!(begin.elapsed() >= Duration::from_secs(1), "{node} did not wait: {:?}", begin.elapsed());
        ensure!(begin.elapsed() < Duration::from_secs(4), "{node} ended only after {:?}", begin.elapsed());
        let end = stream.read(&mut [0; 1]);
        ensure!(end.as_ref().is_err_and(is_reset), "{node}: a reset should come, not {end:?}");
        wait::until_true("the end at the server", wait::PATIENCE, || Ok(echo.open() == 0))?;
        ensure!(echo.resets() == 1, "{node}: the server saw {:?}", echo.failures());
        let lines = bed.daemon(node)?.access()?;
        ensure!(lines.iter().any(|line| line.field("reason") == "drained"), "{node}: {lines:?}");
    }
    Ok(())
}

/// Ends a daemon that has no connection to wait for.
fn ends_at_once(bed: &mut Testbed, node: &str) -> Result<()> {
    let begin = Instant::now();
    bed.daemon_mut(node)?.terminate()?;
    println!("{node} ended after {:?}", begin.elapsed());
    ensure!(begin.elapsed() < Duration::from_secs(2), "{node} ended only after {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn idle_tunnels_do_not_delay_the_end() -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    for (client, web) in [("client-a", "web-b"), ("client-b", "web-a"), ("client-a", "web-a")] {
        let web = bed.pod(web)?;
        let echo = Server::echo(web, web.at(Family::V4, PORT))?;
        for _ in 0..MANY {
            exchange_once(bed.pod(client)?, echo.address())?;
        }
        ensure!(proof::tunnels(bed.pod(client)?)? > 0, "no tunnel of {client} is open");
    }
    ends_at_once(&mut bed, "node-b")?;
    ends_at_once(&mut bed, "node-a")
}

/// A peer whose connection is open, but which does not answer any more.
#[test]
fn an_idle_tunnel_of_a_silent_peer_does_not_delay_the_end() -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    bed.topology.grow("node-a", "guest")?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let honest = Caller::with(&bed.authority.honest("client-a")?)?;
    let peer = HbonePeer::connect(&honest, bed.pod("guest")?, web.at(Family::V4, HBONE_PORT))?;
    let mut stream = peer.open(&echo.address().to_string(), &[])?;
    peer.exchange(&mut stream, b"hello")?;
    drop(stream);
    peer.idle(Duration::from_millis(100));
    bed.daemon("node-b")?
        .wait_dump("no stream", wait::PATIENCE, |dump| dump.pod("web-b").is_some_and(|pod| pod.connections() == 0))?;
    ends_at_once(&mut bed, "node-b")?;
    drop(peer);
    Ok(())
}

/// The daemon of the server's node dies and starts again while the client's node has HBONE connections to it.
fn restarted(unheard: bool) -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    for _ in 0..MANY {
        exchange_once(bed.pod("client-a")?, echo.address())?;
    }
    let tunnels = proof::tunnels(bed.pod("client-a")?)?;
    ensure!(tunnels > 0, "no tunnel is open");
    let wire = bed.topology.node("node-b")?.wire();
    if unheard {
        bed.topology.node("node-a")?.netns.nft(&format!(
            "table inet silence {{\n\
             chain forward {{ type filter hook forward priority 0; iifname {wire} drop; oifname {wire} drop\n }}\n }}\n"
        ))?;
    }
    bed.daemon_mut("node-b")?.kill9()?;
    bed.daemon_mut("node-b")?.restart()?;
    bed.daemon("node-b")?.enrolled("web-b")?;
    let client = bed.pod("client-a")?;
    if unheard {
        ensure!(proof::tunnels(client)? == tunnels, "the client's node has heard of it");
        bed.topology.node("node-a")?.netns.nft("delete table inet silence\n")?;
    }
    for number in 0..MANY {
        exchange_once(client, echo.address()).with_context(|| format!("connection {number} after the restart"))?;
    }
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn the_first_connection_after_a_restart_of_the_other_node_succeeds() -> Result<()> {
    restarted(false)
}

/// The client's node does not know that its HBONE connections are dead: it notices when it uses them.
#[test]
fn the_first_connection_through_a_stale_tunnel_succeeds() -> Result<()> {
    restarted(true)
}
