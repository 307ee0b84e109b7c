//! Copies between real loopback sockets.

use super::{BufferPool, CopyError, Side, Transferred, both};
use crate::net::socket::{keep_urgent_data, reset_on_close};
use socket2::SockRef;
use std::io::ErrorKind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The far end and the near end of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (far, listener.accept().await.unwrap().0)
}

async fn copied(client: TcpStream, server: TcpStream) -> (Result<(), CopyError>, u64, u64) {
    copied_by(16 << 10, client, server).await
}

async fn copied_by(size: usize, mut client: TcpStream, mut server: TcpStream) -> (Result<(), CopyError>, u64, u64) {
    let bytes = Transferred::default();
    let result = both(&mut client, &mut server, &BufferPool::new(size, 4), &bytes).await;
    if result.is_err() {
        reset_on_close(&client);
        reset_on_close(&server);
    }
    (result, bytes.to_server(), bytes.to_client())
}

#[tokio::test]
async fn data_flows_after_a_half_close_either_way() {
    for close_client_first in [true, false] {
        let ((client, near), (server, far)) = (pair().await, pair().await);
        let (mut first, mut second) = if close_client_first { (client, server) } else { (server, client) };
        let ends = async {
            first.write_all(b"before").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = Vec::new();
            second.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"before");
            second.write_all(b"after the end").await.unwrap();
            drop(second);
            heard.clear();
            first.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"after the end");
        };
        let ((result, to_server, to_client), ()) = tokio::join!(copied(near, far), ends);
        result.unwrap();
        assert_eq!(to_server + to_client, 6 + 13);
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side_and_loses_no_delivered_byte() {
    for reset_client in [true, false] {
        let ((client, near), (server, far)) = (pair().await, pair().await);
        let (mut resets, mut hears) = if reset_client { (client, server) } else { (server, client) };
        let ends = async {
            resets.write_all(b"last words").await.unwrap();
            let mut heard = [0; 10];
            hears.read_exact(&mut heard).await.unwrap();
            reset_on_close(&resets);
            drop(resets);
            assert_eq!(hears.read(&mut heard).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        };
        let ((result, ..), ()) = tokio::join!(copied(near, far), ends);
        let error = result.unwrap_err();
        assert!(error.is_reset(), "{error}");
        assert_eq!(error.side, if reset_client { Side::Client } else { Side::Server });
    }
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    let ((mut client, near), (mut server, far)) = (pair().await, pair().await);
    let ends = async {
        // Writes until every buffer on the way is full.
        let chunk = vec![7; 1 << 20];
        let stuck = tokio::time::timeout(std::time::Duration::from_millis(500), async {
            loop {
                client.write_all(&chunk).await.unwrap();
            }
        });
        stuck.await.unwrap_err();
        reset_on_close(&client);
        drop(client);
        let mut rest = Vec::new();
        assert_eq!(server.read_to_end(&mut rest).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(rest.iter().all(|byte| *byte == 7));
    };
    let ((result, ..), ()) = tokio::join!(copied(near, far), ends);
    assert_eq!(result.unwrap_err().side, Side::Client);
}

#[tokio::test]
async fn a_side_that_resets_after_its_end_is_noticed_although_the_other_is_silent() {
    let ((mut client, near), (mut server, far)) = (pair().await, pair().await);
    let ends = async {
        server.shutdown().await.unwrap();
        let mut heard = [0; 1];
        assert_eq!(client.read(&mut heard).await.unwrap(), 0);
        reset_on_close(&server);
        drop(server);
        client.ready(tokio::io::Interest::ERROR).await.unwrap();
        client.write_all(b"x").await.unwrap_err();
    };
    let ((result, ..), ()) = tokio::join!(copied(near, far), ends);
    assert_eq!(result.unwrap_err().side, Side::Server);
}

#[tokio::test]
async fn large_transfers_both_ways_at_once_arrive_whole() {
    const SIZE: usize = 8 << 20;
    let ((client, near), (server, far)) = (pair().await, pair().await);
    let talk = |stream: TcpStream, say: u8, hear: u8| async move {
        let (mut read, mut write) = stream.into_split();
        let say = async move {
            write.write_all(&vec![say; SIZE]).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let hear = async move {
            let mut heard = Vec::new();
            read.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard.len(), SIZE);
            assert!(heard.iter().all(|byte| *byte == hear));
        };
        tokio::join!(say, hear);
    };
    let ((result, to_server, to_client), ..) = tokio::join!(copied(near, far), talk(client, 1, 2), talk(server, 2, 1));
    result.unwrap();
    assert_eq!((to_server, to_client), (SIZE as u64, SIZE as u64));
}

#[tokio::test]
async fn a_direction_that_always_has_bytes_lets_others_have_their_turn() {
    // One byte per read: this makes more reads than the runtime allows a task in one turn.
    let ((mut client, near), (mut server, far)) = (pair().await, pair().await);
    let ends = async {
        client.write_all(&[7; 10_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), 10_000);
        drop(server);
    };
    let ((result, ..), ()) = tokio::join!(copied_by(1, near, far), ends);
    result.unwrap();
}

/// Urgent data stays in its position, and the bytes behind it are copied without waiting for further bytes.
#[tokio::test]
async fn urgent_data_is_copied_in_its_place() {
    for from_client in [true, false] {
        let ((client, near), (server, far)) = (pair().await, pair().await);
        keep_urgent_data(&near).unwrap();
        keep_urgent_data(&far).unwrap();
        let (mut says, mut hears) = if from_client { (client, server) } else { (server, client) };
        let urgent = |socket: &TcpStream, bytes: &[u8]| {
            assert_eq!(SockRef::from(socket).send_out_of_band(bytes).unwrap(), bytes.len());
        };
        // All bytes are there before the copy begins: no further byte wakes it.
        says.write_all(b"abc").await.unwrap();
        urgent(&says, b"!");
        says.write_all(b"def").await.unwrap();
        urgent(&says, b"xyz?");
        let ends = async {
            let mut heard = [0; 11];
            hears.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"abc!defxyz?");
            urgent(&says, b"#");
            hears.read_exact(&mut heard[..1]).await.unwrap();
            assert_eq!(&heard[..1], b"#");
            says.write_all(b"end").await.unwrap();
            says.shutdown().await.unwrap();
            let mut rest = Vec::new();
            hears.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"end");
            drop(hears);
        };
        let ((result, to_server, to_client), ()) = tokio::join!(copied(near, far), ends);
        result.unwrap();
        assert_eq!(to_server + to_client, 15);
    }
}
