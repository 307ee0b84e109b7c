//! The destinations of connections to services: addresses of both families, named ports, endpoints that refuse or are not
//! ready, and destinations that the mesh does not know.

use std::io::Read;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use ztunnel_tests::apps::client::{exchange, exchange_once};
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::logs::{Access, Direction};
use ztunnel_tests::mesh::{GROUP_LABEL, NAMESPACE, PodManifest};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn vip(family: Family) -> Result<SocketAddr> {
    let [v4, v6] = VIPS;
    Ok(SocketAddr::new(if family == Family::V4 { v4 } else { v6 }.parse()?, 80))
}

/// The manifest of a pod that is an endpoint of the service `web`.
fn member(pod: &Pod) -> PodManifest {
    PodManifest::of(pod).label(GROUP_LABEL, "web").port("main", PORT)
}

/// All pods are enrolled; these pods are the endpoints of a service `web` with addresses of both families.
fn bed_with(members: &[&str], target: &serde_json::Value) -> Result<Testbed> {
    with_service(Testbed::both_enrolled()?, members, target)
}

/// The same, with a control plane.
fn plane_with(members: &[&str], target: &serde_json::Value) -> Result<Testbed> {
    with_service(Testbed::both_enrolled_by_control_plane()?, members, target)
}

fn with_service(bed: Testbed, members: &[&str], target: &serde_json::Value) -> Result<Testbed> {
    for pod in members {
        bed.mesh.pod(&member(bed.pod(pod)?))?;
    }
    bed.change(|mesh| mesh.service("web", &VIPS, 80, target))?;
    Ok(bed)
}

/// Connects and exchanges bytes; returns the log line of the client's daemon.
fn once(bed: &Testbed, client: &str, target: SocketAddr) -> Result<Access> {
    let mut stream = bed.pod(client)?.connect(target)?;
    let own = stream.local_addr()?;
    ensure!(stream.peer_addr()? == target, "asked for {target}, getpeername says {}", stream.peer_addr()?);
    exchange(&mut stream, b"hello").with_context(|| format!("{client} to {target}"))?;
    drop(stream);
    bed.daemon(&bed.pod(client)?.node)?
        .wait_access("the outbound line", |line| line.direction == Direction::Outbound && line.src == own)
}

/// The same, as soon as the daemon knows the service.
fn first(bed: &Testbed, client: &str, target: SocketAddr) -> Result<Access> {
    wait::until(&format!("{target} to be known"), wait::PATIENCE, || Ok(once(bed, client, target).ok()))
}

/// A service is reached by its address, through HBONE to its endpoint, and the log names the service.
fn reached(bed: &Testbed) -> Result<()> {
    for family in Family::BOTH {
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
        let echo = Server::echo(web, web.at(family, PORT))?;
        let line = first(bed, "client-a", vip(family)?).with_context(|| format!("over {family:?}"))?;
        ensure!(line.is_tunnelled() && line.asked() == echo.address(), "{}", line.line);
        ensure!(line.field("dst.service") == format!("web.{NAMESPACE}.svc.cluster.local"), "{}", line.line);
        ensure!(line.field("dst.workload") == "web-b", "{}", line.line);
        let seen = echo.peers().last().copied().context("the server accepted no connection")?;
        ensure!(seen.ip() == client.ip(family), "the server saw {seen}");
    }
    Ok(())
}

#[test]
fn a_service_address_with_a_target_port() -> Result<()> {
    reached(&bed_with(&["web-b"], &json!(PORT))?)
}

#[test]
fn a_service_address_with_a_named_target_port() -> Result<()> {
    reached(&bed_with(&["web-b"], &json!("main"))?)
}

#[test]
fn a_service_address_by_a_control_plane() -> Result<()> {
    reached(&plane_with(&["web-b"], &json!("main"))?)
}

#[test]
fn a_headless_service_is_reached_by_its_pods_addresses() -> Result<()> {
    let bed = bed_with(&["web-b"], &json!(PORT))?;
    bed.mesh.service("web", &[], PORT, &json!(PORT))?;
    for family in Family::BOTH {
        let web = bed.pod("web-b")?;
        let echo = Server::echo(web, web.at(family, PORT))?;
        let line = first(&bed, "client-a", echo.address())?;
        ensure!(line.is_tunnelled() && line.asked() == echo.address(), "{}", line.line);
    }
    Ok(())
}

#[test]
fn a_pod_that_calls_itself_through_its_service_needs_no_tunnel() -> Result<()> {
    let bed = bed_with(&["web-a"], &json!(PORT))?;
    let web = bed.pod("web-a")?;
    for family in Family::BOTH {
        let echo = Server::echo(web, SocketAddr::new(family.any(), PORT))?;
        let line = first(&bed, "web-a", vip(family)?)?;
        ensure!(!line.is_tunnelled(), "{}", line.line);
        let seen = echo.peers().last().copied().context("the server accepted no connection")?;
        ensure!(seen.ip() == web.ip(family), "the pod saw {seen} instead of itself");
    }
    Ok(())
}

/// One of the two endpoints has no listener: the clients do not notice its refusals.
#[test]
fn an_endpoint_that_refuses_is_replaced_by_another() -> Result<()> {
    let bed = bed_with(&["web-a", "web-b"], &json!(PORT))?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    first(&bed, "client-a", vip(Family::V4)?)?;
    for number in 0..100 {
        exchange_once(bed.pod("client-a")?, vip(Family::V4)?).with_context(|| format!("request {number}"))?;
    }
    ensure!(echo.accepted() > 100, "{} came", echo.accepted());
    Ok(())
}

#[test]
fn both_endpoints_get_their_share() -> Result<()> {
    let bed = bed_with(&["web-a", "web-b"], &json!(PORT))?;
    let servers = ["web-a", "web-b"].map(|pod| Server::echo(bed.pod(pod)?, bed.pod(pod)?.at(Family::V6, PORT)));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    first(&bed, "client-a", vip(Family::V6)?)?;
    for _ in 0..100 {
        exchange_once(bed.pod("client-a")?, vip(Family::V6)?)?;
    }
    let shares: Vec<usize> = servers.iter().map(Server::accepted).collect();
    ensure!(shares.iter().all(|share| *share > 20), "the shares are {shares:?}");
    Ok(())
}

fn endpoint_slice(ready: &Pod, unready: &Pod) -> String {
    let endpoint = |pod: &Pod, ready: bool| {
        json!({
            "addresses": [pod.v4.to_string()],
            "conditions": { "ready": ready },
            "nodeName": pod.node,
            "targetRef": { "kind": "Pod", "name": pod.name, "namespace": NAMESPACE },
        })
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "web-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": PORT, "protocol": "TCP" }],
        "endpoints": [endpoint(ready, true), endpoint(unready, false)],
    });
    format!("{slice:#}\n")
}

#[test]
fn an_endpoint_that_is_not_ready_is_left_alone() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (near, far) = (bed.pod("web-a")?, bed.pod("web-b")?);
    bed.mesh.write("slice.yaml", &endpoint_slice(far, near))?;
    bed.mesh.service("web", &VIPS, 80, &json!(PORT))?;
    let (unready, ready) =
        (Server::echo(near, near.at(Family::V4, PORT))?, Server::echo(far, far.at(Family::V4, PORT))?);
    first(&bed, "client-a", vip(Family::V4)?)?;
    for _ in 0..30 {
        exchange_once(bed.pod("client-a")?, vip(Family::V4)?)?;
    }
    ensure!(unready.accepted() == 0, "{} connections went to the endpoint that is not ready", unready.accepted());
    ensure!(ready.accepted() > 30);
    Ok(())
}

#[test]
fn a_service_without_any_ready_endpoint_is_refused_and_says_so() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    bed.mesh.pod(&PodManifest::of(web))?;
    bed.change(|mesh| mesh.service("web", &VIPS, 80, &json!(PORT)))?;
    for family in Family::BOTH {
        let target = vip(family)?;
        let line = wait::until("the service to be known", wait::PATIENCE, || {
            // Until the service is known, the connect fails with another error: the testbed has no route to service addresses.
            let Ok(mut stream) = bed.pod("client-a")?.connect(target) else { return Ok(None) };
            let own = stream.local_addr()?;
            let end = stream.read(&mut [0; 1]);
            let line = bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?;
            let known = line.field("reason") == "no_healthy_upstream";
            Ok((known && end.is_err_and(|error| is_reset(&error))).then_some(line))
        })?;
        let error = line.error.as_deref().unwrap_or_default();
        ensure!(error.contains(&format!("{NAMESPACE}/web")) && error.contains("0 of 0 endpoints"), "{}", line.line);
        ensure!(line.sent == 0 && line.received == 0, "{}", line.line);
    }
    Ok(())
}

/// All pods are enrolled. A service `web` has an endpoint in each of these pods, and a field that says which endpoint is
/// preferred. The two nodes are in two zones.
fn bed_with_rule(members: &[&str], key: &str, value: &str) -> Result<Testbed> {
    let bed = Testbed::both_enrolled()?;
    for pod in members {
        bed.mesh.pod(&member(bed.pod(pod)?))?;
    }
    let zones = [("node-a", "zone-1"), ("node-b", "zone-2")].map(|(node, zone)| {
        let labels = json!({ "topology.kubernetes.io/region": "here", "topology.kubernetes.io/zone": zone });
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node, "labels": labels } })
    });
    for (number, node) in zones.iter().enumerate() {
        bed.mesh.write(&format!("node-{number}.yaml"), &format!("{node:#}\n"))?;
    }
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            key: value,
            "selector": { GROUP_LABEL: "web" },
            "clusterIP": VIPS[0],
            "clusterIPs": VIPS,
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    bed.change(|mesh| mesh.write("service-web.yaml", &format!("{service:#}\n")))?;
    Ok(bed)
}

/// The number of the pod's 30 connections that each server accepted.
fn shares(bed: &Testbed, client: &str, family: Family, servers: &[Server]) -> Result<Vec<usize>> {
    let before: Vec<usize> = servers.iter().map(Server::accepted).collect();
    for number in 0..30 {
        exchange_once(bed.pod(client)?, vip(family)?).with_context(|| format!("{client}, number {number}"))?;
    }
    Ok(servers.iter().zip(before).map(|(server, before)| server.accepted() - before).collect())
}

/// The nearest endpoint is used as long as it answers, and then the other one.
fn prefers_the_nearest(rule: &str) -> Result<()> {
    let bed = bed_with_rule(&["web-a", "web-b"], "trafficDistribution", rule)?;
    let family = Family::V4;
    let servers = ["web-a", "web-b"].map(|pod| Server::echo(bed.pod(pod)?, bed.pod(pod)?.at(family, PORT)));
    let mut servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    for (client, all) in [("client-a", [30, 0]), ("client-b", [0, 30])] {
        first(&bed, client, vip(family)?)?;
        let got = shares(&bed, client, family, &servers)?;
        ensure!(got == all, "{rule}: the shares of {client} are {got:?}");
    }
    drop(servers.remove(0));
    let got = shares(&bed, "client-a", family, &servers).context("without the nearest")?;
    ensure!(got == [30], "{rule}: {got:?}");
    let problems = bed.daemon("node-a")?.dump()?;
    ensure!(problems.problems().is_empty(), "{:?}", problems.problems());
    Ok(())
}

#[test]
fn the_endpoint_on_the_same_node_is_preferred() -> Result<()> {
    prefers_the_nearest("PreferSameNode")
}

#[test]
fn the_endpoint_in_the_same_zone_is_preferred() -> Result<()> {
    prefers_the_nearest("PreferClose")
}

/// With `internalTrafficPolicy: Local` there is no second choice.
#[test]
fn a_local_service_never_leaves_the_node() -> Result<()> {
    let bed = bed_with_rule(&["web-b"], "internalTrafficPolicy", "Local")?;
    let web = bed.pod("web-b")?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, PORT))?;
        first(&bed, "client-b", vip(family)?)?;
        let seen = echo.accepted();
        let client = bed.pod("client-a")?;
        let line = wait::until("the service to be known", wait::PATIENCE, || {
            let Ok(mut stream) = client.connect(vip(family)?) else { return Ok(None) };
            let own = stream.local_addr()?;
            ensure!(exchange(&mut stream, b"hello").is_err(), "an endpoint on another node answered");
            let line = bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?;
            Ok((line.field("reason") == "no_healthy_upstream").then_some(line))
        })?;
        ensure!(line.field("dst.service").is_empty() || line.field("dst.workload").is_empty(), "{}", line.line);
        ensure!(echo.accepted() == seen, "{} came from another node", echo.accepted() - seen);
        ensure!(shares(&bed, "client-b", family, &[echo])? == [30]);
    }
    Ok(())
}

/// A pod without a manifest.
const STRANGER: &str = "stranger";

fn bed_with_stranger() -> Result<(Testbed, Server)> {
    with_stranger(Testbed::both_enrolled()?)
}

fn with_stranger(mut bed: Testbed) -> Result<(Testbed, Server)> {
    bed.topology.grow("node-b", STRANGER)?;
    let stranger = bed.pod(STRANGER)?;
    let echo = Server::echo(stranger, stranger.at(Family::V4, PORT))?;
    Ok((bed, echo))
}

fn policy(mode: &str) -> String {
    let mesh = format!("outboundTrafficPolicy:\n  mode: {mode}\n");
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "istio", "namespace": "istio-system" },
        "data": { "mesh": mesh },
    });
    format!("{map:#}\n")
}

#[test]
fn unknown_destinations_are_refused_when_the_mesh_says_so() -> Result<()> {
    unknown_destinations_are_refused(&bed_with_stranger()?)
}

#[test]
fn unknown_destinations_are_refused_when_the_control_plane_says_so() -> Result<()> {
    unknown_destinations_are_refused(&with_stranger(Testbed::both_enrolled_by_control_plane()?)?)
}

fn unknown_destinations_are_refused((bed, echo): &(Testbed, Server)) -> Result<()> {
    let client = bed.pod("client-a")?;
    exchange_once(client, echo.address()).context("without a policy")?;
    bed.mesh.write("istio.yaml", &policy("REGISTRY_ONLY"))?;
    let line = wait::until("the refusal", wait::PATIENCE, || {
        let mut stream = client.connect(echo.address())?;
        let own = stream.local_addr()?;
        if exchange(&mut stream, b"hello").is_ok() {
            return Ok(None);
        }
        Ok(Some(bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?))
    })?;
    let error = line.error.clone().unwrap_or_default();
    ensure!(error.contains("REGISTRY_ONLY"), "{}", line.line);
    let seen = echo.accepted();
    for _ in 0..10 {
        ensure!(exchange_once(client, echo.address()).is_err(), "an unknown destination was reached");
    }
    ensure!(echo.accepted() == seen, "the server accepted a connection");
    let web = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    exchange_once(client, web.address()).context("a known pod")?;
    bed.mesh.write("istio.yaml", &policy("ALLOW_ANY"))?;
    wait::until("everything to be allowed", wait::PATIENCE, || Ok(exchange_once(client, echo.address()).ok()))?;
    Ok(())
}

#[test]
fn a_service_entry_with_static_endpoints_is_reached_by_its_address() -> Result<()> {
    let (bed, echo) = bed_with_stranger()?;
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": "outside", "namespace": NAMESPACE },
        "spec": {
            "hosts": ["outside.example.org"],
            "addresses": ["240.240.0.7"],
            "ports": [{ "number": 80, "name": "tcp", "protocol": "TCP", "targetPort": PORT }],
            "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [{ "address": echo.address().ip().to_string() }],
        },
    });
    bed.mesh.write("entry.yaml", &format!("{entry:#}\n"))?;
    bed.mesh.write("istio.yaml", &policy("REGISTRY_ONLY"))?;
    let line = first(&bed, "client-a", "240.240.0.7:80".parse()?)?;
    ensure!(!line.is_tunnelled() && line.field("dst.service") == "outside.example.org", "{}", line.line);
    ensure!(line.dst == echo.address(), "{}", line.line);
    Ok(())
}

/// Both pods serve; each client always gets the same one of them.
#[test]
fn a_client_stays_at_one_endpoint() -> Result<()> {
    stays_at_one_endpoint(&bed_with(&["web-a", "web-b"], &json!(PORT))?)
}

/// Istio's messages have no field for session affinity; the details of the control plane have one.
#[test]
fn a_client_stays_at_one_endpoint_when_the_control_plane_says_so() -> Result<()> {
    stays_at_one_endpoint(&plane_with(&["web-a", "web-b"], &json!(PORT))?)
}

fn stays_at_one_endpoint(bed: &Testbed) -> Result<()> {
    let [v4, v6] = VIPS;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": {
            "selector": { GROUP_LABEL: "web" },
            "clusterIPs": [v4, v6],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10_800 } },
            "ports": [{ "name": "http", "port": 80, "targetPort": PORT }],
        },
    });
    bed.change(|mesh| mesh.write("service-web.yaml", &format!("{service:#}\n")))?;
    for family in Family::BOTH {
        let servers = ["web-a", "web-b"].map(|name| {
            let pod = bed.pod(name)?;
            Server::echo(pod, pod.at(family, PORT))
        });
        let servers: Vec<Server> = servers.into_iter().collect::<Result<_>>()?;
        for client in ["client-a", "client-b"] {
            let before: Vec<usize> = servers.iter().map(|server| server.peers().len()).collect();
            for _ in 0..16 {
                exchange_once(bed.pod(client)?, vip(family)?)?;
            }
            let came: Vec<usize> =
                servers.iter().zip(before).map(|(server, before)| server.peers().len() - before).collect();
            ensure!(came == [16, 0] || came == [0, 16], "{client} over {family:?}: {came:?}");
        }
    }
    Ok(())
}
