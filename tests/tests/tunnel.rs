//! Both pods are in the mesh: only ciphertext crosses the wire, both nodes know both identities, and the applications do not
//! notice.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::nginx::{Nginx, curl};
use ztunnel_tests::apps::server::{Server, is_reset, read_all};
use ztunnel_tests::apps::transfer::both_ways;
use ztunnel_tests::capture::{Capture, Recording};
use ztunnel_tests::hbone;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::policy::{authentication, authorization, denied};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, SOCKET_DEADLINE, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// The text of a page that must not be readable on the wire.
const SECRET: &str = "a sentence that only two pods should know";

/// Pods on two nodes, and two pods of one node.
const PAIRS: [(&str, &str); 3] = [("client-a", "web-b"), ("client-b", "web-a"), ("client-a", "web-a")];

#[test]
fn both_daemons_know_both_identities_and_the_server_sees_the_client() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for (client, web) in PAIRS {
        for family in Family::BOTH {
            let echo = Server::echo(bed.pod(web)?, bed.pod(web)?.at(family, PORT))?;
            proof::tunnelled(&bed, (client, web), &echo, Pod::connect)
                .with_context(|| format!("{client} to {web} over {family:?}"))?;
        }
    }
    Ok(())
}

/// Policy is not enforced at an excluded port, neither for plaintext, which bypasses the daemon, nor for HBONE, which pods of
/// the mesh use. When the port is not excluded any more, policy also decides about open connections.
#[test]
fn an_excluded_port_is_reached_through_a_tunnel_and_without_policy() -> Result<()> {
    const EXCLUDE: &str = "traffic.ambient.mesh/exclude-inbound-ports";
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let right = PodManifest::of(web);
    bed.change(|mesh| {
        mesh.policy("strict", &authentication("strict", "{mtls: {mode: STRICT}}"))?;
        mesh.policy("deny-all", &authorization("deny-all", "{}"))?;
        mesh.pod(&right.clone().annotation(EXCLUDE, "7000"))
    })?;
    for family in Family::BOTH {
        let excluded = Server::echo(web, web.at(family, PORT))?;
        let (_, inbound) = proof::tunnelled(&bed, ("client-a", "web-b"), &excluded, Pod::connect)?;
        let policy = inbound.field("policy");
        ensure!(policy == "not enforced: port excluded from inbound capture", "{policy:?}: {}", inbound.line);
        let told = denied(&bed, ("client-a", "web-b"), web.at(family, PORT + 1))?;
        ensure!(told.starts_with("no ALLOW policy matched"), "{told}");
    }
    let excluded = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut open = bed.pod("client-a")?.connect(excluded.address())?;
    exchange(&mut open, b"before")?;
    bed.change_on(&web.node, |mesh| mesh.pod(&right))?;
    let mut rest = Vec::new();
    let ended = open.read_to_end(&mut rest);
    ensure!(ended.as_ref().is_err_and(is_reset), "not cut by the policy that is in force now: {ended:?}");
    Ok(())
}

/// A labelled pod that its own node can't enrol is still a member of the mesh: other pods do not connect to it in plaintext.
#[test]
fn a_pod_that_its_node_cannot_enrol_is_never_reached_in_plaintext() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("web-b")?).no_netns())?;
    bed.enrol_only(&["client-a", "web-a", "client-b"])?;
    let reason = bed.daemon("node-b")?.refused("web-b")?;
    ensure!(reason.contains("the pod's network namespace is not known"), "{reason}");
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        // From the other node, and from the pod's own node.
        for client in ["client-a", "client-b"] {
            let mut stream = bed.pod(client)?.connect(echo.address())?;
            let ended = exchange(&mut stream, b"secret");
            ensure!(ended.is_err(), "{client} reached a pod of the mesh that has no tunnel");
        }
        ensure!(echo.peers().is_empty(), "the application saw {:?}", echo.peers());
    }
    Ok(())
}

/// Fetches the secret page from `client-a` over both families while the wire is recorded.
fn recorded(bed: &Testbed, name: &str) -> Result<Recording> {
    let capture = Capture::start(&bed.topology, "node-a", "node-b", name)?;
    let copy = bed.topology.folder.join(name).display().to_string();
    for family in Family::BOTH {
        let target = bed.pod("web-b")?.at(family, 80);
        let url = format!("http://{target}/files/{SECRET_PATH}");
        curl(bed.pod("client-a")?, target, &["-o", &copy, &url, "-o", "/dev/null"])?;
        ensure!(std::fs::read_to_string(&copy)?.contains(SECRET), "another page came");
    }
    capture.finish()
}

const SECRET_PATH: &str = "a-path-that-only-two-pods-should-know";

#[test]
fn the_wire_carries_no_byte_of_what_pods_say() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    let nginx = Nginx::start(&bed.topology, bed.pod("web-b")?, 80, false)?;
    std::fs::write(nginx.files().join(SECRET_PATH), format!("{SECRET}\n").repeat(100))?;
    let before = recorded(&bed, "before")?;
    for words in [SECRET, SECRET_PATH, "Server: nginx"] {
        ensure!(before.count(words.as_bytes()) > 0, "the capture does not even show {words:?} before the label");
    }
    bed.enrol()?;
    let after = recorded(&bed, "after")?;
    for words in [SECRET, SECRET_PATH, "Server: nginx", "spiffe://", "CONNECT"] {
        ensure!(
            after.count(words.as_bytes()) == 0,
            "{words:?} crossed the wire {} times",
            after.count(words.as_bytes())
        );
    }
    let (tunnels, all) = (after.packets(&format!("tcp port {HBONE_PORT}"))?, after.packets("tcp")?);
    ensure!(tunnels > 10 && tunnels == all, "{tunnels} of {all} TCP packets belong to tunnels");
    Ok(())
}

#[test]
fn large_transfers_both_ways_at_once_arrive_whole() -> Result<()> {
    const CHUNKS: usize = 512;
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let web = bed.pod("web-b")?;
        let server = Server::start(web, web.at(family, PORT), |mut stream, _| {
            let mut number = [0; 8];
            stream.read_exact(&mut number)?;
            both_ways(&stream, CHUNKS, 1000 + u64::from_be_bytes(number), u64::from_be_bytes(number))
        })?;
        let (client, address) = (bed.pod("client-a")?, server.address());
        std::thread::scope(|scope| -> Result<()> {
            let transfer = move |number: u64| -> Result<()> {
                let mut stream = client.connect(address)?;
                stream.set_read_timeout(Some(SOCKET_DEADLINE * 4))?;
                stream.set_write_timeout(Some(SOCKET_DEADLINE * 4))?;
                stream.write_all(&number.to_be_bytes())?;
                both_ways(&stream, CHUNKS, number, 1000 + number).with_context(|| format!("transfer {number}"))
            };
            let transfers: Vec<_> = (0..3).map(|number| scope.spawn(move || transfer(number))).collect();
            transfers.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a transfer panicked"))?)
        })?;
        ensure!(server.failures().is_empty(), "{:?}", server.failures());
    }
    proof::had_tunnels(&bed, "web-b")
}

#[test]
fn writes_of_one_byte_come_back_one_by_one() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        let mut stream = bed.pod("client-a")?.connect(echo.address())?;
        stream.set_nodelay(true)?;
        let begin = Instant::now();
        for number in 0..1000_u32 {
            exchange(&mut stream, &[number.to_le_bytes()[0]]).with_context(|| format!("byte {number}"))?;
        }
        // Nagle's algorithm with delayed acknowledgements would delay each byte by 40 ms, which is 40 s in total.
        ensure!(begin.elapsed() < Duration::from_secs(10), "1,000 bytes took {:?}", begin.elapsed());
    }
    proof::had_tunnels(&bed, "web-b")
}

/// A server that sends until its socket takes no more bytes for a minute.
fn bulk_sender(pod: &Pod) -> Result<Server> {
    Server::start(pod, pod.at(Family::V4, PORT), |mut stream, _| {
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        loop {
            stream.write_all(&[b'x'; 65_536])?;
        }
    })
}

/// Writes until all buffers on the way are full; returns the number of bytes.
fn filled(stream: &mut TcpStream) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let (chunk, mut sum) = ([b'x'; 65_536], 0);
    while sum < 256 << 20 {
        match stream.write(&chunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sum),
            written => sum += written?,
        }
    }
    anyhow::bail!("the way has no end: {sum} bytes went in")
}

/// The allowed growth of memory: the windows need less.
const GROWTH: u64 = 64 << 20;

/// The memory of both daemons, in bytes.
fn memory(bed: &Testbed) -> Result<[u64; 2]> {
    Ok([bed.daemon("node-a")?.memory()?, bed.daemon("node-b")?.memory()?])
}

fn bounded(bed: &Testbed, before: [u64; 2]) -> Result<()> {
    let after = memory(bed)?;
    println!("memory of both daemons in MiB: {:?} then {:?}", before.map(|b| b >> 20), after.map(|b| b >> 20));
    for (before, after) in before.into_iter().zip(after) {
        ensure!(after < before + GROWTH, "memory grew from {before} to {after}");
    }
    Ok(())
}

#[test]
fn eight_stalled_readers_cost_bounded_memory() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let sender = bulk_sender(web)?;
    let before = memory(&bed)?;
    let stalled = stalled_clients(&bed, &sender, 8)?;
    bounded(&bed, before)?;
    read_on(stalled)
}

#[test]
fn a_stalled_application_costs_bounded_memory_and_stops_nobody() -> Result<()> {
    let bed = one_worker_each()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let stalled = Server::start(web, web.at(Family::V4, PORT), move |_stream, _| {
        let _ = held.lock().map(|held| held.recv_timeout(Duration::from_secs(120)));
        Ok(())
    })?;
    let before = memory(&bed)?;
    let mut streams = Vec::new();
    for _ in 0..STALLED {
        let mut stream = client.connect(stalled.address())?;
        filled(&mut stream)?;
        streams.push(stream);
    }
    bounded(&bed, before)?;
    let echo = Server::echo(web, web.at(Family::V4, PORT + 1))?;
    for number in 0..100 {
        proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)
            .with_context(|| format!("number {number} beside the stalled ones"))?;
    }
    drop(release);
    Ok(())
}

/// The same in the other direction: clients that do not read.
#[test]
fn clients_that_do_not_read_stop_nobody() -> Result<()> {
    let bed = one_worker_each()?;
    let web = bed.pod("web-b")?;
    let sender = bulk_sender(web)?;
    let stalled = stalled_clients(&bed, &sender, STALLED)?;
    let echo = Server::echo(web, web.at(Family::V4, PORT + 1))?;
    for number in 0..100 {
        proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)
            .with_context(|| format!("number {number} beside the stalled ones"))?;
    }
    read_on(stalled)
}

/// Clients that do not read; returns when all buffers between them and the sender are full.
fn stalled_clients(bed: &Testbed, sender: &Server, count: usize) -> Result<Vec<TcpStream>> {
    let client = bed.pod("client-a")?;
    let stalled: Vec<_> = (0..count).map(|_| client.connect(sender.address())).collect::<Result<_, _>>()?;
    let carried = || -> Result<Vec<u64>> {
        let dump = bed.daemon("node-a")?.dump()?;
        let pod = dump.pod("client-a").context("unknown pod")?;
        Ok(pod.each_connection().filter_map(|connection| connection["bytesSent"].as_u64()).collect())
    };
    let (mut last, mut since) = (carried()?, Instant::now());
    wait::until_true("the senders to stall", wait::PATIENCE * 2, || {
        let now = carried()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok(last.len() == count && last.iter().any(|bytes| *bytes > 0) && since.elapsed() > Duration::from_secs(1))
    })?;
    Ok(stalled)
}

/// All clients read again at the same time. Together they have filled the window of the HBONE connection, so one client alone
/// would wait for the others.
fn read_on(stalled: Vec<TcpStream>) -> Result<()> {
    std::thread::scope(|scope| -> Result<()> {
        let read_on = |mut stream: TcpStream| {
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            stream.read_exact(&mut vec![0; 8 << 20]).context("a stalled reader that reads again")
        };
        let reading: Vec<_> = stalled.into_iter().map(|stream| scope.spawn(move || read_on(stream))).collect();
        reading.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })
}

/// Twice the number of streams that fills the window of an HBONE connection.
const STALLED: usize = 8;

/// With more workers, some connections could get another HBONE connection by chance.
fn one_worker_each() -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for node in ["node-a", "node-b"] {
        bed.start_with(node, |options| options.arguments = ["--workers", "1"].map(String::from).into())?;
    }
    bed.enrol()?;
    Ok(bed)
}

#[test]
fn who_is_not_in_the_mesh_is_let_in_and_reached_without_a_tunnel() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-b")?).mode("none"))?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.enrol_only(&["client-a", "web-a", "web-b"])?;
    for family in Family::BOTH {
        for web in ["web-a", "web-b"] {
            let echo = Server::echo(bed.pod(web)?, bed.pod(web)?.at(family, PORT))?;
            proof::inbound(&bed, "client-b", web, &echo, echo.address()).with_context(|| format!("to {web}"))?;
        }
        let plain = bed.pod("client-b")?;
        let echo = Server::echo(plain, plain.at(family, PORT))?;
        for client in ["client-a", "web-b"] {
            proof::outbound(&bed, client, &echo, Pod::connect).with_context(|| format!("from {client}"))?;
        }
    }
    Ok(())
}

/// After a destination has left the mesh, it is reached in plaintext, and no HBONE connection to it stays open.
#[test]
fn a_destination_that_leaves_the_mesh_is_reached_in_plaintext() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    bed.mesh.pod(&PodManifest::of(web).mode("none"))?;
    bed.daemon("node-b")?.released("web-b")?;
    // The two daemons read the same file, each in its own time.
    wait::until("the first connection in plaintext", wait::PATIENCE, || {
        Ok(proof::outbound(&bed, "client-a", &echo, Pod::connect).ok())
    })?;
    for _ in 0..20 {
        proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    }
    wait::until_true("the stale tunnel to be closed", wait::PATIENCE, || Ok(proof::tunnels(client)? == 0))?;
    bed.mesh.pod(&PodManifest::of(web))?;
    bed.daemon("node-b")?.enrolled("web-b")?;
    wait::until("a tunnel again", wait::PATIENCE, || {
        Ok(proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect).ok())
    })?;
    Ok(())
}

/// One end leaves the mesh: its open connections end with a reset at both ends, and the next connection is in plaintext.
fn leaves_with_streams_open(leaving: &str) -> Result<()> {
    const STREAMS: usize = 5;
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = client.connect(echo.address())?;
        exchange(&mut stream, b"hello")?;
        streams.push(stream);
    }
    bed.mesh.pod(&PodManifest::of(bed.pod(leaving)?).mode("none"))?;
    for stream in &mut streams {
        let end = read_all(stream);
        ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    }
    wait::until_true("the end at the server", wait::PATIENCE, || Ok(echo.open() == 0))?;
    ensure!(echo.resets() == STREAMS, "the server saw {:?}", echo.failures());
    bed.daemon(&bed.pod(leaving)?.node)?.released(leaving)?;
    let plain = || match leaving {
        "client-a" => proof::inbound(&bed, "client-a", "web-b", &echo, echo.address()),
        _ => proof::outbound(&bed, "client-a", &echo, Pod::connect),
    };
    // The two daemons read the same file, each in its own time.
    wait::until("the first connection in plaintext", wait::PATIENCE, || Ok(plain().ok()))?;
    plain()?;
    wait::until_true("the tunnels to be closed", wait::PATIENCE, || Ok(proof::tunnels(client)? == 0))
}

#[test]
fn a_server_that_leaves_the_mesh_resets_its_streams() -> Result<()> {
    leaves_with_streams_open("web-b")
}

#[test]
fn a_client_that_leaves_the_mesh_resets_its_streams() -> Result<()> {
    leaves_with_streams_open("client-a")
}

/// A new pod gets the address of a deleted pod: the HBONE connection to the old pod is not used for the new one.
#[test]
fn a_tunnel_is_not_used_for_another_pod_at_the_same_address() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let (old, _) = proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    bed.mesh.remove_pod("web-b")?;
    bed.mesh.pod(&PodManifest::of(web).named("other").service_account("other"))?;
    bed.daemon("node-b")?.enrolled("other")?;
    let new = ztunnel_tests::ca::identity("other");
    let once = || -> Result<Option<String>> {
        let mut stream = client.connect(echo.address())?;
        let own = stream.local_addr()?;
        let done = exchange(&mut stream, b"hello").is_ok();
        drop(stream);
        let line = bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?;
        Ok(done.then(|| line.field("dst.identity").to_owned()))
    };
    wait::until("a connection to the new pod", wait::PATIENCE, || {
        let identity = once()?;
        Ok(identity.filter(|identity| *identity == new))
    })?;
    for _ in 0..50 {
        let identity = once()?.context("a connection failed")?;
        ensure!(identity == new, "{identity} was served after {new}; before both it was {}", old.field("dst.identity"));
    }
    Ok(())
}

#[test]
fn a_killed_node_ends_its_streams_with_a_reset() -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = bed.pod("client-a")?.connect(echo.address())?;
        exchange(&mut stream, b"hello")?;
        streams.push(stream);
    }
    bed.daemon_mut("node-b")?.kill9()?;
    let begin = Instant::now();
    for stream in &mut streams {
        let end = read_all(stream);
        ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    }
    ensure!(begin.elapsed() < Duration::from_secs(2), "the resets took {:?}", begin.elapsed());
    bed.daemon_mut("node-b")?.restart()?;
    bed.daemon("node-b")?.enrolled("web-b")?;
    // The failures with the dead daemon must not affect new connections.
    wait::until("a tunnel to the restarted node", wait::PATIENCE, || {
        Ok(proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect).ok())
    })?;
    Ok(())
}

#[test]
fn a_peer_that_goes_silent_is_found_within_twenty_seconds() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    let mut stream = bed.pod("client-a")?.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    let begin = Instant::now();
    let wire = bed.topology.node("node-b")?.wire();
    bed.topology.node("node-a")?.netns.nft(&format!(
        "table inet silence {{\n\
         chain forward {{ type filter hook forward priority 0; iifname {wire} drop; oifname {wire} drop\n }}\n }}\n"
    ))?;
    stream.set_read_timeout(Some(Duration::from_secs(25)))?;
    let end = stream.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come within 25 s, not {end:?}");
    println!("the client's stream was reset after {:?}", begin.elapsed());
    wait::until_true("the end at the server", wait::PATIENCE, || Ok(echo.open() == 0))?;
    ensure!(echo.resets() == 1, "the server saw {:?}", echo.failures());
    bed.topology.node("node-a")?.netns.nft("delete table inet silence\n")?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    Ok(())
}

/// No other server may answer for a pod: only the server's certificate counts, not its address.
#[test]
fn a_server_with_another_identity_gets_no_word() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    bed.change(|mesh| mesh.pod(&PodManifest::of(web).mode("ambient")))?;
    let target: SocketAddr = web.at(Family::V4, PORT);
    let foreign = ztunnel_tests::ca::Authority::foreign()?;
    let cases = [
        ("another service account", bed.authority.honest("client-b")?),
        ("another CA", foreign.honest("web-b")?),
        ("an expired certificate", bed.authority.issue(&ztunnel_tests::ca::Leaf::of("web-b").expired())?),
    ];
    let plain = Server::echo(web, target)?;
    for (what, certificate) in cases {
        let fake = hbone::fake::FakeServer::start(web, &certificate)?;
        let mut stream = client.connect(target)?;
        let own = stream.local_addr()?;
        let end = stream.read(&mut [0; 1]);
        ensure!(end.as_ref().is_err_and(is_reset), "{what}: a reset should come, not {end:?}");
        let line = bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?;
        ensure!(fake.accepted() > 0, "{what}: port 15008 accepted no connection");
        let error = line.error.clone().with_context(|| format!("{what}: no error in {}", line.line))?;
        ensure!(error.to_lowercase().contains("tls"), "{what}: {error}");
        wait::until_true("the end of each handshake", wait::PATIENCE, || Ok(fake.endings().len() == fake.accepted()))?;
        let told = |ending: &hbone::Ending| matches!(ending, hbone::Ending::Data(_));
        ensure!(!fake.endings().iter().any(told), "{what} was told something: {:?}", fake.endings());
        let seen = plain.accepted();
        let again = client.connect(target).and_then(|mut stream| Ok(exchange(&mut stream, b"hello")?));
        ensure!(again.is_err() && plain.accepted() == seen, "{what}: the daemon went on in plaintext: {again:?}");
    }
    drop(plain);
    let fake = hbone::fake::FakeServer::start(web, &bed.authority.honest("web-b")?)?;
    let _stream = client.connect(target)?;
    wait::until_true("the right server to hear of HTTP/2", wait::PATIENCE, || {
        Ok(fake
            .endings()
            .iter()
            .any(|ending| matches!(ending, hbone::Ending::Data(bytes) if bytes.starts_with(b"PRI"))))
    })
}
