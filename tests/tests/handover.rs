//! A daemon takes over from the one that runs: no connection is refused, none is cut, and nothing passes either of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::libc;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use ztunnel_tests::apps::client::{exchange, exchange_once};
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::apps::transfer::Pump;
use ztunnel_tests::daemon::Former;
use ztunnel_tests::policy::{authorization, document};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const NODES: [&str; 2] = ["node-a", "node-b"];
const CLIENTS: usize = 16;
const REPLACEMENTS: usize = 20;
const IDLE: usize = 200;
const PUMPS: usize = 8;
const KILLS: u32 = 16;

/// Longer than connections may still come to a daemon that has handed over.
const LEAVES: Duration = Duration::from_secs(30);

struct World {
    bed: Testbed,
    /// In `web-b`, one for each family.
    servers: [Server; 2],
}

impl World {
    fn new(arguments: &[&str]) -> Result<Self> {
        let mut bed = Testbed::new(TWO_NODES)?;
        for node in NODES {
            bed.start_with(node, |options| options.arguments = arguments.iter().map(ToString::to_string).collect())?;
        }
        bed.enrol()?;
        let web = bed.pod("web-b")?;
        let [v4, v6] = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
        let servers = [v4?, v6?];
        let client = bed.pod("client-a")?;
        client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
        Ok(Self { bed, servers })
    }

    fn address(&self, number: usize) -> SocketAddr {
        let [v4, v6] = &self.servers;
        if number.is_multiple_of(2) { v4.address() } else { v6.address() }
    }

    fn client(&self) -> Result<&Pod> {
        self.bed.pod("client-a")
    }

    /// Clients that connect, exchange and close in a loop, in both families.
    fn load(&self) -> Result<Vec<Load>> {
        let start = |server: &Server| Load::start(self.client()?, server.address(), CLIENTS / 2, Ending::Closes);
        self.servers.iter().map(start).collect()
    }

    /// A connection that has carried some bytes.
    fn open(&self, number: usize) -> Result<TcpStream> {
        let mut stream = self.client()?.connect(self.address(number))?;
        exchange(&mut stream, b"hello")?;
        Ok(stream)
    }

    fn never_bypassed(&self) -> Result<()> {
        let peers = self.servers.iter().flat_map(Server::peers);
        let bypassed: Vec<_> = peers.filter(|peer| peer.port() >= 32_768).collect();
        ensure!(bypassed.is_empty(), "these came directly: {bypassed:?}");
        Ok(())
    }
}

fn done(loads: &[Load]) -> u64 {
    loads.iter().map(|load| load.report().done).sum()
}

/// The load goes on, and nothing of it has failed.
fn goes_on(loads: &[Load], more: u64) -> Result<()> {
    let before: Vec<u64> = loads.iter().map(|load| load.report().done).collect();
    let what = "the load to go on";
    wait::until_true(what, wait::PATIENCE, || {
        for load in loads {
            let report = load.report();
            ensure!(report.failed == 0, "{} failed of {}: {:?}", report.failed, report.done, report.samples);
        }
        Ok(loads.iter().zip(&before).all(|(load, before)| load.report().done >= before + more))
    })
}

/// The load goes on again, though some of it may have failed.
fn recovers(loads: &[Load], more: u64) -> Result<()> {
    let before: Vec<u64> = loads.iter().map(|load| load.report().done).collect();
    wait::until_true("the load to go on again", wait::PATIENCE, || {
        Ok(loads.iter().zip(&before).all(|(load, before)| load.report().done >= before + more))
    })
}

#[test]
fn replace_the_daemons_twenty_times_under_load() -> Result<()> {
    let mut world = World::new(&[])?;
    let loads = world.load()?;
    let mut pumps = Vec::new();
    for number in 0..PUMPS {
        pumps.push(Pump::start(world.open(number)?, number as u64)?);
    }
    let (mut idle, mut formers) = (Vec::new(), Vec::new());
    goes_on(&loads, 20)?;
    let begin = (Instant::now(), done(&loads));
    let mut longest = Duration::ZERO;
    for number in 0..REPLACEMENTS {
        // Every daemon has some that it keeps.
        for index in 0..IDLE / REPLACEMENTS {
            idle.push(world.open(index)?);
        }
        let node = NODES[number % 2];
        let before = Instant::now();
        formers.push(world.bed.daemon_mut(node)?.succeed().with_context(|| format!("replacement {number} of {node}"))?);
        longest = longest.max(before.elapsed());
        goes_on(&loads, 20)
            .with_context(|| format!("after replacement {number} of {node}: {}", formers[number].tail()))?;
        pumps.iter().try_for_each(|pump| pump.more(1))?;
    }
    let (elapsed, requests) = (begin.0.elapsed(), done(&loads) - begin.1);
    println!("{requests} requests in {elapsed:?}; the longest replacement took {longest:?}");
    for load in loads {
        let report = load.stop()?;
        ensure!(report.failed == 0, "{} failed of {}: {:?}", report.failed, report.done, report.samples);
    }
    for (number, stream) in idle.iter_mut().enumerate() {
        exchange(stream, b"still there").with_context(|| format!("idle connection {number}"))?;
    }
    pumps.into_iter().try_for_each(Pump::finish)?;
    let alive = formers.iter_mut().map(Former::runs).collect::<Result<Vec<_>>>()?;
    ensure!(alive.iter().filter(|runs| **runs).count() > 0, "they have not waited for their connections");
    drop(idle);
    for former in &mut formers {
        former.exited(LEAVES)?;
        let cut = former.said().lines().filter(|line| line.contains("drained")).count();
        ensure!(cut == 0, "{cut} connections were cut\n{}", former.tail());
    }
    for number in 0..2 {
        exchange_once(world.client()?, world.address(number))?;
    }
    world.never_bypassed()
}

/// What a daemon has carried since before the handover ends when the policy denies it, as does what the new one carries.
#[test]
fn a_policy_that_comes_later_cuts_the_connections_of_the_old_daemon() -> Result<()> {
    let mut world = World::new(&[])?;
    let (mut old, mut formers) = (world.open(0)?, Vec::new());
    for node in NODES {
        formers.push(world.bed.daemon_mut(node)?.succeed()?);
    }
    let mut new = world.open(1)?;
    exchange(&mut old, b"more")?;
    let text = world.bed.daemon("node-b")?.get("/metrics")?.body;
    let leaving = |line: &&str| line.starts_with("istio_tcp_connections_opened_total{leaving=");
    ensure!(text.lines().any(|line| leaving(&line)), "no metrics of the old daemon: {text}");
    world.bed.mesh.policy("deny", &authorization("deny", "{action: DENY, rules: [{}]}"))?;
    for (what, stream) in [("the old", &mut old), ("the new", &mut new)] {
        let end = stream.read(&mut [0; 1]);
        ensure!(end.as_ref().is_err_and(is_reset), "{what} daemon's connection: a reset should come, not {end:?}");
    }
    for former in &mut formers {
        former.exited(LEAVES)?;
    }
    let text = world.bed.daemon("node-b")?.get("/metrics")?.body;
    ensure!(!text.contains("leaving="), "metrics of a daemon that has ended: {text}");
    ensure!(formers.iter().any(|former| former.said().contains("policy")), "the old daemon says nothing of the policy");
    Ok(())
}

/// The old daemon follows what becomes of a pod as well.
#[test]
fn a_pod_that_leaves_the_mesh_loses_the_connections_of_the_old_daemon() -> Result<()> {
    let mut world = World::new(&[])?;
    let mut old = world.open(0)?;
    let mut former = world.bed.daemon_mut("node-b")?.succeed()?;
    exchange(&mut old, b"more")?;
    world.bed.mesh.unlabel()?;
    let end = old.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    former.exited(LEAVES)
}

/// Connections to the application come from ports that the old daemon may have in use, hundreds in a row.
#[test]
fn the_ports_of_the_old_daemon_are_not_in_the_way() -> Result<()> {
    let mut world = World::new(&[])?;
    let mut held = (0..300).map(|_| world.open(0)).collect::<Result<Vec<_>>>()?;
    let _former = world.bed.daemon_mut("node-b")?.succeed()?;
    for number in 0..100 {
        exchange_once(world.client()?, world.address(0)).with_context(|| format!("connection {number}"))?;
    }
    Ok(held.iter_mut().try_for_each(|stream| exchange(stream, b"more"))?)
}

/// A pod that holds its connections for ever keeps no daemon for longer than that.
#[test]
fn nothing_outlives_the_linger_time() -> Result<()> {
    let mut world = World::new(&["--linger", "6s"])?;
    let mut held = world.open(0)?;
    let begin = Instant::now();
    let mut former = world.bed.daemon_mut("node-b")?.succeed()?;
    former.exited(Duration::from_secs(12))?;
    ensure!(begin.elapsed() >= Duration::from_secs(6), "it did not wait: {:?}", begin.elapsed());
    let end = held.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    ensure!(former.said().contains("drained"), "{}", former.tail());
    exchange_once(world.client()?, world.address(0)).map(drop)
}

/// A daemon that is told to stop while it has connections goes on to accept, and a successor takes over from it.
#[test]
fn a_daemon_that_is_told_to_stop_serves_until_its_successor_is_there() -> Result<()> {
    let mut world = World::new(&["--drain-timeout", "60s"])?;
    let loads = world.load()?;
    let mut held = world.open(0)?;
    world.bed.daemon("node-b")?.signal(Signal::SIGTERM)?;
    let daemon = world.bed.daemon("node-b")?;
    wait::until_true("the drain", wait::PATIENCE, || Ok(!daemon.lines_with(&["draining"])?.is_empty()))?;
    let answer = daemon.get("/healthz/ready")?;
    ensure!(answer.status == 503 && answer.body.contains("shutdown"), "{answer:?}");
    goes_on(&loads, 50)?;
    let mut former = world.bed.daemon_mut("node-b")?.succeed()?;
    goes_on(&loads, 50)?;
    exchange(&mut held, b"more")?;
    drop(held);
    former.exited(LEAVES)?;
    goes_on(&loads, 50)
}

/// One that speaks the protocol of a new daemon, as far as a test wants.
struct Peer(UnixStream);

impl Peer {
    fn connect(state: &Path) -> Result<Self> {
        let stream = UnixStream::connect(state.join("handover.sock"))?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        Ok(Self(stream))
    }

    fn say(&mut self, message: &Value) -> Result<()> {
        let text = message.to_string();
        self.0.write_all(&u32::try_from(text.len())?.to_be_bytes())?;
        Ok(self.0.write_all(text.as_bytes())?)
    }

    fn hear(&mut self) -> Result<Value> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Asks, and has been granted what it asked for.
    fn ask(state: &Path, node: &str) -> Result<Self> {
        let mut peer = Self::connect(state)?;
        peer.say(&asker(node))?;
        let granted = peer.hear()?;
        ensure!(granted.pointer("/granted/protocol") == Some(&json!(1)), "{granted}");
        // The byte with the open files, which are closed at once.
        peer.0.read_exact(&mut [0; 1])?;
        Ok(peer)
    }

    fn begin(&mut self) -> Result<()> {
        self.say(&json!("begin"))?;
        let frozen = self.hear()?;
        ensure!(frozen.pointer("/frozen/pods") == Some(&json!(2)), "{frozen}");
        Ok(())
    }
}

fn asker(node: &str) -> Value {
    json!({"ask": {"protocols": [1, 1], "version": "test", "layout": ebpf_common::LAYOUT, "node": node}})
}

/// A new daemon that dies at any step: the old one goes on as if nothing had happened, and hands over to the next.
#[test]
fn a_new_daemon_dies_at_each_step() -> Result<()> {
    let mut world = World::new(&[])?;
    let loads = world.load()?;
    let mut held = world.open(0)?;
    let state = world.bed.daemon("node-b")?.state().to_owned();
    drop(Peer::connect(&state)?);
    goes_on(&loads, 20).context("one that says nothing")?;
    drop(Peer::ask(&state, "node-b")?);
    goes_on(&loads, 20).context("one that asks and dies")?;
    let mut peer = Peer::ask(&state, "node-b")?;
    peer.begin()?;
    goes_on(&loads, 20).context("while nothing changes")?;
    drop(peer);
    goes_on(&loads, 20).context("one that begins and dies")?;
    exchange(&mut held, b"more")?;
    // It follows the mesh again.
    let elsewhere = document("AuthorizationPolicy", "elsewhere", "deny", "{action: DENY, rules: [{}]}");
    world.bed.change(|mesh| mesh.policy("elsewhere", &elsewhere))?;
    let _former = world.bed.daemon_mut("node-b")?.succeed()?;
    goes_on(&loads, 20).context("after the next one")?;
    exchange(&mut held, b"more")?;
    world.never_bypassed()
}

/// Real new daemons are killed at any moment. Where one had taken over already, the pods are closed until the next is there; else the
/// old one goes on.
#[test]
fn new_daemons_are_killed_while_they_take_over() -> Result<()> {
    let mut world = World::new(&[])?;
    let loads = world.load()?;
    goes_on(&loads, 20)?;
    let begin = Instant::now();
    let mut formers = vec![world.bed.daemon_mut("node-b")?.succeed()?];
    // Longer than it takes, so that some are killed too late.
    let whole = begin.elapsed() * 5 / 4;
    let (mut survived, mut replaced) = (0, 0);
    for step in 0..KILLS {
        let moment = whole * step / KILLS;
        let mut successor = world.bed.daemon("node-b")?.successor()?;
        let begin = Instant::now();
        while begin.elapsed() < moment && successor.runs()? {
            std::thread::yield_now();
        }
        successor.kill9()?;
        if successor.said().contains("took over from the old daemon") {
            replaced += 1;
            let daemon = world.bed.daemon_mut("node-b")?;
            formers.push(daemon.replaced_by_nobody()?);
            daemon.restart()?;
            daemon.enrolled("web-b")?;
        } else {
            survived += 1;
        }
        recovers(&loads, 20).with_context(|| format!("killed after {moment:?}: {}", successor.tail()))?;
        world.never_bypassed()?;
    }
    println!("the old daemon went on {survived} times, and the new one had taken over {replaced} times");
    ensure!(survived > 0, "none was killed early enough");
    formers.push(world.bed.daemon_mut("node-b")?.succeed()?);
    recovers(&loads, 20)?;
    drop(loads);
    for number in 0..2 {
        exchange_once(world.client()?, world.address(number))?;
    }
    world.never_bypassed()
}

/// The old daemon is killed while it waits for the new one: pods are closed, and the next daemon has them.
#[test]
fn the_old_daemon_is_killed_in_the_middle() -> Result<()> {
    for is_frozen in [false, true] {
        let mut world = World::new(&[])?;
        let state = world.bed.daemon("node-b")?.state().to_owned();
        let mut peer = Peer::ask(&state, "node-b")?;
        if is_frozen {
            peer.begin()?;
        }
        world.bed.daemon_mut("node-b")?.kill9()?;
        ensure!(peer.hear().is_err(), "the daemon answers a connection that is not accepted");
        let outcome = exchange_once(world.client()?, world.address(0));
        ensure!(outcome.is_err(), "a connection came through");
        drop(peer);
        world.bed.daemon_mut("node-b")?.restart()?;
        world.bed.daemon("node-b")?.enrolled("web-b")?;
        exchange_once(world.client()?, world.address(0))?;
        world.never_bypassed()?;
    }
    Ok(())
}

/// A daemon that hangs is asked, and is killed before it answers: the new one goes on alone.
#[test]
fn a_daemon_that_hangs_is_killed_while_it_is_asked() -> Result<()> {
    let mut world = World::new(&[])?;
    let daemon = world.bed.daemon_mut("node-b")?;
    daemon.signal(Signal::SIGSTOP)?;
    let mut successor = daemon.successor()?;
    successor.says("requesting a handover")?;
    daemon.kill9()?;
    successor.says("ztunnel is running")?;
    wait::until_true("a connection", wait::PATIENCE, || Ok(exchange_once(world.client()?, world.address(0)).is_ok()))
}

/// What is not a daemon that may take over gets nothing, and does no harm.
#[test]
fn strangers_and_nonsense_at_the_socket() -> Result<()> {
    let mut world = World::new(&[])?;
    let loads = world.load()?;
    let state = world.bed.daemon("node-b")?.state().to_owned();
    let socket = state.join("handover.sock");
    ensure!(std::fs::metadata(&socket)?.mode() & 0o7777 == 0o600, "others may connect");
    let refused = as_user(65_534, {
        let socket = socket.clone();
        move || UnixStream::connect(socket).map(drop)
    })?;
    ensure!(refused.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied), "{refused:?}");
    for nonsense in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 2, b'{', b'}'], &[0, 0, 0, 9, b'"'], &[0; 4]]
    {
        let mut peer = Peer::connect(&state)?;
        peer.0.write_all(nonsense)?;
        let answer = peer.hear();
        ensure!(!answer.as_ref().is_ok_and(|answer| answer["granted"].is_object()), "{answer:?}");
    }
    let refusals = [
        (json!("begin"), "first message of a handover"),
        (asker("node-x"), "--node node-x"),
        (
            json!({"ask": {"protocols": [7, 9], "version": "9.0", "layout": 1, "node": "node-b"}}),
            "stop the old daemon first",
        ),
        (json!({"ask": {"protocols": [1, 9], "version": "9.0", "layout": 99, "node": "node-b"}}), "layout 99"),
    ];
    for (said, reason) in refusals {
        let mut peer = Peer::connect(&state)?;
        peer.say(&said)?;
        let answer = peer.hear()?;
        ensure!(answer["refused"]["reason"].as_str().is_some_and(|text| text.contains(reason)), "{said}: {answer}");
    }
    // One that asks and says nothing more holds up nobody but other successors, which are told.
    let asking = Peer::ask(&state, "node-b")?;
    let mut other = Peer::connect(&state)?;
    other.say(&asker("node-b"))?;
    let answer = other.hear()?;
    ensure!(answer["refused"]["reason"].as_str().is_some_and(|text| text.contains("in progress")), "{answer}");
    drop(asking);
    goes_on(&loads, 20)?;
    let _former = world.bed.daemon_mut("node-b")?.succeed()?;
    goes_on(&loads, 20)
}

/// Does something as another user, on a thread of its own.
fn as_user<T: Send + 'static>(user: u32, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        // SAFETY: the system call changes the user of this thread alone, which ends.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        work()
    });
    thread.join().map_err(|_| anyhow!("the thread of the other user panicked"))
}
