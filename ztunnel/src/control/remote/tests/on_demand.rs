//! Addresses on demand, with a control plane whose answers come from the test: it sends the resource, has no such resource, is
//! silent, or refuses.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::plane::{Ca, Opened, Plane, within};
use super::streams::{Follower, a, source, while_following};
use super::{pod, policy, response, service, strict, web, workload};
use crate::control::remote::plane::ControlPlane;
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, SETTINGS};
use crate::istio::workload::{NetworkAddress, Service, Workload};
use crate::model::workload::NamespacedName;
use crate::store::demand::{Demand, DemandLimits, Unresolved};

fn limits() -> DemandLimits {
    DemandLimits { timeout: Duration::from_secs(30), ..DemandLimits::default() }
}

fn follower(plane: &ControlPlane, dir: &Path, demand: &Demand) -> Follower {
    Follower::new(source(plane, dir).on_demand(demand.clone()))
}

/// Checks the types of the first requests, and returns the request for addresses.
async fn begin(stream: &mut Opened) -> DeltaDiscoveryRequest {
    let [settings, addresses, policies] = [stream.request().await, stream.request().await, stream.request().await];
    let types = [settings.type_url.as_str(), addresses.type_url.as_str(), policies.type_url.as_str()];
    assert_eq!(types, [SETTINGS, ADDRESS, AUTHORIZATION], "details of policies are not asked for");
    let star = ["*".to_owned()];
    assert_eq!(
        (&addresses.resource_names_subscribe[..], &addresses.resource_names_unsubscribe[..]),
        (&star[..], &star[..])
    );
    stream.send(response(AUTHORIZATION, "p1", vec![policy("1", &strict("p", 1))], &[]));
    addresses
}

/// The next request that is not an answer.
async fn next(stream: &mut Opened) -> DeltaDiscoveryRequest {
    loop {
        let request = stream.request().await;
        if request.response_nonce.is_empty() {
            assert_eq!(request.type_url, ADDRESS);
            return request;
        }
    }
}

fn own(demand: &Demand, pods: &[&str]) {
    demand.set_own(pods.iter().map(|name| NamespacedName::new("demo", *name)).collect());
}

#[tokio::test]
async fn an_address_is_asked_for_when_a_connection_needs_it() {
    let (dir, ca, demand) = (tempfile::tempdir().unwrap(), Ca::new("one"), Demand::new(limits()));
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let mut follower = follower(&plane.reached(dir.path(), &ca, "t"), dir.path(), &demand);
    let mut stream = while_following(&mut follower, plane.stream()).await;
    let first = while_following(&mut follower, begin(&mut stream)).await;
    assert!(first.initial_resource_versions.is_empty());
    follower.until(|mesh| mesh.version() > 0).await;
    assert!(follower.mesh.is_partial() && !follower.mesh.is_blind(), "this node's own pods are not known yet");
    own(&demand, &["a"]);
    let request = while_following(&mut follower, next(&mut stream)).await;
    assert_eq!(request.resource_names_subscribe, ["c1//Pod/demo/a"]);
    stream.send(response(ADDRESS, "a1", vec![a()], &[]));
    follower.until(|mesh| !mesh.is_partial()).await;
    assert!(follower.has("a"));

    // A service, and the workloads behind it.
    let vip = "10.96.0.1".parse().unwrap();
    let connection = demand.known(vip, Instant::now());
    tokio::pin!(connection);
    let asked = while_following(&mut follower, async {
        tokio::select! {
            known = &mut connection => panic!("{known:?} before it was asked for"),
            request = next(&mut stream) => request,
        }
    });
    assert_eq!(asked.await.resource_names_subscribe, ["/10.96.0.1"]);
    stream.send(response(ADDRESS, "a2", vec![service("1", web()), workload("1", pod("b", [10, 0, 0, 2]))], &[]));
    while_following(&mut follower, &mut connection).await.unwrap();
    assert_eq!(
        follower.mesh.services_named("web.demo.svc.cluster.local")[0].endpoints.len(),
        2,
        "it is published before"
    );
    // The address is known now, and not requested again.
    within(demand.known(vip, Instant::now())).await.unwrap();

    // An address without a resource is known as such.
    let nowhere = "203.0.113.9".parse().unwrap();
    let (known, request) = while_following(&mut follower, async {
        tokio::join!(demand.known(nowhere, Instant::now()), async {
            let request = next(&mut stream).await;
            stream.send(response(ADDRESS, "a3", Vec::new(), &["/203.0.113.9"]));
            request
        })
    })
    .await;
    assert_eq!((known, request.resource_names_subscribe), (Ok(()), vec!["/203.0.113.9".to_owned()]));
    // When the resource is created, the control plane sends it.
    stream.send(response(ADDRESS, "a4", vec![workload("1", pod("c", [203, 0, 113, 9]))], &[]));
    follower.until(|mesh| mesh.workload_at(nowhere).is_some()).await;

    // An address in an IP block of a service.
    let range = NetworkAddress { address: vec![198, 51, 100, 0].into(), length: Some(24), ..NetworkAddress::default() };
    let ranged = Service { addresses: vec![range], hostname: "r.example".into(), name: "r".into(), ..web() };
    let known = while_following(&mut follower, async {
        tokio::join!(demand.known("198.51.100.7".parse().unwrap(), Instant::now()), async {
            next(&mut stream).await;
            stream.send(response(ADDRESS, "a5", vec![service("1", ranged)], &[]));
        })
    });
    assert_eq!(known.await.0, Ok(()));
}

#[tokio::test]
async fn a_silent_control_plane_makes_a_connection_fail_in_time_and_is_asked_again_on_the_next_stream() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let demand = Demand::new(DemandLimits { timeout: Duration::from_millis(300), ..limits() });
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let mut follower = follower(&plane.reached(dir.path(), &ca, "t"), dir.path(), &demand);
    own(&demand, &["a"]);
    let address = "10.0.0.2".parse().unwrap();
    // There is no control plane yet.
    let error = demand.known(address, Instant::now()).await.unwrap_err();
    assert_eq!(error, Unresolved::Silence { address, waited: Duration::from_millis(300) });
    let mut stream = while_following(&mut follower, plane.stream()).await;
    let first = while_following(&mut follower, begin(&mut stream)).await;
    let names: Vec<&str> = first.initial_resource_versions.keys().map(String::as_str).collect();
    assert_eq!(names, ["/10.0.0.2", "c1//Pod/demo/a"]);
    // The control plane does not answer; an unreadable pod is no answer either.
    let bad = workload("1", Workload { tunnel_protocol: 2, ..pod("b", [10, 0, 0, 2]) });
    stream.send(response(ADDRESS, "a1", vec![a(), bad], &[]));
    let error = while_following(&mut follower, demand.known(address, Instant::now())).await.unwrap_err();
    assert!(error.to_string().contains("has not answered"), "{error}");
    // The control plane refuses, and the request is repeated.
    stream.fail(Status::permission_denied("the node is not known"));
    let mut stream = while_following(&mut follower, plane.stream()).await;
    let first = while_following(&mut follower, begin(&mut stream)).await;
    let known: BTreeSet<(&str, &str)> =
        first.initial_resource_versions.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    assert_eq!(known, [("/10.0.0.2", ""), ("c1//Pod/demo/a", "1")].into());
    stream.send(response(ADDRESS, "a1", vec![workload("2", pod("b", [10, 0, 0, 2]))], &[]));
    follower.until(|mesh| mesh.workload_at(address).is_some() && mesh.problems().is_empty()).await;
    while_following(&mut follower, async { while demand.known(address, Instant::now()).await.is_err() {} }).await;
}

#[tokio::test]
async fn what_no_connection_uses_any_more_is_given_up_and_forgotten() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let demand = Demand::new(DemandLimits { idle: Duration::from_millis(500), ..limits() });
    let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = plane.reached(dir.path(), &ca, "t");
    let mut follower = follower(&reached, dir.path(), &demand);
    own(&demand, &["a"]);
    let mut stream = while_following(&mut follower, plane.stream()).await;
    while_following(&mut follower, begin(&mut stream)).await;
    stream.send(response(ADDRESS, "a1", vec![a()], &[]));
    let known = while_following(&mut follower, async {
        tokio::join!(
            demand.known("10.96.0.1".parse().unwrap(), Instant::now()),
            demand.known("192.0.2.1".parse().unwrap(), Instant::now()),
            async {
                stream.send(response(
                    ADDRESS,
                    "a2",
                    vec![service("1", web()), workload("1", pod("b", [10, 0, 0, 2]))],
                    &[],
                ));
                stream.send(response(ADDRESS, "a3", Vec::new(), &["/192.0.2.1"]));
            }
        )
    });
    known.await.0.unwrap();
    assert!(follower.has("a") && follower.has("b"));
    let given_up = while_following(&mut follower, async {
        let mut given_up = BTreeSet::new();
        while given_up.len() < 4 {
            given_up.extend(next(&mut stream).await.resource_names_unsubscribe);
        }
        given_up
    })
    .await;
    let names = ["/10.96.0.1", "/192.0.2.1", "c1//Pod/demo/b", "demo/web.demo.svc.cluster.local"];
    assert_eq!(given_up, names.map(str::to_owned).into());
    follower.until(|mesh| mesh.services().len() == 0).await;
    assert!(follower.has("a") && !follower.has("b"), "the node's own pod stays");
    // A daemon that starts later does not know the resource either.
    within(follower.source.settled()).await;
    drop(follower);
    plane.stop().await;
    let demand = Demand::new(limits());
    let mut later = self::follower(&reached, dir.path(), &demand);
    later.next().await;
    assert!(later.has("a") && !later.has("b"));
}
