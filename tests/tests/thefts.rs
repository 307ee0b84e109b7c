//! A pod does not get the network namespace or the addresses of another pod by naming them in its manifest.

use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, TWO_NODES};

const PORT: u16 = 7000;
const VICTIM: &str = "web-a";

/// The manifest of a pod that names the victim's network namespace, by another path, and the victim's addresses. The Kubernetes
/// namespace of the pod sorts before the victim's.
fn thief(bed: &Testbed) -> Result<PodManifest> {
    let path = bed.topology.folder.join("alias");
    symlink(bed.pod(VICTIM)?.netns.path(), &path)?;
    bed.mesh.labelled_namespace("attacker")?;
    Ok(PodManifest::of(bed.pod(VICTIM)?).named("thief").namespace("attacker").service_account("thief").netns(&path))
}

fn refused(bed: &Testbed, pod: &str, words: &[&str]) -> Result<()> {
    let reason = bed.daemon("node-a")?.refused(pod)?;
    ensure!(words.iter().all(|word| reason.contains(word)), "{pod} was refused because {reason:?}, not of {words:?}");
    Ok(())
}

#[test]
fn serve_a_pod_of_the_mesh_under_the_identity_of_a_thief() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let stolen = thief(&bed)?;
    bed.mesh.pod(&stolen)?;
    refused(&bed, "thief", &["attacker/thief", "already belongs to pod demo/web-a", "ambient.mesh/netns"])?;
    bed.daemon("node-a")?.enrolled(VICTIM)?;

    bed.daemon_mut("node-a")?.kill9()?;
    bed.daemon_mut("node-a")?.restart()?;
    refused(&bed, "thief", &["attacker/thief", "already belongs to pod demo/web-a", "ambient.mesh/netns"])?;
    bed.daemon("node-a")?.enrolled(VICTIM)?;
    let dump = bed.daemon("node-a")?.dump()?;
    ensure!(dump.certificate("spiffe://cluster.local/ns/attacker/sa/thief").is_none(), "the thief has a certificate");
    let echo = Server::echo(bed.pod(VICTIM)?, bed.pod(VICTIM)?.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", VICTIM, &echo, echo.address())?;
    Ok(())
}

#[test]
fn capture_a_pod_outside_of_the_mesh() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let (stolen, before) = (thief(&bed)?, Footprint::of(&bed.pod(VICTIM)?.netns)?);
    bed.mesh.pod(&stolen)?;
    bed.start("node-a")?;
    refused(&bed, "thief", &["attacker/thief", "demo/web-a names the same network namespace"])?;
    let difference = before.difference(&Footprint::of(&bed.pod(VICTIM)?.netns)?);
    ensure!(difference.is_empty(), "the victim was changed: {difference:#?}");
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::direct(&echo, || bed.pod(VICTIM)?.connect(echo.address()))?;
    Ok(())
}

#[test]
fn have_a_namespace_that_nobody_is_on_record_with() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let stolen = thief(&bed)?;
    bed.mesh.pod(&stolen)?;
    bed.mesh.label()?;
    bed.start("node-a")?;
    for (pod, other) in [("thief", "demo/web-a"), (VICTIM, "attacker/thief")] {
        refused(&bed, pod, &[&format!("pod {other} names the same network namespace"), "none of these pods"])?;
    }
    bed.mesh.remove_pod("thief")?;
    bed.daemon("node-a")?.enrolled(VICTIM)
}
