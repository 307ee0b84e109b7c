//! Attacks during a thousand good connections, on a daemon with little memory: the good connections finish, and the daemon
//! survives.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::cgroups::MemoryLimit;
use ztunnel_tests::hbone::Caller;
use ztunnel_tests::hbone::peer::HbonePeer;
use ztunnel_tests::hbone::raw::{ACK, RawPeer, frame, kind};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::metrics::Metrics;
use ztunnel_tests::process::Launch;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, Shape};

/// Two nodes, and neighbours on a third node without a daemon.
const NEIGHBOURHOOD: &Shape<'static> =
    &[("node-a", &["client-a", "web-a"]), ("node-b", &["client-b", "web-b"]), ("node-c", &NEIGHBOURS)];
/// With [`PEER`], more addresses than fill all places for handshakes (`--hbone-max-handshakes`) with silent connections.
const NEIGHBOURS: [&str; 9] = [
    "neighbour-1",
    "neighbour-2",
    "neighbour-3",
    "neighbour-4",
    "neighbour-5",
    "neighbour-6",
    "neighbour-7",
    "neighbour-8",
    "neighbour-9",
];
/// Silent connections of one address that are open at once.
const SILENT: usize = 50;

/// The attacker: a pod with a valid certificate.
const PEER: &str = "client-b";
/// The attacked pod.
const VICTIM: &str = "web-b";
/// The client of the good connections, and the destination of the attacker's own connections.
const CLIENT: &str = "client-a";
const FAR: &str = "web-a";

const GOOD: usize = 1_000;
/// The memory limit of the daemon's control group in bytes: above it the kernel kills the daemon.
const MOST: u64 = 256 << 20;
const ROUNDS: usize = 20;
/// After so many rounds an attack that has not done its work is a fault of the test.
const MOST_ROUNDS: usize = 400;

/// A frame that carries nothing: PRIORITY.
const PRIORITY: u8 = 2;

/// Every connection sends its own bytes and gets them back.
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

/// The largest resident size of a process so far, in bytes.
fn highest(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kib = line.split_whitespace().nth(1).context("no value")?.parse::<u64>()?;
    Ok(kib << 10)
}

/// Ends the attackers, also when the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What an attack gets: whether it goes on, and the count of its successful steps.
struct Course<'a> {
    over: &'a AtomicBool,
    done: &'a AtomicUsize,
}

impl Course<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    fn done(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
    }
}

/// An attack, which runs until its course is over.
struct Attack<'a> {
    /// A successful step of it.
    step: &'static str,
    /// So many steps have to succeed, or nothing was attacked.
    least: usize,
    run: Box<dyn FnOnce(&Course<'_>) + Send + 'a>,
}

impl<'a> Attack<'a> {
    fn new(step: &'static str, least: usize, run: impl FnOnce(&Course<'_>) + Send + 'a) -> Self {
        Self { step, least, run: Box::new(run) }
    }
}

/// The daemon of the second node has little memory, and serves a thousand connections.
struct Besieged {
    bed: Testbed,
    echo: Server,
    good: Vec<TcpStream>,
    /// The process of the daemon.
    id: u32,
    /// Dropped last: a control group can be removed only after its processes have ended.
    _limit: MemoryLimit,
}

impl Besieged {
    /// `mode`: the dataplane mode of the attacker's pod.
    fn new(mode: &str) -> Result<Self> {
        let mut bed = Testbed::new(NEIGHBOURHOOD)?;
        let limit = MemoryLimit::new(&bed.topology.prefix.member("limit"), MOST)?;
        bed.mesh.pod(&PodManifest::of(bed.pod(PEER)?).mode(mode))?;
        for node in ["node-a", "node-b"] {
            bed.start_with(node, |options| {
                options.arguments = ["--max-connections-per-pod", "4096"].map(String::from).into();
                options.group = (node == "node-b").then(|| limit.group().to_owned());
            })?;
        }
        let mut pods = vec![CLIENT, FAR, VICTIM];
        if mode != "none" {
            pods.push(PEER);
        }
        bed.enrol_only(&pods)?;
        for pod in pods {
            bed.daemon(&bed.pod(pod)?.node)?.certified(&ztunnel_tests::ca::identity(pod))?;
        }
        let victim = bed.pod(VICTIM)?;
        let echo = Server::echo(victim, victim.at(Family::V4, 7000))?;
        let mut good = (0..GOOD).map(|_| bed.pod(CLIENT)?.connect(echo.address())).collect::<Result<Vec<_>>>()?;
        all_talk(&mut good, 0)?;
        let id = bed.daemon("node-b")?.id();
        Ok(Self { bed, echo, good, id, _limit: limit })
    }

    /// During the attacks the good connections exchange bytes, and new ones are made. At the end the daemon is the same process
    /// and has stayed within its memory limit. Returns the last metrics.
    fn stands<'a>(&'a mut self, attacks: impl FnOnce(&'a Testbed) -> Result<Vec<Attack<'a>>>) -> Result<Metrics> {
        let Self { bed, echo, good, id, .. } = self;
        let bed: &'a Testbed = bed;
        let daemon = bed.daemon("node-b")?;
        let client = bed.pod(CLIENT)?;
        let attacks = attacks(bed)?;
        let over = AtomicBool::new(false);
        let counts: Vec<_> = attacks.iter().map(|attack| (attack.step, attack.least, AtomicUsize::new(0))).collect();
        let lacking = || counts.iter().find(|(_, least, done)| done.load(Ordering::SeqCst) < *least);
        let outcome = thread::scope(|scope| {
            let ended = Ended(&over);
            for (attack, (_, _, done)) in attacks.into_iter().zip(&counts) {
                let course = Course { over: &over, done };
                scope.spawn(move || (attack.run)(&course));
            }
            let mut talk = || -> Result<()> {
                for round in 1.. {
                    let lacking = lacking();
                    if round > ROUNDS && lacking.is_none() {
                        break;
                    }
                    ensure!(round <= MOST_ROUNDS, "too few steps of an attack: {lacking:?}");
                    all_talk(good, round)?;
                    // New connections work as well.
                    let mut newcomer = client.connect(echo.address())?;
                    all_talk(std::slice::from_mut(&mut newcomer), round)?;
                }
                Ok(())
            };
            let outcome = talk();
            drop(ended);
            outcome
        });
        println!("steps of the attacks: {counts:?}");
        outcome.with_context(|| daemon.tail())?;
        ensure!(daemon.id() == *id, "another process");
        let highest = highest(*id)?;
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
        let (used, budget) = (of("ztunnel_memory_used_bytes"), of("ztunnel_memory_budget_bytes"));
        ensure!(budget > 0.0 && budget <= MOST as f64 && used <= budget, "{used} of {budget} bytes");
        all_talk(good, MOST_ROUNDS + 1)?;
        Ok(metrics)
    }
}

#[test]
fn a_thousand_good_connections_live_through_what_a_peer_and_a_neighbour_can_do() -> Result<()> {
    let mut besieged = Besieged::new("none")?;
    let bed = &besieged.bed;
    let caller = Caller::with(&bed.authority.honest(FAR)?)?;
    let target = bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT);
    // An application that does not read as long as the lock is held.
    let asleep = Arc::new(Mutex::new(()));
    let sleeping = asleep.lock().unwrap_or_else(PoisonError::into_inner);
    let bed_of = Arc::clone(&asleep);
    let deaf = Server::start(bed.pod(VICTIM)?, bed.pod(VICTIM)?.at(Family::V4, 7002), move |_stream, _| {
        drop(bed_of.lock());
        Ok(())
    })?;
    let to_deaf = deaf.address().to_string();
    let (caller, to_deaf) = (&caller, &*to_deaf);
    let metrics = besieged.stands(|bed| {
        // What is limited for an address is attacked from ten of them.
        let peers: Vec<&Pod> = [PEER].into_iter().chain(NEIGHBOURS).map(|name| bed.pod(name)).collect::<Result<_>>()?;
        let mut attacks: Vec<Attack<'_>> = Vec::new();
        let (of_windows, of_floods) = (peers.clone(), peers.clone());
        // HBONE connections to the application that does not read, with full windows on all streams. The daemon should refuse
        // some of them.
        attacks.push(Attack::new("full windows of a tunnel", 40, move |course| {
            let mut held = Vec::new();
            for peer in of_windows.iter().cycle().take_while(|_| course.goes_on()) {
                let Ok(tunnel) = HbonePeer::connect(caller, peer, target) else { continue };
                let streams = (0..4).filter_map(|_| {
                    let mut stream = tunnel.open(to_deaf, &[]).ok()?;
                    stream.push(8 << 20).ok()?;
                    Some(stream)
                });
                let streams: Vec<_> = streams.collect();
                tunnel.idle(Duration::from_millis(20));
                if !streams.is_empty() {
                    course.done();
                }
                held.push((tunnel, streams));
            }
        }));
        // Frames that carry nothing, of each kind, as fast as the daemon takes them.
        let floods = [
            frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]),
            frame(0xfa, 0, 0, &[]),
            frame(kind::PING, ACK, 0, &[7; 8]),
            frame(kind::SETTINGS, 0, 0, &[]),
            frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        ];
        attacks.push(Attack::new("flood of a tunnel", 10, move |course| {
            for (flood, peer) in floods.iter().cycle().zip(of_floods.iter().cycle()).take_while(|_| course.goes_on()) {
                if let Ok(mut tunnel) = RawPeer::connect(caller, peer, target, &[]) {
                    let flood = flood.repeat(1000);
                    tunnel.flood(100, |_| flood.clone());
                    course.done();
                }
            }
        }));
        // Silent connections.
        attacks.push(Attack::new("silent connection", 1000, move |course| {
            let mut silent = VecDeque::new();
            for peer in peers.iter().cycle().take_while(|_| course.goes_on()) {
                if let Ok(stream) = peer.connect(target) {
                    silent.push_back(stream);
                    course.done();
                }
                if silent.len() > peers.len() * SILENT {
                    silent.pop_front();
                }
            }
        }));
        Ok(attacks)
    })?;
    drop(sleeping);
    ensure!(metrics.sum("ztunnel_hbone_abuse_total", &[]) > 0.0, "no HBONE connection was ended for abuse");
    // The attacker has filled its share of the budget.
    let used = metrics.sum("ztunnel_memory_used_bytes", &[]);
    ensure!(used > f64::from(8 << 20), "the attacks have filled only {used} bytes of the budget");
    Ok(())
}

/// Attacks of a pod of the mesh with CAP_NET_ADMIN, on the node of its victims, and of a tenant who may write manifests in its
/// namespace.
#[test]
fn a_thousand_good_connections_live_through_what_a_pod_and_a_tenant_can_do() -> Result<()> {
    const UNREAD: usize = 3000;
    let mut besieged = Besieged::new("ambient")?;
    let far = besieged.bed.pod(FAR)?;
    // Sends as many bytes as the socket takes.
    let sender = Server::start(far, far.at(Family::V4, 7003), |mut stream, _| {
        let bytes = [7; 64 << 10];
        loop {
            stream.write_all(&bytes)?;
        }
    })?;
    let to_sender = sender.address();
    besieged.stands(|bed| {
        let (hostile, manifests) = (bed.pod(PEER)?, bed.mesh.folder());
        let mut attacks: Vec<Attack<'_>> = Vec::new();
        // Connections from which the attacker does not read.
        attacks.push(Attack::new("connection that is not read", UNREAD, move |course| {
            let mut unread = Vec::new();
            while course.goes_on() {
                if let Ok(stream) = hostile.connect(to_sender) {
                    unread.push(stream);
                    course.done();
                }
                if unread.len() >= UNREAD {
                    unread.drain(..UNREAD / 2);
                }
            }
        }));
        // Many routes, addresses that are added and removed, and listeners of the daemon that are closed.
        attacks.push(Attack::new("change of the pod's addresses", 100, move |course| {
            let routes: String = (0..20_000)
                .map(|number| format!("route add 10.{}.{}.0/24 dev lo table 77\n", 100 + number / 256, number % 256))
                .collect();
            let mut done = vec![hostile.netns.ip(&routes)];
            for number in 0_u32.. {
                if !course.goes_on() {
                    break;
                }
                done.push(hostile.netns.ip("addr add 10.10.2.99/32 dev eth0\naddr del 10.10.2.99/32 dev eth0\n"));
                course.done();
                if number % 100 == 99 {
                    let closed = Launch::new("ss").args(["-K", "-tl"]).inside(&hostile.netns).finish();
                    done.push(closed.map(|_| ()));
                }
            }
            assert!(done.iter().all(Result::is_ok), "{:?}", done.into_iter().find(Result::is_err));
        }));
        // Thousands of ServiceEntries, and different ones each time.
        attacks.push(Attack::new("written file of a tenant", 5, move |course| {
            let (_never, pause) = channel::<()>();
            for round in 0_u32.. {
                if !course.goes_on() {
                    return;
                }
                let path = manifests.join("evil.yaml");
                let fresh = path.with_extension("new");
                let written = std::fs::write(&fresh, evil(round)).and_then(|()| std::fs::rename(&fresh, &path));
                assert!(written.is_ok(), "{written:?}");
                course.done();
                // The daemon reads the file within half a second.
                let _ = pause.recv_timeout(Duration::from_millis(500));
            }
        }));
        Ok(attacks)
    })?;
    besieged.bed.daemon("node-b")?.enrolled(PEER)
}

/// Manifests of a tenant: ServiceEntries with many addresses, and policies.
fn evil(round: u32) -> String {
    let entry = |number: u32| {
        let addresses: Vec<_> =
            (0..100).map(|last| format!("10.{}.{}.{last}", 150 + round % 50, number % 250)).collect();
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: entry-{number}, namespace: evil}}\n\
             spec: {{hosts: [h{number}.evil], addresses: [{}], ports: [{{number: 80, name: tcp, protocol: TCP}}], resolution: \
             STATIC, endpoints: [{{address: 10.149.0.1}}]}}\n",
            addresses.join(", ")
        )
    };
    let policy = |number: u32| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{number}, namespace: \
             evil}}\nspec: {{action: DENY, rules: [{{from: [{{source: {{namespaces: [n{round}]}}}}]}}]}}\n"
        )
    };
    (0..200).map(entry).chain((0..500).map(policy)).collect()
}
