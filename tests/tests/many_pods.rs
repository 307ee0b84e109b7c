//! As many pods as a node of Kubernetes may have: how long their enrolment takes, and how much memory they cost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};

const PODS: u32 = 250;

/// The longest time for one enrolment, on average, when all pods of a node are enrolled at once.
const EACH: Duration = Duration::from_millis(50);

/// The most memory of the daemon for an enrolled pod without connections.
const MEMORY: u64 = 256 << 10;

#[test]
fn two_hundred_and_fifty_pods_are_enrolled_in_time_and_cost_little() -> Result<()> {
    let names: Vec<String> = (0..PODS).map(|number| format!("pod-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bed = Testbed::new(&[("node-a", &names), ("node-b", &["web-b"])])?;
    bed.start("node-a")?;
    let daemon = bed.daemon("node-a")?;
    let idle = daemon.memory()?;
    let begun = Instant::now();
    bed.mesh.label()?;
    daemon.wait_dump("all pods are enrolled", EACH * PODS * 2, |dump| dump.enrolled() == PODS as usize)?;
    let (took, memory) = (begun.elapsed(), daemon.memory()?);
    let each = memory.saturating_sub(idle) / u64::from(PODS);
    println!(
        "{PODS} pods: enrolled in {took:.2?}, {:.1?} each; {each} bytes each, from {idle} to {memory}",
        took / PODS
    );
    ensure!(took < EACH * PODS, "the enrolment of a pod takes {:?}", took / PODS);
    ensure!(each < MEMORY, "an enrolled pod takes {each} bytes");

    // The first and the last are served.
    let outer = bed.pod("web-b")?;
    let echo = Server::echo(outer, outer.at(Family::V4, 7000))?;
    for name in names.first().into_iter().chain(names.last()) {
        proof::outbound(&bed, name, &echo, Pod::connect)?;
    }
    let begun = Instant::now();
    bed.mesh.unlabel()?;
    daemon.wait_dump("all pods are released", EACH * PODS * 2, |dump| dump.enrolled() == 0)?;
    println!("released in {:.2?}", begun.elapsed());
    Ok(())
}
