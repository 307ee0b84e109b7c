//! Limits, flags and signals of the daemon: the resources of one pod, the behaviour at a limit, and the end of connections.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::admin;
use ztunnel_tests::apps::client::{exchange, exchange_once};
use ztunnel_tests::apps::server::{Server, finish_sending, is_reset, read_all, reset};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, SOCKET_DEADLINE, TWO_NODES};
use ztunnel_tests::wait;
use ztunnel_tests::watch::Watch;

const PORT: u16 = 7000;

const EXCLUDE_PORTS: &str = "traffic.ambient.mesh/exclude-outbound-ports";
const EXCLUDE_NETWORKS: &str = "traffic.ambient.mesh/exclude-outbound-cidrs";

/// A daemon on `node-a` with further arguments; all pods of the node are enrolled.
fn enrolled_with(arguments: &[&str]) -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    bed.start_with("node-a", |options| options.arguments = arguments)?;
    bed.enrol()?;
    Ok(bed)
}

fn echoes(pod: &Pod, port: u16) -> Result<Vec<Server>> {
    Family::BOTH.into_iter().map(|family| Server::echo(pod, pod.at(family, port))).collect()
}

/// Connections from `client-a` and to `web-a` are captured; several are tried.
fn captured_both_ways(bed: &Testbed) -> Result<()> {
    for (outside, inside) in echoes(bed.pod("web-b")?, PORT)?.iter().zip(&echoes(bed.pod("web-a")?, PORT)?) {
        for _ in 0..4 {
            proof::outbound(bed, "client-a", outside, Pod::connect)?;
            proof::inbound(bed, "client-b", "web-a", inside, inside.address())?;
        }
    }
    Ok(())
}

/// Whether the daemon's log has a warning with these words.
fn warned(bed: &Testbed, words: &[&str]) -> Result<bool> {
    let log = fs::read_to_string(bed.daemon("node-a")?.output())?.to_lowercase();
    let warning = |line: &str| line.contains("\"warn\"") || line.contains("\"error\"");
    Ok(log.lines().any(|line| warning(line) && words.iter().all(|word| line.contains(word))))
}

#[test]
fn far_too_many_exclusions_exclude_nothing_and_harm_nobody() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let many: Vec<String> = (PORT..PORT + 9000).map(|port| port.to_string()).collect();
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).annotation(EXCLUDE_PORTS, &many.join(",")))?;
    let few = PodManifest::of(bed.pod("web-a")?).annotation(EXCLUDE_PORTS, "7001,7002,7003");
    bed.mesh.pod(&few.mode("none"))?;
    bed.start("node-a")?;
    bed.mesh.label()?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    let far = bed.pod("web-b")?;
    for port in [PORT, 7001, PORT + 4500, PORT + 8999] {
        for echo in &echoes(far, port)? {
            proof::outbound(&bed, "client-a", echo, Pod::connect).with_context(|| format!("port {port}"))?;
        }
    }
    wait::until_true("a warning about the exclusions", wait::PATIENCE, || warned(&bed, &["exclu", "client-a"]))?;
    let few = PodManifest::of(bed.pod("web-a")?).annotation(EXCLUDE_PORTS, "7001,7002,7003");
    bed.mesh.pod(&few)?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    for (excluded, other) in echoes(far, 7001)?.iter().zip(&echoes(far, PORT)?) {
        proof::direct(excluded, || bed.pod("web-a")?.connect(excluded.address()))?;
        proof::outbound(&bed, "web-a", other, Pod::connect)?;
    }
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).annotation(EXCLUDE_PORTS, "7001"))?;
    let excluded = Server::echo(far, far.at(Family::V4, 7001))?;
    wait::until("the exclusion, now that it is one", wait::PATIENCE, || {
        Ok(proof::direct(&excluded, || bed.pod("client-a")?.connect(excluded.address())).ok())
    })?;
    Ok(())
}

/// The time that a daemon may take to work normally again after a pod has made many changes.
const RECOVERY: Duration = Duration::from_secs(10);

/// The preference of the rule for captured connects of a family, if the rule exists.
fn capture_rule(pod: &Pod, family: &str) -> Result<Option<String>> {
    let done = Launch::new("ip").args(["-n", pod.netns.name(), family, "rule", "show"]).finish()?;
    let ours = |line: &&str| line.contains("fwmark 0x10000000") && line.contains("lookup 15001");
    Ok(done.stdout.lines().find(ours).and_then(|line| line.split(':').next()).map(ToOwned::to_owned))
}

/// An enrolled pod gives itself thousands of addresses at once. No connection bypasses the daemon, and the daemon still
/// answers, enrols another pod, and repairs.
fn thousands_of_addresses(count: u32, address: fn(u32) -> String, arguments: &[&str]) -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("web-a")?).mode("none"))?;
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    bed.start_with("node-a", |options| options.arguments = arguments)?;
    bed.mesh.label()?;
    let (noisy, daemon) = (bed.pod("client-a")?, bed.daemon("node-a")?);
    daemon.enrolled("client-a")?;
    let watch = Watch::over(&bed, "client-a")?;
    watch.works(&Family::BOTH, wait::PATIENCE)?;
    let addresses: String = (1..=count).map(|number| format!("addr add {} dev noise\n", address(number))).collect();
    noisy.netns.ip(&format!("link add noise type bridge\nlink set noise up\n{addresses}"))?;
    let begin = Instant::now();
    let left = || RECOVERY.saturating_sub(begin.elapsed());
    bed.mesh.pod(&PodManifest::of(bed.pod("web-a")?))?;
    // The daemon may be busy for a moment, but it has to finish in time.
    let enrolled = wait::until_true("the other pod to be enrolled", left(), || {
        Ok(daemon.dump().is_ok_and(|dump| dump.pod("web-a").is_some_and(|pod| pod.state() == "enrolled")))
    });
    let ready = wait::until_true("readiness", left(), || {
        Ok(daemon.get("/healthz/ready").is_ok_and(|answer| answer.status == 200))
    });
    watch.no_bypass()?;
    drop(watch);
    enrolled.and(ready).with_context(|| daemon.tail())?;
    for family in ["-4", "-6"] {
        let preference = capture_rule(noisy, family)?.with_context(|| format!("no capture rule, {family}"))?;
        let delete = ["-n", noisy.netns.name(), family, "rule", "del", "pref", &preference];
        ensure!(Launch::new("ip").args(delete).finish()?.success, "cannot delete rule {preference}, {family}");
        wait::until("the capture rule to come back", RECOVERY, || capture_rule(noisy, family))?;
    }
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    ensure!(bed.daemon("node-a")?.get("/healthz/ready")?.status == 200, "not ready at the end");
    Ok(())
}

fn ipv4(number: u32) -> String {
    format!("10.77.{}.{}/32", number / 250, 1 + number % 250)
}

#[test]
fn two_thousand_ipv4_addresses_of_one_pod_stop_nobody() -> Result<()> {
    thousands_of_addresses(2000, ipv4, &[])
}

#[test]
fn more_addresses_of_one_pod_than_the_map_has_room_for_stop_nobody() -> Result<()> {
    thousands_of_addresses(2000, ipv4, &["--max-pods", "64", "--entries-per-pod", "16"])
}

#[test]
fn three_thousand_ipv6_addresses_of_one_pod_stop_nobody() -> Result<()> {
    thousands_of_addresses(3000, |number| format!("fd00:77::{number:x}/128 nodad"), &[])
}

/// While three connections are open, a fourth is accepted, and it is served when one of the three ends.
fn the_next_waits(client: &Pod, target: SocketAddr, held: &mut Vec<TcpStream>) -> Result<()> {
    let mut next = client.connect(target)?;
    next.write_all(b"hello")?;
    next.set_read_timeout(Some(Duration::from_millis(200)))?;
    let early = next.read(&mut [0; 1]);
    ensure!(early.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "not held back: {early:?}");
    drop(held.remove(0));
    next.set_read_timeout(Some(SOCKET_DEADLINE))?;
    let mut answer = [0; 5];
    next.read_exact(&mut answer).context("room was made, but the next was not served")?;
    ensure!(&answer == b"hello");
    held.push(next);
    Ok(())
}

fn three_held(client: &Pod, target: SocketAddr) -> Result<Vec<TcpStream>> {
    let hold = |number| {
        let mut stream = client.connect(target)?;
        exchange(&mut stream, b"hello").with_context(|| format!("connection {number} of three"))?;
        Ok(stream)
    };
    (1..=3).map(hold).collect()
}

#[test]
fn connections_above_the_pods_limit_wait_and_are_served() -> Result<()> {
    let bed = enrolled_with(&["--max-connections-per-pod", "3", "--workers", "2"])?;
    let (client, far, web) = (bed.pod("client-a")?, bed.pod("client-b")?, bed.pod("web-b")?);
    for (outside, inside) in echoes(web, PORT)?.iter().zip(&echoes(client, PORT)?) {
        for number in 0..20 {
            exchange_once(client, outside.address()).with_context(|| format!("number {number} in turn"))?;
        }
        let mut held = three_held(client, outside.address())?;
        for _ in 0..3 {
            the_next_waits(client, outside.address(), &mut held).context("outbound")?;
        }
        proof::inbound(&bed, "client-b", "client-a", inside, inside.address()).context("beside the outbound ones")?;
        drop(held);
        let mut held = three_held(far, inside.address())?;
        for _ in 0..3 {
            the_next_waits(far, inside.address(), &mut held).context("inbound")?;
        }
        proof::outbound(&bed, "client-a", outside, Pod::connect).context("beside the inbound ones")?;
    }
    Ok(())
}

/// A pod opens more connections than its node's daemon has descriptors for. Other pods and the HTTP endpoints do not notice.
#[test]
fn a_pod_cannot_use_up_the_descriptors_of_the_daemon() -> Result<()> {
    const DESCRIPTORS: u64 = 4096;
    const MANY: usize = 2600;
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_with("node-a", |options| options.open_files = Some(DESCRIPTORS))?;
    bed.enrol()?;
    let (greedy, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let (outside, inside) = (echoes(web, PORT + 1)?, echoes(bed.pod("web-a")?, PORT + 1)?);
    let mut held = Vec::new();
    for _ in 0..MANY {
        let socket = greedy.netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))??;
        socket.set_nonblocking(true)?;
        // The connect is in progress.
        let _ = socket.connect(&echo.address().into());
        held.push(socket);
    }
    // A connection needs two descriptors in the daemon, so its limit is reached long before the pod's last connection.
    let daemon = bed.daemon("node-a")?;
    let files = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", daemon.id()))?.count());
    wait::until_true("the pod to use its share of the descriptors", wait::PATIENCE, || Ok(files()? > 2000))?;
    for round in 0..5 {
        for (outside, inside) in outside.iter().zip(&inside) {
            proof::outbound(&bed, "web-a", outside, Pod::connect).with_context(|| format!("round {round}"))?;
            proof::inbound(&bed, "client-b", "web-a", inside, inside.address())
                .with_context(|| format!("round {round}"))?;
        }
        let ready = admin::get(&bed.topology.node("node-a")?.netns, "/healthz/ready")?.status;
        ensure!(ready == 200, "readiness answers {ready} in round {round}");
        daemon.metrics()?;
    }
    let used = files()?;
    println!("{used} of {DESCRIPTORS} descriptors are open");
    ensure!(u64::try_from(used)? <= DESCRIPTORS / 4 * 3 + 200, "{used} descriptors");
    drop(held);
    drop((echo, outside, inside));
    wait::until_true("the connections to end", wait::PATIENCE, || Ok(files()? < 500))?;
    captured_both_ways(&bed)
}

#[test]
fn a_second_signal_ends_the_draining() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    let mut open = bed.pod("client-a")?.connect(echo.address())?;
    exchange(&mut open, b"hello")?;
    bed.daemon("node-a")?.signal(Signal::SIGTERM)?;
    let daemon = bed.daemon("node-a")?;
    wait::until_true("the draining to begin", wait::PATIENCE, || Ok(!daemon.lines_with(&["draining"])?.is_empty()))?;
    exchange_once(bed.pod("client-a")?, echo.address()).context("a draining daemon accepts new connections")?;
    exchange(&mut open, b"still open").context("a draining daemon lets open connections go on")?;
    let begin = Instant::now();
    bed.daemon("node-a")?.signal(Signal::SIGTERM)?;
    bed.daemon_mut("node-a")?.ended_within(wait::PATIENCE)?;
    ensure!(begin.elapsed() < Duration::from_secs(3), "it took {:?}", begin.elapsed());
    let end = open.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "what was cut off should end with a reset, not {end:?}");
    Ok(())
}

/// The connection ended with a reset.
fn cut_off(stream: &mut TcpStream) -> Result<()> {
    let end = read_all(stream).map(|bytes| bytes.len());
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come to the client, not {end:?}");
    Ok(())
}

#[test]
fn a_killed_daemon_resets_what_it_carried() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let ways = [("client-a", "web-b"), ("client-b", "web-a")];
    let mut carried = Vec::new();
    for (client, pod) in ways {
        for server in echoes(bed.pod(pod)?, PORT)? {
            let mut stream = bed.pod(client)?.connect(server.address())?;
            exchange(&mut stream, b"hello")?;
            carried.push((stream, server));
        }
    }
    bed.daemon_mut("node-a")?.kill9()?;
    for (mut stream, server) in carried {
        let way = format!("{:?} to {}", stream.local_addr(), server.address());
        cut_off(&mut stream).with_context(|| way.clone())?;
        wait::until_true("the end at the server", wait::PATIENCE, || Ok(server.open() == 0))?;
        ensure!(server.resets() == 1, "a reset should come to the server, {way}: {:?}", server.failures());
    }
    Ok(())
}

#[test]
fn a_killed_daemon_resets_streams_that_flow() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let mut carried = Vec::new();
    for (client, pod) in [("client-a", "web-b"), ("client-b", "web-a")] {
        let pod = bed.pod(pod)?;
        let server = Server::start(pod, pod.at(Family::V4, PORT), |mut stream, _| {
            loop {
                stream.write_all(&[b'x'; 16_384])?;
            }
        })?;
        let mut stream = bed.pod(client)?.connect(server.address())?;
        stream.read_exact(&mut vec![0; 1 << 20])?;
        carried.push((stream, server));
    }
    bed.daemon_mut("node-a")?.kill9()?;
    for (mut stream, server) in carried {
        cut_off(&mut stream).with_context(|| server.address().to_string())?;
        wait::until_true("the end at the server", wait::PATIENCE, || Ok(server.open() == 0))?;
        ensure!(server.resets() == 1, "a reset should come to {}: {:?}", server.address(), server.failures());
    }
    Ok(())
}

/// A server that passes its accepted connections to the test.
fn handing_over(pod: &Pod, family: Family) -> Result<(Server, Receiver<TcpStream>)> {
    let (sender, accepted) = channel();
    let server = Server::start(pod, pod.at(family, PORT), move |stream, _| {
        sender.send(stream).map_err(|_| std::io::Error::other("the test is over"))
    })?;
    Ok((server, accepted))
}

/// One side closes its half, and the other sends nothing; then the first side resets. `select` returns the first side and then
/// the other one.
fn reset_after_the_half_close(select: fn(TcpStream, TcpStream) -> (TcpStream, TcpStream)) -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let (server, accepted) = handing_over(bed.pod("web-b")?, family)?;
        for round in 0..20 {
            let mut client = bed.pod("client-a")?.connect(server.address())?;
            client.write_all(b"x")?;
            let mut other = accepted.recv_timeout(wait::PATIENCE)?;
            other.read_exact(&mut [0; 1])?;
            let (first, mut silent) = select(client, other);
            finish_sending(&first)?;
            ensure!(read_all(&mut silent)?.is_empty());
            reset(first)?;
            // Every read returns the end; only the socket's error shows the reset.
            wait::until_true("the reset at the silent side", Duration::from_secs(2), || {
                Ok(silent.take_error()?.is_some())
            })
            .with_context(|| format!("{family:?}, round {round}"))?;
        }
    }
    for node in ["node-a", "node-b"] {
        bed.daemon(node)?.wait_dump("no connection to be left", wait::PATIENCE, |dump| {
            dump.pods().all(|pod| pod.connections() == 0)
        })?;
    }
    Ok(())
}

#[test]
fn a_client_that_finished_and_then_resets_is_noticed() -> Result<()> {
    reset_after_the_half_close(|client, server| (client, server))
}

#[test]
fn a_server_that_finished_and_then_resets_is_noticed() -> Result<()> {
    reset_after_the_half_close(|client, server| (server, client))
}

#[test]
fn all_of_one_family_excluded_leaves_the_other_captured() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for (pod, network) in [("client-a", "::/0"), ("web-a", "0.0.0.0/0")] {
        bed.mesh.pod(&PodManifest::of(bed.pod(pod)?).annotation(EXCLUDE_NETWORKS, network))?;
    }
    bed.start("node-a")?;
    bed.enrol()?;
    let servers = echoes(bed.pod("web-b")?, PORT)?;
    let [v4, v6] = servers.as_slice() else { bail!("two families") };
    proof::outbound(&bed, "client-a", v4, Pod::connect).context("IPv4 beside ::/0")?;
    proof::direct(v6, || bed.pod("client-a")?.connect(v6.address())).context("IPv6, excluded by ::/0")?;
    proof::outbound(&bed, "web-a", v6, Pod::connect).context("IPv6 beside 0.0.0.0/0")?;
    proof::direct(v4, || bed.pod("web-a")?.connect(v4.address())).context("IPv4, excluded by 0.0.0.0/0")?;
    let mapped = |pod: &Pod, target: SocketAddr| -> Result<TcpStream> {
        let SocketAddr::V4(v4) = target else { bail!("{target} is not IPv4") };
        let socket = pod.socket(Family::V6)?;
        socket.connect(&SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()).into())?;
        Ok(socket.into())
    };
    proof::outbound(&bed, "client-a", v4, mapped).context("IPv4 in IPv6 beside ::/0")?;
    Ok(())
}

#[test]
fn connections_from_before_are_cut_when_so_wanted() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_with("node-a", |options| options.arguments = ["--existing-connections", "cut"].map(String::from).into())?;
    let mut before = Vec::new();
    for (client, pod) in [("client-a", "web-b"), ("client-b", "web-a")] {
        for server in echoes(bed.pod(pod)?, PORT)? {
            let mut stream = bed.pod(client)?.connect(server.address())?;
            exchange(&mut stream, b"hello")?;
            before.push((stream, server));
        }
    }
    bed.enrol()?;
    for (mut stream, server) in before {
        let end = read_all(&mut stream);
        // In the pod itself the kernel reports "aborted".
        let cut = |error: &std::io::Error| is_reset(error) || error.kind() == ErrorKind::ConnectionAborted;
        ensure!(end.as_ref().is_err_and(cut), "{} should be cut, not {end:?}", server.address());
        wait::until_true("the end at the server", wait::PATIENCE, || Ok(server.open() == 0))?;
        ensure!(server.failures().len() == 1, "the server saw an orderly end of {}", server.address());
    }
    captured_both_ways(&bed)
}

#[test]
fn another_number_of_workers_takes_over() -> Result<()> {
    let mut bed = enrolled_with(&["--workers", "2"])?;
    captured_both_ways(&bed)?;
    bed.daemon_mut("node-a")?.kill9()?;
    for (number, workers) in ["1", "3", "2"].into_iter().enumerate() {
        let daemon = bed.daemon_mut("node-a")?;
        daemon.set_arguments(&["--workers", workers]);
        daemon.restart()?;
        for pod in ["client-a", "web-a"] {
            daemon.enrolled(pod).with_context(|| format!("{workers} workers"))?;
        }
        captured_both_ways(&bed).with_context(|| format!("{workers} workers"))?;
        let daemon = bed.daemon_mut("node-a")?;
        if number % 2 == 0 { daemon.terminate()? } else { daemon.kill9()? }
    }
    Ok(())
}
