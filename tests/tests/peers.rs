//! Peers at a pod's HBONE port that are no daemons: without a certificate, with a wrong one, without TLS or without HTTP/2.
//! Each is refused with the alert that says why, counted, and logged once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebpf_common::HBONE_PORT;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::AlertDescription;
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::ca::{Authority, Leaf};
use ztunnel_tests::hbone::peer::{HbonePeer, Stream};
use ztunnel_tests::hbone::{Caller, Ending, plain_ending};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

/// The peer: a pod outside the mesh, so that its connections are not captured.
const PEER: &str = "client-b";

/// The pod to which the peer connects.
const VICTIM: &str = "web-b";

const FAILURES: &str = "ztunnel_tls_handshake_failures_total";

/// Both daemons run with further arguments. All pods but [`PEER`] are enrolled, and the victim has its certificate.
fn bed_with(arguments: &[&str]) -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod(PEER)?).mode("none"))?;
    for node in ["node-a", "node-b"] {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        bed.start_with(node, |options| options.arguments = arguments)?;
    }
    bed.enrol_only(&["client-a", "web-a", VICTIM])?;
    for pod in ["client-a", VICTIM] {
        bed.daemon(&bed.pod(pod)?.node)?.certified(&ztunnel_tests::ca::identity(pod))?;
    }
    Ok(bed)
}

fn failures(bed: &Testbed) -> Result<f64> {
    Ok(bed.daemon("node-b")?.metrics()?.sum(FAILURES, &[]))
}

/// A peer connects once. The log must name its address.
fn once(bed: &Testbed, come: impl FnOnce(&Pod, SocketAddr) -> Result<(SocketAddr, Ending)>) -> Result<Ending> {
    let before = failures(bed)?;
    let (own, ending) = come(bed.pod(PEER)?, bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT))?;
    wait::until_true("the failure to be counted", wait::PATIENCE, || Ok(failures(bed)? > before))?;
    ensure!(failures(bed)? == before + 1.0, "one failure was counted {} times", failures(bed)? - before);
    let daemon = bed.daemon("node-b")?;
    let lines = || daemon.lines_with(&[&own.to_string()]);
    wait::until_true(&format!("a line about {own}"), wait::PATIENCE, || Ok(!lines()?.is_empty()))
        .with_context(|| daemon.tail())?;
    ensure!(lines()?.len() == 1, "one failure, many lines: {:#?}", lines()?);
    Ok(ending)
}

/// Connects with TLS.
fn tls(bed: &Testbed, caller: &Caller) -> Result<Ending> {
    once(bed, |pod, target| {
        let tcp = pod.connect(target)?;
        Ok((tcp.local_addr()?, caller.ending_of(tcp, target)?))
    })
}

/// A legitimate client can connect, and the daemon is the same process.
fn unharmed(bed: &Testbed, id: u32) -> Result<()> {
    ensure!(bed.daemon("node-b")?.id() == id, "another process");
    let echo = Server::echo(bed.pod(VICTIM)?, bed.pod(VICTIM)?.at(Family::V4, 7000))?;
    proof::tunnelled(bed, ("client-a", VICTIM), &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn wrong_certificates_are_refused_with_an_alert_counted_and_logged_once() -> Result<()> {
    use AlertDescription as Alert;
    let bed = bed_with(&[])?;
    let (id, ca, foreign) = (bed.daemon("node-b")?.id(), &bed.authority, Authority::foreign()?);
    let (right, elsewhere) =
        ("spiffe://cluster.local/ns/demo/sa/client-a", "spiffe://other.example/ns/demo/sa/client-a");
    let leaf = || Leaf::of("client-a");
    let unknown = [Alert::CertificateUnknown, Alert::BadCertificate, Alert::AccessDenied];
    let cases: Vec<(&str, Leaf, Vec<Alert>)> = vec![
        ("another trust domain", leaf().uris(&[elsewhere]), unknown.to_vec()),
        ("two identities", leaf().uris(&[right, "spiffe://cluster.local/ns/demo/sa/web-a"]), unknown.to_vec()),
        ("an identity and another URI", leaf().uris(&[right, "https://example.org/"]), unknown.to_vec()),
        ("no identity", leaf().uris(&["https://example.org/"]), unknown.to_vec()),
        ("no SPIFFE ID in Istio's form", leaf().uris(&["spiffe://cluster.local/client-a"]), unknown.to_vec()),
        ("expired", leaf().expired(), vec![Alert::CertificateExpired, Alert::CertificateUnknown]),
        ("not yet valid", leaf().not_yet_valid(), [unknown.as_slice(), &[Alert::CertificateExpired]].concat()),
        (
            "for servers only",
            leaf().usages(&[ExtendedKeyUsagePurpose::ServerAuth]),
            [unknown.as_slice(), &[Alert::UnsupportedCertificate]].concat(),
        ),
        (
            "for signing code",
            leaf().usages(&[ExtendedKeyUsagePurpose::CodeSigning]),
            [unknown.as_slice(), &[Alert::UnsupportedCertificate]].concat(),
        ),
    ];
    for (what, leaf, alerts) in cases {
        let ending = tls(&bed, &Caller::with(&ca.issue(&leaf)?)?).with_context(|| what.to_owned())?;
        ensure!(matches!(&ending, Ending::Alert(alert) if alerts.contains(alert)), "{what}: {ending:?}");
    }
    let ending = tls(&bed, &Caller::with(&foreign.honest("client-a")?)?).context("another CA")?;
    let wanted = [Alert::UnknownCA, Alert::CertificateUnknown, Alert::BadCertificate, Alert::DecryptError];
    ensure!(matches!(&ending, Ending::Alert(alert) if wanted.contains(alert)), "another CA: {ending:?}");
    let ending = tls(&bed, &Caller::nobody()?).context("no certificate")?;
    ensure!(ending == Ending::Alert(Alert::CertificateRequired), "no certificate: {ending:?}");
    unharmed(&bed, id)
}

#[test]
fn other_protocols_of_tls_are_refused() -> Result<()> {
    let bed = bed_with(&[])?;
    let id = bed.daemon("node-b")?.id();
    let honest = Caller::with(&bed.authority.honest("client-a")?)?;
    // Istio's server accepts a client without ALPN, but all of Istio's clients use ALPN.
    for protocols in [&["http/1.1"][..], &["h3", "spdy/3"], &[]] {
        let ending = tls(&bed, &honest.clone().alpn(protocols))?;
        ensure!(ending == Ending::Alert(AlertDescription::NoApplicationProtocol), "{protocols:?}: {ending:?}");
    }
    unharmed(&bed, id)
}

#[test]
fn tls_of_version_1_2_is_refused() -> Result<()> {
    let bed = bed_with(&[])?;
    let id = bed.daemon("node-b")?.id();
    let (chain, key) = bed.authority.honest("client-a")?.write(&bed.topology.folder, "peer")?;
    let before = failures(&bed)?;
    for family in Family::BOTH {
        let target = bed.pod(VICTIM)?.at(family, HBONE_PORT).to_string();
        let done = Launch::new("openssl")
            .args(["s_client", "-connect", &target, "-tls1_2", "-alpn", "h2"])
            .args(["-cert".as_ref(), chain.as_os_str(), "-key".as_ref(), key.as_os_str()])
            .inside(&bed.pod(PEER)?.netns)
            .finish()?;
        ensure!(!done.success && done.stderr.contains("alert protocol version"), "{done:?}");
    }
    ensure!(failures(&bed)? == before + 2.0, "{before} then {}", failures(&bed)?);
    unharmed(&bed, id)
}

#[test]
fn what_is_no_tls_is_refused() -> Result<()> {
    let bed = bed_with(&[])?;
    let id = bed.daemon("node-b")?.id();
    let noise: Vec<u8> = (0..4096_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut long = vec![0x16, 3, 1, 0xff, 0xff];
    long.extend_from_slice(&noise);
    let words: [(&str, &[u8]); 5] = [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: web-b\r\n\r\n"),
        ("HTTP/2 in plaintext", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("garbage", &noise),
        ("a TLS record that is too long", &long),
        ("a TLS record of garbage", &[0x16, 3, 1, 0, 4, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (what, bytes) in words {
        let before = failures(&bed)?;
        let (pod, target) = (bed.pod(PEER)?, bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT));
        let ending = plain_ending(pod, target, bytes, Duration::from_secs(8))?;
        let refused = matches!(ending, Ending::Alert(_) | Ending::Closed | Ending::Reset);
        ensure!(refused, "{what}: {ending:?}");
        wait::until_true(&format!("{what} to be counted"), wait::PATIENCE, || Ok(failures(&bed)? == before + 1.0))?;
    }
    unharmed(&bed, id)
}

#[test]
fn what_is_no_http2_is_refused_after_the_handshake() -> Result<()> {
    let bed = bed_with(&[])?;
    let id = bed.daemon("node-b")?.id();
    let honest = Caller::with(&bed.authority.honest("client-a")?)?;
    let (pod, target) = (bed.pod(PEER)?, bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT));
    for words in [&b"GET / HTTP/1.1\r\nHost: web-b\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"] {
        let mut peer = ztunnel_tests::hbone::raw::RawPeer::silent(&honest, pod, target)?;
        peer.send(words)?;
        let seen = peer.read(Duration::from_secs(5))?;
        ensure!(seen.ending.is_end(), "{words:?} did not end the connection: {seen:?}");
        ensure!(seen.statuses(ztunnel_tests::hbone::raw::STATUS_200) == 0, "{seen:?}");
    }
    unharmed(&bed, id)
}

#[test]
fn silence_is_ended_by_the_handshakes_deadline() -> Result<()> {
    let bed = bed_with(&["--handshake-timeout", "1"])?;
    let id = bed.daemon("node-b")?.id();
    for bytes in [&b""[..], &[0x16, 3, 1], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        let begin = Instant::now();
        let ending = once(&bed, |pod, target| {
            let mut stream = pod.connect(target)?;
            stream.write_all(bytes)?;
            let end = stream.read(&mut [0; 16]);
            let ending = end.map_or_else(|error| Ending::of(&error), |_| Ending::Closed);
            Ok((stream.local_addr()?, ending))
        })?;
        ensure!(ending.is_end() && begin.elapsed() < Duration::from_secs(4), "{ending:?} after {:?}", begin.elapsed());
    }
    unharmed(&bed, id)
}

/// Single bytes do not extend the deadline.
#[test]
fn a_slow_handshake_is_ended_by_its_deadline() -> Result<()> {
    let bed = bed_with(&["--handshake-timeout", "1"])?;
    let mut stream = bed.pod(PEER)?.connect(bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT))?;
    stream.write_all(&[0x16, 3, 1, 2, 0])?;
    let begin = Instant::now();
    let ended = wait::until("the end of the slow one", Duration::from_secs(5), || {
        wait::pass(Duration::from_millis(100));
        Ok(stream.write_all(&[0]).err())
    })?;
    println!("ended after {:?}: {ended}", begin.elapsed());
    unharmed(&bed, bed.daemon("node-b")?.id())
}

const HALF_OPEN: usize = 10_000;

/// A peer opens so many silent connections that a daemon which waited for each of them could not serve others.
#[test]
fn ten_thousand_half_open_handshakes_cost_bounded_memory_and_stop_nobody() -> Result<()> {
    let mut bed = bed_with(&[])?;
    bed.topology.grow("node-a", "guest")?;
    let (peer, victim, daemon) = (bed.pod(PEER)?, bed.pod(VICTIM)?, bed.daemon("node-b")?);
    let honest = Caller::with(&bed.authority.honest("client-a")?)?;
    // An HBONE connection that the client's node has already proves nothing, so a new client must be able to connect.
    let newcomer = || -> Result<()> {
        let echo = Server::echo(victim, victim.at(Family::V4, 7001))?;
        let peer = HbonePeer::connect(&honest, bed.pod("guest")?, victim.at(Family::V4, HBONE_PORT))?;
        let mut stream = peer.open(&echo.address().to_string(), &[])?;
        peer.exchange(&mut stream, b"hello")
    };
    // Further addresses, so that not all connections count for one peer.
    peer.netns.ip("addr add 10.10.2.77/32 dev eth0\naddr add 10.10.2.78/32 dev eth0\n")?;
    let sources: [SocketAddr; 3] = [peer.at(Family::V4, 0), "10.10.2.77:0".parse()?, "10.10.2.78:0".parse()?];
    let (id, before, begun) = (daemon.id(), daemon.memory()?, Instant::now());
    let target = victim.at(Family::V4, HBONE_PORT);
    let mut held = Vec::new();
    for number in 0..HALF_OPEN {
        let source = sources.get(number % sources.len()).context("no source")?;
        let socket = peer.netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))??;
        socket.bind(&(*source).into())?;
        socket.set_nonblocking(true)?;
        // The connect is in progress, or it was refused at once: both are part of a flood.
        let _ = socket.connect(&target.into());
        held.push(socket);
        if number % 1000 == 999 {
            newcomer().with_context(|| format!("beside {number} half-open ones"))?;
        }
    }
    let after = daemon.memory()?;
    println!("memory beside {} half-open connections: {} then {} KiB", held.len(), before >> 10, after >> 10);
    ensure!(after < before + (64 << 20), "memory grew from {before} to {after}");
    unharmed(&bed, id)?;
    drop(held);
    wait::until_true("the daemon to be done with them", wait::PATIENCE, || {
        let files = std::fs::read_dir(format!("/proc/{id}/fd"))?.count();
        Ok(files < 500)
    })?;
    // The flood does not flood the log.
    let lines = daemon.lines_with(&["10.10.2.7"])?.len();
    // 200 lines in 10 s for one pod on each of the workers, of which there are as many as cores.
    let windows = usize::try_from(begun.elapsed().as_secs())? / 10 + 2;
    let most = 200 * std::thread::available_parallelism()?.get() * windows;
    ensure!(lines <= most, "{lines} lines about the flood in {:?}, more than {most}", begun.elapsed());
    unharmed(&bed, id)
}

/// An HBONE connection with an open stream, which the test keeps.
fn tunnel(caller: &Caller, from: &Pod, echo: &Server) -> Result<(HbonePeer, Stream)> {
    let peer = HbonePeer::connect(caller, from, SocketAddr::new(echo.address().ip(), HBONE_PORT))?;
    let mut stream = peer.open(&echo.address().to_string(), &[])?;
    peer.exchange(&mut stream, b"hello")?;
    Ok((peer, stream))
}

/// A testbed with these limits, a pod besides [`PEER`] that no daemon serves, a valid certificate, and an echo in the victim.
fn limited(arguments: &[&str]) -> Result<(Testbed, Caller, Server)> {
    let mut bed = bed_with(arguments)?;
    bed.topology.grow("node-a", GUEST)?;
    let caller = Caller::with(&bed.authority.honest("client-a")?)?;
    let echo = Server::echo(bed.pod(VICTIM)?, bed.pod(VICTIM)?.at(Family::V4, 7001))?;
    Ok((bed, caller, echo))
}

const GUEST: &str = "guest";

/// This number of handshakes failed for this reason, and none for another reason.
fn refused_because(bed: &Testbed, reason: &str, times: f64) -> Result<()> {
    let metrics = bed.daemon("node-b")?.metrics()?;
    let (of_it, all) = (metrics.sum(FAILURES, &[("reason", reason)]), metrics.sum(FAILURES, &[]));
    ensure!(of_it == times && all == times, "{of_it} of {all} were refused because of {reason}, and not {times}");
    Ok(())
}

#[test]
fn a_client_has_so_many_tunnels_and_no_more() -> Result<()> {
    let (bed, caller, echo) = limited(&["--hbone-max-connections-per-peer", "2"])?;
    let (peer, guest) = (bed.pod(PEER)?, bed.pod(GUEST)?);
    let (first, second) = (tunnel(&caller, peer, &echo)?, tunnel(&caller, peer, &echo)?);
    ensure!(tunnel(&caller, peer, &echo).is_err(), "a third tunnel of one client came about");
    refused_because(&bed, "connections_of_peer", 1.0)?;
    let lines = bed.daemon("node-b")?.lines_with(&["--hbone-max-connections-per-peer"])?;
    ensure!(lines.len() == 1, "{lines:?}");
    tunnel(&caller, guest, &echo).context("another client")?;
    drop(first);
    wait::until("the place to be free again", wait::PATIENCE, || Ok(tunnel(&caller, peer, &echo).ok()))?;
    drop(second);
    unharmed(&bed, bed.daemon("node-b")?.id())
}

/// Whether every connection to a listener in the pod's network namespace has been accepted.
fn nothing_waits(pod: &Pod) -> Result<bool> {
    let done = Launch::new("ss").args(["-Htnl"]).inside(&pod.netns).finish()?;
    let mut queues = done.stdout.lines().map(|line| line.split_whitespace().nth(1)).peekable();
    ensure!(queues.peek().is_some(), "nothing listens in the pod's network namespace");
    Ok(queues.all(|queue| queue == Some("0")))
}

#[test]
fn a_client_has_so_many_handshakes_pending_and_the_oldest_gives_way() -> Result<()> {
    let (bed, caller, echo) = limited(&["--hbone-max-handshakes-per-peer", "2", "--handshake-timeout", "60"])?;
    let (peer, guest) = (bed.pod(PEER)?, bed.pod(GUEST)?);
    let target = bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT);
    let mut silent = Vec::new();
    for _ in 1..=3 {
        let handshake = peer.connect(target)?;
        handshake.set_nonblocking(true)?;
        silent.push(handshake);
        // Workers accept in parallel, so the order is known only if each connection is accepted before the next one begins.
        wait::until_true("the connection to be accepted", wait::PATIENCE, || nothing_waits(bed.pod(VICTIM)?))?;
    }
    let mut is_lost = |handshake: &mut TcpStream| handshake.read(&mut [0; 1]).is_err_and(|error| is_reset(&error));
    let [older @ .., newest] = &mut silent[..] else { bail!("three were opened") };
    wait::until_true("the oldest to be reset", wait::PATIENCE, || Ok(older.iter_mut().any(&mut is_lost)))?;
    ensure!(!is_lost(newest), "the newest was reset");
    refused_because(&bed, "evicted", 1.0)?;
    tunnel(&caller, guest, &echo).context("another client")?;
    tunnel(&caller, peer, &echo).context("the same client, when it means it")?;
    refused_because(&bed, "evicted", 2.0)?;
    drop(silent);
    unharmed(&bed, bed.daemon("node-b")?.id())
}

/// Two neighbours open 40 silent connections each: more than there are places.
#[test]
fn neighbours_that_connect_and_say_nothing_shut_no_pod_of_the_mesh_out() -> Result<()> {
    let (bed, caller, echo) = limited(&["--handshake-timeout", "60", "--hbone-max-handshakes", "16"])?;
    let (peer, guest) = (bed.pod(PEER)?, bed.pod(GUEST)?);
    let target = bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT);
    let mut silent = Vec::new();
    for _ in 0..40 {
        for neighbour in [guest, peer] {
            silent.push(neighbour.connect(target)?);
        }
        tunnel(&caller, peer, &echo).context("a pod of the mesh")?;
    }
    unharmed(&bed, bed.daemon("node-b")?.id())
}

#[test]
fn a_pod_has_so_many_tunnels_and_no_more() -> Result<()> {
    let (bed, caller, echo) = limited(&["--hbone-max-connections", "2"])?;
    let (peer, guest) = (bed.pod(PEER)?, bed.pod(GUEST)?);
    let held = (tunnel(&caller, peer, &echo)?, tunnel(&caller, guest, &echo)?);
    ensure!(tunnel(&caller, guest, &echo).is_err(), "a third tunnel to the pod came about");
    refused_because(&bed, "connections", 1.0)?;
    drop(held);
    wait::until("the places to be free again", wait::PATIENCE, || Ok(tunnel(&caller, guest, &echo).ok()))?;
    unharmed(&bed, bed.daemon("node-b")?.id())
}

/// A peer uses the certificate of another pod. It may connect, but it is identified by the certificate, not by its address.
#[test]
fn a_certificate_from_another_address_is_not_the_pod_at_that_address() -> Result<()> {
    let bed = bed_with(&[])?;
    let victim = bed.pod(VICTIM)?;
    let echo = Server::echo(victim, victim.at(Family::V4, 7000))?;
    let honest = Caller::with(&bed.authority.honest("client-a")?)?;
    let peer = HbonePeer::connect(&honest, bed.pod(PEER)?, victim.at(Family::V4, HBONE_PORT))?;
    ensure!(peer.server_is(&ztunnel_tests::ca::identity(VICTIM)), "the server's certificate names another identity");
    let mut stream = peer.open(&echo.address().to_string(), &[])?;
    peer.exchange(&mut stream, b"hello")?;
    drop((stream, peer));
    let source = bed.pod(PEER)?.v4.to_string();
    let line = bed.daemon("node-b")?.wait_access("the inbound line", |line| {
        line.is_tunnelled() && line.asked() == echo.address() && line.src.ip().to_string() == source
    })?;
    ensure!(line.field("src.identity") == ztunnel_tests::ca::identity("client-a"), "{}", line.line);
    ensure!(line.field("src.workload") != PEER, "the workload was determined by the address: {}", line.line);
    Ok(())
}
