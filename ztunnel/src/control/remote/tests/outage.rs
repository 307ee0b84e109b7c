//! A control plane that is away for an hour of simulated time.

use std::time::Duration;

use tokio::time::Instant;

use super::plane::{Ca, Plane};
use super::streams::{Follower, a, source, while_following};
use super::{pod, policy, response, strict, workload};
use crate::control::remote::Contact;
use crate::control::source::MeshSource as _;
use crate::istio::discovery::{ADDRESS, AUTHORIZATION};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_mesh_stays_for_an_hour_without_a_control_plane_and_follows_the_next_one() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let contact = Contact::default();
    let reached = source(&plane.reached(dir.path(), &ca, "secret"), dir.path()).shown_in(contact.clone());
    let mut follower = Follower::new(reached);
    while_following(&mut follower, async {
        let mut stream = plane.stream().await;
        for _ in 0..4 {
            stream.request().await;
        }
        stream.send(response(ADDRESS, "a1", vec![a()], &[]));
        stream.send(response(AUTHORIZATION, "p1", vec![policy("1", &strict("p", 1))], &[]));
        // The answers to both: the daemon has taken them.
        for _ in 0..2 {
            stream.request().await;
        }
    })
    .await;
    follower.until(|mesh| mesh.version() > 0 && !mesh.is_partial()).await;
    follower.source.settled().await;
    assert!(!contact.is_lost());
    let address = plane.stop().await;

    // Nothing answers at the address, so that time passes between two attempts and not during one.
    tokio::time::pause();
    let begin = Instant::now();
    let mut batches = 0;
    while let Ok(batch) = tokio::time::timeout_at(begin + HOUR, follower.source.next()).await {
        follower.mesh = follower.mesh.apply(batch.unwrap());
        batches += 1;
        assert!(batches < 10, "the same outage is reported again and again: {}", follower.problems());
    }
    assert!(begin.elapsed() >= HOUR);
    tokio::time::resume();
    assert!(follower.has("a"), "the mesh stays");
    assert_eq!(follower.mesh.policies().authorization().len(), 1, "policies stay");
    assert!(!follower.mesh.is_blind());
    assert!(contact.is_lost());
    assert!(follower.problems().contains("cannot connect to https://127.0.0.1:"), "{}", follower.problems());

    // The next one is found within the longest pause, and is told what the daemon has.
    let mut plane = Plane::start(&ca, "127.0.0.1", Some(address)).await;
    while_following(&mut follower, async {
        let mut stream = plane.stream().await;
        let requests = [stream.request().await, stream.request().await, stream.request().await, stream.request().await];
        let known = |type_url: &str| {
            let request = requests.iter().find(|request| request.type_url == type_url).unwrap();
            request.initial_resource_versions.len()
        };
        assert_eq!((known(ADDRESS), known(AUTHORIZATION)), (1, 1));
        stream.send(response(ADDRESS, "a2", vec![workload("1", pod("b", [10, 0, 0, 2]))], &[]));
        stream.send(response(AUTHORIZATION, "p2", Vec::new(), &[]));
        stream.request().await;
        stream
    })
    .await;
    follower.until(|mesh| mesh.counts().workloads == 2 && mesh.problems().is_empty()).await;
    assert!(!contact.is_lost());
}
