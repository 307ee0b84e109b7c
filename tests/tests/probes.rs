//! Kubelet's probes: plaintext from the pod's own node, to a port that a probe of the pod names, is let in whatever policy
//! says. Nothing else is.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::nginx::{Nginx, curl, curl_in};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::netns::Netns;
use ztunnel_tests::policy::{
    DECISIONS, PROBES, authentication, authorization, connect_as, denied, denied_plaintext, denied_stream, impersonate,
    refused_at,
};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::Family;
use ztunnel_tests::wait;

const WEB: &str = "web-a";
const GUEST: &str = "guest";

/// The ports at which the pod is asked how it is.
const LIVENESS: u16 = 8080;
const READINESS: u16 = 8081;
const STARTUP: u16 = 8082;

/// No probe's.
const APPLICATION: u16 = 7000;

/// Everything enrolled; `web-a` has a probe of each kind. A guest on each node.
fn bed() -> Result<Testbed> {
    let mut bed = Testbed::both_enrolled()?;
    bed.topology.grow("node-a", GUEST)?;
    bed.topology.grow("node-b", "stranger")?;
    let manifest = PodManifest::of(bed.pod(WEB)?).on(bed.topology.node("node-a")?).port("ready", READINESS);
    let manifest = manifest
        .probe("livenessProbe", &json!({ "httpGet": { "path": "/", "port": LIVENESS } }))
        .probe("readinessProbe", &json!({ "tcpSocket": { "port": "ready" } }))
        .probe("startupProbe", &json!({ "grpc": { "port": STARTUP } }));
    bed.change(|mesh| mesh.pod(&manifest))?;
    Ok(bed)
}

/// Refuses plaintext, and everyone.
fn closed() -> String {
    authentication("strict", "{mtls: {mode: STRICT}}") + &authorization("deny-all", "{}")
}

fn probes(bed: &Testbed) -> Result<f64> {
    Ok(bed.daemon("node-a")?.metrics()?.sum(PROBES, &[]))
}

fn connect_in(netns: &Netns, target: SocketAddr) -> Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect(target))?.with_context(|| format!("{} to {target}", netns.name()))?;
    stream.set_read_timeout(Some(ztunnel_tests::topology::SOCKET_DEADLINE))?;
    Ok(stream)
}

#[test]
fn the_nodes_own_probes_are_let_in_and_counted() -> Result<()> {
    let bed = bed()?;
    let (web, node) = (bed.pod(WEB)?, &bed.topology.node("node-a")?.netns);
    let _nginx = Nginx::start(&bed.topology, web, LIVENESS, false)?;
    let strict = authentication("strict", "{mtls: {mode: STRICT}}");
    for policies in [strict.clone(), authorization("deny-all", "{}"), strict + &authorization("deny-all", "{}")] {
        bed.change(|mesh| mesh.policy("case", &policies))?;
        let before = probes(&bed)?;
        for family in Family::BOTH {
            let page = curl_in(node, web.at(family, LIVENESS), &[]).with_context(|| policies.clone())?;
            let own = bed.topology.node("node-a")?.ip(family).to_string();
            ensure!(page.status == 200 && page.body == own, "{page:?} with\n{policies}");
            for port in [READINESS, STARTUP] {
                let echo = Server::echo(web, web.at(family, port))?;
                exchange(&mut connect_in(node, echo.address())?, b"hello")
                    .with_context(|| format!("port {port} with\n{policies}"))?;
            }
        }
        ensure!(probes(&bed)? == before + 6.0, "six probes were counted as {}", probes(&bed)? - before);
    }
    ensure!(bed.daemon("node-a")?.metrics()?.sum(DECISIONS, &[]) == 0.0, "a probe was counted as a refusal");
    Ok(())
}

/// Where policy has nothing against it, a probe is a connection like any other.
#[test]
fn probes_that_policy_allows_are_not_counted_as_exceptions() -> Result<()> {
    let bed = bed()?;
    let (web, node) = (bed.pod(WEB)?, &bed.topology.node("node-a")?.netns);
    let echo = Server::echo(web, web.at(Family::V4, READINESS))?;
    exchange(&mut connect_in(node, echo.address())?, b"hello")?;
    ensure!(probes(&bed)? == 0.0, "{}", probes(&bed)?);
    Ok(())
}

#[test]
fn nothing_else_from_the_node_is_let_in() -> Result<()> {
    let bed = bed()?;
    let (web, node) = (bed.pod(WEB)?, &bed.topology.node("node-a")?.netns);
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    for family in Family::BOTH {
        for port in [APPLICATION, 80, LIVENESS - 1] {
            let target = web.at(family, port);
            let told = denied_stream(&bed, connect_in(node, target)?, WEB, target)?;
            ensure!(told.starts_with("PeerAuthentication demo/strict: STRICT"), "{told}");
        }
        // A pod that declares no probe has none.
        let other = bed.pod("client-a")?.at(family, LIVENESS);
        denied_stream(&bed, connect_in(node, other)?, "client-a", other)?;
        // The far node is not this pod's.
        let target = web.at(family, LIVENESS);
        let far = &bed.topology.node("node-b")?.netns;
        denied_stream(&bed, connect_in(far, target)?, WEB, target).context("the other node")?;
    }
    let page = curl_in(node, web.at(Family::V4, APPLICATION), &[]);
    ensure!(page.is_err(), "{page:?}");
    ensure!(probes(&bed)? == 0.0, "{} probes were counted", probes(&bed)?);
    Ok(())
}

#[test]
fn no_pod_is_taken_for_the_kubelet() -> Result<()> {
    let bed = bed()?;
    let web = bed.pod(WEB)?;
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, LIVENESS))?;
        let target = echo.address();
        for outsider in [GUEST, "stranger"] {
            let told = denied_plaintext(&bed, bed.pod(outsider)?, WEB, target)?;
            ensure!(told.starts_with("PeerAuthentication demo/strict: STRICT"), "{outsider}: {told}");
        }
        for client in ["client-a", "client-b"] {
            let told = denied(&bed, (client, WEB), target)?;
            ensure!(told == "no ALLOW policy matched: demo/deny-all", "{client}: {told}");
        }
        ensure!(echo.accepted() == 0, "somebody came: {:?}", echo.peers());
    }
    let page = curl(bed.pod(GUEST)?, web.at(Family::V4, LIVENESS), &[]);
    ensure!(page.is_err(), "{page:?}");
    ensure!(probes(&bed)? == 0.0, "{} probes were counted", probes(&bed)?);
    Ok(())
}

/// The node's address is not what makes the kubelet: a neighbour on the bridge may have it, too.
#[test]
fn a_neighbour_with_the_nodes_address_is_not_the_kubelet() -> Result<()> {
    let bed = bed()?;
    let (web, guest) = (bed.pod(WEB)?, bed.pod(GUEST)?);
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, LIVENESS))?;
        let node = bed.topology.node("node-a")?.ip(family);
        impersonate(guest, web, family, node)?;
        let stream = connect_as(guest, node, echo.address())?;
        let told = denied_stream(&bed, stream, WEB, echo.address()).with_context(|| format!("over {family:?}"))?;
        ensure!(told.starts_with("PeerAuthentication demo/strict: STRICT"), "{told}");
        ensure!(echo.accepted() == 0, "somebody came: {:?}", echo.peers());
    }
    ensure!(probes(&bed)? == 0.0, "{} probes were counted", probes(&bed)?);
    Ok(())
}

/// A probe that is open when policy closes the pod stays, others don't; nor does one whose probe is gone from the manifest.
#[test]
fn an_open_probe_outlives_a_change_of_policy() -> Result<()> {
    let bed = bed()?;
    let (web, node) = (bed.pod(WEB)?, &bed.topology.node("node-a")?.netns);
    let echo = Server::echo(web, web.at(Family::V4, READINESS))?;
    bed.change(|mesh| mesh.policy("case", &authentication("strict", "{mtls: {mode: STRICT}}")))?;
    let mut probe = connect_in(node, echo.address())?;
    exchange(&mut probe, b"hello")?;
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    exchange(&mut probe, b"still here").context("after deny-all")?;
    // Its manifest has no probe any more.
    bed.change(|mesh| mesh.pod(&PodManifest::of(web).on(bed.topology.node("node-a")?)))?;
    refused_at(probe).context("after the probe is gone from the manifest")?;
    wait::until_true("the end at the server", wait::PATIENCE, || Ok(echo.open() == 0))
}
