//! A connect of a captured pod ends as it does without the mesh: each row is tried in the same run before the pod is
//! enrolled and afterwards, over IPv4 and IPv6, to a destination outside the mesh and through a tunnel.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::json;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::attempt::{AT_ONCE, Attempt, End, UNREACHABLE, Way, allow_fast_open};
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::mesh::{GROUP_LABEL, PodManifest};
use ztunnel_tests::modes::{
    Connect, Path, at_once, compared, compared_within, enrolled, ghost, in_turn, unlabelled, unlimited_icmp,
};
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};

const PORT: u16 = 7000;
/// A port at which nobody listens.
const CLOSED: u16 = 7001;

/// The addresses of `web-b` in both families.
fn web(bed: &Testbed, port: u16) -> Result<[SocketAddr; 2]> {
    let web = bed.pod("web-b")?;
    Ok(Family::BOTH.map(|family| web.at(family, port)))
}

fn echoes(bed: &Testbed) -> Result<Vec<Server>> {
    let web = bed.pod("web-b")?;
    Family::BOTH.into_iter().map(|family| Server::echo(web, web.at(family, PORT))).collect()
}

fn at(addresses: &[&str]) -> Result<Vec<SocketAddr>> {
    addresses.iter().map(|ip| Ok(SocketAddr::new(ip.parse()?, PORT))).collect()
}

fn all_fail_with(attempts: &[Attempt], codes: &[i32]) -> Result<()> {
    for attempt in attempts {
        ensure!(matches!(&attempt.end, End::Failed(code) if codes.contains(code)), "not {codes:?}: {attempt:?}");
    }
    Ok(())
}

fn all_at_once(attempts: &[Attempt]) -> Result<()> {
    let late: Vec<_> = attempts.iter().filter(|attempt| attempt.took >= AT_ONCE).collect();
    ensure!(late.is_empty(), "not at once: {late:?}");
    Ok(())
}

fn refused_at_once(path: Path) -> Result<()> {
    let bed = unlabelled(Connect::Held, path, &[])?;
    let targets = web(&bed, CLOSED)?;
    let attempts = compared(&bed, |pod| in_turn(pod, &Way::ALL, &targets))?;
    all_fail_with(&attempts, &[libc::ECONNREFUSED])?;
    all_at_once(&attempts)
}

#[test]
fn a_closed_port_outside_the_mesh_refuses_at_once() -> Result<()> {
    refused_at_once(Path::Outside)
}

#[test]
fn a_closed_port_of_a_pod_of_the_mesh_refuses_at_once() -> Result<()> {
    refused_at_once(Path::Tunnel)
}

#[test]
fn a_closed_port_refuses_fast_open_with_data_in_the_first_packet() -> Result<()> {
    for path in Path::BOTH {
        let bed = unlabelled(Connect::Held, path, &[])?;
        for pod in bed.topology.pods() {
            allow_fast_open(pod)?;
        }
        let targets = web(&bed, CLOSED)?;
        let ways = [Way::FastOpen, Way::FastOpenSend, Way::Blocking];
        let attempts = compared(&bed, |pod| in_turn(pod, &ways, &targets)).with_context(|| format!("{path:?}"))?;
        all_fail_with(&attempts, &[libc::ECONNREFUSED])?;
        all_at_once(&attempts)?;
    }
    Ok(())
}

fn every_way_connects(connect: Connect, path: Path) -> Result<()> {
    let bed = unlabelled(connect, path, &[])?;
    let servers = echoes(&bed)?;
    let targets = web(&bed, PORT)?;
    let attempts = compared(&bed, |pod| in_turn(pod, &Way::ALL, &targets))?;
    ensure!(attempts.iter().all(|attempt| attempt.end == End::Exchanged), "{attempts:?}");
    // Each attempt was one connection, before the enrolment and after it: none was made twice.
    for (server, family) in servers.iter().zip(Family::BOTH) {
        ensure!(server.accepted() == 2 * Way::ALL.len(), "{family:?}: the server saw {:?}", server.peers());
    }
    // Again, where the first packet may carry data: with and without a cookie from the time before.
    for pod in bed.topology.pods() {
        allow_fast_open(pod)?;
    }
    for _ in 0..2 {
        for attempt in in_turn(bed.pod("client-a")?, &[Way::FastOpen, Way::FastOpenSend], &targets)? {
            ensure!(attempt.end == End::Exchanged, "{attempt:?}");
        }
    }
    Ok(())
}

#[test]
fn every_way_connects_to_a_destination_outside_the_mesh() -> Result<()> {
    Connect::BOTH.into_iter().try_for_each(|connect| {
        every_way_connects(connect, Path::Outside).with_context(|| format!("--connect {connect}"))
    })
}

#[test]
fn every_way_connects_to_a_pod_of_the_mesh() -> Result<()> {
    Connect::BOTH.into_iter().try_for_each(|connect| {
        every_way_connects(connect, Path::Tunnel).with_context(|| format!("--connect {connect}"))
    })
}

/// Addresses for which the other side's router sends a message back, and one for which it sends a reset.
#[test]
fn routers_say_unreachable() -> Result<()> {
    let bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    unlimited_icmp(&bed, "node-a")?;
    let node = bed.topology.node("node-a")?;
    let wire = bed.topology.node("node-b")?.wire();
    node.netns.ip(&format!("route add 10.20.0.0/16 dev {wire}\nroute add fd00:20::/32 dev {wire}\n"))?;
    node.netns.nft(
        "table inet router { chain on { type filter hook forward priority 0;\n\
         ip daddr 10.20.1.7 reject with icmp host-unreachable\n\
         ip daddr 10.20.2.7 reject with icmp net-unreachable\n\
         ip daddr 10.20.3.7 reject with icmp admin-prohibited\n\
         ip daddr 10.20.4.7 reject with icmp port-unreachable\n\
         ip daddr 10.20.5.7 meta l4proto tcp reject with tcp reset\n\
         ip6 daddr fd00:20:1::7 reject with icmpv6 addr-unreachable\n\
         ip6 daddr fd00:20:2::7 reject with icmpv6 no-route\n\
         ip6 daddr fd00:20:3::7 reject with icmpv6 admin-prohibited\n\
         ip6 daddr fd00:20:4::7 reject with icmpv6 port-unreachable\n\
         ip6 daddr fd00:20:5::7 meta l4proto tcp reject with tcp reset\n\
         }; }",
    )?;
    let numbers = 1..=5;
    let v4: Vec<String> = numbers.clone().map(|number| format!("10.20.{number}.7")).collect();
    let v6: Vec<String> = numbers.map(|number| format!("fd00:20:{number}::7")).collect();
    let targets = at(&v4.iter().chain(&v6).map(String::as_str).collect::<Vec<_>>())?;
    let ways = [Way::Blocking, Way::NonBlocking, Way::FromDevice, Way::Multipath];
    // A message that comes while the socket is locked is lost, without the mesh as well: then the next SYN decides, after 1 s.
    let slack = 2 * AT_ONCE;
    compared_within(&bed, slack, |pod| in_turn(pod, &ways, &targets)).map(drop)
}

/// The same by routes of the pod itself, the way of a pod without an address of that family.
#[test]
fn the_pods_own_routes_say_unreachable() -> Result<()> {
    let bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    bed.pod("client-a")?.netns.ip(
        "route add unreachable 10.20.1.0/24\nroute add prohibit 10.20.2.0/24\nroute add blackhole 10.20.3.0/24\n\
         route add unreachable fd00:20:1::/64\nroute add prohibit fd00:20:2::/64\nroute add blackhole fd00:20:3::/64\n",
    )?;
    let targets = at(&["10.20.1.7", "10.20.2.7", "10.20.3.7", "fd00:20:1::7", "fd00:20:2::7", "fd00:20:3::7"])?;
    let attempts = compared(&bed, |pod| in_turn(pod, &[Way::Blocking], &targets))?;
    all_at_once(&attempts)
}

/// The kernel looks for a neighbour for 3 s. It looks again when the message about it comes while the socket is locked.
const TWO_LOOKS: Duration = Duration::from_secs(4);

/// Addresses that no device has: on the pod's own link, and behind the other node.
#[test]
fn a_missing_neighbour_is_unreachable() -> Result<()> {
    let bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    for node in ["node-a", "node-b"] {
        unlimited_icmp(&bed, node)?;
    }
    let targets = at(&["10.10.1.200", "10.10.2.200", "fd00:10:1::200", "fd00:10:2::200"])?;
    let attempts = compared_within(&bed, TWO_LOOKS, |pod| at_once(pod, &[Way::Blocking, Way::NonBlocking], &targets))?;
    all_fail_with(&attempts, &UNREACHABLE)
}

/// A pod of the mesh that has no device: the tunnel cannot be made.
#[test]
fn a_pod_of_the_mesh_that_is_gone_is_unreachable() -> Result<()> {
    let bed = unlabelled(Connect::Held, Path::Tunnel, &[])?;
    for node in ["node-a", "node-b"] {
        unlimited_icmp(&bed, node)?;
    }
    let targets = ghost(&bed)?;
    let attempts = compared_within(&bed, TWO_LOOKS, |pod| at_once(pod, &[Way::Blocking, Way::NonBlocking], &targets))?;
    all_fail_with(&attempts, &UNREACHABLE)
}

/// Endpoints of a service are tried before the connect returns: one that refuses is not seen, two that refuse are.
#[test]
fn endpoints_are_tried_before_the_connect_returns() -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
    for connect in Connect::BOTH {
        let bed = unlabelled(connect, Path::Tunnel, &[])?;
        for pod in ["client-b", "web-b"] {
            bed.mesh.pod(&PodManifest::of(bed.pod(pod)?).label(GROUP_LABEL, "web"))?;
        }
        bed.change(|mesh| mesh.service("web", &ADDRESSES, 80, &json!(PORT)))?;
        bed.enrol()?;
        let servers = echoes(&bed)?;
        let client = bed.pod("client-a")?;
        for address in ADDRESSES {
            let target = SocketAddr::new(address.parse()?, 80);
            for round in 0..20 {
                let attempt = Way::Blocking.attempt(client, target)?;
                ensure!(attempt.end == End::Exchanged, "--connect {connect}, round {round}: {attempt:?}");
            }
        }
        drop(servers);
        if connect == Connect::Held {
            for address in ADDRESSES {
                let attempt = Way::Blocking.attempt(client, SocketAddr::new(address.parse()?, 80))?;
                all_fail_with(std::slice::from_ref(&attempt), &[libc::ECONNREFUSED])?;
                all_at_once(&[attempt])?;
            }
        }
    }
    Ok(())
}

/// A service without endpoints refuses, as kube-proxy does.
#[test]
fn a_service_without_endpoints_refuses() -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
    let bed = enrolled(Connect::Held, Path::Outside, &[])?;
    bed.change(|mesh| mesh.service("nobody", &ADDRESSES, 80, &json!(PORT)))?;
    for address in ADDRESSES {
        let target = SocketAddr::new(address.parse()?, 80);
        let attempt = Way::Blocking.attempt(bed.pod("client-a")?, target)?;
        all_fail_with(std::slice::from_ref(&attempt), &[libc::ECONNREFUSED])?;
        all_at_once(&[attempt])?;
    }
    Ok(())
}

/// A connect to a closed port ends as the setting says: it is refused, or it succeeds and the connection is reset.
fn ends_as(bed: &Testbed, pod: &str, setting: Connect) -> Result<()> {
    for target in web(bed, CLOSED)? {
        let attempt = Way::Blocking.attempt(bed.pod(pod)?, target)?;
        let right = match setting {
            Connect::Held => attempt.end == End::Failed(libc::ECONNREFUSED),
            Connect::Early => matches!(attempt.end, End::Broken(_)),
        };
        ensure!(right, "{pod} has {setting}: {attempt:?}");
    }
    Ok(())
}

/// An annotation of the pod overrides the setting of the node, in both directions, and may change.
#[test]
fn a_pod_may_have_a_setting_of_its_own() -> Result<()> {
    const ANNOTATION: &str = "traffic.ambient.mesh/connect";
    for (node, own) in [(Connect::Early, Connect::Held), (Connect::Held, Connect::Early)] {
        let bed = unlabelled(node, Path::Outside, &[])?;
        let servers = echoes(&bed)?;
        let manifest = PodManifest::of(bed.pod("client-a")?);
        let annotated = manifest.clone().annotation(ANNOTATION, &own.to_string());
        bed.change(|mesh| mesh.pod(&annotated))?;
        bed.enrol()?;
        let working = || {
            for server in &servers {
                proof::outbound(&bed, "client-a", server, Pod::connect)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        for (manifest, setting) in [(None, own), (Some(&manifest), node), (Some(&annotated), own)] {
            if let Some(manifest) = manifest {
                bed.change(|mesh| mesh.pod(manifest))?;
            }
            ends_as(&bed, "client-a", setting)?;
            ends_as(&bed, "web-a", node)?;
            working().with_context(|| format!("--connect {node}, the pod has {setting}"))?;
        }
        // An invalid value is reported, and the setting of the node is in force.
        bed.change(|mesh| mesh.pod(&manifest.clone().annotation(ANNOTATION, "sometimes")))?;
        ends_as(&bed, "client-a", node)?;
        let lines = bed.daemon("node-a")?.lines_with(&[ANNOTATION, "sometimes"])?;
        ensure!(!lines.is_empty(), "no line about the invalid value");
    }
    Ok(())
}

/// Daemons with different settings, one after the other, on the same pods.
#[test]
fn a_restart_with_the_other_setting_changes_the_pods() -> Result<()> {
    let mut bed = enrolled(Connect::Held, Path::Outside, &[])?;
    let servers = echoes(&bed)?;
    for setting in [Connect::Early, Connect::Held, Connect::Early] {
        let arguments = setting.arguments(&[]);
        let daemon = bed.daemon_mut("node-a")?;
        daemon.kill9()?;
        daemon.set_arguments(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        daemon.restart()?;
        for pod in ["client-a", "web-a"] {
            bed.daemon("node-a")?.enrolled(pod)?;
            ends_as(&bed, pod, setting)?;
            for server in &servers {
                proof::outbound(&bed, pod, server, Pod::connect)?;
            }
        }
    }
    Ok(())
}

/// A released pod is as before, and so is the node after a cleanup: nothing of the hold is left.
#[test]
fn nothing_of_the_hold_is_left_behind() -> Result<()> {
    let mut bed = unlabelled(Connect::Held, Path::Outside, &[])?;
    let pins = bed.daemon("node-a")?.pins().to_owned();
    let before = (files_below(&pins)?, Footprint::of(&bed.pod("client-a")?.netns)?);
    let direct = |bed: &Testbed| -> Result<()> {
        for server in &echoes(bed)? {
            proof::direct(server, || bed.pod("client-a")?.connect(server.address()))?;
        }
        ends_as(bed, "client-a", Connect::Held).context("without the mesh a closed port refuses as well")
    };
    for round in 0..3 {
        bed.enrol()?;
        ends_as(&bed, "client-a", Connect::Held)?;
        bed.release()?;
        direct(&bed).with_context(|| format!("round {round}"))?;
        let now = files_below(&pins)?;
        ensure!(now == before.0, "pins of a released pod: before {:?}, now {now:?}", before.0);
        let difference = before.1.difference(&Footprint::of(&bed.pod("client-a")?.netns)?);
        ensure!(difference.is_empty(), "the pod is not as before: {difference:#?}");
    }
    bed.enrol()?;
    bed.daemon_mut("node-a")?.terminate()?;
    bed.daemon("node-a")?.cleanup()?;
    direct(&bed).context("after the cleanup")?;
    let left = files_below(&pins)?;
    ensure!(left.is_empty(), "pins are left: {left:?}");
    Ok(())
}

/// The files below a folder, by their paths in it.
fn files_below(folder: &std::path::Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder)?.display().to_string());
            }
        }
    }
    Ok(files)
}
