//! Attacks beside a thousand good connections, on a daemon that may have little memory: the good ones finish, the daemon lives.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::hbone::Caller;
use ztunnel_tests::hbone::peer::HbonePeer;
use ztunnel_tests::hbone::raw::{RawPeer, frame};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, TWO_NODES};

/// The attacker: a pod outside the mesh, with a good certificate.
const PEER: &str = "client-b";
/// Whom it attacks.
const VICTIM: &str = "web-b";
/// Whose connections have to live.
const CLIENT: &str = "client-a";

const GOOD: usize = 1_000;
/// What the daemon may have resident at its highest, in bytes.
const MOST: u64 = 256 << 20;
/// `--memory-budget`.
const BUDGET: &str = "67108864";

/// A frame that says nothing: PRIORITY.
const PRIORITY: u8 = 2;

/// Every connection says something of its own and hears it back.
fn all_talk(connections: &mut [TcpStream], round: usize) -> Result<()> {
    let said = |number: usize| format!("{round:04}-{number:06}").into_bytes();
    for (number, stream) in connections.iter_mut().enumerate() {
        stream.write_all(&said(number)).with_context(|| format!("connection {number}, round {round}"))?;
    }
    for (number, stream) in connections.iter_mut().enumerate() {
        let mut heard = vec![0; said(number).len()];
        stream.read_exact(&mut heard).with_context(|| format!("connection {number}, round {round}"))?;
        ensure!(heard == said(number), "connection {number} has heard another's words");
    }
    Ok(())
}

/// The most that a process had resident so far.
fn highest(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib = line.split_whitespace().nth(1).context("no value")?.parse::<u64>()?;
    Ok(kib << 10)
}

/// Ends the attackers, however the test ends.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_thousand_good_connections_live_through_what_a_peer_and_a_neighbour_can_do() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod(PEER)?).mode("none"))?;
    for node in ["node-a", "node-b"] {
        let arguments = ["--memory-budget", BUDGET, "--max-connections-per-pod", "4096"].map(String::from).into();
        bed.start_with(node, |options| options.arguments = arguments)?;
    }
    bed.enrol_only(&[CLIENT, "web-a", VICTIM])?;
    for pod in [CLIENT, VICTIM] {
        bed.daemon(&bed.pod(pod)?.node)?.certified(&ztunnel_tests::ca::identity(pod))?;
    }
    let (peer, victim, daemon) = (bed.pod(PEER)?, bed.pod(VICTIM)?, bed.daemon("node-b")?);
    let caller = Caller::with(&bed.authority.honest("web-a")?)?;
    let target = victim.at(Family::V4, HBONE_PORT);
    let id = daemon.id();
    let echo = Server::echo(victim, victim.at(Family::V4, 7000))?;
    let mut good = (0..GOOD).map(|_| bed.pod(CLIENT)?.connect(echo.address())).collect::<Result<Vec<_>>>()?;
    all_talk(&mut good, 0)?;

    // An application that does not read, as long as the lock is held.
    let asleep = Arc::new(Mutex::new(()));
    let sleeping = asleep.lock().unwrap_or_else(PoisonError::into_inner);
    let bed_of = Arc::clone(&asleep);
    let deaf = Server::start(victim, victim.at(Family::V4, 7002), move |_stream, _| {
        drop(bed_of.lock());
        Ok(())
    })?;
    let over = AtomicBool::new(false);
    let goes_on = || !over.load(Ordering::SeqCst);
    let outcome = thread::scope(|scope| {
        let ended = Ended(&over);
        // Tunnels to the application that does not read, each with streams full of bytes. Refusals are what is hoped for.
        scope.spawn(|| {
            let mut held = Vec::new();
            while goes_on() {
                let Ok(tunnel) = HbonePeer::connect(&caller, peer, target) else { continue };
                let streams = (0..4).filter_map(|_| {
                    let mut stream = tunnel.open(&deaf.address().to_string(), &[]).ok()?;
                    stream.push(8 << 20).ok()?;
                    Some(stream)
                });
                let streams: Vec<_> = streams.collect();
                tunnel.idle(Duration::from_millis(20));
                held.push((tunnel, streams));
            }
        });
        // Frames that carry nothing, as fast as they are taken.
        scope.spawn(|| {
            let flood = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]).repeat(1000);
            while goes_on() {
                if let Ok(mut tunnel) = RawPeer::connect(&caller, peer, target, &[]) {
                    tunnel.flood(100, |_| flood.clone());
                }
            }
        });
        // Connections without a word.
        scope.spawn(|| {
            let mut silent = Vec::new();
            while goes_on() {
                silent.extend(peer.connect(target).ok());
                if silent.len() > 500 {
                    silent.clear();
                }
            }
        });
        let mut talk = || -> Result<()> {
            for round in 1..=20 {
                all_talk(&mut good, round)?;
                // New ones come about as well.
                let mut newcomer = bed.pod(CLIENT)?.connect(echo.address())?;
                all_talk(std::slice::from_mut(&mut newcomer), round)?;
            }
            Ok(())
        };
        let outcome = talk();
        drop(ended);
        outcome
    });
    drop(sleeping);
    outcome.with_context(|| daemon.tail())?;
    ensure!(daemon.id() == id, "another process");
    let highest = highest(id)?;
    let metrics = daemon.metrics()?;
    let of = |name: &str| metrics.sum(name, &[]);
    println!(
        "at most {} MiB resident; {} of {} bytes of the budget used, {} refused, {} tunnels ended for abuse",
        highest >> 20,
        of("ztunnel_memory_used_bytes"),
        of("ztunnel_memory_budget_bytes"),
        of("ztunnel_memory_refused_total"),
        of("ztunnel_hbone_abuse_total"),
    );
    ensure!(highest < MOST, "the daemon has had {highest} bytes");
    ensure!(
        of("ztunnel_memory_budget_bytes") > 0.0 && of("ztunnel_memory_used_bytes") <= of("ztunnel_memory_budget_bytes")
    );
    ensure!(of("ztunnel_hbone_abuse_total") > 0.0, "nobody was told to calm down");
    all_talk(&mut good, 21)
}
