//! Pods that can't be enrolled are refused with a reason and not changed.

use anyhow::{Context as _, Result, ensure};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::footprint::Footprint;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// Runs `change` first, then starts a daemon on `node-a` and labels the namespace.
fn bed_with(change: impl FnOnce(&Testbed) -> Result<()>) -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    change(&bed)?;
    bed.mesh.label()?;
    bed.start("node-a")?;
    Ok(bed)
}

/// The pod is refused with a reason that contains one of the words, the pod is not changed, and its traffic is direct.
fn refused(bed: &Testbed, pod: &str, words: &[&str]) -> Result<()> {
    let reason = bed.daemon("node-a")?.refused(pod)?;
    let lower = reason.to_lowercase();
    ensure!(words.iter().any(|word| lower.contains(word)), "{pod} was refused because {reason:?}, without {words:?}");
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::direct(&echo, || bed.pod(pod)?.connect(echo.address()))?;
    Ok(())
}

#[test]
fn pods_that_name_each_others_namespace() -> Result<()> {
    let mut before = Vec::new();
    let bed = bed_with(|bed| {
        let (client, web) = (bed.pod("client-a")?, bed.pod("web-a")?);
        before.extend([Footprint::of(&client.netns)?, Footprint::of(&web.netns)?]);
        bed.mesh.pod(&PodManifest::of(client).netns(web.netns.path()))?;
        bed.mesh.pod(&PodManifest::of(web).netns(client.netns.path()))
    })?;
    for (pod, before) in ["client-a", "web-a"].into_iter().zip(&before) {
        refused(&bed, pod, &["address", &bed.pod(pod)?.v4.to_string()])?;
        let difference = before.difference(&Footprint::of(&bed.pod(pod)?.netns)?);
        ensure!(difference.is_empty(), "{pod} was refused, but changed: {difference:#?}");
    }
    // No pod can be enrolled before both manifests are right: a network namespace that two pods name belongs to neither.
    for pod in ["client-a", "web-a"] {
        bed.mesh.pod(&PodManifest::of(bed.pod(pod)?))?;
    }
    ["client-a", "web-a"].into_iter().try_for_each(|pod| bed.daemon("node-a")?.enrolled(pod))
}

#[test]
fn pod_with_one_address_that_is_not_its_own() -> Result<()> {
    let bed = bed_with(|bed| {
        let pod = bed.pod("client-a")?;
        bed.mesh.pod(&PodManifest::of(pod).addresses(&[&pod.v4.to_string(), "fd00:10:1::99"]))
    })?;
    refused(&bed, "client-a", &["fd00:10:1::99"])
}

#[test]
fn pod_in_the_hosts_network() -> Result<()> {
    let bed = bed_with(|bed| {
        let manifest = PodManifest::of(bed.pod("client-a")?).host_network().no_netns();
        bed.mesh.pod(&manifest.addresses(&["10.10.1.1", "fd00:10:1::1"]))
    })?;
    refused(&bed, "client-a", &["hostnetwork", "host network", "host's network"])?;
    bed.daemon("node-a")?.enrolled("web-a")
}

#[test]
fn pod_in_the_nodes_own_namespace() -> Result<()> {
    let bed = bed_with(|bed| {
        let manifest = PodManifest::of(bed.pod("client-a")?).netns(bed.topology.node("node-a")?.netns.path());
        bed.mesh.pod(&manifest.addresses(&["10.10.1.1", "fd00:10:1::1"]))
    })?;
    refused(&bed, "client-a", &["host", "own namespace", "own network namespace", "node's"])
}

#[test]
fn pod_without_a_namespace() -> Result<()> {
    let bed = bed_with(|bed| bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).no_netns()))?;
    refused(&bed, "client-a", &["netns"])
}

#[test]
fn pod_whose_namespace_does_not_exist() -> Result<()> {
    let missing = "/run/netns/zt-there-is-no-such";
    let bed = bed_with(|bed| bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).netns(missing.as_ref())))?;
    refused(&bed, "client-a", &[missing])?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?))?;
    bed.daemon("node-a")?.enrolled("client-a")
}

#[test]
fn pod_whose_namespace_is_a_plain_file() -> Result<()> {
    let bed = bed_with(|bed| {
        let file = bed.topology.folder.join("no-namespace");
        std::fs::write(&file, "no namespace")?;
        bed.mesh.pod(&PodManifest::of(bed.pod("client-a")?).netns(&file))
    })?;
    refused(&bed, "client-a", &["no-namespace"])
}

#[test]
fn the_map_of_pods_is_full() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_with("node-a", |options| options.arguments = vec!["--max-pods".to_owned(), "1".to_owned()])?;
    let manifest = |pod: &str| Ok::<_, anyhow::Error>(PodManifest::of(bed.pod(pod)?).mode("ambient"));
    bed.mesh.pod(&manifest("web-a")?)?;
    bed.daemon("node-a")?.enrolled("web-a")?;
    let before = Footprint::of(&bed.pod("client-a")?.netns)?;
    bed.mesh.pod(&manifest("client-a")?)?;
    refused(&bed, "client-a", &["max-pods", "max_pods", "full", "capacity"])?;
    let difference = before.difference(&Footprint::of(&bed.pod("client-a")?.netns)?);
    ensure!(difference.is_empty(), "the refused pod was changed: {difference:#?}");
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V6, PORT))?;
    proof::outbound(&bed, "web-a", &echo, Pod::connect)?;
    bed.mesh.pod(&manifest("web-a")?.mode("none"))?;
    bed.daemon("node-a")?.released("web-a")?;
    wait::until("room for the refused pod", wait::PATIENCE, || Ok(bed.daemon("node-a")?.enrolled("client-a").ok()))?;
    Ok(())
}

#[test]
fn a_pod_without_ipv6_works_over_ipv4() -> Result<()> {
    let bed = bed_with(|bed| {
        let pod = bed.pod("client-a")?;
        pod.netns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        pod.netns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        bed.mesh.pod(&PodManifest::of(pod).addresses(&[&pod.v4.to_string()]))
    })?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    let echo = Server::echo(client, client.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", "client-a", &echo, echo.address())?;
    // The same error as from the kernel, so programs that try both families continue with the other family.
    let error = client.connect(web.at(Family::V6, PORT)).err().context("there is no IPv6 here")?;
    ensure!(format!("{error:#}").contains("unreachable"), "{error:#}");
    Ok(())
}
