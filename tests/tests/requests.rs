//! Peers with a valid certificate that send forbidden requests, or misuse HTTP/2 (RFC 9113, CVE-2023-44487). A forbidden
//! request is refused with a status, a peer that misuses HTTP/2 loses its connection, and other clients are not affected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::hbone::Caller;
use ztunnel_tests::hbone::peer::{Answer, HbonePeer};
use ztunnel_tests::hbone::raw::{
    ACK, END_HEADERS, INITIAL_WINDOW_SIZE, REFUSED_STREAM, RawPeer, STATUS_200, STATUS_400, connect, fields, frame,
    kind,
};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

/// A pod outside the mesh, on the victim's node.
const PEER: &str = "client-b";
const VICTIM: &str = "web-b";
const APP: u16 = 7000;

/// How long a peer waits for frames.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state of these tests: a peer with a stolen certificate, and an echo to which it may connect.
struct Stage {
    bed: Testbed,
    caller: Caller,
    echo: Server,
    id: u32,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut bed = Testbed::new(TWO_NODES)?;
        bed.mesh.pod(&PodManifest::of(bed.pod(PEER)?).mode("none"))?;
        bed.start("node-a")?;
        bed.start("node-b")?;
        bed.enrol_only(&["client-a", "web-a", VICTIM])?;
        for pod in ["client-a", VICTIM] {
            bed.daemon(&bed.pod(pod)?.node)?.certified(&ztunnel_tests::ca::identity(pod))?;
        }
        let caller = Caller::with(&bed.authority.honest("web-a")?)?;
        let echo = Server::echo(bed.pod(VICTIM)?, bed.pod(VICTIM)?.at(Family::V4, APP))?;
        let id = bed.daemon("node-b")?.id();
        Ok(Self { bed, caller, echo, id })
    }

    fn peer(&self, family: Family) -> Result<HbonePeer> {
        HbonePeer::connect(&self.caller, self.bed.pod(PEER)?, self.bed.pod(VICTIM)?.at(family, HBONE_PORT))
    }

    fn raw(&self, settings: &[(u16, u32)]) -> Result<RawPeer> {
        RawPeer::connect(&self.caller, self.bed.pod(PEER)?, self.bed.pod(VICTIM)?.at(Family::V4, HBONE_PORT), settings)
    }

    fn authority(&self) -> String {
        self.echo.address().to_string()
    }

    /// The daemon is the same process, a legitimate client can connect, and nothing of the peer is left.
    fn unharmed(&self) -> Result<()> {
        let daemon = self.bed.daemon("node-b")?;
        ensure!(daemon.id() == self.id, "the daemon is another process");
        proof::tunnelled(&self.bed, ("client-a", VICTIM), &self.echo, Pod::connect)?;
        daemon
            .wait_dump("no connection to be left", wait::PATIENCE, |dump| dump.pods().all(|pod| pod.connections() == 0))
    }

    fn open_streams(&self) -> Result<usize> {
        let dump = self.bed.daemon("node-b")?.dump()?;
        Ok(dump.pod(VICTIM).context("unknown pod")?.connections_over("HBONE"))
    }
}

#[test]
fn only_the_pod_itself_and_its_applications_can_be_asked_for() -> Result<()> {
    let stage = Stage::new()?;
    let (victim, other) = (stage.bed.pod(VICTIM)?, stage.bed.pod("web-a")?);
    for family in Family::BOTH {
        let peer = stage.peer(family)?;
        let cases = [
            (other.at(family, APP).to_string(), 400, "another pod"),
            (stage.bed.pod(PEER)?.at(family, APP).to_string(), 400, "the peer itself"),
            (std::net::SocketAddr::new(family.loopback(), APP).to_string(), 400, "loopback"),
            ("169.254.169.254:80".to_owned(), 400, "a metadata server"),
            (victim.at(family, HBONE_PORT).to_string(), 503, "the tunnel port"),
            (victim.at(family, 15001).to_string(), 503, "Istio's outbound port"),
            (victim.at(family, 15006).to_string(), 503, "Istio's inbound port"),
            (victim.at(family, 0).to_string(), 400, "port 0"),
            (victim.at(family, 7999).to_string(), 503, "a port without a listener"),
            ("no-such-service.demo.svc.cluster.local:80".to_owned(), 503, "an unknown service"),
        ];
        for (authority, status, what) in cases {
            let answer = peer.ask(&authority, &[])?;
            ensure!(answer.status() == Some(status), "{what}, {authority}: {answer:?}");
            ensure!(!answer.refusal().is_empty(), "{what}: no reason in {answer:?}");
        }
    }
    ensure!(stage.echo.accepted() == 0, "the server accepted connections from {:?}", stage.echo.peers());
    stage.unharmed()
}

#[test]
fn what_is_no_connect_is_refused() -> Result<()> {
    let stage = Stage::new()?;
    let authority = stage.authority();
    let requests: [&[(&str, &str)]; 5] = [
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", &authority)],
        &[(":method", "CONNECT"), (":authority", "10.10.2.11")],
        &[(":method", "CONNECT"), (":authority", "10.10.2.11:99999")],
        &[(":method", "CONNECT"), (":authority", "not an authority\u{1}")],
        &[(":method", "CONNECT")],
    ];
    for request in requests {
        let mut peer = stage.raw(&[])?;
        peer.send(&frame(kind::HEADERS, END_HEADERS, 1, &fields(request)))?;
        let seen = peer.read(Duration::from_secs(1))?;
        let refused = seen.statuses(STATUS_400) == 1 || !seen.resets().is_empty() || seen.goaway().is_some();
        ensure!(refused && seen.statuses(STATUS_200) == 0, "{request:?}: {seen:?}");
    }
    ensure!(stage.echo.accepted() == 0);
    stage.unharmed()
}

#[test]
fn garbage_in_headers_is_harmless() -> Result<()> {
    let stage = Stage::new()?;
    let peer = stage.peer(Family::V4)?;
    let long = "k8s.namespace.name=x,".repeat(300);
    let cases: [&[(&str, &str)]; 6] = [
        &[("traceparent", "00-zz-zz-00"), ("baggage", "=,=,,;;=="), ("forwarded", ";;host=;for=")],
        &[("traceparent", ""), ("baggage", ""), ("forwarded", "")],
        &[("baggage", &long)],
        &[("forwarded", "for=\"[::1]:99999\";host=\"\";host=..;by=_x")],
        &[("x-forwarded-network", "another-network"), ("baggage", "k8s.pod.name=web-a")],
        &[("traceparent", "00-00000000000000000000000000000000-0000000000000000-00"), ("traceparent", "twice")],
    ];
    for headers in cases {
        let mut stream = peer.open(&stage.authority(), headers).with_context(|| format!("{headers:?}"))?;
        peer.exchange(&mut stream, b"hello")?;
    }
    // This header may decide the destination of a stream, so an invalid value is refused, not ignored.
    let answer = peer.ask(&stage.authority(), &[("x-forwarded-network", "another network")])?;
    ensure!(answer.status() == Some(400) && answer.refusal().contains("x-forwarded-network"), "{answer:?}");
    drop(peer);
    stage.unharmed()
}

#[test]
fn headers_of_64_kib_are_refused() -> Result<()> {
    let stage = Stage::new()?;
    let peer = stage.peer(Family::V4)?;
    let value = "x".repeat(7000);
    let names: Vec<String> = (0..12).map(|number| format!("x-large-{number}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    match peer.ask(&stage.authority(), &headers)? {
        Answer::Refused { status: 431, .. } | Answer::Reset(_) | Answer::GoAway(_) => (),
        other => anyhow::bail!("84 KiB of headers: {other:?}"),
    }
    ensure!(stage.echo.accepted() == 0);
    drop(peer);
    stage.unharmed()
}

#[test]
fn no_more_than_two_hundred_streams_are_open_at_once() -> Result<()> {
    const ASKED: usize = 3000;
    let stage = Stage::new()?;
    let mut peer = stage.raw(&[])?;
    let authority = stage.authority();
    let sent = peer.flood(ASKED, |number| connect(u32::try_from(number * 2 + 1).unwrap_or(1), &authority));
    let seen = peer.read(Duration::from_secs(2))?;
    let (opened, refused) = (seen.statuses(STATUS_200), seen.resets());
    let open = stage.open_streams()?;
    println!("{sent} asked for, {opened} opened, {} reset, {open} open, GOAWAY {:?}", refused.len(), seen.goaway());
    ensure!(opened <= 200 && open <= 200, "{opened} opened, {open} open");
    let counted = refused.iter().filter(|code| **code == REFUSED_STREAM).count();
    ensure!(seen.goaway().is_some() || counted >= sent.saturating_sub(200), "{counted} of {sent} were refused");
    drop(peer);
    stage.unharmed()
}

/// The peer has lost its connection, and the daemon has not kept the peer's frames.
fn costs_the_connection(stage: &Stage, before: u64, mut peer: RawPeer, sent: usize) -> Result<()> {
    let seen = peer.read(PATIENCE)?;
    println!("{sent} pieces sent, then {:?}, GOAWAY {:?}", seen.ending, seen.goaway());
    ensure!(seen.ending.is_end() || seen.goaway().is_some(), "the connection lives: {:?}", seen.ending);
    let grown = stage.bed.daemon("node-b")?.memory()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "memory grew by {grown}");
    drop(peer);
    stage.unharmed()
}

/// CVE-2023-44487: streams that are opened and reset at once.
#[test]
fn rapid_resets_cost_the_peer_its_connection() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.bed.daemon("node-b")?.memory()?;
    let mut peer = stage.raw(&[])?;
    let authority = stage.authority();
    let sent = peer.flood(200, |batch| {
        let pair = |number: usize| {
            let stream = u32::try_from((batch * 100 + number) * 2 + 1).unwrap_or(1);
            [connect(stream, &authority), frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        };
        (0..100).flat_map(pair).collect()
    });
    costs_the_connection(&stage, before, peer, sent)
}

#[test]
fn endless_continuations_cost_the_peer_its_connection() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.bed.daemon("node-b")?.memory()?;
    let mut peer = stage.raw(&[])?;
    let authority = stage.authority();
    let begin = fields(&[(":method", "CONNECT"), (":authority", &authority)]);
    peer.send(&frame(kind::HEADERS, 0, 1, &begin))?;
    let more = fields(&[("x-more", &"x".repeat(4000))]);
    let sent = peer.flood(50_000, |_| frame(kind::CONTINUATION, 0, 1, &more));
    costs_the_connection(&stage, before, peer, sent)
}

#[test]
fn windows_that_are_wrong_are_errors() -> Result<()> {
    let stage = Stage::new()?;
    let update = |stream, size: u32| frame(kind::WINDOW_UPDATE, 0, stream, &size.to_be_bytes());
    let far_too_much = frame(kind::DATA, 0, 1, &vec![b'x'; 1 << 20]).repeat(64);
    let cases = [
        ("an increment of zero", update(0, 0)),
        ("a window above the limit", [update(0, 0x7fff_ffff), update(0, 0x7fff_ffff)].concat()),
        ("a stream's window above the limit", [update(1, 0x7fff_ffff), update(1, 0x7fff_ffff)].concat()),
        ("more data than the windows allow", far_too_much),
    ];
    for (what, bytes) in cases {
        let mut peer = stage.raw(&[])?;
        peer.send(&connect(1, &stage.authority()))?;
        // The daemon need not accept all bytes.
        let _ = peer.send(&bytes);
        let seen = peer.read(Duration::from_secs(2))?;
        let punished = seen.ending.is_end() || seen.goaway().is_some() || !seen.resets().is_empty();
        ensure!(punished, "{what}: {seen:?}");
    }
    stage.unharmed()
}

/// The peer opens streams but never enlarges a window, so the application's bytes can't be sent.
#[test]
fn a_closed_window_stalls_the_sender_and_costs_bounded_memory() -> Result<()> {
    let stage = Stage::new()?;
    let victim = stage.bed.pod(VICTIM)?;
    let sender = Server::start(victim, victim.at(Family::V4, APP + 1), |mut stream, _| {
        stream.set_write_timeout(Some(PATIENCE))?;
        loop {
            std::io::Write::write_all(&mut stream, &[b'x'; 65_536])?;
        }
    })?;
    let before = stage.bed.daemon("node-b")?.memory()?;
    let mut peer = stage.raw(&[(INITIAL_WINDOW_SIZE, 0)])?;
    let authority = sender.address().to_string();
    let sent = peer.flood(150, |number| connect(u32::try_from(number * 2 + 1).unwrap_or(1), &authority));
    let seen = peer.read(Duration::from_secs(1))?;
    ensure!(sent == 150 && seen.statuses(STATUS_200) == 150, "{} opened", seen.statuses(STATUS_200));
    let data: usize =
        seen.frames.iter().filter(|frame| frame.kind == kind::DATA).map(|frame| frame.payload.len()).sum();
    ensure!(data == 0, "{data} bytes came through a closed window");
    let grown = stage.bed.daemon("node-b")?.memory()?.saturating_sub(before);
    println!("150 stalled streams: {} KiB more", grown >> 10);
    ensure!(grown < 64 << 20, "memory grew by {grown}");
    drop(peer);
    drop(sender);
    stage.unharmed()
}

/// PING and SETTINGS frames that need an answer each, from a peer that reads no answer.
#[test]
fn a_flood_that_asks_for_answers_is_bounded() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.bed.daemon("node-b")?.memory()?;
    for (what, bytes) in [
        ("pings", frame(kind::PING, 0, 0, &[7; 8])),
        ("settings", frame(kind::SETTINGS, 0, 0, &[])),
        ("answers to no ping", frame(kind::PING, ACK, 0, &[9; 8])),
    ] {
        let mut peer = stage.raw(&[])?;
        let flood = bytes.repeat(1000);
        let sent = peer.flood(500, |_| flood.clone());
        let grown = stage.bed.daemon("node-b")?.memory()?.saturating_sub(before);
        println!("{what}: {sent} of 500 thousands taken, {} KiB more", grown >> 10);
        ensure!(grown < 64 << 20, "{what}: memory grew by {grown}");
    }
    stage.unharmed()
}
