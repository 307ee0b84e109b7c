//! A control plane that is away for an hour of simulated time, and two nodes that get the mesh and their certificates from it.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{advance, pause, sleep},
};

use super::{
    GUEST, SERVICE, WEB,
    nodes::{MESH, World, echo, eventually, is_reset, meanwhile},
};
use crate::{
    control::remote::{
        RemoteAuthority,
        tests::{
            decisions::Relay,
            plane::{Ca, Opened, Plane},
            streams::source,
        },
    },
    hbone::tests::local,
    identity::source::CertSource,
    istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    lifecycle::tasks::TaskCount,
    pods::describe::PodState,
};

const MINUTES: Duration = Duration::from_secs(60);
/// The validity of the certificates from now on.
const VALIDITY: Duration = Duration::from_secs(40 * 60);
/// More than the longest pause between two attempts to reach the control plane.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An application of the client's pod.
const CLIENT: &str = "10.0.0.1:8080";

const DENY_GUEST: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-guest}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.3]}}]}]}
";

/// Signs certificates that are valid for [`VALIDITY`].
fn sign(plane: &Plane, ca: &Arc<Ca>) {
    let ca = Arc::clone(ca);
    plane.sign(move |request, _| Ok(vec![ca.sign_for(&request.csr, VALIDITY), ca.pem()]));
}

/// Receives the first requests of a stream, and sends these responses. Returns the requests.
async fn answer(stream: &mut Opened, responses: [DeltaDiscoveryResponse; 2]) -> Vec<DeltaDiscoveryRequest> {
    let mut requests = Vec::new();
    for _ in 0..4 {
        requests.push(stream.request().await);
    }
    responses.into_iter().for_each(|response| stream.send(response));
    for _ in 0..2 {
        assert_eq!(stream.request().await.error_detail, None);
    }
    requests
}

/// A new connection is carried.
async fn carried(world: &World, from: &str, to: &str, application: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = world.network.connect(from, to).await.unwrap();
    let (mut server, _) = application.accept().await.unwrap();
    echo(&mut client, &mut server).await;
    (client, server)
}

/// A new connection is reset before it reaches the application.
async fn refused(world: &World, from: &str, to: &str) {
    let mut client = world.network.connect(from, to).await.unwrap();
    assert!(is_reset(&mut client).await, "{from} to {to}");
}

/// The states of a node's certificates.
async fn certificates(world: &World, node: &str) -> Vec<String> {
    world.node(node).describe().await.certificates.into_iter().map(|certificate| certificate.state).collect()
}

#[tokio::test]
async fn two_nodes_go_on_for_an_hour_without_their_control_plane() {
    local(async {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Arc::new(Ca::new("one")));
        let mut plane = Plane::start(&ca, "127.0.0.1", None).await;
        sign(&plane, &ca);
        let reached = plane.reached(dir.path(), &ca, "secret");
        let authority = RemoteAuthority::open(Arc::new(reached.clone()), VALIDITY, TaskCount::default());
        let authority: Arc<dyn CertSource> = Arc::new(authority);
        let (world, _feeding) = World::remote(authority, source(&reached, dir.path()));
        let mut relay = Relay::default();
        let mesh = world.local_facts(&format!("{MESH}{DENY_GUEST}"));
        let mut stream = plane.stream().await;
        answer(&mut stream, relay.responses(&mesh)).await;
        for (node, pod) in [("a", "client"), ("b", "web")] {
            eventually("the pods are enrolled", async || {
                world.node(node).pending().is_none() && world.pod(node, pod).await.state == PodState::Enrolled
            })
            .await;
        }
        let (web, back) = (world.network.listen(WEB).await, world.network.listen(CLIENT).await);
        let (mut client, mut server) = carried(&world, "10.0.0.1", SERVICE, &web).await;
        refused(&world, "10.0.0.3", WEB).await;

        drop(stream);
        let address = plane.stop().await;
        pause();
        for quarter in 0..4 {
            sleep(10 * MINUTES).await;
            meanwhile(async {
                echo(&mut client, &mut server).await;
                refused(&world, "10.0.0.3", WEB).await;
                if quarter < 3 {
                    carried(&world, "10.0.0.1", SERVICE, &web).await;
                }
                // An HBONE connection of its own, made after half an hour.
                if quarter == 2 {
                    carried(&world, "10.0.0.2", CLIENT, &back).await;
                }
            })
            .await;
            let problems = world.mesh().problems().iter().map(ToString::to_string).collect::<String>();
            assert!(problems.contains("cannot connect to https://127.0.0.1:"), "{problems}");
        }
        // The certificates have expired. Open connections stay, and new ones have a reason.
        sleep(5 * MINUTES).await;
        meanwhile(async {
            assert_eq!(world.node("a").closed().get("outbound no_certificate"), None);
            for (from, to) in [("10.0.0.1", SERVICE), ("10.0.0.2", CLIENT)] {
                refused(&world, from, to).await;
            }
            for node in ["a", "b"] {
                let counted = async || world.node(node).closed().get("outbound no_certificate") == Some(&1);
                eventually("the reason is counted", counted).await;
            }
            // Plaintext needs no certificate.
            let guest = world.network.listen(GUEST).await;
            carried(&world, "10.0.0.1", GUEST, &guest).await;
        })
        .await;
        let rest = 60 - 45;
        sleep(rest * MINUTES).await;
        meanwhile(echo(&mut client, &mut server)).await;
        for node in ["a", "b"] {
            let states = certificates(&world, node).await;
            let why = states.iter().all(|state| state.starts_with("Unavailable: ") && state.contains("cannot connect"));
            assert!(why && !states.is_empty(), "{states:?}");
        }

        // The control plane is back, without the policy.
        let mut plane = Plane::start(&ca, "127.0.0.1", Some(address)).await;
        sign(&plane, &ca);
        advance(LONGEST_PAUSE).await;
        meanwhile(async {
            let mut stream = plane.stream().await;
            let requests = answer(&mut stream, relay.responses(&world.local_facts(MESH))).await;
            for type_url in [ADDRESS, AUTHORIZATION] {
                let request = requests.iter().find(|request| request.type_url == type_url).unwrap();
                assert!(!request.initial_resource_versions.is_empty(), "the nodes still have everything");
            }
            eventually("no problem is left", async || world.mesh().problems().is_empty()).await;
            eventually("the certificates are renewed", async || {
                let states = [certificates(&world, "a").await, certificates(&world, "b").await].concat();
                states.iter().all(|state| state == "Available")
            })
            .await;
            echo(&mut client, &mut server).await;
            carried(&world, "10.0.0.1", SERVICE, &web).await;
            carried(&world, "10.0.0.2", CLIENT, &back).await;
            // The policy is removed.
            carried(&world, "10.0.0.3", WEB, &web).await;
        })
        .await;
    })
    .await;
}
