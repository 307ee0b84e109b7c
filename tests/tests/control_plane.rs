//! Two nodes that get everything from a control plane: no daemon has the manifests of the mesh or the key of its CA.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ztunnel_tests::admin;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::daemon;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::{Mesh, PodManifest};
use ztunnel_tests::policy::{admitted, authentication, authorization, denied, denied_plaintext, refused_at};
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// The longest time that a connection waits for the control plane on demand.
const ON_DEMAND_DEADLINE: Duration = Duration::from_secs(5);

/// A pod outside the mesh.
const GUEST: &str = "guest";

#[test]
fn pods_of_two_nodes_know_each_other_by_a_control_plane_alone() -> Result<()> {
    let bed = Testbed::both_enrolled_by_control_plane()?;
    for (client, web) in [("client-a", "web-b"), ("client-b", "web-a"), ("client-a", "web-a")] {
        for family in Family::BOTH {
            let echo = Server::echo(bed.pod(web)?, bed.pod(web)?.at(family, PORT))?;
            proof::tunnelled(&bed, (client, web), &echo, Pod::connect)
                .with_context(|| format!("{client} to {web} over {family:?}"))?;
        }
    }
    for node in ["node-a", "node-b"] {
        bed.plane()?.served(node)?;
        let state = bed.daemon(node)?.state().to_owned();
        ensure!(!state.join("ca").exists(), "{node} has an authority of its own");
    }
    Ok(())
}

/// Denies the connections of `client-a` to `web-b` by a policy. Its open connection is reset, and a new one is denied with
/// the name of the policy.
fn denial_cuts(bed: &Testbed, target: SocketAddr) -> Result<()> {
    let mut open = bed.pod("client-a")?.connect(target)?;
    exchange(&mut open, b"hello")?;
    let spec = "{selector: {matchLabels: {app: web-b}}, action: DENY, rules: [{from: [{source: {principals: \
                [cluster.local/ns/demo/sa/client-a]}}]}]}";
    bed.change_on("node-b", |mesh| mesh.policy("deny", &authorization("deny", spec)))?;
    let end = open.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    let reason = denied(bed, ("client-a", "web-b"), target)?;
    ensure!(reason.contains("demo/deny"), "{reason}");
    Ok(())
}

#[test]
fn a_policy_reaches_the_nodes_and_cuts_what_it_denies() -> Result<()> {
    let mut bed = Testbed::both_enrolled_by_control_plane()?;
    bed.topology.grow("node-a", GUEST)?;
    let web = bed.pod("web-b")?;
    let target = web.at(Family::V4, PORT);
    let _echo = Server::echo(web, target)?;
    admitted(bed.pod("client-a")?, target)?;
    admitted(bed.pod(GUEST)?, target)?;
    denial_cuts(&bed, target)?;
    let asked =
        ["explain", "--admin", admin::ADDRESS, "--from", "demo/client-a", "--to", "demo/web-b", "--port", "7000"];
    let done = daemon::command(&settings::daemon_binary()?, &bed.topology.node("node-b")?.netns, &asked)?;
    ensure!(done.status.code() == Some(3), "{}{}", done.stdout, done.stderr);
    let applies =
        "DENY demo/deny (policy-deny.yaml:1) applies to pods of namespace demo with app=web-b: DENIES (rules[0])";
    ensure!(done.stdout.contains(applies), "{}", done.stdout);
    admitted(bed.pod("client-b")?, target)?;
    bed.change_on("node-b", |mesh| mesh.policy("strict", &authentication("strict", "{mtls: {mode: STRICT}}")))?;
    denied_plaintext(&bed, bed.pod(GUEST)?, "web-b", target)?;
    admitted(bed.pod("client-b")?, target)?;
    Ok(())
}

#[test]
fn nodes_go_on_without_their_control_plane_and_follow_it_when_it_is_back() -> Result<()> {
    let mut bed = Testbed::both_enrolled_by_control_plane()?;
    let target = bed.pod("web-b")?.at(Family::V4, PORT);
    let _echo = Server::echo(bed.pod("web-b")?, target)?;
    let mut open = bed.pod("client-a")?.connect(target)?;
    exchange(&mut open, b"hello")?;
    bed.plane_mut()?.kill9()?;
    exchange(&mut open, b"still here")?;
    admitted(bed.pod("client-a")?, target)?;
    drop(open);
    // A daemon that starts without the control plane still has the last known mesh.
    let daemon = bed.daemon_mut("node-b")?;
    daemon.terminate()?;
    daemon.restart()?;
    bed.mesh
        .policy("deny", &authorization("deny", "{selector: {matchLabels: {app: web-b}}, action: DENY, rules: [{}]}"))?;
    bed.plane_mut()?.restart()?;
    wait::until_true("the policy to be there", wait::PATIENCE, || {
        Ok(refused_at(bed.pod("client-a")?.connect(target)?).is_ok())
    })?;
    bed.plane()?.served("node-b")
}

#[test]
fn a_pod_that_comes_is_enrolled_and_known_everywhere() -> Result<()> {
    let mut bed = Testbed::both_enrolled_by_control_plane()?;
    bed.topology.grow("node-b", "late-b")?;
    let late = bed.pod("late-b")?;
    let target = late.at(Family::V6, PORT);
    let echo = Server::echo(late, target)?;
    // The manifest for the node, and the manifest for the mesh.
    let own = bed.topology.folder.join("pods-node-b");
    Mesh::new(&own)?.pod(&PodManifest::of(late))?;
    bed.change(|mesh| mesh.pod(&PodManifest::of(late)))?;
    bed.daemon("node-b")?.enrolled("late-b")?;
    proof::tunnelled(&bed, ("client-a", "late-b"), &echo, Pod::connect)?;
    Ok(())
}

/// Two nodes that ask the control plane for addresses when their pods connect to them.
fn on_demand() -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_control_plane("node-a")?;
    for node in ["node-a", "node-b"] {
        bed.start_with(node, |options| {
            options.arguments.extend(["--control-plane-mode", "on-demand"].map(ToOwned::to_owned));
        })?;
    }
    bed.enrol()?;
    Ok(bed)
}

/// The number of workloads that a node has.
fn workloads(bed: &Testbed, node: &str) -> Result<u64> {
    let dump = bed.daemon(node)?.dump()?;
    dump.value().pointer("/snapshot/workloads").and_then(Value::as_u64).context("no number of workloads")
}

#[test]
fn on_demand_a_connection_waits_for_the_control_plane_and_is_carried() -> Result<()> {
    let mut bed = on_demand()?;
    bed.topology.grow("node-b", GUEST)?;
    ensure!(workloads(&bed, "node-a")? == 2, "node-a has more than its own pods: {}", workloads(&bed, "node-a")?);
    let web = bed.pod("web-b")?.at(Family::V4, PORT);
    let echo = Server::echo(bed.pod("web-b")?, web)?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    ensure!(workloads(&bed, "node-a")? == 3, "node-a has {} workloads, not 3", workloads(&bed, "node-a")?);

    // An address of no workload: the control plane says so, and the connection goes on in plaintext.
    let guest = bed.pod(GUEST)?.at(Family::V4, PORT);
    let stranger = Server::echo(bed.pod(GUEST)?, guest)?;
    let begin = Instant::now();
    let line = proof::outbound(&bed, "client-a", &stranger, Pod::connect)?;
    ensure!(!line.is_tunnelled(), "{}", line.line);
    ensure!(begin.elapsed() < ON_DEMAND_DEADLINE, "the answer took {:?}", begin.elapsed());

    // Policies are all there, and a change of one cuts what it denies.
    denial_cuts(&bed, web)?;
    admitted(bed.pod("client-b")?, web)?;
    Ok(())
}

#[test]
fn on_demand_an_address_that_nobody_can_be_asked_about_is_refused_within_the_deadline() -> Result<()> {
    let mut bed = on_demand()?;
    let [known, unknown] = [bed.pod("web-b")?.at(Family::V4, PORT), bed.pod("client-b")?.at(Family::V4, PORT)];
    let _servers = [Server::echo(bed.pod("web-b")?, known)?, Server::echo(bed.pod("client-b")?, unknown)?];
    admitted(bed.pod("client-a")?, known)?;
    bed.plane_mut()?.kill9()?;
    // What is known goes on; what is not may be a pod of the mesh, so nothing is sent to it in plaintext.
    admitted(bed.pod("client-a")?, known)?;
    let begin = Instant::now();
    let mut stream = bed.pod("client-a")?.connect(unknown)?;
    let own = stream.local_addr()?;
    stream.set_read_timeout(Some(ON_DEMAND_DEADLINE * 2))?;
    let end = stream.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    ensure!(begin.elapsed() < ON_DEMAND_DEADLINE + ON_DEMAND_DEADLINE / 2, "it took {:?}", begin.elapsed());
    let line = bed.daemon("node-a")?.wait_connection(Direction::Outbound, own, unknown)?;
    ensure!(line.field("reason") == "unknown_destination", "{}", line.line);
    // It is back.
    bed.plane_mut()?.restart()?;
    wait::until_true("the address to be known", wait::PATIENCE, || {
        let mut stream = bed.pod("client-a")?.connect(unknown)?;
        Ok(exchange(&mut stream, b"hello").is_ok())
    })
}
