//! Certificates from a control plane.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tonic::Status;

use super::plane::{Ca, Plane, within};
use crate::control::remote::RemoteAuthority;
use crate::identity::source::CertSource as _;
use crate::istio::LONGEST_ANSWER;
use crate::istio::certificate::IMPERSONATED_IDENTITY;
use crate::lifecycle::tasks::TaskCount;
use crate::model::cause::causes;
use crate::model::identity::SpiffeId;

const TTL: Duration = Duration::from_secs(3600);

fn identity() -> SpiffeId {
    "spiffe://cluster.local/ns/demo/sa/web".parse().unwrap()
}

#[tokio::test]
async fn a_certificate_is_asked_for_by_the_identity_that_it_is_for() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("one"));
    let plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = Arc::new(plane.reached(dir.path(), &ca, "secret"));
    let authority = RemoteAuthority::open(Arc::clone(&reached), TTL, TaskCount::default());
    let ca = Arc::new(ca);
    let (signer, asked) = (Arc::clone(&ca), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&asked);
    plane.sign(move |request, token| {
        let identity = request.metadata.as_ref().and_then(|metadata| metadata.string(IMPERSONATED_IDENTITY));
        seen.lock().unwrap().push(format!("{identity:?} {token:?} {}", request.validity_duration));
        Ok(vec![signer.sign(&request.csr), signer.pem()])
    });
    let credentials = within(authority.issue(&identity())).await.unwrap();
    assert!(credentials.identity == identity() && credentials.is_valid(SystemTime::now()));
    assert_eq!((credentials.chain.len(), credentials.roots.len()), (1, 1));
    std::fs::write(dir.path().join("token"), "renewed").unwrap();
    let again = within(authority.issue(&identity())).await.unwrap();
    assert_ne!(again.key, credentials.key, "each has a key of its own");
    let told = |token: &str| format!("Some(\"spiffe://cluster.local/ns/demo/sa/web\") Some(\"Bearer {token}\") 3600");
    assert_eq!(*asked.lock().unwrap(), [told("secret"), told("renewed")]);
}

#[tokio::test]
async fn an_authority_that_refuses_is_quoted_and_one_that_goes_is_connected_to_anew() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Arc::new(Ca::new("one")));
    let plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = Arc::new(plane.reached(dir.path(), &ca, "t"));
    let authority = RemoteAuthority::open(reached, TTL, TaskCount::default());
    let issue = async || within(authority.issue(&identity())).await.map(drop).map_err(|error| causes(&error));
    plane.sign(|_, _| Err(Status::permission_denied("not a pod of your node")));
    assert!(issue().await.unwrap_err().contains("not a pod of your node"));
    let (signer, other) = (Arc::clone(&ca), Ca::new("other"));
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), other.pem()]));
    let refused = issue().await.unwrap_err();
    assert!(refused.contains("does not lead to the roots of the answer"), "{refused}");
    let address = plane.stop().await;
    assert!(issue().await.is_err());
    let plane = Plane::start(&ca, "127.0.0.1", Some(address)).await;
    let signer = Arc::clone(&ca);
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), signer.pem()]));
    // The first attempt may fail, because the old connection is gone.
    while issue().await.is_err() {}
}

/// One of several replicas may hang and still answer pings: the next request uses a new connection, which may lead to another
/// replica.
#[tokio::test]
async fn an_authority_that_does_not_answer_is_connected_to_anew() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Arc::new(Ca::new("one")));
    let plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = Arc::new(plane.reached(dir.path(), &ca, "t"));
    let authority = RemoteAuthority::open_within(Duration::from_millis(100), reached, TTL, TaskCount::default());
    let signer = Arc::clone(&ca);
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), signer.pem()]));
    plane.leave_the_first_connection_unanswered();
    let silent = causes(&within(authority.issue(&identity())).await.unwrap_err());
    assert!(silent.contains("no answer within 100ms"), "{silent}");
    // A loaded machine may miss the deadline, but not always.
    within(async { while authority.issue(&identity()).await.is_err() {} }).await;
}

/// A certificate has some kilobytes: a longer answer is refused by its length alone, and is not kept.
#[tokio::test]
async fn an_answer_without_measure_is_not_read() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Arc::new(Ca::new("one")));
    let plane = Plane::start(&ca, "127.0.0.1", None).await;
    let reached = Arc::new(plane.reached(dir.path(), &ca, "t"));
    let authority = RemoteAuthority::open(reached, TTL, TaskCount::default());
    let signer = Arc::clone(&ca);
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), signer.pem().repeat(LONGEST_ANSWER / 400)]));
    let refused = causes(&within(authority.issue(&identity())).await.unwrap_err());
    assert!(refused.contains("too large"), "{refused}");
    // Many roots are still read.
    let signer = Arc::clone(&ca);
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), signer.pem().repeat(300)]));
    assert_eq!(within(authority.issue(&identity())).await.unwrap().roots.len(), 300);
}

#[tokio::test]
async fn every_certificate_is_fetched_anew_when_the_roots_are_replaced() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), Ca::new("old"), Arc::new(Ca::new("new")));
    let plane = Plane::start(&new, "127.0.0.1", None).await;
    let authority = RemoteAuthority::open(Arc::new(plane.reached(dir.path(), &old, "t")), TTL, TaskCount::default());
    let signer = Arc::clone(&new);
    plane.sign(move |request, _| Ok(vec![signer.sign(&request.csr), signer.pem()]));
    let refused = causes(&within(authority.issue(&identity())).await.unwrap_err());
    assert!(refused.contains("not issued by any of the roots"), "{refused}");
    let mut generation = authority.generation();
    std::fs::write(dir.path().join("root.pem"), new.pem()).unwrap();
    within(generation.changed()).await.unwrap();
    within(authority.issue(&identity())).await.unwrap();
}
