//! Attempts to bypass the capture: they change a connection between its connect and its first packet, or need no connect at
//! all.

use std::io::{self, Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::libc::{self, c_int};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::capture::{Capture, Recording};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
/// A source port that no socket of a test gets.
const FORGED: u16 = 4_711;

const TCP_FASTOPEN_CONNECT: c_int = 30;
const TCP_FASTOPEN_NO_COOKIE: c_int = 34;
const IPV6_HDRINCL: c_int = 36;
const SRH: u8 = 4;
const MOBILE: u8 = 2;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const SYN: u8 = 0x02;

fn set(socket: &Socket, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(Error::other)?;
    // SAFETY: the value is as long as the length says.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

fn refused(what: &str, result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => anyhow::bail!("{what} was not refused: {other:?}"),
    }
}

/// A routing header that sends packets to `hop` first.
fn routing_header(kind: u8, hop: Ipv6Addr) -> Vec<u8> {
    if kind == MOBILE {
        return [&[0, 2, MOBILE, 1, 0, 0, 0, 0][..], &hop.octets()].concat();
    }
    [&[0, 4, SRH, 1, 1, 0, 0, 0][..], &Ipv6Addr::LOCALHOST.octets(), &hop.octets()].concat()
}

/// An IPv4 option that sends packets to `hop` first.
fn source_route(hop: Ipv4Addr) -> Vec<u8> {
    [&[LOOSE_SOURCE_ROUTE, 7, 4][..], &hop.octets(), &[0]].concat()
}

/// A socket of a pod that sends its packets by way of another pod, from a time when no hook refuses that.
fn detour(pod: &Pod, hop: &Pod, family: Family) -> Result<Socket> {
    let socket = pod.socket(family)?;
    // Non-blocking, because the kernel repeats the SYN for seconds.
    socket.set_nonblocking(true)?;
    let (level, name, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_OPTIONS, source_route(hop.v4)),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, routing_header(SRH, hop.v6)),
    };
    set(&socket, level, name, &value).context("the kernel takes no source route")?;
    Ok(socket)
}

/// The TCP header of a first packet, without data and checksum.
fn syn(to: u16) -> [u8; 20] {
    let ([s1, s2], [d1, d2]) = (FORGED.to_be_bytes(), to.to_be_bytes());
    [s1, s2, d1, d2, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0x20, 0, 0, 0, 0, 0]
}

/// Adds the TCP checksum, for either family.
fn with_checksum(source: IpAddr, destination: IpAddr, mut segment: [u8; 20]) -> [u8; 20] {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let covered = [octets(source), octets(destination), vec![0, 6, 0, 20], segment.to_vec()].concat();
    let words = covered.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16));
    let [.., high, low] = sum.to_be_bytes();
    (segment[16], segment[17]) = (high, low);
    segment
}

/// A whole IPv6 packet: a TCP segment with the extension headers before it.
fn packet6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, before: &[u8], segment: &[u8]) -> Vec<u8> {
    let length = u16::try_from(before.len() + segment.len()).unwrap_or_default().to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next, 64];
    [&header[..], &source.octets(), &destination.octets(), before, segment].concat()
}

fn packet4(source: Ipv4Addr, destination: Ipv4Addr, segment: &[u8]) -> Vec<u8> {
    // The kernel fills in length, identification and checksum.
    let header = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    [&header[..], &source.octets(), &destination.octets(), segment].concat()
}

/// Sends a whole packet from a network namespace.
fn send_raw(pod: &Pod, packet: &[u8], to: IpAddr) -> Result<()> {
    let send = || {
        let raw = Type::from(libc::SOCK_RAW);
        let (domain, level, name) = match to {
            IpAddr::V4(_) => (Domain::IPV4, libc::IPPROTO_IP, libc::IP_HDRINCL),
            IpAddr::V6(_) => (Domain::IPV6, libc::IPPROTO_IPV6, IPV6_HDRINCL),
        };
        let socket = Socket::new(domain, raw, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        set(&socket, level, name, &1_i32.to_ne_bytes())?;
        match socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))) {
            // A device that drops the packet reports this error to a raw socket.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            other => other.map(|_| ()),
        }
    };
    pod.netns.run(send)?.with_context(|| format!("{} cannot send a packet to {to}", pod.name))
}

/// Sends a whole frame from a pod, as a packet socket does.
fn send_frame(pod: &Pod, frame: &[u8], bypass: bool) -> Result<io::Result<()>> {
    pod.netns.run(|| {
        let socket = Socket::new(Domain::PACKET, Type::from(libc::SOCK_RAW), None)?;
        if bypass {
            return set(&socket, libc::SOL_PACKET, 20, &1_i32.to_ne_bytes());
        }
        let index = nix::net::if_::if_nametoindex("eth0")?;
        // SAFETY: a `sockaddr_ll` of zero bytes is valid; its family is AF_UNSPEC.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        // The claimed protocol (ARP) is not the protocol of the frame.
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(Error::other)?;
        address.sll_protocol = 0x0806_u16.to_be();
        address.sll_ifindex = i32::try_from(index).map_err(Error::other)?;
        address.sll_halen = 6;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(Error::other)?;
        // SAFETY: frame and address live through the call, and the lengths are their sizes.
        let sent = unsafe {
            let to = (&raw const address).cast();
            libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length)
        };
        match Error::last_os_error() {
            error if sent < 0 && error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    })
}

/// Waits until the guards have dropped at least this many packets of a pod.
fn dropped(bed: &Testbed, pod: &str, least: u64) -> Result<()> {
    let daemon = bed.daemon(&bed.pod(pod)?.node)?;
    wait::until_true("the guard to drop", wait::PATIENCE, || Ok(daemon.verdict(pod, "bypass")? >= least))
        .with_context(|| daemon.tail())
}

fn nothing_left(recording: &Recording, filter: &str) -> Result<()> {
    let packets = recording.packets(filter)?;
    ensure!(packets == 0, "{packets} packets of `{filter}` left the node");
    Ok(())
}

#[test]
fn a_fast_open_connect_whose_mark_is_cleared_before_its_first_packet() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        for mark in [0, 0x539, 0x2000_0000] {
            let connect = |pod: &Pod, target: SocketAddr| -> Result<TcpStream> {
                let socket = pod.socket(family)?;
                set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &1_i32.to_ne_bytes())?;
                set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, &1_i32.to_ne_bytes())?;
                socket.connect(&target.into())?;
                socket.set_mark(mark)?;
                ensure!(
                    socket.mark()? & !ebpf_common::mark::MASK == mark & !ebpf_common::mark::MASK,
                    "the mark is {:#x}",
                    socket.mark()?
                );
                let mut stream = TcpStream::from(socket);
                exchange(&mut stream, b"in the first packet")?;
                Ok(stream)
            };
            proof::outbound(&bed, "client-a", &echo, connect).with_context(|| format!("{family:?}, mark {mark:#x}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_mark_cleared_on_a_captured_connection_does_not_send_its_data_out() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        let connect = |pod: &Pod, target: SocketAddr| -> Result<TcpStream> {
            let socket = pod.socket(family)?;
            socket.connect(&target.into())?;
            socket.set_mark(0)?;
            Ok(socket.into())
        };
        proof::outbound(&bed, "client-a", &echo, connect).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

#[test]
fn source_routes_are_refused_on_tcp_sockets_of_enrolled_pods_only() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    // The hook of another daemon sees every call as well, before or after this daemon's hook.
    bed.start("node-b")?;
    let (client, hop) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let socket = client.socket(Family::V6)?;
    for kind in [SRH, MOBILE] {
        let header = routing_header(kind, hop.v6);
        for name in [libc::IPV6_RTHDR, 5, 55, 6] {
            refused(&format!("option {name}"), set(&socket, libc::IPPROTO_IPV6, name, &header))?;
        }
    }
    let route = source_route(hop.v4);
    refused("IP_OPTIONS", set(&client.socket(Family::V4)?, libc::IPPROTO_IP, libc::IP_OPTIONS, &route))?;
    // Longer than the part that the kernel shows to a hook.
    let long = vec![0; 10_000];
    refused("a long IPV6_RTHDR", set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &long))?;
    // Other sockets and other options are not affected.
    set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &[]).context("to take a header off")?;
    set(
        &bed.pod("client-a")?.netns.run(|| Socket::new(Domain::IPV6, Type::DGRAM, None))??,
        libc::IPPROTO_IPV6,
        libc::IPV6_RTHDR,
        &routing_header(SRH, hop.v6),
    )
    .context("on UDP")?;
    bed.release()?;
    set(&client.socket(Family::V6)?, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &routing_header(SRH, hop.v6))
        .context("of a released pod")?;
    let group = [&1_u32.to_ne_bytes()[..], &vec![0; 10_000]].concat();
    set(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &group).context("a long value of a harmless option")?;
    ensure!(socket.keepalive()?, "the long value did not arrive");
    Ok(())
}

#[test]
fn source_routes_set_before_the_enrolment_lead_nowhere() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let sockets = {
        let (client, hop) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let to_loopback = detour(client, hop, Family::V6)?;
        let to_itself = detour(client, hop, Family::V6)?;
        let over_ipv4 = detour(client, hop, Family::V4)?;
        let own = |family| client.at(family, PORT);
        [
            (to_loopback, SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, PORT, 0, 0))),
            (to_itself, own(Family::V6)),
            (over_ipv4, own(Family::V4)),
        ]
    };
    bed.start("node-a")?;
    bed.enrol()?;
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "routes")?;
    for (number, (socket, target)) in (1..).zip(&sockets) {
        // The connect is in progress, or it failed at once because the device dropped the packet. In both cases no packet left
        // the pod.
        let _ = socket.connect(&(*target).into());
        dropped(&bed, "client-a", number).with_context(|| format!("to {target}"))?;
    }
    let recording = capture.finish()?;
    nothing_left(&recording, "ip6 and ip6[6] == 43")?;
    nothing_left(&recording, "tcp and ip[0] & 0xf > 5")
}

#[test]
fn a_connect_without_an_answer_at_the_enrolment_is_to_be_made_anew() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let web = bed.pod("web-b")?;
    web.netns.nft("table inet silent { chain in { type filter hook input priority 0; tcp dport 7000 drop; }; }")?;
    let waiting = Family::BOTH.map(|family| -> Result<Socket> {
        let socket = bed.pod("client-a")?.socket(family)?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&web.at(family, PORT).into());
        ensure!(begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)), "{family:?} is answered");
        Ok(socket)
    });
    bed.start("node-a")?;
    bed.enrol()?;
    for socket in waiting {
        let error = socket?.take_error()?.map(|error| error.kind());
        ensure!(error == Some(ErrorKind::ConnectionAborted), "{error:?}");
    }
    Ok(())
}

#[test]
fn first_packets_from_raw_sockets() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "raw")?;
    let segment = with_checksum(client.v4.into(), web.v4.into(), syn(PORT));
    send_raw(client, &packet4(client.v4, web.v4, &segment), web.v4.into())?;
    dropped(&bed, "client-a", 1).context("IPv4")?;

    let segment = with_checksum(client.v6.into(), web.v6.into(), syn(PORT));
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [6, 0, 0, 1, 0, 0, 0, 7];
    let chains: [(u8, Vec<u8>); 5] = [
        (6, Vec::new()),
        (0, options(6).to_vec()),
        (60, options(6).to_vec()),
        (0, [options(60), options(60), options(6)].concat()),
        (44, fragment.to_vec()),
    ];
    for (number, (next, before)) in (2..).zip(&chains) {
        send_raw(client, &packet6(client.v6, web.v6, *next, before, &segment), web.v6.into())?;
        dropped(&bed, "client-a", number).with_context(|| format!("IPv6, next header {next}, {before:?}"))?;
    }
    // A first fragment that ends before the TCP flags, and the fragment that has them.
    send_raw(client, &packet6(client.v6, web.v6, 44, &fragment, &segment[..8]), web.v6.into())?;
    dropped(&bed, "client-a", 7).context("the first of two fragments")?;
    send_raw(client, &packet6(client.v6, web.v6, 44, &[6, 0, 0, 8, 0, 0, 0, 7], &segment[8..]), web.v6.into())?;
    dropped(&bed, "client-a", 8).context("the second of two fragments")?;
    let recording = capture.finish()?;
    nothing_left(&recording, &format!("src host {} and tcp", client.v4))?;
    nothing_left(&recording, &format!("src host {} and not icmp6", client.v6))
}

#[test]
fn first_packets_from_packet_sockets() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let capture = Capture::start(&bed.topology, "node-a", "node-b", "frames")?;
    let segment = with_checksum(client.v6.into(), web.v6.into(), syn(PORT));
    let packet = packet6(client.v6, web.v6, 6, &[], &segment);
    let bridge = [0x02, 0, 0, 0, 0, 1];
    let tags: [&[u8]; 4] = [
        &[0x86, 0xdd],
        &[0x81, 0, 0, 0, 0x86, 0xdd],
        &[0x88, 0xa8, 0, 0, 0x81, 0, 0, 0, 0x86, 0xdd],
        &[0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x86, 0xdd],
    ];
    for (number, tags) in (1..).zip(tags) {
        let frame = [&bridge[..], &[0x02, 0, 0, 0, 0, 9], tags, &packet].concat();
        send_frame(client, &frame, false)??;
        dropped(&bed, "client-a", number).with_context(|| format!("tags {tags:x?}"))?;
    }
    refused("PACKET_QDISC_BYPASS", send_frame(client, &[], true)?)?;
    send_frame(bed.pod("client-b")?, &[], true)?.context("of a pod that is not enrolled")?;
    nothing_left(&capture.finish()?, &format!("src host {} and tcp", client.v6))
}

#[test]
fn what_is_not_captured_leaves_as_before() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, PORT))?;
        proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
        let own = Server::echo(bed.pod("client-a")?, bed.pod("client-a")?.at(family, PORT))?;
        proof::direct(&own, || bed.pod("client-a")?.connect(own.address())).context("the pod itself")?;
    }
    for pod in ["client-a", "web-b"] {
        let count = bed.daemon(&bed.pod(pod)?.node)?.verdict(pod, "bypass")?;
        ensure!(count == 0, "{count} packets of {pod} were dropped");
    }
    Ok(())
}

#[test]
fn a_first_packet_from_outside_in_the_pods_own_name_is_no_call_to_itself() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (victim, hostile) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let application = Server::echo(victim, victim.at(Family::V6, PORT))?;
    let segment = with_checksum(victim.v6.into(), victim.v6.into(), syn(PORT));
    send_raw(hostile, &packet6(victim.v6, victim.v6, 6, &[], &segment), victim.v6.into())?;
    dropped(&bed, "client-a", 1)?;
    let daemon = bed.daemon("node-a")?;
    ensure!(daemon.verdict("client-a", "self_call")? == 0, "it was taken for a call of the pod to itself");
    // Connects of the pod to itself are not dropped.
    proof::direct(&application, || victim.connect(application.address()))?;
    ensure!(daemon.verdict("client-a", "bypass")? == 1, "a call of the pod to itself was dropped");
    Ok(())
}
