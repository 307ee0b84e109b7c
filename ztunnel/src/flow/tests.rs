//! The last bytes of an HBONE connection, and the memory of a connection. `pods/tests` has tests of whole nodes.

use std::{cell::RefCell, pin::pin, rc::Rc, time::Duration};

use socket2::SockRef;
use tokio::{sync::Notify, time::timeout};

use super::{
    established::{Established, TcpEnds, TunnelEnds},
    inbound, outbound, plaintext,
    table::{DeliveryEntry, UpstreamEntry},
};
use crate::{
    hbone::{
        Settings, client,
        server::Incoming,
        tests::{buffers, finish, hear, hear_all, local, plenty, say, tcp_pair},
    },
    lifecycle::{drain, tasks::TaskSet},
    net::{open::OpenPermit, socket::reset_on_close},
    tls::test_ca::{CLIENT, TestCa, WEB},
    wire::connect::{ConnectRequest, ConnectResponse},
};

/// A deadline for events in real time.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_a_drained_tunnel_said_last_arrives_although_its_reader_is_slow() {
    /// More than the client's socket buffers, and less than the server's.
    const SIZE: usize = 128 << 10;
    local(async {
        let ca = TestCa::new("root");
        let (client_tls, server_tls) = (ca.endpoint(CLIENT), ca.endpoint(WEB));
        let (far, near) = tcp_pair().await;
        // As for connections that the listener of a pod's port accepts.
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
            let settings = Settings::default();
            let windows = plenty(&settings);
            inbound::speak(&mut io, (&server_tls, &peer), (&settings, windows), watch, |incoming| {
                streams.borrow_mut().spawn_local(saying(incoming));
            })
            .await;
            drop(io);
            told.notify_one();
        });
        let (io, _) = client_tls.connect(far, &[WEB.parse().unwrap()], &buffers()).await.unwrap();
        let activity = io.activity();
        let (client, driver) =
            client::handshake(io, activity, &Settings::default(), plenty(&Settings::default())).await.unwrap();
        let mut driver = pin!(driver.run());
        let open = async {
            let request = ConnectRequest::to("10.0.0.2:8080".parse().unwrap());
            let (mut tunnel, _) = client.connect(&request, SOON).await.unwrap();
            drain.start();
            while client.is_usable() {
                tokio::task::yield_now().await;
            }
            finish(&mut tunnel);
            // Wait until the server has received that.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            tunnel
        };
        let mut tunnel = tokio::select! {
            _end = &mut driver => panic!("the tunnel is gone"),
            tunnel = open => tunnel,
        };
        // The client does not read for a while, and the server may close the connection meanwhile.
        let _closed = timeout(Duration::from_millis(300), ended.notified()).await;
        let heard = tokio::select! {
            heard = hear_all(&mut tunnel) => heard.unwrap(),
            _end = async { (&mut driver).await; std::future::pending::<()>().await } => unreachable!(),
        };
        assert_eq!(heard.len(), SIZE);
    })
    .await;
}

/// There are many connections, and most are idle. A future easily contains the same value twice: see `in_two_parts`.
#[test]
fn what_a_live_connection_keeps_is_small() {
    fn kept<A, F>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }
    fn task<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    fn held<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    for (bytes, most) in [
        (held(outbound::serve), 64),
        (task(plaintext::serve), 64),
        (kept(Established::<TunnelEnds, ()>::copy), 1344),
        (kept(Established::<TunnelEnds, (DeliveryEntry, OpenPermit)>::copy), 1408),
        (kept(Established::<TcpEnds, (UpstreamEntry, OpenPermit)>::copy), 1728),
        (kept(Established::<TcpEnds, (DeliveryEntry, OpenPermit)>::copy), 1728),
    ] {
        assert!(bytes <= most, "{bytes} bytes where {most} were enough");
    }
}
