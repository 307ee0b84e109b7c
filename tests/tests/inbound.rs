//! Connections to an enrolled pod go through the daemon, and the application sees the client's address.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::nginx::{Nginx, curl};
use ztunnel_tests::apps::programs::{iperf3, iperf3_server, redis, redis_server};
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::logs::{Access, Direction};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::policy::authentication;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// `client-b` is a client outside the mesh on the other node, and `web-a` is enrolled.
fn delivered_to(listen: impl Fn(&Testbed, Family) -> Result<SocketAddr>, families: &[Family]) -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in families {
        let web = bed.pod("web-a")?;
        let echo = Server::echo(web, listen(&bed, *family)?)?;
        let target = web.at(*family, echo.address().port());
        proof::inbound(&bed, "client-b", "web-a", &echo, target).with_context(|| format!("over {family:?}"))?;
    }
    Ok(())
}

#[test]
fn listener_on_everything() -> Result<()> {
    delivered_to(|_, family| Ok(SocketAddr::new(family.any(), PORT)), &Family::BOTH)
}

#[test]
fn listener_on_the_pods_address() -> Result<()> {
    delivered_to(|bed, family| Ok(bed.pod("web-a")?.at(family, PORT)), &Family::BOTH)
}

#[test]
fn listener_on_everything_of_both_families() -> Result<()> {
    delivered_to(|_, _| Ok(SocketAddr::new(Family::V6.any(), PORT)), &Family::BOTH)
}

#[test]
fn any_port() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let web = bed.pod("web-a")?;
    for port in [1, 80, 443, 1024, 8080, 15_001, 15_006, 15_999, 16_000, 32_768, 60_999, 65_535] {
        for family in Family::BOTH {
            let echo = Server::echo(web, SocketAddr::new(family.any(), port));
            let Ok(echo) = echo else {
                // The daemon's own listeners may have any port. Then the application gets the error of a port in use, and this
                // port is not tested.
                eprintln!("port {port} of {family:?} is taken in the pod");
                continue;
            };
            proof::inbound(&bed, "client-b", "web-a", &echo, web.at(family, port))
                .with_context(|| format!("port {port}"))?;
        }
    }
    Ok(())
}

#[test]
fn from_the_same_node_and_from_the_node_itself() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).mode("none"))?;
    bed.start("node-a")?;
    bed.mesh.label()?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    let web = bed.pod("web-a")?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, PORT))?;
        proof::inbound(&bed, "client-a", "web-a", &echo, echo.address())?;
        let seen = echo.accepted();
        let node = &bed.topology.node("node-a")?.netns;
        node.run(|| std::net::TcpStream::connect_timeout(&echo.address(), Duration::from_secs(5)))??;
        wait::until_true("the node's own connection", wait::PATIENCE, || Ok(echo.accepted() > seen))?;
    }
    Ok(())
}

#[test]
fn closed_port_resets_at_once() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for family in Family::BOTH {
        let target = bed.pod("web-a")?.at(family, 7999);
        let begin = Instant::now();
        let mut stream = bed.pod("client-b")?.connect(target)?;
        let own = stream.local_addr()?;
        let ended = stream.read(&mut [0; 1]);
        ensure!(ended.as_ref().is_err_and(is_reset), "a reset should come, not {ended:?}");
        ensure!(begin.elapsed() < Duration::from_secs(1), "the reset took {:?}", begin.elapsed());
        let line = bed.daemon("node-a")?.wait_connection(Direction::Inbound, own, target)?;
        ensure!(line.error.is_some(), "{}", line.line);
    }
    Ok(())
}

#[test]
fn nginx_sees_the_client() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let nginx = Nginx::start(&bed.topology, bed.pod("web-b")?, 80, false)?;
    let mut clients = Vec::new();
    for client in ["client-a", "client-b", "web-a"] {
        for family in Family::BOTH {
            let page = curl(bed.pod(client)?, bed.pod("web-b")?.at(family, 80), &[])?;
            let own = bed.pod(client)?.ip(family);
            ensure!(page.status == 200 && page.body == own.to_string(), "{client} {family:?}: {page:?}");
            clients.push(own);
        }
    }
    ensure!(nginx.clients()? == clients, "nginx logged {:?}", nginx.clients()?);
    let inbound = |line: &Access| line.direction == Direction::Inbound && line.asked().port() == 80;
    let what = "a line about each request";
    wait::until_true(what, wait::PATIENCE, || {
        let lines = bed.daemon("node-b")?.access()?;
        Ok(lines.into_iter().filter(inbound).count() == clients.len())
    })
}

#[test]
fn a_large_file_arrives_whole() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let nginx = Nginx::start(&bed.topology, bed.pod("web-b")?, 80, false)?;
    let bytes: Vec<u8> =
        (0..32u32 * 1024 * 1024 / 4).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(nginx.files().join("large"), &bytes)?;
    let copy = bed.topology.folder.join("copy");
    let (copy_name, path) = (copy.display().to_string(), "/files/large");
    for family in Family::BOTH {
        let target = bed.pod("web-b")?.at(family, 80);
        let page = curl(
            bed.pod("client-a")?,
            target,
            &["-o", &copy_name, &format!("http://{target}{path}"), "-o", "/dev/null"],
        )?;
        ensure!(page.status == 200, "{page:?}");
        ensure!(std::fs::read(&copy)? == bytes, "the file arrived damaged over {family:?}");
        let line = bed.daemon("node-a")?.wait_access("the line of the download", |line| {
            line.direction == Direction::Outbound && line.asked() == target && line.received >= bytes.len() as u64
        });
        line?;
    }
    Ok(())
}

#[test]
fn iperf3_and_redis_run_through_it() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let _redis = redis_server(&bed.topology, web, 6379)?;
    let _iperf3 = iperf3_server(web, 5201)?;
    let verdicts = || {
        Ok::<_, anyhow::Error>((
            bed.daemon("node-a")?.verdict("client-a", "outbound")?,
            bed.daemon("node-b")?.verdict("web-b", "delivered")?,
        ))
    };
    let before = verdicts()?;
    for family in Family::BOTH {
        ensure!(redis(client, web.at(family, 6379), &["set", "key", "value"])? == "OK");
        ensure!(redis(client, web.at(family, 6379), &["get", "key"])? == "value");
        for direction in [&["-P", "2"][..], &["-P", "2", "-R"], &["-P", "2", "--bidir"]] {
            // On a busy machine one run of a second may be too short for both directions.
            wait::until_true(&format!("iperf3 to carry data, {family:?} {direction:?}"), wait::PATIENCE, || {
                Ok(iperf3(client, web.at(family, 5201), 1, direction)? > 1e6)
            })?;
        }
    }
    let after = verdicts()?;
    // Two redis commands for each family, and three runs of iperf3 with a control connection and two or four streams each.
    ensure!(after.0 >= before.0 + 26 && after.1 >= before.1 + 26, "(outbound, delivered): {before:?} then {after:?}");
    let lines = bed.daemon("node-a")?.access()?;
    let plain = lines.iter().find(|line| line.direction == Direction::Outbound && !line.is_tunnelled());
    ensure!(plain.is_none(), "not through a tunnel: {plain:?}");
    // Some streams of iperf3 end with a reset, because it closes them with unread data. No other error is allowed.
    let failed =
        lines.iter().find(|line| !["complete", "client_reset", "server_reset"].contains(&line.field("reason")));
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}

#[test]
fn excluded_ports_are_left_alone() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let manifest = PodManifest::of(bed.pod("web-a")?).annotation("traffic.ambient.mesh/exclude-inbound-ports", "7001");
    bed.mesh.pod(&manifest)?;
    bed.start("node-a")?;
    bed.enrol()?;
    let (client, web, daemon) = (bed.pod("client-b")?, bed.pod("web-a")?, bed.daemon("node-a")?);
    for family in Family::BOTH {
        let excluded = Server::echo(web, web.at(family, 7001))?;
        let before = daemon.verdict("web-a", "excluded_inbound")?;
        let own = proof::direct(&excluded, || client.connect(excluded.address()))?;
        ensure!(daemon.verdict("web-a", "excluded_inbound")? > before, "no verdict `excluded_inbound`");
        let other = Server::echo(web, web.at(family, PORT))?;
        proof::inbound(&bed, "client-b", "web-a", &other, other.address())?;
        proof::no_line(daemon, own)?;
    }
    Ok(())
}

/// Plaintext to the pod is not captured at any port. HBONE, and connections of the pod itself, are.
#[test]
fn inbound_capture_can_be_bypassed() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let manifest = PodManifest::of(bed.pod("web-a")?).annotation("ambient.istio.io/bypass-inbound-capture", "true");
    bed.mesh.pod(&manifest)?;
    bed.start("node-a")?;
    bed.enrol()?;
    let strict = authentication("strict", "{mtls: {mode: STRICT}}");
    bed.change(|mesh| mesh.policy("strict", &strict))?;
    let (client, web, daemon) = (bed.pod("client-b")?, bed.pod("web-a")?, bed.daemon("node-a")?);
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, PORT))?;
        let before = daemon.verdict("web-a", "excluded_inbound")?;
        let own = proof::direct(&echo, || client.connect(echo.address()))?;
        ensure!(daemon.verdict("web-a", "excluded_inbound")? > before, "no verdict `excluded_inbound`");
        proof::no_line(daemon, own)?;
        // Through HBONE, from a pod of the mesh.
        let mut stream = bed.pod("client-a")?.connect(echo.address())?;
        let own = stream.local_addr()?;
        ztunnel_tests::apps::client::exchange(&mut stream, b"hello")?;
        drop(stream);
        let line = daemon
            .wait_access("the line of the tunnel", |line| line.direction == Direction::Outbound && line.src == own)?;
        ensure!(line.is_tunnelled(), "{}", line.line);
        let far = bed.pod("web-b")?;
        let outside = Server::echo(far, far.at(family, PORT))?;
        proof::outbound(&bed, "web-a", &outside, ztunnel_tests::topology::Pod::connect)?;
    }
    Ok(())
}

#[test]
fn an_open_connection_to_the_pod_stays_as_it_is() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    let (client, web) = (bed.pod("client-b")?, bed.pod("web-a")?);
    let echo = Server::echo(web, web.at(Family::V6, PORT))?;
    let mut before = client.connect(echo.address())?;
    ztunnel_tests::apps::client::exchange(&mut before, b"hello")?;
    bed.enrol()?;
    proof::inbound(&bed, "client-b", "web-a", &echo, echo.address())?;
    ztunnel_tests::apps::client::exchange(&mut before, b"still here")?;
    Ok(())
}
