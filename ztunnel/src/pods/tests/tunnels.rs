//! Tests of the HBONE connections between two nodes, independent of the connections that they carry.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    WEB,
    nodes::{World, echo, eventually, is_reset},
};
use crate::{
    hbone::{
        Settings,
        client::{self, Client, OpenError},
        tests::{buffers, local, plenty},
    },
    lifecycle::tasks::TaskSet,
    model::close::CloseReason,
    tls::{
        ConnectError, Endpoint,
        test_ca::{self, CLIENT, TestCa, WEB as WEB_IDENTITY},
    },
    wire::{
        connect::{ConnectRequest, ConnectResponse},
        refusal::HboneRefusal,
    },
};

const CLIENT_IP: &str = "10.0.0.1";
const HBONE: &str = "10.0.0.2:15008";

/// An HBONE connection to the server's pod that no daemon has made. Its driver is one of the tasks.
async fn tunnel(world: &World, tls: &Endpoint, tasks: &mut TaskSet) -> Result<Client, ConnectError> {
    let stream = world.network.connect_from_outside(CLIENT_IP, HBONE).await.unwrap();
    let (io, _) = tls.connect(stream, &[WEB_IDENTITY.parse().unwrap()], &buffers()).await?;
    let activity = io.activity();
    let (client, driver) =
        client::handshake(io, activity, &Settings::default(), plenty(&Settings::default())).await.unwrap();
    tasks.spawn_local(async move {
        let _end = driver.run().await;
    });
    Ok(client)
}

fn request(authority: &str) -> ConnectRequest {
    ConnectRequest::to(authority.parse().unwrap())
}

/// A connection between the two applications, through the nodes.
async fn connected(world: &World, web: &tokio::net::TcpListener) -> (TcpStream, TcpStream) {
    let client = world.network.connect(CLIENT_IP, WEB).await.unwrap();
    (client, web.accept().await.unwrap().0)
}

#[tokio::test]
async fn whoever_is_not_the_expected_one_gets_no_byte() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        world.authority.mistake(WEB_IDENTITY, "spiffe://cluster.local/ns/default/sa/other");
        eventually("the certificate is renewed", async || {
            let certificates = world.node("b").describe().await.certificates;
            certificates.iter().any(|found| found.identity == WEB_IDENTITY)
        })
        .await;
        let refused = async || {
            let mut client = world.network.connect(CLIENT_IP, WEB).await.unwrap();
            assert!(is_reset(&mut client).await);
            world.node("a").closed().contains_key("outbound tls_failed")
        };
        eventually("another's certificate is refused", refused).await;
        assert!(futures_util::FutureExt::now_or_never(web.accept()).is_none());
        assert_eq!(world.pod("a", "client").await.tunnels, 0);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_leads_to_its_own_pod_only() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        let mut tasks = TaskSet::default();
        let client = tunnel(&world, &world.authority.ca.endpoint(CLIENT), &mut tasks).await.unwrap();
        for (authority, status, reason) in [
            ("10.0.0.3:8080", StatusCode::BAD_REQUEST, CloseReason::NotThisPod),
            ("127.0.0.1:80", StatusCode::BAD_REQUEST, CloseReason::NotThisPod),
            (HBONE, StatusCode::SERVICE_UNAVAILABLE, CloseReason::Recursive),
            ("10.0.0.2:81", StatusCode::SERVICE_UNAVAILABLE, CloseReason::ConnectRefused),
        ] {
            let Err(OpenError::Refused(response)) = client.connect(&request(authority), SOON).await else {
                panic!("{authority} is not refused");
            };
            let ConnectResponse { status: found, refusal, .. } = response;
            assert_eq!(found, status, "{authority}");
            assert_eq!(refusal.as_ref().and_then(HboneRefusal::close_reason), Some(reason), "{authority}");
        }
        let host = "web.default.svc.cluster.local:80";
        let (_tunnel, _) = client.connect(&request(host), SOON).await.unwrap();
        web.accept().await.unwrap();
    })
    .await;
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_tunnel_is_cut_where_the_root_of_its_peer_is_taken_away() {
    for (distrustful, identity) in [("a", CLIENT), ("b", WEB_IDENTITY)] {
        local(async {
            let (world, new) = (World::new().await, Arc::new(TestCa::new("new")));
            let (web, ca) = (world.network.listen(WEB).await, Arc::clone(&world.authority.ca));
            let mut open = [connected(&world, &web).await, connected(&world, &web).await];
            world.authority.certify(identity, &ca, &[&new, &ca]);
            for (client, server) in &mut open {
                echo(client, server).await;
            }
            world.authority.certify(identity, &ca, &[&new]);
            for (client, server) in &mut open {
                assert!(is_reset(client).await && is_reset(server).await);
            }
            for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
                let reason = if node == distrustful { "distrusted" } else { "tunnel_lost" };
                let all = async || world.node(node).closed() == [(format!("{direction} {reason}"), 2)].into();
                eventually("both ends are counted", all).await;
            }
            assert_eq!(world.pod("a", "client").await.tunnels, 0);
            let mut refused = world.network.connect(CLIENT_IP, WEB).await.unwrap();
            assert!(is_reset(&mut refused).await, "nor is there another tunnel");
        })
        .await;
    }
}

#[tokio::test]
async fn who_is_still_trusted_notices_nothing_of_new_roots_and_certificates() {
    local(async {
        let (world, new, newer) = (World::new().await, Arc::new(TestCa::new("new")), Arc::new(TestCa::new("newer")));
        let (web, ca) = (world.network.listen(WEB).await, Arc::clone(&world.authority.ca));
        let (mut client, mut server) = connected(&world, &web).await;
        let between = Arc::new(ca.below("intermediate"));
        for identity in [CLIENT, WEB_IDENTITY] {
            for (issuer, roots) in
                [(&ca, &[&ca][..]), (&ca, &[&new, &ca]), (&between, &[&newer, &ca, &new]), (&between, &[&ca])]
            {
                world.authority.certify(identity, issuer, roots);
                echo(&mut client, &mut server).await;
                let _more = connected(&world, &web).await;
            }
        }
        echo(&mut client, &mut server).await;
        assert_eq!(world.pod("a", "client").await.tunnels, world.network.tunnels(), "no tunnel was given up");
    })
    .await;
}

#[tokio::test]
async fn an_authority_is_replaced_without_cutting_what_moves_on_in_time() {
    local(async {
        let (world, new) = (World::new().await, Arc::new(TestCa::new("new")));
        let (web, ca) = (world.network.listen(WEB).await, Arc::clone(&world.authority.ca));
        let (mut old, mut old_server) = connected(&world, &web).await;
        for identity in [CLIENT, WEB_IDENTITY] {
            world.authority.certify(identity, &ca, &[&new, &ca]);
        }
        for identity in [CLIENT, WEB_IDENTITY] {
            let before = world.network.tunnels();
            world.authority.certify(identity, &new, &[&new, &ca]);
            // The task of the HBONE connection has to learn of the new certificate, and its peer has to be told.
            eventually("new connections take a new tunnel", async || {
                connected(&world, &web).await;
                world.network.tunnels() > before
            })
            .await;
            echo(&mut old, &mut old_server).await;
        }
        let mut young = Vec::new();
        for identity in [CLIENT, WEB_IDENTITY] {
            young.push(connected(&world, &web).await);
            world.authority.certify(identity, &new, &[&new]);
        }
        assert!(is_reset(&mut old).await && is_reset(&mut old_server).await);
        let (mut client, mut server) = connected(&world, &web).await;
        echo(&mut client, &mut server).await;
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_is_outdated_from_its_first_moment_carries_what_it_was_made_for() {
    local(async {
        let (world, new) = (World::new().await, Arc::new(TestCa::new("new")));
        let (web, ca) = (world.network.listen(WEB).await, Arc::clone(&world.authority.ca));
        let own = test_ca::endpoint(ca.credentials(CLIENT, &test_ca::good(CLIENT), &[new.root(), ca.root()])).0;
        let mut tasks = TaskSet::default();
        let client = tunnel(&world, &own, &mut tasks).await.unwrap();
        world.authority.certify(WEB_IDENTITY, &new, &[&new, &ca]);
        // A peer that has authenticated may wait before its first request.
        for _ in 0..500 {
            yield_now().await;
        }
        let (_tunnel, _) = client.connect(&request(WEB), SOON).await.unwrap();
        web.accept().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_expired_peer_keeps_its_streams_and_gets_no_more() {
    local(async {
        let world = World::new().await;
        let (web, ca) = (world.network.listen(WEB).await, Arc::clone(&world.authority.ca));
        let until = SystemTime::now() + Duration::from_secs(2);
        let wanted = test_ca::Wanted { not_after: until, ..test_ca::good(CLIENT) };
        let own = test_ca::endpoint(ca.credentials(CLIENT, &wanted, &[ca.root()])).0;
        let mut tasks = TaskSet::default();
        let client = tunnel(&world, &own, &mut tasks).await.unwrap();
        let (mut kept, _) = client.connect(&request(WEB), SOON).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        // The validity of certificates is in seconds, and includes the whole last second.
        sleep(until.duration_since(SystemTime::now()).unwrap() + Duration::from_secs(1)).await;
        // TLS 1.3 lets a client finish before the server has looked at its certificate.
        if let Ok(second) = tunnel(&world, &own, &mut tasks).await {
            assert!(second.connect(&request(WEB), SOON).await.is_err());
        }
        let failures = async || {
            let failures = world.node("b").counted("ztunnel_tls_handshake_failures_total");
            failures == [("inbound expired".to_owned(), 1)].into()
        };
        eventually("the handshake has failed", failures).await;
        server.write_all(b"still here").await.unwrap();
        server.shutdown().await.unwrap();
        let heard = crate::hbone::tests::hear_all(&mut kept).await.unwrap();
        assert_eq!(heard, b"still here");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_fails_everyone_who_waits_after_five_seconds() {
    local(async {
        let world = World::new().await;
        world.network.deafen("10.0.0.2");
        let begun = Instant::now();
        let waiting = (0..20).map(async |_| {
            let mut client = world.network.connect(CLIENT_IP, WEB).await.unwrap();
            assert!(is_reset(&mut client).await);
        });
        join_all(waiting).await;
        assert_eq!(begun.elapsed().as_secs(), 5, "nobody waits behind another");
        let all = async || world.node("a").closed() == [("outbound tls_failed".to_owned(), 20)].into();
        eventually("all ends are counted", all).await;
        assert!(world.network.unheard() <= 2, "one for each worker");
        assert_eq!(world.pod("a", "client").await.tunnels, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_while_dialling_leaves_nothing_behind() {
    local(async {
        let world = World::new().await;
        world.network.deafen("10.0.0.2");
        let client = world.network.connect(CLIENT_IP, WEB).await.unwrap();
        eventually("the dial has begun", async || world.network.unheard() == 1).await;
        crate::net::socket::reset_on_close(&client);
        drop(client);
        let gone = async || world.node("a").closed() == [("outbound client_reset".to_owned(), 1)].into();
        eventually("the connection has ended", gone).await;
        sleep(2 * SOON).await;
        assert_eq!(world.pod("a", "client").await.tunnels, 0);
        assert!(world.pod("a", "client").await.connections.is_empty());
    })
    .await;
}

#[tokio::test]
async fn many_connections_share_the_tunnels_and_end_one_by_one() {
    const CONNECTIONS: usize = 500;
    local(async {
        let world = World::new().await;
        world.network.vary_ports();
        let web = world.network.listen(WEB).await;
        let serve = async {
            let mut echoes = TaskSet::default();
            for _ in 0..CONNECTIONS {
                let (mut stream, _) = web.accept().await.unwrap();
                echoes.spawn_local(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                });
            }
            echoes.join_all().await;
        };
        let talk = async |number: usize| {
            let mut client = world.network.connect(CLIENT_IP, WEB).await.unwrap();
            let said = number.to_be_bytes().repeat(100);
            client.write_all(&said).await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert!(heard == said, "connection {number}");
        };
        tokio::join!(serve, join_all((0..CONNECTIONS).map(talk)));
        for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
            let expected = [(format!("{direction} complete"), CONNECTIONS as u64)].into();
            eventually("all ends are counted", async || world.node(node).closed() == expected).await;
        }
        // Each worker has HBONE connections of its own, with a hundred streams on each.
        let tunnels = world.network.tunnels();
        assert!((2..=CONNECTIONS.div_ceil(100) + 1).contains(&tunnels), "{tunnels}");
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_connections_end_and_takes_no_more() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        let (mut client, mut server) = connected(&world, &web).await;
        world.node("b").drain();
        server.write_all(b"the last of it").await.unwrap();
        server.shutdown().await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"the last of it");
        for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
            let expected = [(format!("{direction} complete"), 1)].into();
            eventually("the end is counted", async || world.node(node).closed() == expected).await;
        }
        let idle = async || world.pod("a", "client").await.tunnels == 0;
        timeout(SOON, eventually("an idle tunnel ends at once", idle)).await.unwrap();
    })
    .await;
}

/// If a listener got an option after it can be reached, its first connections would never have that option.
#[tokio::test]
async fn tunnels_that_come_while_their_pod_is_enrolled_have_all_options() {
    const TUNNELS: usize = 50;
    local(async {
        let world = World::empty();
        let mut arrived = Vec::new();
        let arrivals = async {
            while arrived.len() < TUNNELS {
                arrived.extend(world.network.connect_from_outside(CLIENT_IP, HBONE).await);
                yield_now().await;
            }
        };
        tokio::join!(arrivals, world.publish(super::nodes::MESH));
        eventually("all are looked at", async || world.network.accepted() == TUNNELS).await;
    })
    .await;
}
