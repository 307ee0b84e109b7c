//! The topology itself, without a daemon: plain traffic, real programs, and nothing left behind.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use rustls::AlertDescription;
use ztunnel_tests::apps::client::{exchange_once, read_once};
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::nginx::{Nginx, curl};
use ztunnel_tests::apps::programs::{iperf3, iperf3_server, redis, redis_server};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::ca::Authority;
use ztunnel_tests::capture::Capture;
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::hbone::fake::FakeServer;
use ztunnel_tests::hbone::raw::RawPeer;
use ztunnel_tests::hbone::{self, Caller};
use ztunnel_tests::names;
use ztunnel_tests::netns::{FOLDER, Netns};
use ztunnel_tests::process::{Capability, Launch};
use ztunnel_tests::topology::{Family, ONE_NODE, TWO_NODES, Topology};
use ztunnel_tests::wait;

#[test]
fn every_pod_reaches_every_other_with_its_own_address() -> Result<()> {
    let topology = Topology::new(TWO_NODES)?;
    for family in Family::BOTH {
        for server in topology.pods() {
            let whoami = Server::whoami(server, server.at(family, 7000))?;
            for client in topology.pods() {
                let said = read_once(client, whoami.address())?;
                ensure!(said.starts_with(&client.at(family, 0).to_string().replace(":0", "")), "{said}");
            }
        }
    }
    Ok(())
}

#[test]
fn three_nodes_and_a_pod_that_comes_later() -> Result<()> {
    let mut topology = Topology::new(&[("node-a", &["p"]), ("node-b", &["q"]), ("node-c", &["r"])])?;
    topology.grow("node-c", "s")?;
    for family in Family::BOTH {
        let echo = Server::echo(topology.pod("s")?, topology.pod("s")?.at(family, 7000))?;
        for client in ["p", "q", "r"] {
            exchange_once(topology.pod(client)?, echo.address())?;
        }
    }
    Ok(())
}

#[test]
fn nginx_sees_curl() -> Result<()> {
    let topology = Topology::new(TWO_NODES)?;
    let (client, web) = (topology.pod("client-a")?, topology.pod("web-b")?);
    let nginx = Nginx::start(&topology, web, 80, false)?;
    for family in Family::BOTH {
        let page = curl(client, web.at(family, 80), &[])?;
        ensure!(page.status == 200 && page.body == client.ip(family).to_string(), "{page:?}");
    }
    ensure!(nginx.clients()? == Family::BOTH.map(|family| client.ip(family)), "{:?}", nginx.clients()?);
    Ok(())
}

#[test]
fn iperf3_and_redis_run() -> Result<()> {
    let topology = Topology::new(ONE_NODE)?;
    let (client, web) = (topology.pod("client-a")?, topology.pod("web-a")?);
    let _iperf3 = iperf3_server(web, 5201)?;
    ensure!(iperf3(client, web.at(Family::V4, 5201), 1, &[])? > 1e6);
    let _redis = redis_server(&topology, web, 6379)?;
    ensure!(redis(client, web.at(Family::V6, 6379), &["set", "key", "value"])? == "OK");
    ensure!(redis(client, web.at(Family::V4, 6379), &["get", "key"])? == "value");
    Ok(())
}

#[test]
fn a_load_runs_without_failures() -> Result<()> {
    let topology = Topology::new(ONE_NODE)?;
    let (client, web) = (topology.pod("client-a")?, topology.pod("web-a")?);
    let echo = Server::echo(web, web.at(Family::V4, 7000))?;
    for ending in [Ending::Closes, Ending::WaitsForEnd] {
        let load = Load::start(client, echo.address(), 4, ending)?;
        wait::until_true("500 exchanges", wait::PATIENCE, || Ok(load.report().done > 500))?;
        let report = load.stop()?;
        ensure!(report.failed == 0, "{report:?}");
    }
    ensure!(echo.resets() == 0, "{:?}", echo.failures());
    Ok(())
}

#[test]
fn a_capture_has_every_packet_between_two_nodes() -> Result<()> {
    let topology = Topology::new(TWO_NODES)?;
    let (client, web, near) = (topology.pod("client-a")?, topology.pod("web-b")?, topology.pod("web-a")?);
    let (far_echo, near_echo) =
        (Server::echo(web, web.at(Family::V6, 7000))?, Server::echo(near, near.at(Family::V4, 7001))?);
    let capture = Capture::start(&topology, "node-a", "node-b", "all")?;
    for echo in [&far_echo, &near_echo] {
        exchange_once(client, echo.address())?;
    }
    let recording = capture.finish()?;
    // Once in each direction.
    ensure!(recording.count(b"hello") == 2, "{} times", recording.count(b"hello"));
    ensure!(recording.packets("tcp port 7000")? > 6 && recording.packets("tcp port 7001")? == 0);
    Ok(())
}

#[test]
fn a_peer_and_a_fake_server_understand_each_other() -> Result<()> {
    let topology = Topology::new(ONE_NODE)?;
    let (client, web) = (topology.pod("client-a")?, topology.pod("web-a")?);
    let authority = Authority::create(&topology.folder.join("ca"))?;
    let fake = FakeServer::start(web, &authority.honest("web-a")?)?;
    let caller = Caller::with(&authority.honest("client-a")?)?;
    let ending = caller.clone().alpn(&["http/1.1"]).ending(client, web.at(Family::V4, HBONE_PORT))?;
    ensure!(ending == hbone::Ending::Alert(AlertDescription::NoApplicationProtocol), "{ending:?}");
    let peer = RawPeer::connect(&caller, client, web.at(Family::V6, HBONE_PORT), &[])?;
    wait::until_true("both to be recorded", wait::PATIENCE, || Ok(fake.endings().len() == 2))?;
    let said =
        |ending: &hbone::Ending| matches!(ending, hbone::Ending::Data(bytes) if bytes.starts_with(b"PRI * HTTP/2.0"));
    ensure!(fake.endings().iter().filter(|ending| said(ending)).count() == 1, "{:?}", fake.endings());
    drop(peer);
    Ok(())
}

#[test]
fn a_footprint_shows_what_changed() -> Result<()> {
    let topology = Topology::new(ONE_NODE)?;
    let pod = topology.pod("client-a")?;
    let before = Footprint::of(&pod.netns)?;
    ensure!(before.difference(&Footprint::of(&pod.netns)?).is_empty());
    pod.netns.ip("rule add fwmark 7 lookup 77\nroute add local default dev lo table 77\n")?;
    pod.netns.sysctl("ipv4/tcp_fwmark_accept", "1")?;
    let _listener = pod.listen(pod.at(Family::V4, 7000))?;
    let difference = before.difference(&Footprint::of(&pod.netns)?);
    ensure!(difference.iter().filter(|line| line.starts_with('+')).count() == 4, "{difference:#?}");
    Ok(())
}

#[test]
fn a_panic_leaves_nothing() -> Result<()> {
    let mut left = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let topology = Topology::new(ONE_NODE).expect("a topology");
        let pod = topology.pod("web-a").expect("a pod");
        let process = Launch::new("sleep").args(["1000"]).inside(&pod.netns).start().expect("a process");
        left = Some((pod.netns.path().to_owned(), topology.folder.clone(), process.id()));
        panic!("on purpose");
    }));
    ensure!(panicked.is_err());
    let (netns, folder, process) = left.context("the panic came too early")?;
    ensure!(!netns.exists() && !folder.exists() && !Path::new(&format!("/proc/{process}")).exists());
    Ok(())
}

#[test]
fn the_sweep_removes_what_the_dead_left_and_nothing_else() -> Result<()> {
    let mut gone = Launch::new("true").start()?;
    gone.ended_within(wait::PATIENCE)?;
    let mut orphan = Netns::create(&format!("zt-{}x1-web-a", gone.id()))?;
    orphan.keep();
    let folder = Path::new(names::FOLDER_ROOT).join(format!("zt-{}x1", gone.id()));
    fs::create_dir(&folder)?;
    let topology = Topology::new(ONE_NODE)?;
    names::sweep();
    ensure!(!orphan.path().exists() && !folder.exists(), "the sweep left something");
    ensure!(topology.folder.exists() && topology.pods().iter().all(|pod| pod.netns.path().exists()));
    ensure!(Path::new(FOLDER).exists());
    Ok(())
}

#[test]
fn a_namespace_lives_until_nothing_holds_it() -> Result<()> {
    let mut topology = Topology::new(ONE_NODE)?;
    let listener = topology.pod("web-a")?.listen(topology.pod("web-a")?.at(Family::V4, 7000))?;
    let held = topology.pod("web-a")?.netns.open()?;
    topology.delete_netns("web-a")?;
    ensure!(topology.plugged("web-a")?, "it must live on while a file holds it");
    drop((listener, held));
    wait::until_true("the end of the namespace", wait::PATIENCE, || Ok(!topology.plugged("web-a")?))
}

#[test]
fn capabilities_are_taken_away() -> Result<()> {
    let show = |launch: Launch| -> Result<String> {
        let done = launch.finish()?;
        ensure!(done.success, "{}", done.stderr);
        let line = done.stdout.lines().find(|line| line.starts_with("CapEff:")).context("no CapEff")?;
        Ok(line.trim_start_matches("CapEff:").trim().to_owned())
    };
    let cat = || Launch::new("cat").args(["/proc/self/status"]);
    ensure!(show(cat().with_only(&[Capability::NetAdmin]))? == "0000000000001000");
    ensure!(!show(cat().without(&[Capability::Bpf]))?.starts_with("000001f"));
    Ok(())
}

#[test]
fn a_missing_program_fails_and_is_named() -> Result<()> {
    let error = Launch::new("no-such-program").start().err().context("it started")?;
    ensure!(error.to_string().contains("no-such-program"), "{error}");
    Ok(())
}
