use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::super::kept::{Journal, Record, encode};
use super::super::tests::{control_plane, pod, response, workload};
use super::{Link, RemoteMesh};
use crate::control::backoff::LONGEST;
use crate::control::source::MeshSource as _;
use crate::istio::discovery::{ADDRESS, AUTHORIZATION};
use crate::lifecycle::tasks::TaskCount;
use crate::store::snapshot::Snapshot;

const HOUR: Duration = Duration::from_secs(3600);

/// The file of the roots does not exist, so every attempt fails before it reaches the network.
#[tokio::test(start_paused = true)]
async fn an_hour_without_a_control_plane_changes_nothing_and_costs_an_attempt_every_few_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Arc::new(control_plane());
    let file = dir.path().join("mesh");
    let mut journal = Journal::open(&file, &plane.url.to_string(), |_| {}).unwrap();
    let pods = vec![workload("1", pod("a", [10, 0, 0, 1]))];
    for response in [response(ADDRESS, "1", pods, &[]), response(AUTHORIZATION, "1", Vec::new(), &[])] {
        journal.append(&encode(&Record { at: 1_800_000_000, response: Some(response) })).unwrap();
    }
    let mut source = RemoteMesh::new(Arc::clone(&plane), file, TaskCount::default());
    let mut mesh = Snapshot::default().apply(source.next().await.unwrap());
    assert_eq!(mesh.counts().workloads, 1);
    mesh = mesh.apply(source.next().await.unwrap());
    let problem = mesh.problems()[0].to_string();
    assert!(problem.contains("/nowhere") && problem.contains("the mesh stays as it was at 2027-01-15"), "{problem}");
    let before = tokio::time::Instant::now();
    assert!(timeout(HOUR, source.next()).await.is_err(), "one outage is told once");
    assert_eq!(before.elapsed(), HOUR);
    let Link::Waiting(next) = &source.link else { panic!("an attempt that fails at once is over") };
    assert!(next.saturating_duration_since(tokio::time::Instant::now()) <= LONGEST);
    assert!(source.backoff.after(Duration::ZERO) >= LONGEST / 2, "it has backed off");
    assert_eq!((mesh.counts().workloads, mesh.is_blind()), (1, false));
}
