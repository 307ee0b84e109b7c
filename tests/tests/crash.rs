//! The daemon dies: captured pods stay captured and are closed, no connection bypasses the daemon, and a restart serves the
//! pods again.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::apps::client::exchange_once;
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::proof;
use ztunnel_tests::sockets::{self, Connection};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// On `node-a`, `web-a` is enrolled and `client-a` is not.
fn one_enrolled_one_plain() -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).mode("none"))?;
    bed.mesh.label()?;
    bed.start("node-a")?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    Ok(bed)
}

/// A connection attempt fails quickly: it is refused or reset, without an answer.
fn fails_fast(pod: &Pod, target: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    let outcome = pod.connect(target).and_then(|mut stream: TcpStream| {
        let mut bytes = [0; 1];
        let read = stream.read(&mut bytes)?;
        Ok(read)
    });
    ensure!(outcome.is_err(), "the connection to {target} came through: {outcome:?}");
    ensure!(begin.elapsed() < Duration::from_secs(2), "it failed only after {:?}: {outcome:?}", begin.elapsed());
    Ok(())
}

/// Many attempts in both directions and families. None of them reaches the pod's server or the far server.
fn closed(bed: &Testbed, inside: &[Server], outside: &[Server]) -> Result<()> {
    let seen = |servers: &[Server]| servers.iter().map(Server::accepted).sum::<usize>();
    // Connections that the daemon delivered before its death may still be in the server's accept queue.
    let mut last = seen(inside) + seen(outside);
    let mut since = Instant::now();
    wait::until_true("the servers to be at rest", wait::PATIENCE, || {
        let now = seen(inside) + seen(outside);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok(since.elapsed() > Duration::from_millis(300))
    })?;
    for _ in 0..10 {
        for server in inside {
            fails_fast(bed.pod("client-b")?, server.address()).context("to the enrolled pod")?;
            fails_fast(bed.pod("client-a")?, server.address()).context("to the enrolled pod, from its node")?;
        }
        for server in outside {
            fails_fast(bed.pod("web-a")?, server.address()).context("from the enrolled pod")?;
        }
    }
    ensure!(seen(inside) + seen(outside) == last, "a connection got past the dead daemon");
    Ok(())
}

/// No server has seen a client's own socket: deliveries have source ports that no client gets.
fn never_bypassed(servers: &[Server]) -> Result<()> {
    for server in servers {
        let bypassed: Vec<_> = server.peers().into_iter().filter(|peer| peer.port() >= 32_768).collect();
        ensure!(bypassed.is_empty(), "these came directly: {bypassed:?}");
    }
    Ok(())
}

fn servers(pod: &Pod) -> Result<Vec<Server>> {
    Family::BOTH.into_iter().map(|family| Server::echo(pod, pod.at(family, PORT))).collect()
}

fn loads(client: &Pod, servers: &[Server], ending: Ending) -> Result<Vec<Load>> {
    client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    servers.iter().map(|server| Load::start(client, server.address(), 2, ending)).collect()
}

fn progress(what: &str, loads: &[Load], more: u64) -> Result<()> {
    let before: Vec<u64> = loads.iter().map(|load| load.report().done).collect();
    wait::until_true(what, wait::PATIENCE, || {
        Ok(loads.iter().zip(&before).all(|(load, before)| load.report().done >= before + more))
    })
}

#[test]
fn killed_under_load_it_fails_closed_and_a_restart_takes_over() -> Result<()> {
    let mut bed = one_enrolled_one_plain()?;
    let (inside, plain, outside) =
        (servers(bed.pod("web-a")?)?, servers(bed.pod("client-a")?)?, servers(bed.pod("web-b")?)?);
    let enrolled = Footprint::of(&bed.pod("web-a")?.netns)?;
    let meshed = loads(bed.pod("client-b")?, &inside, Ending::Closes)?;
    let unmeshed = loads(bed.pod("web-b")?, &plain, Ending::Closes)?;
    progress("a load through the daemon", &meshed, 100)?;

    bed.daemon_mut("node-a")?.kill9()?;
    progress("the plain pod to go on", &unmeshed, 100)?;
    closed_under_load(&bed, &meshed, &inside, &outside)?;
    drop(meshed);
    never_bypassed(&inside)?;

    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    let difference = enrolled.difference(&Footprint::of(&bed.pod("web-a")?.netns)?);
    let routing: Vec<_> = difference.iter().filter(|line| !line.contains("ss -tnl")).collect();
    ensure!(routing.is_empty(), "adoption changed the pod: {routing:#?}");
    for server in &inside {
        proof::inbound(&bed, "client-b", "web-a", server, server.address())?;
    }
    for server in &outside {
        proof::outbound(&bed, "web-a", server, Pod::connect)?;
    }
    for load in unmeshed {
        let report = load.stop()?;
        ensure!(report.failed == 0, "the plain pod noticed: {report:?}");
    }
    never_bypassed(&inside)
}

/// The load continues against the dead daemon while single attempts are checked.
fn closed_under_load(bed: &Testbed, meshed: &[Load], inside: &[Server], outside: &[Server]) -> Result<()> {
    let before: u64 = meshed.iter().map(|load| load.report().failed).sum();
    wait::until_true("the load to fail", wait::PATIENCE, || {
        Ok(meshed.iter().map(|load| load.report().failed).sum::<u64>() > before + 100)
    })?;
    closed(bed, inside, outside)?;
    let done: Vec<u64> = meshed.iter().map(|load| load.report().done).collect();
    let failed: u64 = meshed.iter().map(|load| load.report().failed).sum();
    wait::until_true("the load to fail further", wait::PATIENCE, || {
        Ok(meshed.iter().map(|load| load.report().failed).sum::<u64>() > failed + 100)
    })?;
    let later: Vec<u64> = meshed.iter().map(|load| load.report().done).collect();
    ensure!(done == later, "exchanges came through without a daemon");
    Ok(())
}

#[test]
fn restarted_under_load_no_new_connection_bypasses_it() -> Result<()> {
    let mut bed = one_enrolled_one_plain()?;
    let inside = servers(bed.pod("web-a")?)?;
    let meshed = loads(bed.pod("client-b")?, &inside, Ending::WaitsForEnd)?;
    for round in 0..3 {
        progress("a load through the daemon", &meshed, 50).with_context(|| format!("round {round}"))?;
        bed.daemon_mut("node-a")?.kill9()?;
        bed.daemon_mut("node-a")?.restart()?;
    }
    progress("a load through the last daemon", &meshed, 50)?;
    never_bypassed(&inside)
}

/// The HBONE connections of a node's daemon.
fn tunnels(bed: &Testbed, node: &str) -> Result<Vec<Connection>> {
    let mut all = sockets::connections(bed.daemon(node)?.id())?;
    all.retain(|connection| [connection.local, connection.peer].iter().any(|end| end.port() == HBONE_PORT));
    Ok(all)
}

/// Time that the load takes for so many exchanges.
fn time_of(load: &Load, exchanges: u64) -> Result<Duration> {
    let (begin, before) = (Instant::now(), load.report().done);
    wait::until_true("a load through the daemons", wait::PATIENCE, || Ok(load.report().done >= before + exchanges))?;
    Ok(begin.elapsed())
}

/// Peers connect again at once, so the first HBONE connection comes while the pod is being enrolled. All later connections share
/// it: without the options of a data socket they would wait for delayed acknowledgements, 40 ms each.
#[test]
fn tunnels_that_come_while_a_daemon_starts_under_load_are_as_fast_as_others() -> Result<()> {
    const EXCHANGES: u64 = 200;
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.label()?;
    for (node, pod) in [("node-a", "web-a"), ("node-b", "client-b")] {
        bed.start(node)?;
        bed.daemon(node)?.enrolled(pod)?;
    }
    let server = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(Family::V4, PORT))?;
    bed.pod("client-b")?.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let load = Load::start(bed.pod("client-b")?, server.address(), 2, Ending::Closes)?;
    let before = time_of(&load, EXCHANGES)?;
    for round in 0..5 {
        bed.daemon_mut("node-a")?.kill9()?;
        bed.daemon_mut("node-a")?.restart()?;
        time_of(&load, 1).with_context(|| format!("round {round}"))?;
        let after = time_of(&load, EXCHANGES).with_context(|| format!("round {round}"))?;
        println!("round {round}: {EXCHANGES} exchanges in {after:?}, {before:?} before the restarts");
        for node in ["node-a", "node-b"] {
            let tunnels = tunnels(&bed, node)?;
            ensure!(!tunnels.is_empty(), "{node} has no HBONE connection");
            for Connection { local, peer, socket } in tunnels {
                let options = (socket.tcp_nodelay()?, socket.keepalive()?);
                ensure!(options == (true, true), "{node}: {local} to {peer}: no delay and keepalive are {options:?}");
            }
        }
        // Delayed acknowledgements would make it 24 times slower.
        ensure!(after < before * 6, "{EXCHANGES} exchanges take {after:?} after a restart, {before:?} before");
    }
    Ok(())
}

#[test]
fn terminated_it_stays_closed_and_cleanup_restores() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let before: Vec<Footprint> =
        bed.topology.pods().iter().map(|pod| Footprint::of(&pod.netns)).collect::<Result<_>>()?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).mode("none"))?;
    bed.start("node-a")?;
    bed.mesh.label()?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    bed.daemon_mut("node-a")?.terminate()?;
    ensure!(bed.daemon("node-a")?.pins().exists(), "the pins are gone, so capture is");
    let (inside, outside) = (servers(bed.pod("web-a")?)?, servers(bed.pod("web-b")?)?);
    closed(&bed, &inside, &outside)?;

    bed.daemon("node-a")?.cleanup()?;
    for (server, client) in inside.iter().chain(&outside).zip(["client-b", "client-b", "web-a", "web-a"]) {
        proof::direct(server, || bed.pod(client)?.connect(server.address()))?;
    }
    drop((inside, outside));
    for (pod, before) in bed.topology.pods().iter().zip(&before) {
        let difference = before.difference(&Footprint::of(&pod.netns)?);
        ensure!(difference.is_empty(), "{} is not as before: {difference:#?}", pod.name);
    }
    let pins = bed.daemon("node-a")?.pins();
    ensure!(std::fs::read_dir(pins).map_or(0, Iterator::count) == 0, "pins are left in {}", pins.display());
    bed.daemon("node-a")?.cleanup().context("cleaning twice must be fine")?;
    bed.daemon_mut("node-a")?.restart().context("after the cleaning")?;
    bed.daemon("node-a")?.enrolled("web-a")
}

#[test]
fn a_restart_finds_the_label_gone_and_releases() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let before = Footprint::of(&bed.pod("web-a")?.netns)?;
    bed.start("node-a")?;
    bed.enrol()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.unlabel()?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.released("web-a")?;
    let web = bed.pod("web-a")?;
    wait::until_true("the pod to be as before", wait::PATIENCE, || {
        Ok(before.difference(&Footprint::of(&web.netns)?).is_empty())
    })?;
    let echo = Server::echo(web, web.at(Family::V6, PORT))?;
    proof::direct(&echo, || bed.pod("client-b")?.connect(echo.address()))?;
    Ok(())
}

const BROKEN: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n";

#[test]
fn a_restart_finds_a_manifest_broken_and_goes_on_with_what_it_said() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.write("pod-web-a.yaml", BROKEN)?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    for inside in servers(bed.pod("web-a")?)? {
        proof::inbound(&bed, "client-b", "web-a", &inside, inside.address())?;
    }
    Ok(())
}

/// The content of the manifest is unknown: the kept version is gone as well.
#[test]
fn a_restart_finds_a_manifest_broken_and_keeps_its_pod_closed() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.write("pod-web-a.yaml", BROKEN)?;
    std::fs::remove_dir_all(bed.daemon("node-a")?.state().join("mesh"))?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    let (web, other) = (bed.pod("web-a")?, bed.pod("web-b")?);
    let (inside, outside) = (servers(web)?, servers(other)?);
    proof::outbound(&bed, "client-a", outside.first().context("no server")?, Pod::connect)?;
    for (inside, outside) in inside.iter().zip(&outside) {
        fails_fast(bed.pod("client-b")?, inside.address())?;
        fails_fast(web, outside.address())?;
    }
    never_bypassed(&inside)?;
    bed.mesh.pod(&PodManifest::of(web))?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    proof::inbound(&bed, "client-b", "web-a", &inside[0], inside[0].address())?;
    Ok(())
}

#[test]
fn a_captured_pod_that_is_refused_at_a_restart_stays_closed_until_it_leaves_the_mesh() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let manifest = PodManifest::of(bed.pod("web-a")?);
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.pod(&manifest.clone().addresses(&["10.10.1.99"]))?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.refused("web-a")?;
    let inside = servers(bed.pod("web-a")?)?;
    for server in &inside {
        fails_fast(bed.pod("client-b")?, server.address())?;
    }
    never_bypassed(&inside)?;
    bed.mesh.pod(&manifest.mode("none"))?;
    bed.daemon("node-a")?.released("web-a")?;
    for server in &inside {
        wait::until("the pod to be open again", wait::PATIENCE, || {
            Ok(proof::direct(server, || bed.pod("client-b")?.connect(server.address())).ok())
        })?;
    }
    Ok(())
}

#[test]
fn a_restart_finds_a_namespace_under_another_pods_name() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.remove_pod("web-a")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("web-a")?).named("renamed"))?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("renamed")?;
    // After a further change of the mesh, all pods that have left it are released.
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).mode("none"))?;
    bed.daemon("node-a")?.released("client-a")?;
    let (web, other) = (bed.pod("web-a")?, bed.pod("web-b")?);
    for family in Family::BOTH {
        let inside = Server::echo(web, web.at(family, PORT))?;
        exchange_once(bed.pod("client-b")?, inside.address())?;
        never_bypassed(&[inside])?;
        let outside = Server::echo(other, other.at(family, PORT))?;
        let own = bed.pod("web-a")?.connect(outside.address())?.local_addr()?;
        wait::until_true("the connection to arrive", wait::PATIENCE, || Ok(outside.accepted() > 0))?;
        ensure!(!outside.peers().contains(&own), "the renamed pod's connect was not captured");
    }
    Ok(())
}

#[test]
fn a_closed_pod_is_opened_by_its_label_although_another_file_was_never_readable() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.mesh.write("other.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n")?;
    bed.daemon_mut("node-a")?.restart()?;
    let manifest = PodManifest::of(bed.pod("web-a")?);
    bed.daemon("node-a")?.enrolled("web-a")?;
    bed.mesh.pod(&manifest.clone().addresses(&["10.10.1.99"]))?;
    bed.daemon("node-a")?.shut("web-a")?;
    bed.mesh.pod(&manifest.mode("none"))?;
    bed.daemon("node-a")?.released("web-a")?;
    for server in &servers(bed.pod("web-a")?)? {
        wait::until("the pod to be open again", wait::PATIENCE, || {
            Ok(proof::direct(server, || bed.pod("client-b")?.connect(server.address())).ok())
        })?;
    }
    Ok(())
}

#[test]
fn a_restart_finds_a_pod_gone() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.topology.delete_netns("client-a")?;
    bed.mesh.remove_pod("client-a")?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    wait::until_true("the kernel to remove the namespace", wait::PATIENCE, || {
        Ok(!bed.topology.plugged("client-a")?)
    })?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn termination_lets_open_connections_finish() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let web = bed.pod("web-b")?;
    let echo = Server::start(web, web.at(Family::V4, PORT), |mut stream, _| {
        std::io::Write::write_all(&mut stream, b"first")?;
        stream.read_exact(&mut [0; 2])?;
        std::io::Write::write_all(&mut stream, b"last")
    })?;
    let mut stream = bed.pod("client-a")?.connect(echo.address())?;
    stream.read_exact(&mut [0; 5])?;
    proof::steered(&bed, "client-a", Direction::Outbound, 1)?;
    let finishing = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        wait::pass(Duration::from_millis(300));
        std::io::Write::write_all(&mut stream, b"go")?;
        ztunnel_tests::apps::server::read_all(&mut stream)
    });
    bed.daemon_mut("node-a")?.terminate()?;
    let last = finishing.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
    ensure!(last.as_ref().is_ok_and(|bytes| bytes == b"last"), "the open connection was cut: {last:?}");
    Ok(())
}
