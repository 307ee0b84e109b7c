//! A pod whose manifest changes keeps its connections whenever possible: a changed label, for example, does not enrol the pod
//! again.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::{Server, is_reset, read_all};
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::policy::connect_as;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;

/// The pod whose manifest changes.
const POD: &str = "web-b";
const PORT: u16 = 7000;
/// An address that is added to the pod and removed again.
const THIRD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 10, 2, 77));

/// Open connections of the pod, in both directions, in plaintext and through HBONE.
struct Held {
    bed: Testbed,
    open: Vec<(String, TcpStream)>,
    _servers: Vec<Server>,
}

impl Held {
    /// All pods but the `guest` are enrolled, and the pod has connections with pods inside and outside the mesh.
    fn new() -> Result<Self> {
        let mut bed = Testbed::both_enrolled()?;
        bed.topology.grow("node-a", "guest")?;
        let (mut open, mut servers) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let echo = |pod: &Pod| Server::echo(pod, pod.at(family, PORT));
            let own = echo(bed.pod(POD)?)?;
            for other in ["client-a", "guest"] {
                let far = echo(bed.pod(other)?)?;
                open.push((format!("from {other} over {family:?}"), bed.pod(other)?.connect(own.address())?));
                open.push((format!("to {other} over {family:?}"), bed.pod(POD)?.connect(far.address())?));
                servers.push(far);
            }
            servers.push(own);
        }
        let mut held = Self { bed, open, _servers: servers };
        held.live().context("at first")?;
        Ok(held)
    }

    /// Every connection carries bytes in both directions.
    fn live(&mut self) -> Result<()> {
        for (what, stream) in &mut self.open {
            exchange(stream, b"still here").with_context(|| format!("the connection {what} did not live on"))?;
        }
        Ok(())
    }

    /// Every connection has been reset.
    fn cut(&mut self) -> Result<()> {
        for (what, stream) in &mut self.open {
            let ended = read_all(stream);
            ensure!(ended.as_ref().is_err_and(is_reset), "the connection {what} was not reset: {ended:?}");
        }
        Ok(())
    }

    fn change(&self, manifest: &PodManifest) -> Result<()> {
        self.bed.change_on("node-b", |mesh| mesh.pod(manifest))
    }

    fn manifest(&self) -> Result<PodManifest> {
        Ok(PodManifest::of(self.bed.pod(POD)?))
    }

    fn enrolments(&self) -> Result<usize> {
        Ok(self.bed.daemon("node-b")?.lines_with(&["pod enrolled", POD])?.len())
    }
}

/// Adds something to a manifest. The second argument is a probe.
type Change = fn(PodManifest, &Value) -> PodManifest;

#[test]
fn labels_ports_probes_annotations_and_exclusions_cost_no_connection() -> Result<()> {
    let mut held = Held::new()?;
    let enrolments = held.enrolments()?;
    let mut manifest = held.manifest()?;
    let probe = json!({ "tcpSocket": { "port": PORT } });
    // An unknown annotation alone is no change of the mesh, so a label is added with it.
    let changes: [(&str, Change); 5] = [
        ("a label", |pod, _| pod.label("version", "2").annotation("example.org/note", "hello")),
        ("a named port", |pod, _| pod.port("http", 8080)),
        ("a probe", |pod, probe| pod.probe("livenessProbe", probe)),
        ("excluded outbound ports", |pod, _| pod.annotation("traffic.ambient.mesh/exclude-outbound-ports", "7001")),
        ("excluded inbound ports", |pod, _| pod.annotation("traffic.ambient.mesh/exclude-inbound-ports", "7001,7000")),
    ];
    for (what, change) in changes {
        manifest = change(manifest, &probe);
        held.change(&manifest)?;
        held.live().with_context(|| format!("after {what} was added"))?;
    }
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node-b", "labels": { "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z" } },
    });
    held.bed.change(|mesh| mesh.write("node-b.yaml", &node.to_string()))?;
    held.live().context("after the node was labelled")?;
    held.change(&held.manifest()?)?;
    held.live().context("after all of that was taken away")?;
    ensure!(held.enrolments()? == enrolments, "the pod was enrolled anew");
    Ok(())
}

#[test]
fn addresses_come_and_go_with_their_own_connections_only() -> Result<()> {
    let mut held = Held::new()?;
    let enrolments = held.enrolments()?;
    let (v4, v6, manifest) = {
        let pod = held.bed.pod(POD)?;
        (pod.v4.to_string(), pod.v6.to_string(), PodManifest::of(pod))
    };
    held.change(&manifest.clone().addresses(&[&v6, &v4]))?;
    held.live().context("after the addresses changed places")?;

    held.bed.pod(POD)?.netns.ip(&format!("addr add {THIRD}/32 dev eth0\n"))?;
    held.change(&manifest.clone().addresses(&[&v4, &v6, &THIRD.to_string()]))?;
    held.live().context("after an address was added")?;
    let pod = held.bed.pod(POD)?;
    let echo = Server::echo(pod, SocketAddr::new(THIRD, PORT + 1))?;
    let far = Server::echo(held.bed.pod("client-a")?, held.bed.pod("client-a")?.at(Family::V4, PORT + 1))?;
    let mut of_third = [
        ("from client-a", held.bed.pod("client-a")?.connect(echo.address())?),
        ("from guest", held.bed.pod("guest")?.connect(echo.address())?),
        ("to client-a", connect_as(pod, THIRD, far.address())?),
    ];
    for (what, stream) in &mut of_third {
        exchange(stream, b"third").with_context(|| format!("{what}, of the third address"))?;
    }
    held.change(&manifest)?;
    for (what, mut stream) in of_third {
        let ended = read_all(&mut stream);
        ensure!(ended.as_ref().is_err_and(is_reset), "{what}, of the address that was taken away: {ended:?}");
    }
    held.live().context("after an address was taken away")?;
    let daemon = held.bed.daemon("node-b")?;
    wait::until_true("a line in the log about each of them", wait::PATIENCE, || {
        Ok(daemon.lines_with(&["address_removed"])?.len() == 3)
    })?;
    ensure!(held.enrolments()? == enrolments, "the pod was enrolled anew");
    Ok(())
}

/// If the network namespace lacks an address of the pod, it is not the pod's, or not yet.
#[test]
fn an_address_that_the_namespace_lacks_closes_the_pod() -> Result<()> {
    let mut held = Held::new()?;
    let pod = held.bed.pod(POD)?;
    let addresses = [pod.v4.to_string(), pod.v6.to_string(), THIRD.to_string()];
    held.change(&held.manifest()?.addresses(&addresses.each_ref().map(String::as_str)))?;
    let reason = held.bed.daemon("node-b")?.refused(POD)?;
    ensure!(reason.contains(&THIRD.to_string()), "{reason}");
    held.cut()
}

#[test]
fn another_path_to_the_same_namespace_costs_no_connection_and_to_another_costs_all() -> Result<()> {
    let mut held = Held::new()?;
    let (enrolments, link) = (held.enrolments()?, held.bed.topology.folder.join("same-namespace"));
    symlink(held.bed.pod(POD)?.netns.path(), &link)?;
    held.change(&held.manifest()?.netns(&link))?;
    held.live().context("after the path changed")?;
    ensure!(held.enrolments()? == enrolments, "the pod was enrolled anew");
    let dump = held.bed.daemon("node-b")?.dump()?;
    ensure!(dump.pod(POD).is_some_and(|pod| pod.state() == "enrolled"), "the pod is not enrolled");

    held.change(&held.manifest()?.netns(held.bed.pod("client-b")?.netns.path()))?;
    held.cut()
}

/// The open connections were made with the old identity.
#[test]
fn another_identity_costs_all_connections() -> Result<()> {
    let mut held = Held::new()?;
    held.change(&held.manifest()?.service_account("another"))?;
    held.cut()?;
    held.bed.daemon("node-b")?.enrolled(POD)
}
