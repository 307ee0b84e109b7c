//! Probes of the kubelet: plaintext from the kubelet of the pod's own node to a port of a probe is accepted independent of
//! policy. Nothing else is.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Uid, setfsuid};
use serde_json::json;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::nginx::{Nginx, curl, curl_in};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::netns::Netns;
use ztunnel_tests::policy::{
    DECISIONS, PROBES, authentication, authorization, connect_as, denied, denied_plaintext, denied_stream, impersonate,
    refused_at,
};
use ztunnel_tests::process::{Finished, Launch};
use ztunnel_tests::requirements;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::Family;
use ztunnel_tests::wait;

const WEB: &str = "web-a";
const GUEST: &str = "guest";

/// The ports of the pod's probes.
const LIVENESS: u16 = 8080;
const READINESS: u16 = 8081;
const STARTUP: u16 = 8082;

/// An unprivileged user of the node.
const NOBODY: u32 = 65_534;

/// A port without a probe.
const APPLICATION: u16 = 7000;

/// All pods are enrolled, `web-a` has a probe of each kind, and each node has a guest.
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

/// Policies that refuse plaintext, and all clients.
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

/// The kubelet calls the lifecycle hooks of a container as well.
#[test]
fn hooks_are_let_in_as_probes_are() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (web, node) = (bed.pod(WEB)?, bed.topology.node("node-a")?);
    let hooks = json!({
        "postStart": { "httpGet": { "path": "/warm", "port": LIVENESS } },
        "preStop": { "httpGet": { "path": "/drain", "port": "ready" } },
    });
    let manifest = PodManifest::of(web).on(node).port("ready", READINESS).probe("lifecycle", &hooks);
    bed.change(|mesh| {
        mesh.pod(&manifest)?;
        mesh.policy("case", &closed())
    })?;
    for family in Family::BOTH {
        for port in [LIVENESS, READINESS] {
            let echo = Server::echo(web, web.at(family, port))?;
            exchange(&mut connect_in(&node.netns, echo.address())?, b"hello")
                .with_context(|| format!("port {port}"))?;
        }
        let target = web.at(family, STARTUP);
        denied_stream(&bed, connect_in(&node.netns, target)?, WEB, target)?;
    }
    Ok(())
}

/// If policy allows a probe, it is a connection like any other.
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
        // A pod without a declared probe.
        let other = bed.pod("client-a")?.at(family, LIVENESS);
        denied_stream(&bed, connect_in(node, other)?, "client-a", other)?;
        // The other node is not the node of this pod.
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
        ensure!(echo.accepted() == 0, "the server accepted connections from {:?}", echo.peers());
    }
    let page = curl(bed.pod(GUEST)?, web.at(Family::V4, LIVENESS), &[]);
    ensure!(page.is_err(), "{page:?}");
    ensure!(probes(&bed)? == 0.0, "{} probes were counted", probes(&bed)?);
    Ok(())
}

/// The node's address does not identify the kubelet: a neighbour on the bridge may have this address as well.
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
        ensure!(echo.accepted() == 0, "the server accepted connections from {:?}", echo.peers());
    }
    ensure!(probes(&bed)? == 0.0, "{} probes were counted", probes(&bed)?);
    Ok(())
}

/// An open probe continues when policy closes the pod; other connections are cut. A probe that is removed from the manifest is
/// cut as well.
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
    // The manifest has no probe any more.
    bed.change(|mesh| mesh.pod(&PodManifest::of(web).on(bed.topology.node("node-a")?)))?;
    refused_at(probe).context("after the probe is gone from the manifest")?;
    wait::until_true("the end at the server", wait::PATIENCE, || Ok(echo.open() == 0))
}

/// Connects from a namespace with a socket of another user.
fn connect_as_user(netns: &Netns, target: SocketAddr, uid: u32) -> Result<TcpStream> {
    let connected = netns.run(|| {
        // Changes the user of this thread only, which ends here.
        setfsuid(Uid::from_raw(uid));
        TcpStream::connect(target)
    });
    let stream = connected?.with_context(|| format!("uid {uid} in {} to {target}", netns.name()))?;
    stream.set_read_timeout(Some(ztunnel_tests::topology::SOCKET_DEADLINE))?;
    Ok(stream)
}

#[test]
fn a_local_user_reads_an_application_at_its_probe_port() -> Result<()> {
    let bed = bed()?;
    let (web, node) = (bed.pod(WEB)?, &bed.topology.node("node-a")?.netns);
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, LIVENESS))?;
        let target = echo.address();
        let told = denied_stream(&bed, connect_as_user(node, target, NOBODY)?, WEB, target)?;
        ensure!(told.contains("not recognised as the kubelet: it is a process of this node with uid 65534"), "{told}");
        // The user writes and closes at once: the socket may be closed before the daemon looks up its user.
        let mut blind = connect_as_user(node, target, NOBODY)?;
        let own = blind.local_addr()?;
        // The write may fail, because the refusal may have arrived already.
        let _written = blind.write_all(b"hello");
        drop(blind);
        let line = bed.daemon("node-a")?.wait_connection(Direction::Inbound, own, target)?;
        ensure!(line.field("reason") == "denied", "{}", line.line);
        // A connection of root counts as the kubelet's.
        exchange(&mut connect_in(node, target)?, b"hello")?;
        ensure!(echo.accepted() == 1, "these came: {:?}", echo.peers());
    }
    let nginx = Nginx::start(&bed.topology, web, READINESS, false)?;
    let url = format!("http://{}/", web.at(Family::V4, READINESS));
    let curl = ["curl", "-sS", "--max-time", "5", "--noproxy", "*", &url];
    let of_user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let refused = Launch::new("setpriv").args(of_user).args(curl).inside(node).finish()?;
    ensure!(!refused.success && is_refusal(&refused), "{refused:?}");
    let page = Launch::new("setpriv").args(["--reuid", "0"]).args(curl).inside(node).finish()?;
    ensure!(page.success, "{page:?}");
    drop(nginx);
    Ok(())
}

/// Whether curl got a reset. If the reset comes at once, curl reports it as a failed connect.
fn is_refusal(done: &Finished) -> bool {
    done.stdout.is_empty() && ["reset", "Failed to connect"].iter().any(|said| done.stderr.contains(said))
}

/// A cgroup below the root, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// Fetches a page as root of the node, in this cgroup. `false`: the connection was refused.
    fn curl(&self, node: &Netns, target: SocketAddr) -> Result<bool> {
        const MOVE: &str = "echo $$ > \"$0/cgroup.procs\" && exec curl -sS --max-time 5 --noproxy '*' \"$1\"";
        let done = Launch::new("sh").args(["-c", MOVE]).args([&self.0]).args([format!("http://{target}/")]);
        let done = done.inside(node).finish()?;
        ensure!(done.success || is_refusal(&done), "{done:?}");
        Ok(done.success)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove the cgroup {}: {error}", self.0.display());
        }
    }
}

/// A pod with `hostNetwork` is in the node's network namespace, and its root user is the node's root user.
#[test]
fn root_of_a_pod_in_the_hosts_network_is_taken_for_the_kubelet() -> Result<()> {
    let mut bed = bed()?;
    bed.change(|mesh| mesh.policy("case", &closed()))?;
    let (web, node) = (bed.pod(WEB)?, Netns::existing(bed.topology.node("node-a")?.netns.name()));
    let _nginx = Nginx::start(&bed.topology, web, LIVENESS, false)?;
    let (target, root) = (web.at(Family::V4, LIVENESS), requirements::cgroup_root()?);
    let pod = Cgroup::make(root.join(bed.topology.prefix.member("kubepods")))?;
    let kubelet = Cgroup::make(root.join(bed.topology.prefix.member("kubelet")))?;
    let other = Cgroup::make(root.join(bed.topology.prefix.member("other")))?;
    ensure!(!pod.curl(&node, target)?, "a pod was taken for the kubelet");
    let lines = bed.daemon("node-a")?.lines_with(&["in the cgroup of a pod or another container"])?;
    ensure!(lines.len() == 1, "{lines:#?}");
    ensure!(kubelet.curl(&node, target)? && other.curl(&node, target)?, "root of the node is kept out");

    let named = format!("/{}", bed.topology.prefix.member("kubelet"));
    let daemon = bed.daemon_mut("node-a")?;
    daemon.terminate()?;
    daemon.set_arguments(&["--kubelet-cgroup", &named]);
    daemon.restart()?;
    daemon.enrolled(WEB)?;
    ensure!(kubelet.curl(&node, target)?, "the kubelet's own cgroup is kept out");
    ensure!(!other.curl(&node, target)? && !pod.curl(&node, target)?, "another cgroup than the kubelet's is let in");
    Ok(())
}
