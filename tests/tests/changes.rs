//! Enrolled pods change while the daemon runs: addresses, interfaces, routes, manifests, the path of the network namespace. A
//! captured pod stays captured or closed until its label changes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::process::{Launch, Process};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;
use ztunnel_tests::watch::{Attempts, PORT, Watch, no_bypass};

/// The pod that changes.
const POD: &str = "client-a";

/// The time that the daemon may take for a repair: five seconds, and some more for a loaded machine.
const SOON: Duration = Duration::from_secs(8);

fn route(pod: &Pod, family: Family) -> String {
    let [_, _, number, _] = pod.v4.octets();
    match family {
        Family::V4 => format!("route replace default via 10.10.{number}.1\n"),
        Family::V6 => format!("route replace default via fd00:10:{number}::1\n"),
    }
}

/// Restores the address of a pod, and the route that was removed with the address.
fn restore(pod: &Pod, family: Family) -> Result<()> {
    let address = match family {
        Family::V4 => format!("addr add {}/24 dev eth0\n", pod.v4),
        Family::V6 => format!("addr add {}/64 dev eth0 nodad\n", pod.v6),
    };
    pod.netns.ip(&(address + &route(pod, family)))
}

/// Enables duplicate address detection on `eth0`, with this many probes at intervals of one second.
fn detect_duplicates(pod: &Pod, probes: u8) -> Result<()> {
    pod.netns.sysctl("ipv6/conf/eth0/accept_dad", "1")?;
    pod.netns.sysctl("ipv6/conf/eth0/dad_transmits", &probes.to_string())
}

/// Removes the pod's IPv6 address before the test begins.
fn without_v6(bed: &Testbed) -> Result<()> {
    let pod = bed.pod(POD)?;
    pod.netns.ip(&format!("addr del {}/64 dev eth0\n", pod.v6))
}

fn add_tentative_v6(bed: &Testbed) -> Result<()> {
    let pod = bed.pod(POD)?;
    pod.netns.ip(&format!("addr add {}/64 dev eth0\n{}", pod.v6, route(pod, Family::V6)))
}

/// The pod is enrolled again within [`SOON`]. Then both families work, and no connection has bypassed the daemon.
fn enrolled_again(bed: &Testbed, watch: &Watch) -> Result<()> {
    let enrolled = bed.daemon("node-a")?.wait_dump("the pod to be enrolled again", SOON, |dump| {
        dump.pod(POD).is_some_and(|pod| pod.state() == "enrolled")
    });
    watch.no_bypass()?;
    enrolled?;
    watch.works(&Family::BOTH, SOON)
}

#[test]
fn a_lost_ipv4_address_closes_the_pod_until_it_is_back() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (watch, pod) = (Watch::over(&bed, POD)?, bed.pod(POD)?);
    watch.works(&Family::BOTH, SOON)?;
    pod.netns.ip(&format!("addr del {}/24 dev eth0\n", pod.v4))?;
    watch.closed(&bed, &[Family::V6])?;
    bed.daemon("node-a")?.shut(POD)?;
    restore(pod, Family::V4)?;
    enrolled_again(&bed, &watch)
}

/// An address that the pod has lost may belong to another pod now. A connect to it is no connect of the pod to itself any more.
#[test]
fn a_lost_address_that_moved_to_another_pod_is_not_the_pods_own() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (pod, other) = (bed.pod(POD)?, bed.pod("web-a")?);
    let lost = pod.v4;
    pod.netns.ip(&format!(
        "addr add 10.10.1.77/32 dev eth0\naddr del {lost}/24 dev eth0\nroute add 10.10.1.0/24 dev eth0 src 10.10.1.77\n"
    ))?;
    bed.daemon("node-a")?.shut(POD)?;
    other.netns.ip(&format!("addr add {lost}/32 dev eth0\n"))?;
    let echo = Server::echo(other, std::net::SocketAddr::new(lost.into(), 7000))?;
    for _ in 0..10 {
        let connected = pod.connect(echo.address());
        ensure!(connected.is_err(), "a closed pod connected to {}", echo.address());
    }
    ensure!(echo.accepted() == 0, "the server accepted connections from {:?}", echo.peers());
    Ok(())
}

#[test]
fn an_interface_that_goes_down_and_up_without_its_ipv6_address_closes_the_pod_until_it_is_back() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (watch, pod) = (Watch::over(&bed, POD)?, bed.pod(POD)?);
    for round in 0..2 {
        watch.works(&Family::BOTH, SOON)?;
        pod.netns.ip(&format!("link set eth0 down\nlink set eth0 up\n{}", route(pod, Family::V4)))?;
        watch.closed(&bed, &[Family::V4]).with_context(|| format!("round {round}"))?;
        bed.daemon("node-a")?.shut(POD)?;
        restore(pod, Family::V6)?;
        enrolled_again(&bed, &watch).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

#[test]
fn an_address_that_goes_and_comes_back_at_once_opens_nothing() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (watch, pod) = (Watch::over(&bed, POD)?, bed.pod(POD)?);
    for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
        watch.works(&Family::BOTH, SOON)?;
        let (address, length) = (pod.ip(family), if family == Family::V4 { 24 } else { 64 });
        pod.netns.ip(&format!("addr del {address}/{length} dev eth0\n"))?;
        restore(pod, family)?;
        for attempts in watch.outbound.iter().chain(&watch.inbound) {
            attempts.more(10)?;
        }
        enrolled_again(&bed, &watch)?;
    }
    Ok(())
}

#[test]
fn an_ipv6_address_that_comes_later_is_captured() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    without_v6(&bed)?;
    let (v4, manifest) = (bed.pod(POD)?.v4, PodManifest::of(bed.pod(POD)?));
    bed.mesh.pod(&manifest.addresses(&[&v4.to_string()]))?;
    bed.start("node-a")?;
    bed.enrol()?;
    let (pod, web) = (bed.pod(POD)?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, 7001))?;
    let mut live = pod.connect(echo.address())?;
    exchange(&mut live, b"before")?;
    let watch = Watch::over(&bed, POD)?;
    watch.works(&[Family::V4], SOON)?;
    detect_duplicates(pod, 1)?;
    add_tentative_v6(&bed)?;
    watch.works(&Family::BOTH, wait::PATIENCE)?;
    exchange(&mut live, b"after").context("the open IPv4 connection")?;
    for server in &watch.outside {
        let other = Server::echo(web, web.at(Family::of(server.address()), 7002))?;
        proof::outbound(&bed, POD, &other, Pod::connect)?;
    }
    bed.daemon("node-a")?.enrolled(POD)?;
    watch.no_bypass()
}

#[test]
fn an_address_under_duplicate_detection_does_not_hinder_enrolment() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start("node-a")?;
    without_v6(&bed)?;
    detect_duplicates(bed.pod(POD)?, 2)?;
    add_tentative_v6(&bed)?;
    bed.mesh.label()?;
    let mut enrolled = false;
    wait::until_true("the end of the detection, and enrolment", wait::PATIENCE, || {
        let tentative = {
            let show = Launch::new("ip").args(["-6", "addr", "show", "tentative"]);
            !show.inside(&bed.pod(POD)?.netns).finish()?.stdout.trim().is_empty()
        };
        let dump = bed.daemon("node-a")?.dump()?;
        let Some(pod) = dump.pod(POD) else { return Ok(false) };
        ensure!(pod.state() != "refused", "the pod was refused: {}", pod.reason());
        enrolled |= pod.state() == "enrolled";
        Ok(enrolled && !tentative)
    })?;
    let watch = Watch::over(&bed, POD)?;
    watch.works(&Family::BOTH, SOON)
}

/// Turns a valid manifest into one with which the pod can't be enrolled.
type Damage = fn(PodManifest) -> PodManifest;

const DAMAGES: [(&str, Damage); 3] = [
    ("without addresses", |manifest| manifest.addresses(&[])),
    ("without a namespace", PodManifest::no_netns),
    ("with another's addresses", |manifest| manifest.addresses(&["10.10.1.99", "fd00:10:1::99"])),
];

#[test]
fn a_manifest_that_turns_wrong_closes_the_pod_until_it_is_right() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (watch, right) = (Watch::over(&bed, POD)?, PodManifest::of(bed.pod(POD)?));
    watch.works(&Family::BOTH, SOON)?;
    for (what, damage) in DAMAGES {
        bed.mesh.pod(&damage(right.clone()))?;
        watch.closed(&bed, &Family::BOTH).context(what)?;
        bed.daemon("node-a")?.shut(POD).context(what)?;
        bed.mesh.pod(&right)?;
        enrolled_again(&bed, &watch).context(what)?;
    }
    bed.daemon("node-a")?.enrolled("web-a")
}

#[test]
fn a_manifest_that_turned_wrong_while_no_daemon_ran_closes_the_pod_until_it_is_right() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let (watch, right) = (Watch::over(&bed, POD)?, PodManifest::of(bed.pod(POD)?));
    watch.works(&Family::BOTH, SOON)?;
    for (what, damage) in DAMAGES {
        bed.daemon_mut("node-a")?.kill9()?;
        bed.mesh.pod(&damage(right.clone()))?;
        bed.daemon_mut("node-a")?.restart()?;
        watch.closed(&bed, &Family::BOTH).context(what)?;
        bed.daemon("node-a")?.shut(POD).context(what)?;
        bed.mesh.pod(&right)?;
        enrolled_again(&bed, &watch).context(what)?;
    }
    Ok(())
}

/// The label decides: `none` releases the closed pod, and then the servers see direct connections.
fn opened_by_its_label(bed: &Testbed, damage: Damage) -> Result<()> {
    let right = PodManifest::of(bed.pod(POD)?);
    bed.mesh.pod(&damage(right.clone()))?;
    let watch = Watch::over(bed, POD)?;
    watch.closed(bed, &Family::BOTH)?;
    bed.mesh.pod(&damage(right).mode("none"))?;
    bed.daemon("node-a")?.wait_dump("the pod to be no longer captured", wait::PATIENCE, |dump| {
        dump.pod(POD).is_none_or(|pod| pod.state() != "enrolled" && !pod.captured())
    })?;
    for server in watch.outside.iter().chain(&watch.inside) {
        wait::until_true(
            "direct connections",
            wait::PATIENCE,
            || Ok(no_bypass(std::slice::from_ref(server)).is_err()),
        )?;
    }
    Ok(())
}

#[test]
fn a_closed_pod_without_addresses_is_opened_by_its_label() -> Result<()> {
    let [(_, damage), ..] = DAMAGES;
    opened_by_its_label(&Testbed::node_a_enrolled()?, damage)
}

#[test]
fn a_closed_pod_without_a_namespace_is_opened_by_its_label() -> Result<()> {
    let [_, (_, damage), _] = DAMAGES;
    opened_by_its_label(&Testbed::node_a_enrolled()?, damage)
}

fn sleeper(pod: &Pod) -> Result<Process> {
    Launch::new("sleep").args(["600"]).inside(&pod.netns).start()
}

#[test]
fn a_namespace_whose_path_vanishes_while_it_lives_stays_closed() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let (mut named, _other) = (sleeper(bed.pod(POD)?)?, sleeper(bed.pod(POD)?)?);
    let right = PodManifest::of(bed.pod(POD)?);
    let path = PathBuf::from(format!("/proc/{}/ns/net", named.id()));
    bed.mesh.pod(&right.clone().netns(&path))?;
    bed.start("node-a")?;
    bed.enrol()?;
    let watch = Watch::over(&bed, POD)?;
    watch.works(&Family::BOTH, SOON)?;
    named.kill()?;
    // After any change the daemon checks its pods again.
    bed.mesh.pod(&PodManifest::of(bed.pod("web-a")?).annotation("example.org/looked-at", "again"))?;
    watch.closed(&bed, &Family::BOTH)?;
    bed.daemon("node-a")?.shut(POD)?;
    bed.mesh.pod(&right)?;
    enrolled_again(&bed, &watch)
}

/// Flushes a routing table of the pod in both families, three times, under traffic.
fn flushed(table: &str) -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (watch, pod) = (Watch::over(&bed, POD)?, bed.pod(POD)?);
    for round in 0..3 {
        watch.works(&Family::BOTH, SOON)?;
        for family in ["-4", "-6"] {
            let flush = ["-n", pod.netns.name(), family, "route", "flush", "table", table];
            let done = Launch::new("ip").args(flush).finish()?;
            ensure!(done.success, "{}", done.stderr);
        }
        for attempts in watch.outbound.iter().chain(&watch.inbound) {
            attempts.more(20)?;
        }
        watch.no_bypass().with_context(|| format!("round {round}"))?;
    }
    watch.works(&Family::BOTH, SOON)
}

#[test]
fn flushed_capture_routes_open_nothing_and_come_back() -> Result<()> {
    flushed("15001")
}

#[test]
fn flushed_delivery_routes_open_nothing_and_come_back() -> Result<()> {
    flushed("15006")
}

/// Adds a second interface on the node's bridge, with its own addresses.
fn second_interface(bed: &Testbed) -> Result<()> {
    let (pod, node) = (bed.pod(POD)?, &bed.topology.node("node-a")?.netns);
    node.ip(&format!(
        "link add late type veth peer name eth1 netns {}\nlink set late master br0 up\n",
        pod.netns.name()
    ))?;
    pod.netns.ip(&format!("addr add 10.10.1.77/24 dev eth1\n{SECOND_UP}"))
}

/// Sets the second interface up, and restores what was lost when it went down.
const SECOND_UP: &str = "link set eth1 up\n\
     addr replace fd00:10:1::77/64 dev eth1 nodad\n\
     route replace default via 10.10.1.1 dev eth1 metric 200\n\
     route replace default via fd00:10:1::1 dev eth1 metric 2000\n";

#[test]
fn a_flapping_interface_is_no_way_out_for_sockets_bound_to_it() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let (pod, web) = (bed.pod(POD)?, bed.pod("web-b")?);
    let echoes = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
    let echoes = echoes.into_iter().collect::<Result<Vec<_>>>()?;
    let loops = echoes.iter().map(|echo| Attempts::start(pod, echo.address(), Some("eth1")));
    let loops = loops.collect::<Result<Vec<_>>>()?;
    second_interface(&bed)?;
    for round in 0..5 {
        let before: Vec<u64> = loops.iter().map(Attempts::through).collect();
        wait::until_true("capture through the second interface", SOON, || {
            no_bypass(&echoes)?;
            Ok(loops.iter().zip(&before).all(|(attempts, before)| attempts.through() > before + 5))
        })
        .with_context(|| format!("before flap {round}"))?;
        pod.netns.ip(&format!("link set eth1 down\n{SECOND_UP}"))?;
        for attempts in &loops {
            attempts.more(5)?;
        }
        no_bypass(&echoes).with_context(|| format!("after flap {round}"))?;
    }
    Ok(())
}
