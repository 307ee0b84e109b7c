//! A pod may connect in any way: the daemon carries the connection, and the pod does not notice.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt};
use socket2::{Protocol, SockAddr, Socket};
use ztunnel_tests::apps::nginx::{Nginx, curl};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::policy::{authentication, denied_stream};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};

const PORT: u16 = 7000;

/// Tests a way to connect over these families, on its own topology.
fn captured(families: &[Family], connect: fn(&Pod, SocketAddr) -> Result<TcpStream>) -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    captured_on(&bed, families, connect)
}

fn captured_on(bed: &Testbed, families: &[Family], connect: fn(&Pod, SocketAddr) -> Result<TcpStream>) -> Result<()> {
    let web = bed.pod("web-b")?;
    for family in families {
        let echo = Server::echo(web, web.at(*family, PORT))?;
        proof::outbound(bed, "client-a", &echo, connect).with_context(|| format!("over {family:?}"))?;
    }
    Ok(())
}

fn connected(socket: Socket, target: SocketAddr) -> Result<TcpStream> {
    socket.connect(&target.into()).with_context(|| format!("cannot connect to {target}"))?;
    Ok(socket.into())
}

fn writable(socket: &Socket) -> Result<()> {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    ensure!(poll(&mut polled, PollTimeout::from(5000u16))? == 1, "the socket did not become writable");
    match socket.take_error()? {
        Some(error) => Err(error).context("the connect failed"),
        None => Ok(()),
    }
}

#[test]
fn plain_connect() -> Result<()> {
    captured(&Family::BOTH, Pod::connect)
}

#[test]
fn v4_mapped_address() -> Result<()> {
    captured(&[Family::V4], |pod, target| {
        let SocketAddr::V4(v4) = target else { bail!("{target} is not IPv4") };
        let mapped = SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into();
        let stream = connected(pod.socket(Family::V6)?, mapped)?;
        ensure!(stream.peer_addr()? == mapped, "getpeername says {} instead of {mapped}", stream.peer_addr()?);
        Ok(stream)
    })
}

/// A pod of an IPv6 cluster may have an IPv4 address for egress that its status does not list.
#[test]
fn address_for_egress_that_the_status_does_not_list() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let client = PodManifest::of(bed.pod("client-a")?);
    let v6 = bed.pod("client-a")?.v6.to_string();
    bed.mesh.pod(&client.addresses(&[&v6]))?;
    bed.start("node-a")?;
    bed.enrol()?;
    captured_on(&bed, &Family::BOTH, Pod::connect)?;
    captured_on(&bed, &[Family::V4], |pod, target| {
        let socket = pod.socket(Family::V4)?;
        socket.bind_device(Some(b"eth0"))?;
        connected(socket, target)
    })?;
    // Connections to that address are captured and judged like connections to any other address.
    let (other, pod) = (bed.pod("client-b")?, bed.pod("client-a")?);
    let echo = Server::echo(pod, pod.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", "client-a", &echo, echo.address())?;
    bed.change(|mesh| mesh.policy("strict", &authentication("strict", "{mtls: {mode: STRICT}}")))?;
    denied_stream(&bed, other.connect(echo.address())?, "client-a", echo.address())?;
    Ok(())
}

/// With CAP_NET_ADMIN a pod gives itself addresses that the kernel prefers. Connections that do not ask for them still leave from
/// the address that the mesh knows.
#[test]
fn an_address_of_the_pods_own_making_is_not_the_source() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    client.netns.ip(&format!(
        "addr add 10.10.1.99/24 dev eth0\nroute replace default via 10.10.1.1 src 10.10.1.99\n\
         addr add fd00:10:1::99/64 dev eth0 nodad\naddr change {}/64 dev eth0 preferred_lft 0\n",
        client.v6
    ))?;
    for (family, made) in [(Family::V4, "10.10.1.99"), (Family::V6, "fd00:10:1::99")] {
        // UDP is not captured: its source address is the kernel's choice.
        let chosen = client.netns.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(family.any(), 0))?;
            socket.connect(web.at(family, PORT))?;
            socket.local_addr()
        })??;
        ensure!(chosen.ip() == made.parse::<IpAddr>()?, "the kernel prefers {chosen}, not {made}");
    }
    captured_on(&bed, &Family::BOTH, Pod::connect)
}

#[test]
fn non_blocking_connect() -> Result<()> {
    captured(&Family::BOTH, |pod, target| {
        let socket = pod.socket(Family::of(target))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => writable(&socket)?,
            other => bail!("a non-blocking connect gave {other:?}"),
        }
        socket.set_nonblocking(false)?;
        Ok(socket.into())
    })
}

#[test]
fn socket_bound_to_the_pods_address() -> Result<()> {
    captured(&Family::BOTH, |pod, target| {
        let socket = pod.socket(Family::of(target))?;
        let own = pod.at(Family::of(target), 45_000);
        socket.set_reuse_address(true)?;
        socket.bind(&own.into())?;
        let stream = connected(socket, target)?;
        ensure!(stream.local_addr()? == own, "bound to {own}, but is {}", stream.local_addr()?);
        Ok(stream)
    })
}

#[test]
fn socket_bound_to_the_pods_device() -> Result<()> {
    captured(&Family::BOTH, |pod, target| {
        let socket = pod.socket(Family::of(target))?;
        socket.bind_device(Some(b"eth0"))?;
        connected(socket, target)
    })
}

#[test]
fn curl_bound_to_the_pods_device() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let _nginx = Nginx::start(&bed.topology, web, 80, false)?;
    for family in Family::BOTH {
        let page = curl(client, web.at(family, 80), &["--interface", "eth0"])?;
        ensure!(page.status == 200 && page.body == client.ip(family).to_string(), "{page:?}");
        let own = client.at(family, page.local_port);
        bed.daemon("node-a")?.wait_connection(Direction::Outbound, own, web.at(family, 80))?;
    }
    Ok(())
}

/// Every listener accepts Fast Open, and the first packet may carry data without a cookie: the least restricted form.
const FAST_OPEN_EVERYWHERE: &str = "1543";

fn fast_open_allowed(bed: &Testbed) -> Result<()> {
    for pod in bed.topology.pods() {
        pod.netns.sysctl("ipv4/tcp_fastopen", FAST_OPEN_EVERYWHERE)?;
    }
    Ok(())
}

fn send_fast_open(pod: &Pod, target: SocketAddr) -> Result<TcpStream> {
    let socket = pod.socket(Family::of(target))?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let sent = sendto(socket.as_raw_fd(), b"early", &SockaddrStorage::from(target), flags)?;
    let mut stream = TcpStream::from(socket);
    let mut answer = vec![0; sent];
    stream.read_exact(&mut answer)?;
    ensure!(b"early".starts_with(&answer), "{answer:?} came back");
    Ok(stream)
}

fn connect_fast_open(pod: &Pod, target: SocketAddr) -> Result<TcpStream> {
    let socket = pod.socket(Family::of(target))?;
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    let mut stream = connected(socket, target)?;
    stream.write_all(b"early")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"early", "{answer:?} came back");
    Ok(stream)
}

#[test]
fn fast_open_by_send() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    captured_on(&bed, &Family::BOTH, send_fast_open)?;
    fast_open_allowed(&bed)?;
    captured_on(&bed, &Family::BOTH, send_fast_open)?;
    captured_on(&bed, &Family::BOTH, send_fast_open)
}

#[test]
fn fast_open_by_connect() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    captured_on(&bed, &Family::BOTH, connect_fast_open)?;
    fast_open_allowed(&bed)?;
    captured_on(&bed, &Family::BOTH, connect_fast_open)?;
    captured_on(&bed, &Family::BOTH, connect_fast_open)
}

#[test]
fn multipath_tcp_socket() -> Result<()> {
    captured(&Family::BOTH, |pod, target| {
        let socket = pod.socket_of(Family::of(target), Protocol::MPTCP).context("the kernel has no MPTCP")?;
        connected(socket, target)
    })
}

#[test]
fn connect_through_io_uring() -> Result<()> {
    captured(&Family::BOTH, |pod, target| {
        let socket = pod.socket(Family::of(target))?;
        let address = SockAddr::from(target);
        let mut ring = IoUring::new(2).context("the kernel has no io_uring, or it is switched off")?;
        let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
        // SAFETY: the socket and the address outlive the wait for the only entry below.
        unsafe { ring.submission().push(&entry)? };
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().context("io_uring gave no answer")?.result();
        match result {
            0 => Ok(socket.into()),
            code => Err(std::io::Error::from_raw_os_error(-code)).context("connect through io_uring"),
        }
    })
}

#[test]
fn socket_made_before_enrolment_connects_after_it() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    let web = bed.pod("web-b")?;
    for family in Family::BOTH {
        let socket = bed.pod("client-a")?.socket(family)?;
        bed.enrol()?;
        let echo = Server::echo(web, web.at(family, PORT))?;
        let kept = std::cell::RefCell::new(Some(socket));
        proof::outbound(&bed, "client-a", &echo, |_, target| {
            connected(kept.borrow_mut().take().context("only one connect")?, target)
        })?;
        bed.release()?;
    }
    Ok(())
}

#[test]
fn an_open_connection_stays_as_it_is_and_is_counted() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut before = client.connect(echo.address())?;
    bed.enrol()?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    ztunnel_tests::apps::client::exchange(&mut before, b"still here")?;
    let own = before.local_addr()?;
    drop(before);
    let dump = bed.daemon("node-a")?.dump()?;
    let state = dump.pod("client-a").context("unknown pod")?;
    ensure!(state.connections_before() == 1, "counted {} connections from before", state.connections_before());
    proof::no_line(bed.daemon("node-a")?, own)
}

#[test]
fn strict_reverse_path_filter_does_not_matter() -> Result<()> {
    let bed = Testbed::new(TWO_NODES).and_then(|mut bed| {
        for pod in bed.topology.pods() {
            for scope in ["all", "default", "eth0", "lo"] {
                pod.netns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "1")?;
            }
        }
        bed.start("node-a")?;
        bed.enrol()?;
        Ok(bed)
    })?;
    captured_on(&bed, &[Family::V4], Pod::connect)?;
    let web = bed.pod("web-a")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", "web-a", &echo, echo.address())?;
    Ok(())
}

#[test]
fn nobody_there_is_a_failure_and_is_logged() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let target = bed.pod("web-b")?.at(family, 7999);
        let mut stream = bed.pod("client-a")?.connect(target)?;
        let own = stream.local_addr()?;
        let ended = stream.read(&mut [0; 1]);
        let reset = ended.as_ref().is_err_and(ztunnel_tests::apps::server::is_reset);
        ensure!(reset, "{target} has no listener, so a reset is expected, not {ended:?}");
        let line = bed.daemon("node-a")?.wait_connection(Direction::Outbound, own, target)?;
        ensure!(line.error.is_some(), "{}", line.line);
    }
    Ok(())
}

#[test]
fn loopback_is_not_captured() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let pod = bed.pod("client-a")?;
    let mut targets = Family::BOTH.map(Family::loopback).to_vec();
    targets.push(Ipv4Addr::new(127, 9, 9, 9).into());
    for ip in targets {
        let echo = Server::echo(pod, SocketAddr::new(ip, PORT))?;
        let own = proof::direct(&echo, || pod.connect(echo.address()))?;
        proof::no_line(bed.daemon("node-a")?, own)?;
    }
    Ok(())
}

#[test]
fn own_address_is_not_captured() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let pod = bed.pod("client-a")?;
    for family in Family::BOTH {
        let echo = Server::echo(pod, pod.at(family, PORT))?;
        let before = bed.daemon("node-a")?.verdict("client-a", "local")?;
        let own = proof::direct(&echo, || pod.connect(echo.address()))?;
        proof::no_line(bed.daemon("node-a")?, own)?;
        ensure!(bed.daemon("node-a")?.verdict("client-a", "local")? > before, "no verdict `local`");
    }
    Ok(())
}

#[test]
fn own_service_address_is_captured() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (pod, node) = (bed.pod("web-a")?, bed.topology.node("node-a")?);
    let vips: [SocketAddr; 2] = ["10.96.0.1:80".parse()?, "[fd00:96::1]:80".parse()?];
    node.netns.nft(&format!(
        "table inet kube {{\n\
         chain nat {{ type nat hook prerouting priority dstnat;\n\
         ip daddr 10.96.0.1 tcp dport 80 dnat ip to {}:{PORT}\n\
         ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [{}]:{PORT}\n }}\n\
         chain hairpin {{ type nat hook postrouting priority srcnat; ct status dnat masquerade\n }}\n }}\n",
        pod.v4, pod.v6
    ))?;
    for (family, vip) in Family::BOTH.into_iter().zip(vips) {
        let echo = Server::echo(pod, pod.at(family, PORT))?;
        let mut stream = pod.connect(vip)?;
        ensure!(stream.peer_addr()? == vip, "getpeername says {}", stream.peer_addr()?);
        ztunnel_tests::apps::client::exchange(&mut stream, b"hello")?;
        let own = stream.local_addr()?;
        drop(stream);
        let daemon = bed.daemon("node-a")?;
        daemon.wait_connection(Direction::Outbound, own, vip)?;
        daemon.wait_access("the inbound half", |line| {
            line.direction == Direction::Inbound && line.dst == echo.address()
        })?;
    }
    Ok(())
}

#[test]
fn excluded_ports_and_networks_are_left_alone() -> Result<()> {
    let bed = Testbed::new(&[("node-a", &["client-a", "web-a"]), ("node-b", &["web-b"]), ("node-c", &["web-c"])]);
    let mut bed = bed?;
    let (far, near) = (bed.pod("web-c")?, bed.pod("web-b")?);
    let networks = format!("{}/32,{}/128", far.v4, far.v6);
    let manifest = PodManifest::of(bed.pod("client-a")?)
        .annotation("traffic.ambient.mesh/exclude-outbound-ports", "7001,7002")
        .annotation("traffic.ambient.mesh/exclude-outbound-cidrs", &networks);
    bed.mesh.pod(&manifest)?;
    let servers = Family::BOTH.map(|family| {
        let excluded = [(near, 7001), (near, 7002), (far, PORT)];
        let excluded = excluded.map(|(pod, port)| Server::echo(pod, pod.at(family, port)));
        (Server::echo(near, near.at(family, PORT)), excluded)
    });
    bed.start("node-a")?;
    bed.enrol()?;
    let (pod, daemon) = (bed.pod("client-a")?, bed.daemon("node-a")?);
    for (captured, excluded) in servers {
        for server in excluded {
            let server = server?;
            let before = daemon.verdict("client-a", "excluded_outbound")?;
            let own = proof::direct(&server, || pod.connect(server.address()))?;
            ensure!(daemon.verdict("client-a", "excluded_outbound")? > before, "no verdict `excluded_outbound`");
            proof::no_line(daemon, own)?;
        }
        proof::outbound(&bed, "client-a", &captured?, Pod::connect)?;
    }
    Ok(())
}

#[test]
fn exclusions_of_a_running_pod_change() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (pod, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    let manifest = PodManifest::of(pod);
    bed.mesh.pod(&manifest.clone().annotation("traffic.ambient.mesh/exclude-outbound-ports", "7000"))?;
    ztunnel_tests::wait::until("the exclusion", ztunnel_tests::wait::PATIENCE, || {
        Ok(proof::direct(&echo, || pod.connect(echo.address())).ok())
    })?;
    bed.mesh.pod(&manifest)?;
    ztunnel_tests::wait::until("the end of the exclusion", ztunnel_tests::wait::PATIENCE, || {
        Ok(proof::direct(&echo, || pod.connect(echo.address())).err())
    })?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    Ok(())
}
