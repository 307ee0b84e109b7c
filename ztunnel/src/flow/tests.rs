//! Two nodes in one process: everything between an application and the other, except what the kernel does.
//!
//! The client's node has the pool, the server's node asks the mesh's snapshot; between them is a pipe in memory, on which
//! both ends of TLS prove who they are. The applications have real sockets.

mod nodes;

use std::{
    cell::RefCell,
    io::ErrorKind,
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use http::StatusCode;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use self::nodes::{Mesh, NoTunnel, OTHER, WEB_APP};
use super::{
    Carried, Spliced, inbound, outbound, plaintext, reason_of,
    table::{DeliveryEntry, UpstreamEntry},
};
use crate::{
    hbone::{
        Settings, client,
        pool::{OpenError, Stats},
        server::Incoming,
        tests::{buffers, finish, hear, hear_all, local, say, tcp_pair},
    },
    lifecycle::{drain, tasks::TaskSet},
    model::close::CloseReason,
    net::{copy::Side, socket::reset_on_close},
    tls::{
        ConnectError,
        test_ca::{CLIENT, TestCa, WEB},
    },
    wire::{
        connect::{ConnectRequest, ConnectResponse},
        refusal::Refusal,
    },
};

/// For what must come about in real time.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn bytes_go_both_ways_under_proven_identities() {
    local(async {
        let mesh = Mesh::new().await;
        let mut flow = mesh.connect(WEB_APP).await.unwrap();
        flow.client.write_all(b"hello").await.unwrap();
        let mut server = mesh.accept().await;
        let mut heard = [0; 5];
        server.read_exact(&mut heard).await.unwrap();
        server.write_all(&heard).await.unwrap();
        flow.client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        assert_eq!(flow.identity.to_string(), WEB);
        let seen = mesh.server.seen.borrow().clone();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].identity.to_string(), CLIENT);
        assert_eq!(
            seen[0].source.as_deref(),
            Some("default/client"),
            "the mesh knows the workload behind the identity"
        );
        assert_eq!(seen[0].service.as_deref(), Some("web.default.svc.cluster.local"));
    })
    .await;
}

#[tokio::test]
async fn whoever_is_not_the_expected_one_gets_no_byte() {
    local(async {
        let mesh = Mesh::with_server("spiffe://cluster.local/ns/default/sa/other").await;
        let error = mesh.connect(WEB_APP).await.unwrap_err();
        assert!(matches!(&error, OpenError::Connect(error) if matches!(**error, NoTunnel::Tls(ConnectError::Peer(_)))));
        assert!(mesh.server.seen.borrow().is_empty());
        assert_eq!(mesh.server.failures.borrow().len(), 1, "and the other side is told");
        assert_eq!(mesh.pool.stats(), Stats::default());
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_leads_to_its_own_pod_only() {
    local(async {
        let mesh = Mesh::new().await;
        for (authority, status, reason) in [
            (OTHER, StatusCode::BAD_REQUEST, CloseReason::NotThisPod),
            ("127.0.0.1:80", StatusCode::BAD_REQUEST, CloseReason::NotThisPod),
            ("10.0.0.2:15008", StatusCode::SERVICE_UNAVAILABLE, CloseReason::Recursive),
            ("10.0.0.2:81", StatusCode::SERVICE_UNAVAILABLE, CloseReason::ConnectRefused),
        ] {
            let Err(OpenError::Refused { response, .. }) = mesh.connect(authority).await else {
                panic!("{authority} is not refused");
            };
            assert_eq!(response.status, status, "{authority}");
            let told = response.refusal.as_ref().and_then(Refusal::close_reason);
            assert_eq!(told, Some(reason), "{authority}");
        }
        let flow = mesh.connect("web.default.svc.cluster.local:80").await.unwrap();
        assert_eq!((mesh.wire.dials.get(), flow.identity.to_string()), (1, WEB.to_owned()), "the tunnel is still good");
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_serves_the_next_tunnel_and_breaks_none() {
    local(async {
        let mesh = Mesh::new().await;
        let mut old = mesh.connect(WEB_APP).await.unwrap();
        let mut old_server = mesh.accept().await;
        mesh.renew_client(SystemTime::now() + Duration::from_secs(60));
        mesh.pool.retire_all();
        let _new = mesh.connect(WEB_APP).await.unwrap();
        let expiries: Vec<_> = mesh.server.peers.borrow().iter().map(|peer| peer.expires).collect();
        assert_eq!(expiries.len(), 2);
        assert!(expiries[1] < expiries[0], "the next tunnel shows the new certificate: {expiries:?}");
        old.client.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        old_server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
    })
    .await;
}

/// That bytes go both ways.
async fn echo(client: &mut TcpStream, server: &mut TcpStream) {
    let mut heard = [0; 10];
    client.write_all(b"still here").await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(&heard).await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn a_tunnel_is_cut_where_the_root_of_its_peer_is_taken_away() {
    for (distrustful, side, other) in [(CLIENT, Side::Server, Side::Client), (WEB, Side::Client, Side::Server)] {
        local(async {
            let (mesh, new) = (Mesh::new().await, TestCa::new("new"));
            let (mut first, mut first_server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
            let (mut second, mut second_server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
            mesh.certify(distrustful, &mesh.ca, &[&new, &mesh.ca]);
            echo(&mut first, &mut first_server).await;
            echo(&mut second, &mut second_server).await;
            mesh.certify(distrustful, &mesh.ca, &[&new]);
            for stream in [&mut first, &mut first_server, &mut second, &mut second_server] {
                let end = timeout(SOON, stream.read(&mut [0; 10])).await.expect("at once");
                assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            let mut reasons = Vec::new();
            for (tunnel_side, end) in timeout(SOON, mesh.ends(2)).await.unwrap() {
                let error = end.unwrap_err();
                assert_eq!(error.side, tunnel_side, "{error}");
                reasons.push((tunnel_side == side, reason_of(&error)));
                let why = "does not lead to a root that is trusted here any more";
                assert_eq!(error.to_string().contains(why), tunnel_side == side, "{error}");
            }
            reasons.sort_by_key(|(here, _)| !here);
            let (cut, lost) = (CloseReason::Distrusted, CloseReason::TunnelLost);
            assert_eq!(reasons, [(true, cut), (true, cut), (false, lost), (false, lost)], "not {other:?}");
            assert_eq!(mesh.pool.stats(), Stats::default());
            assert!(mesh.connect(WEB_APP).await.is_err(), "nor is there another one");
        })
        .await;
    }
}

#[tokio::test]
async fn who_is_still_trusted_notices_nothing_of_new_roots_and_certificates() {
    local(async {
        let (mesh, new, newer) = (Mesh::new().await, TestCa::new("new"), TestCa::new("newer"));
        let (mut client, mut server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
        let between = mesh.ca.below("intermediate");
        for identity in [CLIENT, WEB] {
            for (ca, roots) in [
                (&mesh.ca, &[&mesh.ca][..]),
                (&mesh.ca, &[&new, &mesh.ca]),
                (&between, &[&newer, &mesh.ca, &new]),
                (&between, &[&mesh.ca]),
            ] {
                mesh.certify(identity, ca, roots);
                echo(&mut client, &mut server).await;
                let _more = mesh.connect(WEB_APP).await.unwrap();
                mesh.accept().await;
            }
        }
        assert_eq!((mesh.wire.dials.get(), mesh.pool.stats().connections), (1, 1), "all on one tunnel");
    })
    .await;
}

#[tokio::test]
async fn an_authority_is_replaced_without_cutting_what_moves_on_in_time() {
    local(async {
        let (mesh, new) = (Mesh::new().await, TestCa::new("new"));
        let (mut old, mut old_server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
        for identity in [CLIENT, WEB] {
            mesh.certify(identity, &mesh.ca, &[&new, &mesh.ca]);
        }
        for (identity, dials) in [(CLIENT, 2), (WEB, 3)] {
            mesh.certify(identity, &new, &[&new, &mesh.ca]);
            // The tunnel's task has to learn of it, and over there the peer has to be told.
            let moved_on = async {
                while mesh.wire.dials.get() < dials {
                    drop(mesh.connect(WEB_APP).await.unwrap());
                    mesh.accept().await;
                }
            };
            timeout(SOON, moved_on).await.expect("new connections take a new tunnel");
            echo(&mut old, &mut old_server).await;
        }
        let (mut young, mut young_server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
        for identity in [CLIENT, WEB] {
            mesh.certify(identity, &new, &[&new]);
        }
        for stream in [&mut old, &mut old_server] {
            let end = timeout(SOON, stream.read(&mut [0; 10])).await.expect("at once");
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        echo(&mut young, &mut young_server).await;
        assert_eq!(mesh.wire.dials.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_is_outdated_from_its_first_moment_carries_what_it_was_made_for() {
    local(async {
        let (mesh, new) = (Mesh::new().await, TestCa::new("new"));
        mesh.certify(CLIENT, &mesh.ca, &[&new, &mesh.ca]);
        let (certificate, renewed) = (mesh.server_certificate.clone(), new.trusting(WEB, &[&new, &mesh.ca]));
        mesh.wire.hesitates.set(true);
        mesh.server.once_proved.replace(Some(Box::new(move || drop(certificate.send_replace(renewed)))));
        let (mut client, mut server) = (mesh.connect(WEB_APP).await.unwrap().client, mesh.accept().await);
        echo(&mut client, &mut server).await;
    })
    .await;
}

#[tokio::test]
async fn an_expired_peer_keeps_its_streams_and_gets_no_more() {
    local(async {
        let mesh = Mesh::new().await;
        let until = SystemTime::now() + Duration::from_secs(2);
        mesh.renew_client(until);
        let mut flow = mesh.connect(WEB_APP).await.unwrap();
        let mut server = mesh.accept().await;
        // Certificates count in seconds, and are good for the whole of the last.
        sleep(until.duration_since(SystemTime::now()).unwrap() + Duration::from_secs(1)).await;
        let error = mesh.connect(WEB_APP).await.unwrap_err();
        assert!(matches!(error, OpenError::Lost { .. }) && error.to_string().contains("CertificateExpired"), "{error}");
        assert_eq!(*mesh.server.failures.borrow(), ["expired"], "asked once");
        assert_eq!(mesh.server.seen.borrow().len(), 1);
        flow.client.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_fails_everyone_who_waits_after_five_seconds() {
    local(async {
        let mesh = Mesh::new().await;
        mesh.wire.stalled.set(true);
        let begun = Instant::now();
        let results = join_all((0..20).map(|_| mesh.open(WEB_APP))).await;
        assert_eq!(begun.elapsed().as_secs(), 5, "nobody waits behind another");
        for result in results {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, OpenError::Connect(error) if matches!(**error, NoTunnel::Tls(ConnectError::Deadline(_)))),
                "{error}"
            );
        }
        assert_eq!((mesh.wire.dials.get(), mesh.pool.stats()), (1, Stats::default()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_while_dialling_leaves_nothing_behind() {
    local(async {
        let mesh = Mesh::new().await;
        mesh.wire.stalled.set(true);
        let given_up = timeout(Duration::from_secs(1), mesh.open(WEB_APP)).await;
        assert!(given_up.is_err());
        assert_eq!((mesh.wire.unheard(), mesh.pool.stats().dials), (1, 1), "the dial goes on, for others");
        sleep(SOON).await;
        assert_eq!(mesh.pool.stats(), Stats::default());
        mesh.wire.stalled.set(false);
        // Real sockets and a clock that stands still don't go together: no further than the answer.
        mesh.open("10.0.0.2:81").await.unwrap_err();
        assert_eq!(mesh.server.seen.borrow().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn resets_of_either_application_reach_the_other() {
    for client_resets in [true, false] {
        local(async {
            let mesh = Mesh::new().await;
            let mut client = mesh.connect(WEB_APP).await.unwrap().client;
            let mut server = mesh.accept().await;
            let (resets, hears) = if client_resets { (&mut client, &mut server) } else { (&mut server, &mut client) };
            resets.write_all(b"last words").await.unwrap();
            let mut heard = [0; 10];
            hears.read_exact(&mut heard).await.unwrap();
            reset_on_close(resets);
            let mut hears = if client_resets {
                drop(client);
                server
            } else {
                drop(server);
                client
            };
            assert_eq!(hears.read(&mut heard).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let side = if client_resets { Side::Client } else { Side::Server };
            for (_, end) in timeout(SOON, mesh.ends(1)).await.unwrap() {
                let error = end.unwrap_err();
                assert!(error.is_reset() && error.side == side, "{error}");
            }
            mesh.connect(WEB_APP).await.unwrap();
            assert_eq!(mesh.wire.dials.get(), 1, "a reset is of the stream, not of the tunnel");
        })
        .await;
    }
}

#[tokio::test]
async fn a_half_close_lets_the_other_direction_go_on() {
    for client_first in [true, false] {
        local(async {
            let mesh = Mesh::new().await;
            let client = mesh.connect(WEB_APP).await.unwrap().client;
            let server = mesh.accept().await;
            let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"before").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = Vec::new();
            second.read_to_end(&mut heard).await.unwrap();
            second.write_all(b"after").await.unwrap();
            second.shutdown().await.unwrap();
            first.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"beforeafter");
            for (_, end) in timeout(SOON, mesh.ends(1)).await.unwrap() {
                end.unwrap();
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_thousand_streams_share_the_tunnels_and_end_one_by_one() {
    const STREAMS: usize = 1000;
    local(async {
        let mesh = Mesh::new().await;
        let echo = async {
            let serve = |mut stream: TcpStream| async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            };
            let mut echoes = TaskSet::default();
            for _ in 0..STREAMS {
                echoes.spawn_local(serve(mesh.accept().await));
            }
            echoes.join_all().await;
        };
        let talk = |number: usize| {
            let mesh = &mesh;
            async move {
                let mut client = mesh.connect(WEB_APP).await.unwrap().client;
                let said = number.to_be_bytes().repeat(100);
                client.write_all(&said).await.unwrap();
                client.shutdown().await.unwrap();
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.unwrap();
                assert!(heard == said, "stream {number}");
            }
        };
        tokio::join!(echo, join_all((0..STREAMS).map(talk)));
        for (_, end) in timeout(SOON, mesh.ends(STREAMS)).await.unwrap() {
            end.unwrap();
        }
        let Stats { connections, streams, dials, waiting } = mesh.pool.stats();
        assert_eq!((streams, dials, waiting), (0, 0, 0), "every stream has given its place back");
        assert!(connections <= STREAMS.div_ceil(100) && mesh.wire.dials.get() as usize == connections);
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_takes_no_more() {
    local(async {
        let mesh = Mesh::new().await;
        let mut client = mesh.connect(WEB_APP).await.unwrap().client;
        let mut server = mesh.accept().await;
        mesh.drain_server();
        server.write_all(b"the last of it").await.unwrap();
        server.shutdown().await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"the last of it");
        for (_, end) in timeout(SOON, mesh.ends(1)).await.unwrap() {
            end.unwrap();
        }
        let closed = async {
            while mesh.pool.stats().connections > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, closed).await.expect("an idle tunnel ends at once");
    })
    .await;
}

#[tokio::test]
async fn what_a_drained_tunnel_said_last_arrives_although_its_reader_is_slow() {
    /// More than the client's socket takes, less than the server's.
    const SIZE: usize = 128 << 10;
    local(async {
        let ca = TestCa::new("root");
        let (client_tls, server_tls) = (ca.endpoint(CLIENT), ca.endpoint(WEB));
        let (far, near) = tcp_pair().await;
        // As what the listener of a pod's port accepts.
        reset_on_close(&near);
        SockRef::from(&near).set_send_buffer_size(2 * SIZE).unwrap();
        SockRef::from(&far).set_recv_buffer_size(4 << 10).unwrap();
        let (drain, watch) = drain::channel();
        let ended = Rc::new(Notify::new());
        let mut tasks = TaskSet::default();
        let told = Rc::clone(&ended);
        tasks.spawn_local(async move {
            let (mut io, peer) = inbound::shake_hands(&server_tls, near, &buffers()).await.unwrap();
            let streams = RefCell::new(TaskSet::default());
            let saying = |incoming: Incoming| async move {
                let mut tunnel = incoming.responder.accept(&ConnectResponse::ok(None)).unwrap();
                hear(&mut tunnel).await.unwrap();
                say(&mut tunnel, &buffers(), &vec![7; SIZE]).await;
                finish(&mut tunnel);
            };
            inbound::speak(&mut io, (&server_tls, &peer), &Settings::default(), watch, |incoming| {
                streams.borrow_mut().spawn_local(saying(incoming));
            })
            .await;
            drop(io);
            told.notify_one();
        });
        let (io, _) = client_tls.connect(far, &[WEB.parse().unwrap()], &buffers()).await.unwrap();
        let activity = io.activity();
        let (client, driver) = client::handshake(io, activity, &Settings::default()).await.unwrap();
        let mut driver = pin!(driver.run());
        let open = async {
            let request = ConnectRequest::to(WEB_APP.parse().unwrap());
            let (mut tunnel, _) = client.connect(&request, SOON).await.unwrap();
            drain.start();
            while client.is_usable() {
                tokio::task::yield_now().await;
            }
            finish(&mut tunnel);
            // Until the server has heard that.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            tunnel
        };
        let mut tunnel = tokio::select! {
            _end = &mut driver => panic!("the tunnel is gone"),
            tunnel = open => tunnel,
        };
        // Nobody reads from the connection for a while, in which the server may close it.
        let _closed = timeout(Duration::from_millis(300), ended.notified()).await;
        let heard = tokio::select! {
            heard = hear_all(&mut tunnel) => heard.unwrap(),
            _end = async { (&mut driver).await; std::future::pending::<()>().await } => unreachable!(),
        };
        assert_eq!(heard.len(), SIZE);
    })
    .await;
}

/// Connections are many, and most of them idle. Twice the layout of something is soon there: see `in_two_parts`.
#[test]
fn what_a_live_connection_keeps_is_small() {
    fn kept<A, F>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }
    fn task<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    for (bytes, most) in [
        (task(outbound::serve), 64),
        (task(plaintext::serve), 64),
        (kept(Carried::<()>::relay), 1344),
        (kept(Carried::<DeliveryEntry>::relay), 1408),
        (kept(Spliced::<UpstreamEntry>::copy), 1728),
        (kept(Spliced::<DeliveryEntry>::copy), 1728),
    ] {
        assert!(bytes <= most, "{bytes} bytes where {most} were enough");
    }
}
