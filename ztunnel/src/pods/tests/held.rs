//! Connects that are held until their destination is reached.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep},
};

use super::{
    DENY_CLIENT, GUEST, SERVICE, WEB,
    held_client::HeldClient,
    nodes::{CONNECT_TIMEOUT, MESH, World, echo, eventually, is_reset},
};
use crate::{hbone::tests::local, net::dial::Injected};

const HELD: &str = "{ambient.mesh/netns: /n/client, traffic.ambient.mesh/connect: held}";
/// Flags of a TCP header at its place in an IPv4 packet.
const FLAGS_AT: usize = 33;

fn mesh() -> String {
    MESH.replace("{ambient.mesh/netns: /n/client}", HELD)
}

async fn world() -> World {
    let world = World::new().await;
    assert_eq!(world.pod("a", "client").await.connect.as_deref(), Some("early"));
    world.publish(&mesh()).await;
    assert_eq!(world.pod("a", "client").await.connect.as_deref(), Some("held"));
    world
}

async fn is_put_back(client: &mut HeldClient) {
    let (as_what, packet) = client.answer().await;
    assert!(as_what == Injected::Syn && packet[FLAGS_AT] == 0x02, "{as_what:?} {packet:?}");
}

async fn is_refused(client: &mut HeldClient) {
    let (as_what, packet) = client.answer().await;
    assert!(as_what == Injected::Answer && packet[9] == 6 && packet[FLAGS_AT] == 0x14, "{as_what:?} {packet:?}");
}

/// Waits until so many connections of the client's pod have ended, and returns them by reason.
async fn ended(world: &World, count: u64) -> Vec<(String, u64)> {
    let node = world.node("a");
    eventually("the connections have ended", async || node.closed().values().sum::<u64>() >= count).await;
    node.closed().into_iter().collect()
}

fn once(reason: &str) -> Vec<(String, u64)> {
    vec![(format!("outbound {reason}"), 1)]
}

#[tokio::test]
async fn a_connect_ends_when_the_application_is_reached_and_counts_once() {
    local(async {
        let world = world().await;
        let web = world.network.listen(WEB).await;
        for to in [WEB, SERVICE] {
            let mut client = world.network.held("10.0.0.1", to);
            client.send(7);
            // The application is reached before the client knows.
            let (mut server, _) = web.accept().await.unwrap();
            is_put_back(&mut client).await;
            client.send(7);
            is_put_back(&mut client).await;
            let [waiting] = &world.pod("a", "client").await.connections[..] else { panic!("not one connection") };
            assert_eq!(waiting.protocol, "HBONE");
            let mut stream = client.finish().await.unwrap();
            echo(&mut stream, &mut server).await;
            drop(stream);
            assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        }
        assert_eq!(ended(&world, 2).await, vec![("outbound complete".to_owned(), 2)]);
    })
    .await;
}

#[tokio::test]
async fn a_closed_port_refuses_the_connect_through_a_tunnel_and_outside_of_the_mesh() {
    local(async {
        let world = world().await;
        for to in [WEB, GUEST] {
            let mut client = world.network.held("10.0.0.1", to);
            client.send(7);
            is_refused(&mut client).await;
        }
        assert_eq!(ended(&world, 2).await, vec![("outbound connect_refused".to_owned(), 2)]);
        assert!(world.pod("a", "client").await.connections.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_address_of_nobody_is_unreachable_by_two_errors_and_a_reset() {
    local(async {
        let world = world().await;
        let mut client = world.network.held("10.0.0.1", "10.0.0.99:80");
        client.send(7);
        let begun = Instant::now();
        for _ in 0..2 {
            let (as_what, packet) = client.answer().await;
            assert_eq!((as_what, packet[9], packet[20], packet[21]), (Injected::Answer, 1, 3, 1));
        }
        is_refused(&mut client).await;
        assert!(begun.elapsed() >= Duration::from_millis(50));
        assert_eq!(ended(&world, 1).await, once("unreachable"));
    })
    .await;
}

#[tokio::test]
async fn policy_lets_the_connect_succeed_and_resets_the_connection() {
    local(async {
        let world = world().await;
        world.publish(&format!("{}{DENY_CLIENT}", mesh())).await;
        let mut client = world.network.held("10.0.0.1", WEB);
        client.send(7);
        is_put_back(&mut client).await;
        let mut stream = client.finish().await.unwrap();
        assert!(is_reset(&mut stream).await);
        assert_eq!(ended(&world, 1).await, once("denied"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn silence_stays_silence_and_ends_when_the_client_sends_no_more() {
    local(async {
        let world = world().await;
        world.network.silence("10.0.0.3");
        let mut client = world.network.held("10.0.0.1", GUEST);
        client.send(7);
        // As the kernel repeats it.
        for pause in [1, 2, 4, 8] {
            sleep(Duration::from_secs(pause)).await;
            client.send(7);
        }
        // The dial has timed out after 10 s, and the destination is tried again.
        eventually("it waits", async || world.pod("a", "client").await.connections.len() == 1).await;
        assert!(client.answered().is_none());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(ended(&world, 1).await, once("connect_timed_out"));
        assert!(client.answered().is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_ends_the_dial() {
    local(async {
        let world = world().await;
        world.network.silence("10.0.0.3");
        let mut client = world.network.held("10.0.0.1", GUEST);
        client.send(7);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(world.pod("a", "client").await.connections.len(), 1);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ended(&world, 1).await, once("client_reset"));
        assert!(client.answered().is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn another_sequence_number_is_another_attempt() {
    local(async {
        let world = world().await;
        world.network.silence("10.0.0.3");
        let mut client = world.network.held("10.0.0.1", GUEST);
        client.send(7);
        eventually("it waits", async || !world.pod("a", "client").await.connections.is_empty()).await;
        client.send(8);
        assert_eq!(ended(&world, 1).await, once("client_reset"));
        assert_eq!(world.pod("a", "client").await.connections.len(), 1, "the second attempt");
        assert!(client.answered().is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_and_never_accepted_is_closed() {
    local(async {
        let world = world().await;
        let guest = world.network.listen(GUEST).await;
        let mut client = world.network.held("10.0.0.1", GUEST);
        client.send(7);
        is_put_back(&mut client).await;
        let (mut server, _) = guest.accept().await.unwrap();
        let begun = Instant::now();
        assert!(is_reset(&mut server).await);
        assert!(begun.elapsed() >= Duration::from_millis(2500));
        assert_eq!(ended(&world, 1).await, once("client_reset"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_repetition_that_is_read_after_the_answer_begins_nothing() {
    local(async {
        let world = world().await;
        world.network.silence("10.0.0.3");
        let mut client = world.network.held("10.0.0.1", GUEST);
        client.send(7);
        for pause in [1, 2, 4, 8] {
            sleep(Duration::from_secs(pause)).await;
            client.send(7);
        }
        sleep(Duration::from_millis(100)).await;
        world.network.end_silence("10.0.0.3");
        let guest = world.network.listen(GUEST).await;
        // The dial of the last SYN goes on in vain until the time for it is over; the next SYN begins another.
        sleep(CONNECT_TIMEOUT).await;
        client.send(7);
        is_put_back(&mut client).await;
        let mut stream = client.finish().await.unwrap();
        let (mut server, _) = guest.accept().await.unwrap();
        echo(&mut stream, &mut server).await;
        client.send(7);
        sleep(Duration::from_millis(500)).await;
        assert!(client.answered().is_none() && guest.accept().now_or_never().is_none(), "one connection");
        assert_eq!(world.pod("a", "client").await.connections.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_change_of_the_annotation_holds_for_the_next_connect() {
    local(async {
        let world = world().await;
        let web = world.network.listen(WEB).await;
        let mut client = world.network.held("10.0.0.1", WEB);
        client.send(7);
        let (mut server, _) = web.accept().await.unwrap();
        is_put_back(&mut client).await;
        world.publish(MESH).await;
        assert_eq!(world.pod("a", "client").await.connect.as_deref(), Some("early"));
        // What was begun is finished.
        let mut stream = client.finish().await.unwrap();
        echo(&mut stream, &mut server).await;
        let mut early = world.network.connect("10.0.0.1", GUEST).await.unwrap();
        assert!(is_reset(&mut early).await, "nobody listens there");
    })
    .await;
}
