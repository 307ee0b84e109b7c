//! Many connections: long ones, parallel ones, and one after the other. No connection fails, and nothing is left of them.

use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::daemon::Holdings;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, SOCKET_DEADLINE, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 8080;
const NODES: [&str; 2] = ["node-a", "node-b"];
const LONG_LIVED: usize = 100;
const LOOPING: usize = 16;
const AT_ONCE: usize = 2000;

/// A TCP counter of the kernel in a pod, for example `EstabResets`.
fn tcp_counter(pod: &Pod, name: &str) -> Result<u64> {
    let text = pod.netns.read("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.into_iter().find(|(other, _)| *other == name);
    Ok(found.with_context(|| format!("no counter {name}"))?.1.parse()?)
}

/// 16 clients outside the mesh connect, exchange bytes and close in a loop, while 100 other connections stay open. All
/// connections come from one address and go to one port. The delivery of a new connection must never collide with an old
/// connection that has the reversed tuple.
fn no_connection_harms_another(ending: Ending, family: Family) -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-b")?, bed.pod("web-a")?);
    client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let echo = Server::echo(web, web.at(family, PORT))?;
    let connect = |_| client.connect(echo.address());
    let mut long_lived = (0..LONG_LIVED).map(connect).collect::<Result<Vec<TcpStream>>>()?;
    let resets = tcp_counter(client, "EstabResets")?;
    let load = Load::start(client, echo.address(), LOOPING, ending)?;
    let (begin, soak) = (std::time::Instant::now(), settings::soak());
    let mut rounds = 0;
    while begin.elapsed() < soak {
        for (number, stream) in long_lived.iter_mut().enumerate() {
            exchange(stream, b"still here").with_context(|| format!("long-lived {number} in round {rounds}"))?;
        }
        rounds += 1;
        wait::pass(wait::INTERVAL);
    }
    let report = load.stop()?;
    println!("{} exchanges in {soak:?} beside {rounds} rounds of {LONG_LIVED} long-lived: {report:?}", report.done);
    ensure!(report.failed == 0, "{} of {} failed: {:?}", report.failed, report.done + report.failed, report.samples);
    ensure!(report.done > 100 * soak.as_secs(), "only {} exchanges", report.done);
    proof::steered(&bed, "web-a", Direction::Inbound, report.done)?;
    ensure!(tcp_counter(client, "EstabResets")? == resets, "the client's kernel counted resets");
    for stream in &mut long_lived {
        exchange(stream, b"at the end")?;
    }
    ensure!(echo.resets() == 0, "the server counted {} resets: {:?}", echo.resets(), echo.failures());
    ensure!(echo.failures().is_empty(), "{:?}", echo.failures());
    Ok(())
}

#[test]
fn reversed_tuples_when_the_client_closes() -> Result<()> {
    no_connection_harms_another(Ending::Closes, Family::V4)
}

#[test]
fn reversed_tuples_when_the_server_closes_over_ipv6() -> Result<()> {
    no_connection_harms_another(Ending::WaitsForEnd, Family::V6)
}

/// The sockets of a pod that are neither listening nor in TIME-WAIT.
fn live_sockets(pod: &Pod) -> Result<Vec<String>> {
    let done =
        Launch::new("ss").args(["-Htan", "state", "connected", "exclude", "time-wait"]).inside(&pod.netns).finish()?;
    Ok(done.stdout.lines().map(ToOwned::to_owned).collect())
}

/// Pods of both nodes are enrolled. Idle HBONE connections are closed soon, so that nothing is left of them at the end.
fn both_enrolled() -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for node in NODES {
        bed.start_with(node, |options| options.arguments = ["--hbone-idle", "1"].map(String::from).into())?;
    }
    bed.enrol()?;
    Ok(bed)
}

/// The resources of both daemons when no HBONE connection is open.
fn holdings(bed: &Testbed) -> Result<Vec<Holdings>> {
    wait::until_true("idle tunnels to be given up", wait::PATIENCE, || Ok(proof::tunnels(bed.pod("client-a")?)? == 0))?;
    NODES.into_iter().map(|node| bed.daemon(node)?.settled_holdings()).collect()
}

/// Both daemons hold the same resources as before, and the pods have no socket left.
fn nothing_left(bed: &Testbed, before: &[Holdings]) -> Result<()> {
    for (node, before) in NODES.into_iter().zip(before) {
        bed.daemon(node)?.wait_holdings(before)?;
    }
    for pod in ["client-a", "web-b"] {
        let mut left = Vec::new();
        let none = wait::until_true("the pod to have no socket left", wait::PATIENCE, || {
            left = live_sockets(bed.pod(pod)?)?;
            Ok(left.is_empty())
        });
        none.with_context(|| format!("{pod}: {left:#?}"))?;
    }
    Ok(())
}

#[test]
fn ten_thousand_in_turn_leave_nothing() -> Result<()> {
    let bed = both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let run = |count: u64| -> Result<()> {
        let load = Load::start(client, echo.address(), 4, Ending::Closes)?;
        let patience = wait::PATIENCE * 8;
        wait::until_true("the exchanges", patience, || Ok(load.report().done + load.report().failed >= count))?;
        let report = load.stop()?;
        ensure!(report.failed == 0, "{report:?}");
        Ok(())
    };
    run(100)?;
    let before = holdings(&bed)?;
    run(settings::turns())?;
    proof::steered(&bed, "client-a", Direction::Outbound, settings::turns())?;
    proof::delivered(&bed, "web-b", settings::turns())?;
    nothing_left(&bed, &before)
}

/// The application and the daemon may get the same source port for two destinations. The connections must not be confused.
#[test]
fn open_connections_to_one_place_hinder_none_to_another() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let held_by = Server::echo(web, web.at(Family::V4, PORT))?;
    let held = (0..2000).map(|_| client.connect(held_by.address())).collect::<Result<Vec<_>>>()?;
    let other = Server::echo(web, web.at(Family::V4, PORT + 1))?;
    for round in 0..500 {
        let mut stream = client.connect(other.address())?;
        exchange(&mut stream, b"hello").with_context(|| format!("round {round} beside {}", held.len()))?;
    }
    drop(held);
    Ok(())
}

#[test]
fn two_thousand_at_once() -> Result<()> {
    let bed = both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V6, PORT))?;
    exchange(&mut client.connect(echo.address())?, b"warm")?;
    let before = holdings(&bed)?;
    let mut streams = Vec::new();
    for number in 0..AT_ONCE {
        streams.push(client.connect(echo.address()).with_context(|| format!("connection {number}"))?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(SOCKET_DEADLINE * 2))?;
        exchange(stream, format!("connection {number}").as_bytes()).with_context(|| format!("connection {number}"))?;
    }
    for (node, pod) in [("node-a", "client-a"), ("node-b", "web-b")] {
        let dump = bed.daemon(node)?.dump()?;
        let open = dump.pod(pod).context("unknown pod")?.connections();
        ensure!(open == AT_ONCE, "{node} lists {open} connections of {pod}");
    }
    ensure!(echo.open() == AT_ONCE, "the server has {} open", echo.open());
    // A hundred streams share an HBONE connection, and each worker may have one that is not full.
    let (tunnels, workers) = (proof::tunnels(client)?, std::thread::available_parallelism()?.get());
    ensure!(tunnels > 0 && tunnels <= AT_ONCE / 100 + workers, "{tunnels} tunnels carry {AT_ONCE} connections");
    drop(streams);
    nothing_left(&bed, &before)
}

#[test]
fn a_burst_of_connects_is_accepted() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let load = Load::start(client, echo.address(), 128, Ending::WaitsForEnd)?;
    wait::until_true("2,000 exchanges", wait::PATIENCE * 2, || Ok(load.report().done >= 2000))?;
    let report = load.stop()?;
    ensure!(report.failed == 0, "{report:?}");
    proof::steered(&bed, "client-a", Direction::Outbound, report.done)?;
    proof::delivered(&bed, "web-b", report.done)
}
