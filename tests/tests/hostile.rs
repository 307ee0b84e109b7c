//! Attacks of a pod that knows the design and has CAP_NET_ADMIN: they gain nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::mesh::{NAMESPACE, PodManifest};
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// The daemon's own mark, the capture mark, the delivery mark, combinations of them, all bits, and a mark of another program.
const MARKS: [u32; 7] = [0x539, 0x1000_0000, 0x2000_0000, 0x3000_0000, 0x1000_0539, u32::MAX, 0x1];

/// The listening addresses in a pod.
fn listeners(pod: &Pod) -> Result<BTreeSet<SocketAddr>> {
    let done = Launch::new("ss").args(["-Htnl"]).inside(&pod.netns).finish()?;
    let local = |line: &str| -> Result<SocketAddr> {
        let text = line.split_whitespace().nth(3).with_context(|| format!("ss wrote {line}"))?;
        let (ip, port) = text.rsplit_once(':').with_context(|| format!("ss wrote {text}"))?;
        let ip = ip.trim_matches(['[', ']']).split('%').next().unwrap_or_default();
        let ip: IpAddr = if ip == "*" { Family::V6.any() } else { ip.parse()? };
        Ok(SocketAddr::new(ip, port.parse()?))
    };
    done.stdout.lines().map(local).collect()
}

/// The number of established or half-closed connections in a pod.
fn connections(pod: &Pod) -> Result<usize> {
    let done =
        Launch::new("ss").args(["-Htan", "state", "connected", "exclude", "time-wait"]).inside(&pod.netns).finish()?;
    Ok(done.stdout.lines().count())
}

/// Connects and sends bytes. No byte comes back, and the connection ends soon.
fn gets_nothing(pod: &Pod, target: SocketAddr) -> Result<()> {
    let Ok(mut stream) = pod.connect(target) else { return Ok(()) };
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut bytes = [0; 64];
    match stream.read(&mut bytes) {
        Ok(0) => Ok(()),
        Ok(length) => anyhow::bail!("{target} answered {:?}", bytes.get(..length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => anyhow::bail!("{target} keeps the connection open"),
        Err(_) => Ok(()),
    }
}

/// The daemon is the same process, is ready, and has not connected to itself.
fn unharmed(bed: &Testbed, node: &str, id: u32, lines_before: usize, attempts: usize) -> Result<()> {
    let daemon = bed.daemon(node)?;
    ensure!(daemon.id() == id, "the daemon was restarted");
    let ready = daemon.get("/healthz/ready")?;
    ensure!(ready.status == 200, "{ready:?}");
    daemon.wait_dump("no connection to be left", Duration::from_secs(10), |dump| {
        dump.pods().all(|pod| pod.connections() == 0)
    })?;
    let lines = daemon.access()?.len() - lines_before;
    ensure!(lines <= attempts * 2, "{attempts} attempts made {lines} lines: a loop");
    for pod in bed.topology.pods().iter().filter(|pod| pod.node == node) {
        let open = connections(pod)?;
        ensure!(open < 20, "{} has {open} open connections: a loop", pod.name);
    }
    Ok(())
}

#[test]
fn connecting_to_the_daemons_own_listeners() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    let before = listeners(bed.pod("web-a")?)?;
    bed.enrol()?;
    let web = bed.pod("web-a")?;
    let daemons: Vec<SocketAddr> = listeners(web)?.difference(&before).copied().collect();
    ensure!(!daemons.is_empty(), "the daemon has no listener in the pod");
    let id = bed.daemon("node-a")?.id();
    let lines = bed.daemon("node-a")?.access()?.len();
    let mut attempts = 0;
    for listener in &daemons {
        let family = Family::of(*listener);
        let own = SocketAddr::new(web.ip(family), listener.port());
        let loopback = SocketAddr::new(family.loopback(), listener.port());
        for target in [*listener, own, loopback] {
            gets_nothing(web, target).context("from the pod itself")?;
        }
        for other in ["client-a", "client-b"] {
            gets_nothing(bed.pod(other)?, own).with_context(|| format!("from {other}"))?;
        }
        attempts += 5;
    }
    unharmed(&bed, "node-a", id, lines, attempts)?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn ports_known_from_other_meshes() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let ids = (bed.daemon("node-a")?.id(), bed.daemon("node-b")?.id());
    let mut attempts = 0;
    for family in Family::BOTH {
        for port in [15_000, 15_001, 15_006, 15_008, 15_020, 15_021, 15_053] {
            for (client, target) in
                [("client-a", "client-a"), ("client-a", "web-a"), ("client-a", "web-b"), ("web-b", "web-a")]
            {
                gets_nothing(bed.pod(client)?, bed.pod(target)?.at(family, port))
                    .with_context(|| format!("{client} to {target}, port {port}"))?;
                attempts += 1;
            }
            if [15_020, 15_021].contains(&port) {
                // The node's metrics and readiness are open to all clients.
                continue;
            }
            let node = if family == Family::V4 { "10.10.1.1".parse()? } else { "fd00:10:1::1".parse()? };
            gets_nothing(bed.pod("client-a")?, SocketAddr::new(node, port)).context("to the node")?;
            attempts += 1;
        }
    }
    unharmed(&bed, "node-a", ids.0, 0, attempts)?;
    unharmed(&bed, "node-b", ids.1, 0, attempts)
}

#[test]
fn marks_set_by_the_pod_do_not_escape() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        for mark in MARKS {
            let marked = |pod: &Pod, target: SocketAddr| -> Result<TcpStream> {
                let socket = pod.socket(family)?;
                socket.set_mark(mark)?;
                socket.connect(&target.into())?;
                // The upper five bits belong to the daemon; the other bits stay as the pod set them.
                let own = !ebpf_common::mark::MASK;
                let (before, after) = (mark & own, socket.mark()? & own);
                ensure!(before == after, "the pod's mark {mark:#x} became {:#x}", socket.mark()?);
                Ok(socket.into())
            };
            proof::outbound(&bed, "client-a", &echo, marked).with_context(|| format!("mark {mark:#x}, {family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_mark_and_a_device_together_do_not_escape() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        for mark in MARKS {
            let connect = |pod: &Pod, target: SocketAddr| -> Result<TcpStream> {
                let socket = pod.socket(family)?;
                socket.set_mark(mark)?;
                socket.bind_device(Some(b"eth0"))?;
                socket.connect(&target.into())?;
                Ok(socket.into())
            };
            proof::outbound(&bed, "client-a", &echo, connect).with_context(|| format!("mark {mark:#x}, {family:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_foreign_source_address_is_not_carried() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (hostile, victim, server) = (bed.pod("client-a")?, bed.pod("client-b")?, bed.pod("web-a")?);
    let id = bed.daemon("node-a")?.id();
    for family in Family::BOTH {
        let echo = Server::echo(server, server.at(family, PORT))?;
        for mark in [0, 0x539, 0x2000_0000] {
            let socket = hostile.socket(family)?;
            socket.set_write_timeout(Some(Duration::from_millis(500)))?;
            match family {
                Family::V4 => socket.set_ip_transparent_v4(true)?,
                Family::V6 => set_ipv6_transparent(&socket)?,
            }
            socket.set_mark(mark)?;
            socket.bind(&victim.at(family, 0).into())?;
            let _ = socket.connect(&echo.address().into());
        }
        let seen = echo.peers();
        let forged = seen.iter().any(|peer| peer.ip() == victim.ip(family));
        ensure!(!forged, "the server was shown a foreign address: {seen:?}");
    }
    let ready = bed.daemon("node-a")?.get("/healthz/ready")?;
    ensure!(bed.daemon("node-a")?.id() == id && ready.status == 200, "{ready:?}");
    Ok(())
}

/// With CAP_NET_ADMIN a pod can give itself any address.
#[test]
fn connect_from_the_address_of_another_pod() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (hostile, victim, server) = (bed.pod("client-a")?, bed.pod("client-b")?, bed.pod("web-a")?);
    hostile.netns.ip(&format!("addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n", victim.v4, victim.v6))?;
    let daemon = bed.daemon("node-a")?;
    for family in Family::BOTH {
        let echo = Server::echo(server, server.at(family, PORT))?;
        let socket = hostile.socket(family)?;
        socket.bind(&victim.at(family, 0).into())?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        // The connect or the first read may fail: the daemon checks the source address after it has accepted the connection.
        if socket.connect(&echo.address().into()).is_ok() {
            let mut stream = TcpStream::from(socket);
            let answer = stream.write_all(b"as another").and_then(|()| stream.read(&mut [0; 16]));
            ensure!(answer.is_err(), "{family:?}: {answer:?}");
        }
        ensure!(echo.accepted() == 0, "{family:?}: the server was reached: {:?}", echo.peers());
        let words = ["foreign_source".to_owned(), format!("an address of Pod {NAMESPACE}/{}", victim.name)];
        wait::until("the line about it", wait::PATIENCE, || {
            Ok((!daemon.lines_with(&[&words[0], &words[1], &victim.ip(family).to_string()])?.is_empty()).then_some(()))
        })?;
        // A connection with the pod's own address works.
        exchange(&mut hostile.connect(echo.address())?, b"as itself")?;
    }
    let refused = daemon.metrics()?.sum("ztunnel_connections_closed_total", &[("reason", "foreign_source")]);
    ensure!(refused == 2.0, "{refused} connections were refused for their source");
    Ok(())
}

fn set_ipv6_transparent(socket: &socket2::Socket) -> Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the value is an int on this stack and the length is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, (&raw const on).cast(), length)
    };
    ensure!(result == 0, "IPV6_TRANSPARENT: {}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn delivery_marks_reach_no_other_pod_in_the_clear() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (hostile, server) = (bed.pod("client-a")?, bed.pod("web-a")?);
    for family in Family::BOTH {
        let echo = Server::echo(server, server.at(family, PORT))?;
        for mark in MARKS {
            let socket = hostile.socket(family)?;
            socket.set_mark(mark)?;
            socket.connect(&echo.address().into())?;
            let mut stream = TcpStream::from(socket);
            exchange(&mut stream, b"hello")?;
            let own = stream.local_addr()?;
            ensure!(!echo.peers().contains(&own), "mark {mark:#x}: {own} reached the other pod directly");
        }
    }
    Ok(())
}

#[test]
fn thousands_of_silent_connections_starve_nobody() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (hostile, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let silent = Server::start(web, web.at(Family::V4, 7001), |mut stream, _| {
        stream.set_read_timeout(None)?;
        stream.read(&mut [0; 1]).map(|_| ())
    })?;
    let held = (0..1000).map(|_| hostile.connect(silent.address())).collect::<Result<Vec<_>>>();
    let held = held.context("the silent ones")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    for pod in ["web-a", "client-a"] {
        let proved = proof::outbound(&bed, pod, &echo, Pod::connect);
        proved.with_context(|| format!("{pod}: {}", bed.daemon("node-a").map(Daemon::tail).unwrap_or_default()))?;
    }
    drop(held);
    Ok(())
}

/// A pod that changes its network namespace makes the daemon read it, but not without end, and other pods do not wait for that.
#[test]
fn hold_the_daemon_up_with_an_endless_namespace() -> Result<()> {
    const RULES: usize = 5_000;
    let mut bed = Testbed::node_a_enrolled()?;
    let batch = |from: usize, to: usize, line: &dyn Fn(usize) -> String| (from..to).map(line).collect::<String>();
    // The kernel filters these routes by their table.
    let routes = batch(0, 20_000, &|number| {
        format!("route add 10.{}.{}.0/24 dev lo table 77\n", 100 + number / 256, number % 256)
    });
    let hostile = bed.pod("client-a")?.netns.path().to_owned();
    bed.pod("client-a")?.netns.ip(&routes)?;
    bed.pod("client-a")?.netns.ip("rule del pref 1\n")?;
    let has_rule = |bed: &Testbed| Ok(rules(bed.pod("client-a")?)?.contains("lookup 15001"));
    wait::until_true("the rule to be put back", wait::PATIENCE, || has_rule(&bed))?;

    bed.pod("client-a")?.netns.ip(&batch(0, RULES, &|number| format!("rule add pref {} table 77\n", 1000 + number)))?;
    bed.pod("client-a")?.netns.ip("rule del pref 1\n")?;
    wait::until_true("the daemon to give up reading", wait::PATIENCE, || {
        Ok(!bed.daemon("node-a")?.lines_with(&["there are more than 4096", &hostile.display().to_string()])?.is_empty())
    })?;
    bed.topology.grow("node-a", "late")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("late")?))?;
    bed.daemon("node-a")?.enrolled("late")?;
    bed.daemon("node-a")?.metrics()?;

    bed.pod("client-a")?.netns.ip(&batch(0, RULES, &|number| format!("rule del pref {}\n", 1000 + number)))?;
    wait::until_true("the rule to be put back", wait::PATIENCE, || has_rule(&bed))
}

fn rules(pod: &Pod) -> Result<String> {
    let done = Launch::new("ip").args(["-n", pod.netns.name(), "rule", "show"]).finish()?;
    ensure!(done.success, "{}", done.stderr);
    Ok(done.stdout)
}

/// A process with CAP_NET_ADMIN in a pod can close any socket of the pod.
#[test]
fn close_the_listeners_in_its_own_pod() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (hostile, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let done = Launch::new("ss").args(["-K", "-tl"]).inside(&hostile.netns).finish()?;
    ensure!(done.success, "{done:?}");
    wait::until_true("the pod to be enrolled anew", wait::PATIENCE, || {
        Ok(!bed.daemon("node-a")?.lines_with(&["another process closed a listener", "client-a"])?.is_empty())
    })?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    let inside = Server::echo(hostile, hostile.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", "client-a", &inside, inside.address())?;
    Ok(())
}
