//! Connections: how they are carried, refused and ended.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    DENY_CLIENT, GUEST, SERVICE, WEB,
    nodes::{CONNECT_TIMEOUT, MESH, Via, World, echo, eventually, is_reset},
};
use crate::{
    flow::events::{ConnectionEvent, EventKind, EventReader, Next},
    hbone::tests::local,
};

#[tokio::test]
async fn connections_with_pods_outside_of_the_mesh_are_plaintext_both_ways() {
    for via in Via::ALL {
        local(async {
            let world = World::via(via).await;
            let (web, guest) = (world.network.listen(WEB).await, world.network.listen(GUEST).await);
            let mut inward = world.network.connect("10.0.0.3", WEB).await.unwrap();
            echo(&mut inward, &mut web.accept().await.unwrap().0).await;
            let mut outward = world.network.connect("10.0.0.1", GUEST).await.unwrap();
            let (mut server, _) = guest.accept().await.unwrap();
            echo(&mut outward, &mut server).await;
            assert_eq!(world.network.client(&server).ip().to_string(), "10.0.0.1");
            assert_eq!(world.network.tunnels(), 0);
            for (node, pod, direction) in [("b", "web", "inbound"), ("a", "client", "outbound")] {
                let [one] = &world.pod(node, pod).await.connections[..] else { panic!("not one connection") };
                assert_eq!((&*one.direction, &*one.protocol, &one.peer_identity), (direction, "TCP", &None));
            }
        })
        .await;
    }
}

/// A pod with CAP_NET_ADMIN makes the kernel prefer another address than the one that the mesh knows.
#[tokio::test]
async fn the_daemon_connects_from_the_address_of_the_applications_socket() {
    local(async {
        let world = World::new().await;
        world.network.readdress("/n/client", &["10.0.0.99", "10.0.0.1"]);
        let guest = world.network.listen(GUEST).await;
        let mut outward = world.network.connect("10.0.0.1", GUEST).await.unwrap();
        let (mut server, _) = guest.accept().await.unwrap();
        echo(&mut outward, &mut server).await;
        assert_eq!(world.network.client(&server).ip().to_string(), "10.0.0.1");
    })
    .await;
}

#[tokio::test]
async fn a_reader_learns_of_each_connection_that_opens_ends_or_is_refused() {
    local(async {
        let world = World::new().await;
        let (mut at_client, mut at_web) = (world.node("a").events(), world.node("b").events());
        let web = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let mut server = web.accept().await.unwrap().0;
        echo(&mut client, &mut server).await;
        drop((client, server));
        for (events, direction) in [(&mut at_client, "outbound"), (&mut at_web, "inbound")] {
            let opened = event(events).await;
            assert_eq!((opened.event, &*opened.direction, &opened.reason), (EventKind::Opened, direction, &None));
            let closed = event(events).await;
            assert_eq!((closed.event, closed.reason.as_deref()), (EventKind::Closed, Some("complete")), "{closed:?}");
            assert_eq!((closed.bytes_received, closed.bytes_sent, &*closed.protocol), (10, 10, "HBONE"));
            assert_eq!(closed.source.pod.as_deref(), Some("client"));
            assert_eq!(closed.destination.identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/web"));
            assert_eq!((&*closed.destination.address, &closed.error), (WEB, &None));
        }
        world.publish(&format!("{MESH}{DENY_CLIENT}")).await;
        assert!(is_reset(&mut world.network.connect("10.0.0.1", WEB).await.unwrap()).await);
        let refused = event(&mut at_web).await;
        assert_eq!((refused.event, refused.is_denied()), (EventKind::Refused, true));
        assert!(refused.error.as_deref().unwrap().contains("default/deny-client"), "{refused:?}");
        assert_eq!(refused.source.identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/client"));
        let refused = event(&mut at_client).await;
        assert_eq!((refused.event, refused.is_denied()), (EventKind::Refused, true), "the other node has told why");
    })
    .await;
}

/// The next event, of which none may be lost.
async fn event(events: &mut EventReader) -> Arc<ConnectionEvent> {
    match events.next().await {
        Some(Next::Event(event)) => event,
        other => panic!("no event: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_answer_is_given_up_after_the_deadline() {
    local(async {
        let world = World::new().await;
        world.network.silence("10.0.0.2");
        let begun = Instant::now();
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        assert!(is_reset(&mut client).await);
        assert!(begun.elapsed() >= CONNECT_TIMEOUT && begun.elapsed() < 2 * CONNECT_TIMEOUT, "{:?}", begun.elapsed());
        eventually("the end is counted", async || !world.node("a").closed().is_empty()).await;
        assert_eq!(world.node("a").closed(), [("outbound tunnel_timed_out".to_owned(), 1)].into());
    })
    .await;
}

#[tokio::test]
async fn a_port_without_a_listener_is_refused_by_the_destinations_node() {
    local(async {
        let world = World::new().await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        assert!(is_reset(&mut client).await);
        for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
            eventually("the end is counted", async || !world.node(node).closed().is_empty()).await;
            assert_eq!(world.node(node).closed(), [(format!("{direction} connect_refused"), 1)].into());
        }
    })
    .await;
}

#[tokio::test]
async fn resets_of_either_application_reach_the_other() {
    for (client_resets, reason) in [(true, "client_reset"), (false, "server_reset")] {
        local(async {
            let world = World::new().await;
            let web = world.network.listen(WEB).await;
            let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
            let (mut server, _) = web.accept().await.unwrap();
            echo(&mut client, &mut server).await;
            let (resets, mut hears) = if client_resets { (client, server) } else { (server, client) };
            crate::net::socket::reset_on_close(&resets);
            drop(resets);
            assert!(is_reset(&mut hears).await);
            for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
                eventually("the end is counted", async || !world.node(node).closed().is_empty()).await;
                assert_eq!(world.node(node).closed(), [(format!("{direction} {reason}"), 1)].into());
            }
            let mut again = world.network.connect("10.0.0.1", WEB).await.unwrap();
            echo(&mut again, &mut web.accept().await.unwrap().0).await;
            assert_eq!(world.network.tunnels(), 1, "a reset is of the connection, not of the tunnel");
        })
        .await;
    }
}

#[tokio::test]
async fn a_half_close_lets_the_other_direction_go_on() {
    for client_first in [true, false] {
        local(async {
            let world = World::new().await;
            let web = world.network.listen(WEB).await;
            let client = world.network.connect("10.0.0.1", WEB).await.unwrap();
            let (server, _) = web.accept().await.unwrap();
            let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"before").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = Vec::new();
            second.read_to_end(&mut heard).await.unwrap();
            second.write_all(b"after").await.unwrap();
            second.shutdown().await.unwrap();
            first.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"beforeafter");
            for (node, direction) in [("a", "outbound"), ("b", "inbound")] {
                eventually("the end is counted", async || !world.node(node).closed().is_empty()).await;
                assert_eq!(world.node(node).closed(), [(format!("{direction} complete"), 1)].into());
            }
        })
        .await;
    }
}

/// All facts of a pod may change while connections are open, except its identity and its proved facts.
#[tokio::test]
async fn connections_live_through_what_can_be_changed_in_place() {
    for via in Via::ALL {
        local(async {
            let world = World::via(via).await;
            let (web, guest) = (world.network.listen(WEB).await, world.network.listen(GUEST).await);
            world.network.readdress("/n/web", &["10.0.0.2", "10.0.0.4"]);
            let mut open = Vec::new();
            for (from, to, listener) in [("10.0.0.1", WEB, &web), ("10.0.0.3", WEB, &web), ("10.0.0.2", GUEST, &guest)]
            {
                let client = world.network.connect(from, to).await.unwrap();
                open.push((client, listener.accept().await.unwrap().0));
            }
            world.network.alias("/n/web", "/n/other-path");
            let third = "podIPs: [{ip: 10.0.0.4}, {ip: 10.0.0.2}]";
            let changes = [
                ("app: web}", "app: web, version: v2}"),
                ("containers: []", "containers: [{name: c, ports: [{name: http, containerPort: 80}]}]"),
                ("{ambient.mesh/netns: /n/web}", "{ambient.mesh/netns: /n/web, example.org/note: x}"),
                (
                    "{ambient.mesh/netns: /n/web}",
                    "{ambient.mesh/netns: /n/web, traffic.ambient.mesh/exclude-outbound-ports: '9'}",
                ),
                ("{ambient.mesh/netns: /n/web}", "{ambient.mesh/netns: /n/other-path}"),
                ("podIPs: [{ip: 10.0.0.2}]", "podIPs: [{ip: 10.0.0.2}, {ip: 10.0.0.4}]"),
                ("podIPs: [{ip: 10.0.0.2}]", third),
            ];
            for (before, after) in changes {
                assert!(MESH.contains(before), "{before}");
                world.publish(&MESH.replace(before, after)).await;
                for (client, server) in &mut open {
                    echo(client, server).await;
                }
            }
            // After the last change the pod has two addresses. The second is removed, with its connections.
            let more = world.network.listen("10.0.0.4:8080").await;
            let mut of_third = Vec::new();
            for from in ["10.0.0.1", "10.0.0.3"] {
                let client = world.network.connect(from, "10.0.0.4:8080").await.unwrap();
                of_third.push((client, more.accept().await.unwrap().0));
            }
            let outward = world.network.connect("10.0.0.4", GUEST).await.unwrap();
            of_third.push((outward, guest.accept().await.unwrap().0));
            for (client, server) in &mut of_third {
                echo(client, server).await;
            }
            world.publish(MESH).await;
            for (client, server) in &mut of_third {
                assert!(is_reset(client).await && is_reset(server).await);
            }
            for (client, server) in &mut open {
                echo(client, server).await;
            }
            let removed: u64 = world
                .node("b")
                .closed()
                .iter()
                .filter(|(why, _)| why.ends_with("address_removed"))
                .map(|(_, count)| count)
                .sum();
            assert_eq!(removed, 3);
        })
        .await;
    }
}

#[tokio::test]
async fn connections_end_with_what_they_were_made_with() {
    for (before, after) in [
        ("serviceAccountName: web", "serviceAccountName: other"),
        ("/n/web", "/n/guest"),
        ("podIPs: [{ip: 10.0.0.2}]", "podIPs: [{ip: 10.0.0.2}, {ip: 10.0.0.9}]"),
    ] {
        local(async {
            let world = World::new().await;
            let web = world.network.listen(WEB).await;
            let mut client = world.network.connect("10.0.0.3", WEB).await.unwrap();
            let (mut server, _) = web.accept().await.unwrap();
            echo(&mut client, &mut server).await;
            world.publish(&MESH.replace(before, after)).await;
            assert!(is_reset(&mut client).await && is_reset(&mut server).await, "{after}");
        })
        .await;
    }
}

/// Connections may be open for days. A scrape shows their bytes so far, without a question to the manager.
#[tokio::test]
async fn bytes_of_live_connections_are_counted_at_a_scrape() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", SERVICE).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        for node in ["a", "b"] {
            world.node(node).count_carried().await;
            let bytes: Vec<u64> = world.node(node).counted("istio_tcp_received_bytes_total").into_values().collect();
            assert_eq!(bytes, [10], "{node}");
        }
    })
    .await;
}
