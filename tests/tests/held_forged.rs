//! A pod that forges packets and marks while its connects are held gets nothing out past the daemon, and nothing in the name
//! of another pod.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use ebpf_common::mark;
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::attempt::{End, Pending, Way};
use ztunnel_tests::capture::{Capture, Recording};
use ztunnel_tests::modes::{Connect, Path, Silence, enrolled, nobody_connects, tcp_counter, unlabelled};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;
use ztunnel_tests::watch::{OWN_PORTS, no_bypass};

const PORT: u16 = 7000;
const CLOSED: u16 = 7001;
/// The first port from which a [`Pending`] connects.
const OWN: u16 = OWN_PORTS.start;
/// The source ports of forged packets, which no socket of a test gets.
const FORGED: [u16; 3] = [64_997, 64_998, 64_999];

fn echoes(bed: &Testbed) -> Result<Vec<Server>> {
    let web = bed.pod("web-b")?;
    Family::BOTH.into_iter().map(|family| Server::echo(web, web.at(family, PORT))).collect()
}

/// No first packet from these ports was on the wire.
fn no_first_packet(recording: &Recording, ports: &str) -> Result<()> {
    let syn = "(ip and tcp[13] & 2 != 0 or ip6 and ip6[53] & 2 != 0)";
    let packets = recording.packets(&format!("tcp and src portrange {ports} and {syn}"))?;
    ensure!(packets == 0, "{packets} first packets left the node past the daemon");
    Ok(())
}

/// Every combination of the bits of a mark that belong to the daemon.
fn daemons_marks() -> Vec<u32> {
    let low = mark::MASK.trailing_zeros();
    (1..=(mark::MASK >> low)).map(|bits| bits << low).collect()
}

/// A pod that sets the daemon's marks itself, before the connect and while the connect is held, is held all the same.
#[test]
fn marks_that_a_pod_sets_do_not_end_the_hold() -> Result<()> {
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    for family in Family::BOTH {
        for mark in daemons_marks() {
            let socket = client.socket(family)?;
            socket.set_mark(mark)?;
            let own = socket.mark()? & mark::MASK;
            ensure!(own == 0, "mark {mark:#x} before the connect became {own:#x}");
            let refused = socket.connect(&web.at(family, CLOSED).into());
            let is_refused = refused.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED));
            ensure!(is_refused, "{family:?}, mark {mark:#x}: {refused:?}");
        }
    }
    let servers = echoes(&bed)?;
    let silence = Silence::at(web, PORT)?;
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "marks")?;
    let mut all = Vec::new();
    for (number, mark) in (0..).zip([0].into_iter().chain(daemons_marks())) {
        for server in &servers {
            let pending = Pending::start(client, OWN + number, server.address())?;
            pending.set_mark(mark)?;
            all.push(pending);
        }
    }
    let enough = tcp_counter(client, "TCPSynRetrans")? + u64::try_from(all.len())?;
    wait::until_true("each SYN to be sent again", wait::PATIENCE, || {
        Ok(tcp_counter(client, "TCPSynRetrans")? >= enough)
    })?;
    for pending in &all {
        pending.is_unanswered()?;
    }
    no_first_packet(&capture.finish()?, &format!("{}-{}", OWN_PORTS.start, OWN_PORTS.end - 1))?;
    silence.end()?;
    for pending in all {
        pending.exchanges(2 * wait::PATIENCE)?;
    }
    no_bypass(&servers)
}

/// A SYN without data and options, with its checksum, in an IP packet.
fn forged_syn(source: SocketAddr, target: SocketAddr, sequence: u32) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ([s1, s2], [d1, d2]) = (source.port().to_be_bytes(), target.port().to_be_bytes());
    let [q1, q2, q3, q4] = sequence.to_be_bytes();
    let mut segment = [s1, s2, d1, d2, q1, q2, q3, q4, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0];
    let covered = [octets(source.ip()), octets(target.ip()), vec![0, 6, 0, 20], segment.to_vec()].concat();
    let words = covered.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    (segment[16], segment[17]) = (high, low);
    let header = match source {
        // The kernel fills in length, identification and checksum.
        SocketAddr::V4(_) => vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0],
        SocketAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 20, 6, 64],
    };
    [header, octets(source.ip()), octets(target.ip()), segment.to_vec()].concat()
}

/// Sends a whole packet from a pod, with a mark that is set in the pod before the daemon's hooks are there.
fn raw_socket(pod: &Pod, family: Family, mark: u32) -> Result<Socket> {
    const IPV6_HDRINCL: libc::c_int = 36;
    let (domain, level, name) = match family {
        Family::V4 => (Domain::IPV4, libc::IPPROTO_IP, libc::IP_HDRINCL),
        Family::V6 => (Domain::IPV6, libc::IPPROTO_IPV6, IPV6_HDRINCL),
    };
    let raw = Type::from(libc::SOCK_RAW);
    let socket = pod.netns.run(|| Socket::new(domain, raw, Some(Protocol::from(libc::IPPROTO_RAW))))??;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the value is an int on this stack and the length is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length) };
    ensure!(result == 0, "a header of its own: {}", io::Error::last_os_error());
    socket.set_mark(mark)?;
    Ok(socket)
}

fn send(socket: &Socket, packet: &[u8], to: IpAddr) -> Result<()> {
    match socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))) {
        // A device that drops the packet reports these errors to a raw socket; so do rules that prohibit it.
        Err(error) if [libc::ENOBUFS, libc::EACCES, libc::ENETUNREACH].contains(&error.raw_os_error().unwrap_or(0)) => {
            Ok(())
        }
        other => Ok(other.map(|_| ())?),
    }
}

/// A pod with CAP_NET_RAW sends SYNs with the daemon's marks, set before the enrolment, when nothing hinders it; with its own
/// source address, and with that of another pod.
#[test]
fn forged_syns_with_the_daemons_marks_lead_nowhere() -> Result<()> {
    let bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    let (client, victim) = (bed.pod("client-a")?, bed.pod("web-a")?);
    let marks: Vec<u32> = [0].into_iter().chain(daemons_marks()).collect();
    let mut sockets = Vec::new();
    for family in Family::BOTH {
        for mark in &marks {
            sockets.push((family, *mark, raw_socket(client, family, *mark)?));
        }
    }
    bed.enrol()?;
    let servers = echoes(&bed)?;
    let daemon = bed.daemon("node-a")?;
    // The sockets that stay with a pod are there from now on.
    for pod in [client, victim] {
        for family in Family::BOTH {
            for port in [PORT, CLOSED] {
                Way::Blocking.attempt(pod, bed.pod("web-b")?.at(family, port))?;
            }
        }
    }
    let (id, holdings) = (daemon.id(), daemon.settled_holdings()?);
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "forged")?;
    for (family, mark, socket) in &sockets {
        let target = bed.pod("web-b")?.at(*family, PORT);
        let [own, foreign, later] = FORGED;
        for source in [client.at(*family, own), victim.at(*family, foreign)] {
            send(socket, &forged_syn(source, target, 1), target.ip())
                .with_context(|| format!("mark {mark:#x} from {source}"))?;
        }
        // After the enrolment the hook takes the daemon's bits away.
        let socket = raw_socket(client, *family, *mark)?;
        ensure!(socket.mark()? & mark::MASK == 0, "a raw socket got the mark {:#x}", socket.mark()?);
        send(&socket, &forged_syn(client.at(*family, later), target, 1), target.ip())?;
    }
    // A true connection afterwards: what came before has been seen by then.
    for server in &servers {
        proof::outbound(&bed, "client-a", server, Pod::connect)?;
        proof::outbound(&bed, "web-a", server, Pod::connect)?;
    }
    no_first_packet(&capture.finish()?, &format!("{}-{}", FORGED[0], FORGED[2]))?;
    ensure!(daemon.id() == id && daemon.get("/healthz/ready")?.status == 200, "{}", daemon.tail());
    for server in &servers {
        let foreign = server.peers().iter().filter(|peer| peer.ip() == victim.ip(Family::of(server.address()))).count();
        ensure!(foreign == 2, "the server saw {:?}", server.peers());
    }
    // Half-open connections of forged SYNs are not kept.
    daemon
        .wait_dump("no connection to be left", wait::PATIENCE, |dump| dump.pods().all(|pod| pod.connections() == 0))?;
    nobody_connects(&bed, &["client-a", "web-a"], wait::PATIENCE)?;
    daemon.wait_holdings(&holdings)
}

/// The ends and sequence numbers of the SYNs of a flood.
#[derive(Debug, Clone, Copy)]
enum Flood {
    /// One pair of addresses and ports, and ever other sequence numbers.
    OnePair,
    /// Ever other source ports.
    ManyPorts,
}

/// Ends a flood, also when the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sends SYNs until it is over. Returns their number.
fn flood(pod: &Pod, sockets: &[Socket], targets: [SocketAddr; 2], how: Flood, over: &AtomicBool) -> Result<u32> {
    const PORTS: std::ops::Range<u32> = 2_000..30_000;
    for number in 0.. {
        if over.load(Ordering::SeqCst) {
            return Ok(number);
        }
        let port = match how {
            Flood::OnePair => FORGED[0],
            Flood::ManyPorts => u16::try_from(PORTS.start + number % (PORTS.end - PORTS.start))?,
        };
        for (socket, target) in sockets.iter().zip(targets) {
            let source = pod.at(Family::of(target), port);
            send(socket, &forged_syn(source, target, number), target.ip())?;
        }
    }
    Ok(u32::MAX)
}

/// Whether a blocking connect works, and bytes come back.
fn works(pod: &Pod, server: &Server) -> Result<bool> {
    Ok(Way::Blocking.attempt(pod, server.address())?.end == End::Exchanged)
}

/// A pod with CAP_NET_RAW sends SYNs without end to a destination that does not answer, with the mark of captured connects, which
/// it has set before the enrolment. The connects of other pods work meanwhile, and its own do afterwards.
#[test]
fn forged_syns_without_end_harm_only_the_pod_that_sends_them() -> Result<()> {
    /// The connects of the other pod during a flood, to each server.
    const ROUNDS: usize = 20;
    /// Attempts that a flood has to begin, or nothing was attacked.
    const ATTEMPTS: f64 = 2_000.0;
    const SILENT: u16 = 7002;
    let bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    let sockets = Family::BOTH.map(|family| raw_socket(bed.pod("client-a")?, family, mark::CAPTURE));
    let sockets = sockets.into_iter().collect::<Result<Vec<_>>>()?;
    bed.enrol()?;
    let (hostile, other, web) = (bed.pod("client-a")?, bed.pod("web-a")?, bed.pod("web-b")?);
    let servers = echoes(&bed)?;
    let daemon = bed.daemon("node-a")?;
    for pod in [hostile, other] {
        for server in &servers {
            ensure!(works(pod, server)?, "before the attack: {}", daemon.tail());
        }
    }
    let id = daemon.id();
    let silence = Silence::at(web, SILENT)?;
    let silent = Family::BOTH.map(|family| web.at(family, SILENT));
    for how in [Flood::OnePair, Flood::ManyPorts] {
        let ended = |reason: &[(&str, &str)]| {
            let labels: Vec<_> = [("direction", "outbound")].iter().chain(reason).copied().collect();
            Ok::<_, anyhow::Error>(daemon.metrics()?.sum("ztunnel_connections_closed_total", &labels))
        };
        let refused = || ended(&[("reason", "too_many")]);
        let (begun, before) = (ended(&[])?, refused()?);
        let over = AtomicBool::new(false);
        let sent = thread::scope(|scope| -> Result<u32> {
            let attack = scope.spawn(|| flood(hostile, &sockets, silent, how, &over));
            let end = Ended(&over);
            wait::until_true("the attempts of the flood", wait::PATIENCE, || Ok(ended(&[])? > begun + ATTEMPTS))?;
            if matches!(how, Flood::ManyPorts) {
                wait::until_true("the limit of the pod", wait::PATIENCE, || Ok(refused()? > before))?;
            }
            for round in 0..ROUNDS {
                for server in &servers {
                    let attempt = Way::Blocking.attempt(other, server.address())?;
                    ensure!(attempt.end == End::Exchanged, "{how:?}, round {round}: {attempt:?}");
                }
            }
            drop(end);
            attack.join().map_err(|_| anyhow::anyhow!("the attack panicked"))?
        })
        .with_context(|| daemon.tail())?;
        println!("{how:?}: {sent} SYNs of each family, {} refused", refused()? - before);
        // The attempts of the flood end when no SYN comes any more.
        for server in &servers {
            wait::until_true("the hostile pod's own connects to work", 2 * wait::PATIENCE, || works(hostile, server))?;
        }
        nobody_connects(&bed, &["client-a"], 2 * wait::PATIENCE)?;
    }
    silence.end()?;
    ensure!(daemon.id() == id && daemon.get("/healthz/ready")?.status == 200, "{}", daemon.tail());
    daemon.wait_dump("no connection to be left", wait::PATIENCE, |dump| dump.pods().all(|pod| pod.connections() == 0))
}

/// With CAP_NET_ADMIN a pod gives itself the address of another pod and connects from it.
#[test]
fn a_connect_from_the_address_of_another_pod_is_refused() -> Result<()> {
    for connect in Connect::BOTH {
        let bed = enrolled(connect, Path::Outside, &[])?;
        let (client, victim) = (bed.pod("client-a")?, bed.pod("web-a")?);
        client.netns.ip(&format!("addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n", victim.v4, victim.v6))?;
        for server in &echoes(&bed)? {
            let family = Family::of(server.address());
            let socket = client.socket(family)?;
            socket.bind(&victim.at(family, 0).into())?;
            if socket.connect(&server.address().into()).is_ok() {
                let mut stream = TcpStream::from(socket);
                let answer = stream.write_all(b"as another").and_then(|()| stream.read(&mut [0; 16]));
                ensure!(answer.is_err(), "--connect {connect}, {family:?}: {answer:?}");
            }
            ensure!(server.accepted() == 0, "--connect {connect}: the server saw {:?}", server.peers());
            let daemon = bed.daemon("node-a")?;
            wait::until_true("the line about it", wait::PATIENCE, || {
                Ok(!daemon.lines_with(&["foreign_source", &victim.ip(family).to_string()])?.is_empty())
            })?;
            // A connection with the pod's own address works.
            let socket = client.socket(family)?;
            socket.bind(&client.at(family, 0).into())?;
            socket.connect(&server.address().into())?;
            exchange(&mut TcpStream::from(socket), b"as itself")?;
        }
    }
    Ok(())
}
