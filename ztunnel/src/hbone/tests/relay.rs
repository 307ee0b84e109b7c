//! Two applications with real sockets, two relays, and one stream between them.

use std::{io::ErrorKind, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Pair, Settings, buffers, local, pair, tcp_pair};
use crate::{
    hbone::{relay, stream::HboneStream},
    lifecycle::tasks::TaskSet,
    net::{
        buffer::BufferPool,
        copy::{CopyError, Side, Transferred},
        socket::reset_on_close,
    },
};

/// The applications, and the results of the relays between them.
struct Mesh {
    client: TcpStream,
    server: TcpStream,
    counts: [Rc<Transferred>; 2],
    ends: tokio::sync::mpsc::UnboundedReceiver<(Side, Result<(), CopyError>)>,
    tasks: TaskSet,
    pair: (super::Served, crate::hbone::client::Client),
}

async fn mesh(settings: &Settings) -> Mesh {
    let Pair { near, far, served, client: connection } = pair(settings).await;
    let ((client, outbound), (server, inbound)) = (tcp_pair().await, tcp_pair().await);
    let (tell, ends) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = TaskSet::default();
    let counts = [Rc::default(), Rc::default()];
    let mut start = |mut tcp: TcpStream, mut tunnel: HboneStream, tunnel_side: Side, count: &Rc<Transferred>| {
        let (tell, count) = (tell.clone(), Rc::clone(count));
        tasks.spawn_local(async move {
            reset_on_close(&tcp);
            let result = relay::both(&mut tcp, &mut tunnel, tunnel_side, &buffers(), &count).await;
            if result.is_ok() {
                crate::net::socket::finish_on_close(&tcp);
            }
            drop((tcp, tunnel));
            let _nobody_asks = tell.send((tunnel_side, result));
        });
    };
    start(outbound, near, Side::Server, &counts[0]);
    start(inbound, far, Side::Client, &counts[1]);
    Mesh { client, server, counts, ends, tasks, pair: (served, connection) }
}

impl Mesh {
    async fn end(&mut self) -> [(Side, Result<(), CopyError>); 2] {
        let mut ends = [self.ends.recv().await.unwrap(), self.ends.recv().await.unwrap()];
        ends.sort_by_key(|(side, _)| *side == Side::Client);
        ends
    }
}

#[tokio::test]
async fn data_flows_after_a_half_close_either_way() {
    for close_client_first in [true, false] {
        local(async {
            let mut mesh = mesh(&Settings::default()).await;
            let (first, second) = (&mut mesh.client, &mut mesh.server);
            let (first, second) = if close_client_first { (first, second) } else { (second, first) };
            first.write_all(b"before").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = Vec::new();
            second.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"before");
            second.write_all(b"after the end").await.unwrap();
            second.shutdown().await.unwrap();
            heard.clear();
            first.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"after the end");
            for (_, end) in mesh.end().await {
                end.unwrap();
            }
            for count in &mesh.counts {
                assert_eq!(count.to_server() + count.to_client(), 6 + 13);
                assert_eq!(count.to_server(), if close_client_first { 6 } else { 13 });
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side_and_loses_no_delivered_byte() {
    for reset_client in [true, false] {
        local(async {
            let mut mesh = mesh(&Settings::default()).await;
            let ends = async {
                let (client, server) = (&mut mesh.client, &mut mesh.server);
                let (resets, hears) = if reset_client { (client, server) } else { (server, client) };
                resets.write_all(b"last words").await.unwrap();
                let mut heard = [0; 10];
                hears.read_exact(&mut heard).await.unwrap();
                reset_on_close(&*resets);
            };
            ends.await;
            let mut heard = [0; 10];
            let error = if reset_client {
                drop(mesh.client);
                mesh.server.read(&mut heard).await.unwrap_err()
            } else {
                drop(mesh.server);
                mesh.client.read(&mut heard).await.unwrap_err()
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            for _ in 0..2 {
                let (_, end) = mesh.ends.recv().await.unwrap();
                let error = end.unwrap_err();
                assert!(error.is_reset(), "{error}");
                assert_eq!(error.side, if reset_client { Side::Client } else { Side::Server }, "{error}");
            }
        })
        .await;
    }
}

/// Writes until all buffers on the way are full, and returns the number of bytes.
async fn fill(stream: &mut TcpStream) -> u64 {
    let chunk = vec![7; 64 << 10];
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_millis(300), stream.write(&chunk)).await {
        written += result.unwrap() as u64;
    }
    written
}

#[tokio::test]
async fn a_slow_reader_costs_its_window_and_a_reset_is_noticed_meanwhile() {
    local(async {
        let settings = Settings { stream_window: 1 << 20, ..Settings::default() };
        let mut mesh = mesh(&settings).await;
        fill(&mut mesh.client).await;
        let (taken, delivered) = (mesh.counts[0].to_server(), mesh.counts[1].to_server());
        // The window, the bytes that wait to be sent, and the bytes in the pipe between the nodes.
        let most = u64::from(settings.stream_window) + settings.send_buffer as u64 + (128 << 10);
        assert!(taken - delivered <= most, "{} bytes are held for a reader that does not read", taken - delivered);
        reset_on_close(&mesh.client);
        drop(mesh.client);
        for _ in 0..2 {
            let (_, end) = timeout(Duration::from_secs(2), mesh.ends.recv()).await.unwrap().unwrap();
            assert_eq!(end.unwrap_err().side, Side::Client);
        }
        let mut rest = Vec::new();
        assert_eq!(mesh.server.read_to_end(&mut rest).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(rest.iter().all(|byte| *byte == 7));
    })
    .await;
}

#[tokio::test]
async fn a_side_that_resets_after_its_end_is_noticed_although_the_other_is_silent() {
    for close_client in [true, false] {
        local(async {
            let Mesh { client, server, mut ends, tasks: _tasks, pair: _pair, .. } = mesh(&Settings::default()).await;
            let (mut first, mut second) = if close_client { (client, server) } else { (server, client) };
            first.shutdown().await.unwrap();
            assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0);
            reset_on_close(&first);
            drop(first);
            second.ready(tokio::io::Interest::ERROR).await.unwrap();
            for _ in 0..2 {
                let error = ends.recv().await.unwrap().1.unwrap_err();
                assert!(error.is_reset(), "{error}");
                assert_eq!(error.side, if close_client { Side::Client } else { Side::Server });
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_lost_connection_is_told_from_a_reset() {
    local(async {
        let mut mesh = mesh(&Settings::default()).await;
        mesh.client.write_all(b"x").await.unwrap();
        mesh.server.read_exact(&mut [0; 1]).await.unwrap();
        mesh.pair.0.tasks.abort_all().await;
        for (side, end) in mesh.end().await {
            let error = end.unwrap_err();
            assert_eq!((error.side, error.source.kind()), (side, ErrorKind::ConnectionAborted), "{error}");
            assert!(!error.is_reset());
        }
        for application in [&mut mesh.client, &mut mesh.server] {
            assert_eq!(application.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    })
    .await;
}

#[tokio::test]
async fn large_transfers_both_ways_at_once_arrive_whole() {
    const SIZE: usize = 64 << 20;
    /// Byte `index` of the bytes that a side sends.
    fn byte(seed: usize, index: usize) -> u8 {
        let mixed = (index ^ seed).wrapping_mul(0x9e37_79b9);
        u8::try_from((mixed >> 16) & 0xff).unwrap()
    }
    local(async {
        let Mesh { client, server, counts, mut ends, tasks: _tasks, pair: _pair } = mesh(&Settings::default()).await;
        let talk = |stream: TcpStream, own: usize, other: usize| async move {
            let (mut read, mut write) = stream.into_split();
            let say = async move {
                let mut chunk = vec![0; 256 << 10];
                for start in (0..SIZE).step_by(chunk.len()) {
                    chunk.iter_mut().enumerate().for_each(|(index, place)| *place = byte(own, start + index));
                    write.write_all(&chunk).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let hear = async move {
                let (mut chunk, mut at) = (vec![0; 256 << 10], 0);
                loop {
                    let length = read.read(&mut chunk).await.unwrap();
                    if length == 0 {
                        break assert_eq!(at, SIZE);
                    }
                    let wrong =
                        chunk[..length].iter().enumerate().find(|(index, got)| **got != byte(other, at + index));
                    assert_eq!(wrong, None, "after {at} bytes");
                    at += length;
                }
            };
            tokio::join!(say, hear);
        };
        tokio::join!(talk(client, 1, 77_777), talk(server, 77_777, 1));
        for _ in 0..2 {
            ends.recv().await.unwrap().1.unwrap();
        }
        for count in counts {
            assert_eq!((count.to_server(), count.to_client()), (SIZE as u64, SIZE as u64));
        }
    })
    .await;
}

#[tokio::test]
async fn messages_of_one_byte_go_back_and_forth() {
    local(async {
        let Mesh { mut client, mut server, tasks: _tasks, pair: _pair, .. } = mesh(&Settings::default()).await;
        let echo = async {
            let mut byte = [0; 1];
            while server.read(&mut byte).await.unwrap() == 1 {
                server.write_all(&byte).await.unwrap();
            }
        };
        let ask = async move {
            for round in 0..2000_u32 {
                let said = [u8::try_from(round % 251).unwrap()];
                client.write_all(&said).await.unwrap();
                let mut heard = [0; 1];
                client.read_exact(&mut heard).await.unwrap();
                assert_eq!(said, heard);
            }
            client.shutdown().await.unwrap();
        };
        tokio::join!(echo, ask);
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stalls_does_not_end_the_connection_of_a_writer_of_small_pieces() {
    // More small pieces than h2 keeps for one connection: they are merged as they arrive.
    const PIECES: usize = 300_000;
    local(async {
        let Pair { mut near, far, served, .. } = pair(&Settings::default()).await;
        let (mut application, mut inbound) = tcp_pair().await;
        let (count, small) = (Transferred::default(), BufferPool::new(16, 4));
        let mut far = far;
        let (pool, settings) = (buffers(), Settings::default());
        let copy = relay::both(&mut inbound, &mut far, Side::Client, &pool, &count);
        let talk = async {
            // First fill the sockets.
            super::say(&mut near, &buffers(), &vec![7; 3 << 20]).await;
            for _ in 0..PIECES {
                super::say(&mut near, &small, b"x").await;
            }
            assert!(near.finish());
            let mut heard = Vec::new();
            application.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard.len(), (3 << 20) + PIECES);
            application.shutdown().await.unwrap();
            assert_eq!(super::hear(&mut near).await.unwrap(), b"");
        };
        let (result, ()) = tokio::join!(copy, talk);
        result.unwrap();
        assert_eq!(*served.end.borrow(), None);
        assert!((3 << 20) + PIECES < settings.stream_window as usize);
    })
    .await;
}
