//! Enrolment and release: while pods run, quickly, any number of times, and without remains.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::client::exchange_once;
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// Waits until a network namespace is as before, or fails with the difference.
fn as_before(netns: &ztunnel_tests::netns::Netns, before: &Footprint) -> Result<()> {
    let mut difference = Vec::new();
    let same = wait::until_true("the namespace to be as before", Duration::from_secs(5), || {
        difference = before.difference(&Footprint::of(netns)?);
        Ok(difference.is_empty())
    });
    same.with_context(|| format!("{} differs: {difference:#?}", netns.name()))
}

#[test]
fn labelling_and_unlabelling_take_effect_within_a_second() -> Result<()> {
    let bed = Testbed::one_node()?;
    let mut times = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        bed.enrol()?;
        let enrolled = begin.elapsed();
        let begin = Instant::now();
        bed.release()?;
        times.push(enrolled.max(begin.elapsed()));
    }
    // The median of three, because the machine may stall once for another reason.
    times.sort();
    ensure!(times.get(1).is_some_and(|middle| *middle < Duration::from_secs(1)), "it took {times:?}");
    Ok(())
}

#[test]
fn release_restores_rules_routes_settings_and_listeners() -> Result<()> {
    let bed = Testbed::one_node()?;
    let spaces: Vec<_> = bed.topology.pods().iter().map(|pod| &pod.netns).collect();
    let spaces = [spaces, vec![&bed.topology.node("node-a")?.netns]].concat();
    let before = spaces.iter().map(|netns| Footprint::of(netns)).collect::<Result<Vec<_>>>()?;
    bed.enrol()?;
    let pod = bed.pod("client-a")?;
    let enrolled = Footprint::of(&pod.netns)?;
    ensure!(!before.first().context("no pods")?.difference(&enrolled).is_empty(), "enrolment left no footprint at all");
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(family, PORT))?;
        proof_both_ways(&bed, &echo)?;
    }
    bed.release()?;
    for (netns, before) in spaces.into_iter().zip(&before) {
        as_before(netns, before)?;
    }
    let dump = bed.daemon("node-a")?.dump()?;
    ensure!(dump.maps().iter().all(|map| map.ends_with("=0") || !map.contains("POD")), "maps: {:?}", dump.maps());
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(family, PORT))?;
        proof::direct(&echo, || bed.pod("client-a")?.connect(echo.address()))?;
    }
    Ok(())
}

/// Both pods are on one node and enrolled, so the connection is captured twice.
fn proof_both_ways(bed: &Testbed, echo: &Server) -> Result<()> {
    let own = exchange_once(bed.pod("client-a")?, echo.address())?;
    let daemon = bed.daemon("node-a")?;
    daemon.wait_connection(ztunnel_tests::logs::Direction::Outbound, own, echo.address())?;
    daemon.wait_access("the inbound line", |line| {
        line.direction == ztunnel_tests::logs::Direction::Inbound && line.asked() == echo.address()
    })?;
    Ok(())
}

#[test]
fn a_pods_own_label_wins() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let (client, web) = (PodManifest::of(bed.pod("client-a")?), PodManifest::of(bed.pod("web-a")?));
    bed.mesh.pod(&client.clone().mode("none"))?;
    bed.mesh.label()?;
    bed.start("node-a")?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    bed.daemon("node-a")?.released("client-a")?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    proof::direct(&echo, || bed.pod("client-a")?.connect(echo.address()))?;
    bed.mesh.unlabel()?;
    bed.mesh.pod(&client.mode("ambient"))?;
    bed.mesh.pod(&web)?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    bed.daemon("node-a")?.released("web-a")?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    proof::direct(&echo, || bed.pod("web-a")?.connect(echo.address()))?;
    Ok(())
}

#[test]
fn pods_of_other_nodes_are_not_touched() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let other = bed.pod("client-b")?;
    let enrolled =
        |dump: &ztunnel_tests::admin::ConfigDump| dump.pod("client-b").is_some_and(|pod| pod.state() == "enrolled");
    ensure!(!enrolled(&bed.daemon("node-a")?.dump()?));
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::direct(&echo, || other.connect(echo.address()))?;
    Ok(())
}

#[test]
fn a_pod_whose_manifest_goes_is_released() -> Result<()> {
    let bed = Testbed::one_node()?;
    let pod = bed.pod("client-a")?;
    let before = Footprint::of(&pod.netns)?;
    bed.enrol()?;
    bed.mesh.remove_pod("client-a")?;
    bed.daemon("node-a")?.released("client-a")?;
    as_before(&pod.netns, &before)?;
    bed.daemon("node-a")?.enrolled("web-a")
}

#[test]
fn a_pod_that_comes_later_is_enrolled() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.topology.grow("node-a", "late")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("late")?))?;
    bed.daemon("node-a")?.enrolled("late")?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V6, PORT))?;
    proof::outbound(&bed, "late", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn an_interface_that_comes_later_is_no_way_out() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (pod, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let node = &bed.topology.node("node-a")?.netns;
    node.ip(&format!(
        "link add late type veth peer name eth1 netns {}\nlink set late master br0 up\n",
        pod.netns.name()
    ))?;
    pod.netns.ip("link set eth1 up\nroute add default via 10.10.1.1 dev eth1 onlink metric 200\n")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let bound = || -> Result<socket2::Socket> {
        let socket = pod.socket(Family::V4)?;
        socket.bind_device(Some(b"eth1"))?;
        Ok(socket)
    };
    // The kernel tells the daemon of the interface a moment later, and then the daemon adds the route.
    wait::until("a capture route through the new interface", wait::PATIENCE, || {
        let shown = Launch::new("ip").args(["route", "show", "table", "15001"]).inside(&pod.netns).finish()?;
        Ok(shown.stdout.contains("dev eth1").then_some(()))
    })?;
    let refused = bound()?.connect_timeout(&echo.address().into(), Duration::from_millis(500));
    ensure!(refused.is_err() && echo.accepted() == 0, "without an address of its own the interface leads nowhere");
    pod.netns.ip("addr add 10.10.1.77/24 dev eth1\n")?;
    let own: std::net::IpAddr = "10.10.1.77".parse()?;
    let mut stream = wait::until("capture on the new interface", wait::PATIENCE, || {
        let socket = bound()?;
        let connected = socket.connect_timeout(&echo.address().into(), Duration::from_millis(500));
        Ok(connected.is_ok().then(|| std::net::TcpStream::from(socket)))
    })?;
    ensure!(stream.local_addr()?.ip() == own, "the interface's own address is the source");
    ztunnel_tests::apps::client::exchange(&mut stream, b"hello")?;
    let src = stream.local_addr()?;
    drop(stream);
    let daemon = bed.daemon("node-a")?;
    daemon.wait_connection(ztunnel_tests::logs::Direction::Outbound, src, echo.address())?;
    ensure!(echo.peers().iter().all(|peer| *peer != src && peer.ip() == own), "{:?}", echo.peers());
    Ok(())
}

#[test]
fn a_broken_manifest_changes_nothing_and_is_reported() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.topology.grow("node-a", "late")?;
    let (daemon, web) = (bed.daemon("node-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    bed.mesh.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [never closed\n")?;
    bed.mesh.write(
        "pod-client-a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: client-a\nspec:\n  nodeName: {no: text}\n",
    )?;
    bed.mesh.pod(&PodManifest::of(bed.pod("late")?))?;
    daemon.enrolled("late")?;
    let names = |dump: &ztunnel_tests::admin::ConfigDump, file: &str| {
        dump.problems().iter().any(|problem| {
            let text = |key: &str| problem.get(key).and_then(serde_json::Value::as_str).unwrap_or("").to_owned();
            text("file").ends_with(file)
                && problem.get("line").is_some_and(serde_json::Value::is_u64)
                && !text("message").is_empty()
        })
    };
    daemon.wait_dump("both problems, with file and line", wait::PATIENCE, |dump| {
        names(dump, "broken.yaml") && names(dump, "pod-client-a.yaml")
    })?;
    let dump = daemon.dump()?;
    let field = dump.problems().iter().any(|problem| problem.to_string().contains("nodeName"));
    ensure!(field, "no problem names the field nodeName: {:?}", dump.problems());
    proof::outbound(&bed, "client-a", &echo, Pod::connect).context("the last good mesh must stay")?;
    bed.mesh.remove("broken.yaml")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?))?;
    daemon.wait_dump("no problems", wait::PATIENCE, |dump| dump.problems().is_empty())?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn enrolled_and_released_many_times_under_traffic() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    let (client, web) = (bed.pod("client-b")?, bed.pod("web-a")?);
    client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let before = Footprint::of(&web.netns)?;
    let echoes = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
    let echoes = echoes.into_iter().collect::<Result<Vec<_>>>()?;
    bed.enrol()?;
    bed.release()?;
    let holdings = bed.daemon("node-a")?.settled_holdings()?;
    let targets = Family::BOTH.map(|family| web.at(family, PORT));
    let loads = targets.map(|target| Load::start(client, target, 2, Ending::Closes));
    for round in 0..settings::enrol_rounds() {
        bed.enrol().with_context(|| format!("enrolment {round}"))?;
        bed.release().with_context(|| format!("release {round}"))?;
    }
    for load in loads {
        let report = load?.stop()?;
        println!("under {} enrolments: {report:?}", settings::enrol_rounds());
        // A connection that is being set up when a pod enters or leaves may fail at once. No other error is allowed.
        ensure!(report.failed * 10 <= report.done, "too many failures: {report:?}");
        let hung = |sample: &String| sample.contains("os error 11)") || sample.contains("os error 115)");
        ensure!(!report.samples.iter().any(hung), "a connection hung: {report:?}");
    }
    drop(echoes);
    as_before(&web.netns, &before)?;
    bed.daemon("node-a")?.wait_holdings(&holdings)?;
    bed.enrol()?;
    // Another server port: for the first port the log has lines with nearly every port of this client.
    let echo = Server::echo(web, web.at(Family::V4, PORT + 1))?;
    proof::inbound(&bed, "client-b", "web-a", &echo, echo.address())?;
    Ok(())
}

#[test]
fn a_namespace_deleted_while_enrolled_is_let_go() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let (web_b, daemon) = (bed.pod("web-b")?, bed.daemon("node-a")?);
    let echo = Server::echo(web_b, web_b.at(Family::V4, PORT))?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    bed.mesh.remove_pod("client-a")?;
    daemon.released("client-a")?;
    let (maps, manifest) = (daemon.dump()?.maps(), PodManifest::of(bed.pod("client-a")?));
    bed.mesh.pod(&manifest)?;
    daemon.enrolled("client-a")?;
    bed.topology.delete_netns("client-a")?;
    bed.mesh.remove_pod("client-a")?;
    let daemon = bed.daemon("node-a")?;
    daemon.wait_dump("the pod's maps to be empty again", wait::PATIENCE, |dump| {
        dump.pod("client-a").is_none() && dump.maps() == maps
    })?;
    wait::until_true("the kernel to remove the namespace", wait::PATIENCE, || {
        Ok(!bed.topology.plugged("client-a")?)
    })?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn a_namespace_deleted_while_its_manifest_stays_harms_nobody() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.topology.delete_netns("client-a")?;
    bed.topology.grow("node-a", "late")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("late")?))?;
    bed.daemon("node-a")?.enrolled("late")?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V6, PORT))?;
    proof::outbound(&bed, "late", &echo, Pod::connect)?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    let ready = bed.daemon("node-a")?.get("/healthz/ready")?;
    ensure!(ready.status == 200, "{ready:?}");
    Ok(())
}
