//! Streams of delta xDS, from correct and from faulty control planes.

use std::path::Path;
use std::sync::Arc;

use tonic::Status;

use super::plane::{Ca, Opened, Plane, within};
use super::{pod, policy, response, service, strict, web, workload};
use crate::control::remote::RemoteMesh;
use crate::control::remote::plane::ControlPlane;
use crate::control::source::MeshSource as _;
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, Resource};
use crate::istio::workload::Workload;
use crate::lifecycle::tasks::TaskCount;
use crate::store::snapshot::Snapshot;

pub(crate) fn source(plane: &ControlPlane, dir: &Path) -> RemoteMesh {
    RemoteMesh::new(Arc::new(plane.clone()), dir.join("mesh"), TaskCount::default())
}

/// A mesh that follows a source.
pub(super) struct Follower {
    pub(super) source: RemoteMesh,
    pub(super) mesh: Snapshot,
}

impl Follower {
    pub(super) fn new(source: RemoteMesh) -> Self {
        Self { source, mesh: Snapshot::default() }
    }

    pub(super) async fn next(&mut self) -> &Snapshot {
        let batch = within(self.source.next()).await.unwrap();
        self.mesh = self.mesh.apply(batch);
        &self.mesh
    }

    /// Follows until the mesh is as wanted.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Snapshot) -> bool) -> &Snapshot {
        while !wanted(&self.mesh) {
            self.next().await;
        }
        &self.mesh
    }

    pub(super) fn has(&self, pod: &str) -> bool {
        self.mesh.workloads().any(|workload| *workload.name.name == *pod)
    }

    pub(super) fn problems(&self) -> String {
        self.mesh.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }
}

/// Answers the requests of a stream for addresses and policies, and returns the requests.
async fn answer(
    stream: &mut Opened,
    addresses: Vec<Resource>,
    policies: Vec<Resource>,
) -> [crate::istio::discovery::DeltaDiscoveryRequest; 2] {
    let _settings_and_objects = [stream.request().await, stream.request().await];
    let first = [stream.request().await, stream.request().await];
    stream.send(response(ADDRESS, "a1", addresses, &[]));
    stream.send(response(AUTHORIZATION, "p1", policies, &[]));
    first
}

pub(super) fn a() -> Resource {
    workload("1", pod("a", [10, 0, 0, 1]))
}

/// Runs the source during other work of the test.
pub(super) async fn while_following<T>(follower: &mut Follower, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            batch = follower.source.next() => follower.mesh = follower.mesh.apply(batch.unwrap()),
        }
    }
}

#[tokio::test]
async fn a_mesh_is_there_when_both_types_have_been_answered_and_follows_changes() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let mut follower = Follower::new(source(&plane.reached(dir.path(), &ca, "secret\n"), dir.path()));
    let mut stream = while_following(&mut follower, async {
        let mut stream = plane.stream().await;
        let _settings_and_objects = [stream.request().await, stream.request().await];
        let [addresses, _] = [stream.request().await, stream.request().await];
        assert_eq!((stream.token.as_deref(), addresses.initial_resource_versions.len()), (Some("Bearer secret"), 0));
        stream.send(response(ADDRESS, "a1", vec![a(), service("1", web())], &[]));
        let ack = stream.request().await;
        assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str(), ack.error_detail), (ADDRESS, "a1", None));
        stream
    })
    .await;
    assert_eq!(follower.mesh.version(), 0, "policies may deny what one type alone would allow");
    stream.send(response(AUTHORIZATION, "p1", vec![policy("1", &strict("p", 1))], &[]));
    let mesh = follower.until(|mesh| mesh.version() > 0).await;
    assert_eq!((mesh.counts().workloads, mesh.policies().authorization().len()), (1, 1));
    assert!(!mesh.is_partial() && !mesh.is_blind() && mesh.knows_node("node-a"), "{:?}", mesh.problems());
    // The same nonce again, a type that was not requested, and one bad resource among good ones.
    stream.send(response("type.googleapis.com/x.Y", "x", Vec::new(), &[]));
    let bad = workload("1", Workload { tunnel_protocol: 2, ..pod("bad", [10, 0, 0, 8]) });
    stream.send(response(ADDRESS, "a1", vec![bad, workload("1", pod("b", [10, 0, 0, 2]))], &[]));
    follower.until(|mesh| mesh.counts().workloads == 2).await;
    let nacks = while_following(&mut follower, async {
        let requests = [stream.request().await, stream.request().await, stream.request().await];
        requests.map(|request| (request.response_nonce, request.error_detail.map(|detail| detail.message)))
    })
    .await;
    assert_eq!(nacks[0], ("p1".into(), None));
    assert_eq!(nacks[1], ("x".into(), None));
    assert!(nacks[2].0 == "a1" && nacks[2].1.as_ref().unwrap().contains("demo/bad"), "{nacks:?}");
    assert!(follower.mesh.is_partial() && !follower.mesh.is_blind());
    stream.send(response(ADDRESS, "a3", Vec::new(), &["c1//Pod/demo/a", "c1//Pod/demo/b"]));
    follower.until(|mesh| mesh.counts().workloads == 0).await;
}

/// Then nothing is known of the mesh, as if no response had come.
#[tokio::test]
async fn be_ready_on_a_control_plane_of_which_every_resource_is_refused() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let mut follower = Follower::new(source(&plane.reached(dir.path(), &ca, "secret\n"), dir.path()));
    let bad = |name| workload("1", Workload { tunnel_protocol: 2, ..pod(name, [10, 0, 0, 8]) });
    let stream = while_following(&mut follower, async {
        let mut stream = plane.stream().await;
        answer(&mut stream, vec![bad("x"), bad("y")], Vec::new()).await;
        stream
    })
    .await;
    follower.until(|mesh| mesh.problems().iter().any(|problem| problem.to_string().contains("demo/y"))).await;
    assert_eq!(follower.mesh.version(), 0, "{}", follower.problems());
    assert!(follower.mesh.is_partial() && follower.mesh.is_blind());
    stream.send(response(ADDRESS, "a2", vec![a()], &[]));
    follower.until(|mesh| mesh.version() > 0).await;
    assert!(follower.has("a") && follower.problems().contains("demo/x"), "{}", follower.problems());
    // A mesh that was read once counts as read, whatever happens to it.
    let version = follower.mesh.version();
    stream.send(response(ADDRESS, "a3", Vec::new(), &["c1//Pod/demo/a"]));
    follower.until(|mesh| mesh.counts().workloads == 0).await;
    assert!(follower.mesh.version() > version);
}

#[tokio::test]
async fn a_stream_that_breaks_is_made_anew_with_what_is_known_and_a_fresh_token() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = plane.reached(dir.path(), &ca, "first");
    let mut follower = Follower::new(source(&reached, dir.path()));
    let mut stream = while_following(&mut follower, plane.stream()).await;
    while_following(&mut follower, answer(&mut stream, vec![a()], vec![policy("7", &strict("p", 1))])).await;
    follower.until(|mesh| mesh.version() > 0).await;
    std::fs::write(dir.path().join("token"), "second").unwrap();
    stream.fail(Status::unauthenticated("the token has expired"));
    follower.until(|mesh| !mesh.problems().is_empty()).await;
    assert!(follower.problems().contains("the token has expired") && follower.has("a"), "{}", follower.problems());
    let mut stream = while_following(&mut follower, plane.stream()).await;
    assert_eq!(stream.token.as_deref(), Some("Bearer second"));
    let first = while_following(&mut follower, answer(&mut stream, Vec::new(), Vec::new())).await;
    assert_eq!(first[0].initial_resource_versions, [("c1//Pod/demo/a".to_owned(), "1".to_owned())].into());
    assert_eq!(first[1].initial_resource_versions, [("demo/p".to_owned(), "7".to_owned())].into());
    follower.until(|mesh| mesh.problems().is_empty()).await;
    // The whole control plane stops during a change, and starts again.
    stream.send(response(ADDRESS, "a2", vec![workload("1", pod("b", [10, 0, 0, 2]))], &[]));
    follower.until(|mesh| mesh.counts().workloads == 2).await;
    let address = plane.stop().await;
    follower.until(|mesh| !mesh.problems().is_empty()).await;
    assert!(follower.has("a") && follower.has("b"));
    let mut plane = Plane::start(&ca, "127.0.0.1", Some(address)).await;
    let mut stream = while_following(&mut follower, plane.stream()).await;
    let first = while_following(&mut follower, answer(&mut stream, Vec::new(), Vec::new())).await;
    assert_eq!(first[0].initial_resource_versions.len(), 2);
    follower.until(|mesh| mesh.problems().is_empty()).await;
}

#[tokio::test]
async fn a_control_plane_is_known_by_its_name_and_roots_that_may_be_replaced() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), Ca::new("old"), Ca::new("new"));
    let mut plane = Plane::start(&new, "istiod.example", None).await;
    let reached = plane.reached(dir.path(), &old, "t");
    let mut follower = Follower::new(source(&reached, dir.path()));
    follower.until(|mesh| !mesh.problems().is_empty()).await;
    let problems = follower.problems();
    assert!(
        problems.contains("not issued by any of the roots") && problems.contains("--control-plane-root"),
        "{problems}"
    );
    assert_eq!(follower.mesh.version(), 0, "nothing is known");
    std::fs::write(dir.path().join("root.pem"), format!("{}{}", old.pem(), new.pem())).unwrap();
    follower
        .until(|mesh| mesh.problems().iter().any(|problem| problem.message.contains("is not valid for 127.0.0.1")))
        .await;
    let reached = ControlPlane { alternative_name: Some("istiod.example".into()), ..reached };
    let mut follower = Follower::new(source(&reached, dir.path()));
    let mut stream = while_following(&mut follower, plane.stream()).await;
    while_following(&mut follower, answer(&mut stream, vec![a()], Vec::new())).await;
    follower.until(|mesh| mesh.counts().workloads == 1).await;
}

#[tokio::test]
async fn a_daemon_that_starts_while_the_control_plane_is_away_knows_what_was_said_last() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = plane.reached(dir.path(), &ca, "t");
    let mut follower = Follower::new(source(&reached, dir.path()));
    let mut stream = while_following(&mut follower, plane.stream()).await;
    let bad = workload("1", Workload { tunnel_protocol: 2, ..pod("bad", [10, 0, 0, 8]) });
    while_following(&mut follower, answer(&mut stream, vec![a(), bad], vec![policy("7", &strict("p", 1))])).await;
    stream.send(response(ADDRESS, "a2", vec![workload("2", pod("b", [10, 0, 0, 2]))], &["c1//Pod/demo/a"]));
    follower.until(|mesh| mesh.workloads().any(|workload| &*workload.name.name == "b")).await;
    within(follower.source.settled()).await;
    plane.stop().await;
    drop(follower);

    let mut follower = Follower::new(source(&reached, dir.path()));
    let mesh = follower.next().await;
    assert_eq!((mesh.version(), mesh.counts().workloads, mesh.policies().authorization().len()), (1, 1, 1));
    assert!(mesh.is_partial() && mesh.is_blind(), "it may be old, and one workload was never readable");
    let is_told = |mesh: &Snapshot| {
        mesh.problems().iter().any(|problem| problem.message.contains("the mesh stays as it was at 20"))
    };
    follower.until(is_told).await;
    let problems = follower.problems();
    assert!(problems.contains("demo/bad") && problems.contains("never been readable"), "{problems}");
    assert!(follower.has("b") && !follower.has("a"));

    // For another control plane no state is kept.
    let other = ControlPlane { url: "https://127.0.0.1:2".parse().unwrap(), ..reached };
    let mut follower = Follower::new(source(&other, dir.path()));
    assert_eq!(follower.next().await.version(), 0);
}

#[tokio::test]
async fn a_token_that_is_missing_is_named() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = plane.reached(dir.path(), &ca, "t");
    for content in ["", "two words", "not\u{e9}ascii"] {
        std::fs::write(dir.path().join("token"), content).unwrap();
        let mut follower = Follower::new(source(&reached, dir.path()));
        follower.until(|mesh| !mesh.problems().is_empty()).await;
        assert!(follower.problems().contains("--control-plane-token"), "{}", follower.problems());
    }
}
