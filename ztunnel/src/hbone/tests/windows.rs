//! Abuse of windows: a peer or application that stalls costs no more memory than promised.

use std::{cell::RefCell, rc::Rc, time::Duration};

use tokio::io::AsyncWriteExt as _;

use super::{
    Pair, Settings, Windows, buffers, hear, local, ok, pair_within,
    raw::{ACK, DATA, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, connect, frame},
    say, serve, serve_within, tcp_pair,
};
use crate::{
    hbone::{relay, server::End, stream::HboneStream},
    lifecycle::tasks::TaskSet,
    net::{
        copy::{Side, Transferred},
        memory::Budget,
    },
};

const FLOW_CONTROL_ERROR: u32 = 3;

#[tokio::test]
async fn a_client_with_no_window_gets_nothing_and_costs_no_more_than_a_buffer() {
    local(async {
        let (mut application, mut near) = tcp_pair().await;
        let (seen, mut tasks) = (Rc::new(Transferred::default()), TaskSet::default());
        let (count, mut near) = (Rc::clone(&seen), Some(std::mem::replace(&mut near, tcp_pair().await.0)));
        let served = serve(&Settings::default(), move |incoming| {
            let (mut tunnel, mut near) = (incoming.responder.accept(&ok()).unwrap(), near.take().unwrap());
            let count = Rc::clone(&count);
            tasks.spawn_local(async move {
                let _ended = relay::both(&mut near, &mut tunnel, Side::Client, &buffers(), &count).await;
            });
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        raw.send(&connect(1)).await;
        raw.read.next(HEADERS).await.unwrap();
        application.write_all(&[7; 100_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(seen.to_client(), 0, "bytes were taken for which there is no window");
        raw.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 10])).await;
        assert_eq!(raw.read.next(DATA).await.unwrap().payload, [7; 10]);
        raw.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
        assert_eq!(raw.read.next(DATA).await.unwrap().payload, [7]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(seen.to_client(), 11);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn errors_in_the_windows_of_a_stream_end_the_stream_only() {
    local(async {
        let tunnels: Rc<RefCell<Vec<HboneStream>>> = Rc::default();
        let kept = Rc::clone(&tunnels);
        let served = serve(&Settings::default(), move |incoming| {
            kept.borrow_mut().extend(incoming.responder.accept(&ok()).ok());
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&connect(1)).await;
        raw.send(&frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])).await;
        let reset = raw.read.next(RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.code()), (1, FLOW_CONTROL_ERROR));
        // More bytes than the window allows; no application reads them.
        raw.send(&connect(3)).await;
        let Raw { read, write } = &mut raw;
        let flood = async {
            for _ in 0..5 {
                write.write_all(&frame(DATA, 0, 3, &vec![0; 1 << 20])).await.unwrap();
            }
        };
        let ((), reset) = tokio::join!(flood, read.next(RST_STREAM));
        let reset = reset.unwrap();
        assert_eq!((reset.stream, reset.code()), (3, FLOW_CONTROL_ERROR));
        raw.send(&connect(5)).await;
        assert_eq!(raw.read.next(HEADERS).await.unwrap().stream, 5);
        // The first stream was reset before it was answered.
        assert_eq!(tunnels.borrow().len(), 2);
        assert_eq!(*served.end.borrow(), None);
    })
    .await;
}

/// Streams that are not read block the connection for all other streams of the pod.
#[tokio::test(start_paused = true)]
async fn a_connection_that_stalled_streams_have_filled_is_left_and_a_slow_reader_alone_changes_nothing() {
    local(async {
        let tunnels: Rc<RefCell<Vec<HboneStream>>> = Rc::default();
        let kept = Rc::clone(&tunnels);
        let served = serve(&Settings::default(), move |incoming| {
            kept.borrow_mut().extend(incoming.responder.accept(&ok()).ok());
        });
        let mut raw = Raw::client(served.far).await;
        for stream in [1, 3, 5] {
            raw.send(&connect(stream)).await;
            raw.read.next(HEADERS).await.unwrap();
        }
        let stall = |index: usize| tunnels.borrow()[index].stall();
        let (first, second) = (stall(0), stall(1));
        for _ in 0..5 {
            // One stream that waits now and then, and two that wait for ever.
            drop(stall(2));
            raw.send(&frame(PING, 0, 0, &[7; 8])).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_ne!(raw.read.frame().await.unwrap().kind, GOAWAY);
        }
        let third = stall(2);
        raw.send(&frame(PING, 0, 0, &[7; 8])).await;
        assert_eq!(raw.read.next(GOAWAY).await.unwrap().code(), 0, "an orderly goodbye");
        drop((first, second, third));
        tunnels.borrow_mut().clear();
        raw.read.rest().await;
        assert_eq!(*served.end.borrow(), Some(End::Stalled));
    })
    .await;
}

/// Many HBONE connections of one peer, to an application that does not read, must not use up the memory of the others.
#[tokio::test(start_paused = true)]
async fn tunnels_to_an_application_that_does_not_read_cost_no_more_than_their_peers_share() {
    const TUNNELS: usize = 40;
    local(async {
        let (budget, settings) = (Budget::new(128 << 20), Settings::default());
        let account = budget.pod().of_peer([10, 0, 0, 9].into());
        let mut taken = 0;
        let mut all = Vec::new();
        for _ in 0..TUNNELS {
            let tunnels: RefCell<Vec<HboneStream>> = RefCell::default();
            let windows = Windows::claim(&settings, &account).unwrap();
            let served = serve_within(&settings, windows, move |incoming| {
                tunnels.borrow_mut().extend(incoming.responder.accept(&ok()).ok());
            });
            let mut raw = Raw::client(served.far).await;
            let mut window = raw.read.frame().await.unwrap();
            while window.kind != SETTINGS || window.flags & ACK != 0 {
                window = raw.read.frame().await.unwrap();
            }
            let of_stream = u32::from_be_bytes(window.payload[8..12].try_into().unwrap());
            for stream in [1, 3, 5, 7] {
                raw.send(&connect(stream)).await;
                let mut rest = of_stream as usize;
                while rest > 0 {
                    let size = rest.min(1 << 14);
                    raw.send(&frame(DATA, 0, stream, &vec![0; size])).await;
                    (rest, taken) = (rest - size, taken + size);
                }
            }
            all.push((raw, served.tasks, served.drain));
        }
        assert!(taken <= 16 << 20, "{taken} bytes were taken");
        assert!(budget.used() <= 16 << 20, "{} bytes are counted", budget.used());
        drop(all);
        settle().await;
        assert_eq!(budget.used(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_whose_application_reads_grows_to_the_windows_of_the_settings() {
    local(async {
        let (budget, settings) = (Budget::new(512 << 20), Settings::default());
        let windows = Windows::claim(&settings, &budget.pod().of_peer([10, 0, 0, 9].into())).unwrap();
        let begun = budget.used();
        let Pair { mut near, mut far, served: _served, client: _client } = pair_within(&settings, windows).await;
        let pool = buffers();
        let bytes = vec![7; 48 << 20];
        let read = async {
            let mut heard = 0;
            while heard < bytes.len() {
                heard += hear(&mut far).await.unwrap().len();
            }
        };
        tokio::join!(say(&mut near, &pool, &bytes), read);
        assert_eq!((begun, budget.used()), (256 << 10, 16 << 20));
    })
    .await;
}

/// The same on the accepting side.
#[tokio::test(start_paused = true)]
async fn a_tunnel_without_streams_is_told_goodbye_where_memory_is_short_if_it_has_grown() {
    local(async {
        let (budget, settings) = (Budget::new(512 << 20), Settings::default());
        let windows = Windows::claim(&settings, &budget.pod().of_peer([10, 0, 0, 9].into())).unwrap();
        let Pair { mut near, mut far, served, client } = pair_within(&settings, windows).await;
        let (pool, bytes) = (buffers(), vec![7; 48 << 20]);
        let read = async {
            let mut heard = 0;
            while heard < bytes.len() {
                heard += hear(&mut far).await.unwrap().len();
            }
        };
        tokio::join!(say(&mut near, &pool, &bytes), read);
        drop((near, far));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((budget.used(), client.is_usable()), (16 << 20, true), "nothing is short");
        let others: Vec<_> = (0..4).map(|_| budget.pod().claim(100 << 20).unwrap()).collect();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!client.is_usable());
        assert_eq!(*served.end.borrow(), Some(End::Outgrown));
        assert_eq!(budget.used(), 400 << 20, "all that was promised is free again");
        drop(others);
    })
    .await;
}

/// Windows that were announced to a peer with open streams are reduced as far as HTTP/2 allows.
#[tokio::test(start_paused = true)]
async fn the_windows_of_a_stream_that_says_nothing_shrink_where_memory_is_short() {
    local(async {
        let (budget, settings) = (Budget::new(4 << 30), Settings::default());
        let windows = Windows::claim(&settings, &budget.pod().of_peer([10, 0, 0, 9].into())).unwrap();
        assert_eq!(budget.used(), 2 << 20);
        let tunnels: RefCell<Vec<HboneStream>> = RefCell::default();
        let served = serve_within(&settings, windows, move |incoming| {
            tunnels.borrow_mut().extend(incoming.responder.accept(&ok()).ok());
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
        raw.send(&connect(1)).await;
        raw.read.next(HEADERS).await.unwrap();
        let others: Vec<_> = (0..4).map(|_| budget.pod().claim(825 << 20).unwrap()).collect();
        // The peer answers every PING and every SETTINGS.
        let Raw { read, write } = &mut raw;
        let mut told = Vec::new();
        let answers = async {
            while let Some(got) = read.frame().await {
                match (got.kind, got.flags & ACK) {
                    (PING, 0) => write.write_all(&frame(PING, ACK, 0, &got.payload)).await.unwrap(),
                    (SETTINGS, 0) => {
                        told.push(u32::from_be_bytes(got.payload[2..6].try_into().unwrap()));
                        write.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
                    }
                    _ => {}
                }
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(120), answers).await.is_err(), "the connection has ended");
        assert_eq!(told.last(), Some(&(16 << 10)), "{told:?}");
        // The connection's own window still allows 2 MiB, and no more is counted.
        assert_eq!(budget.used(), (4 * (825 << 20)) + (2 << 20));
        drop(others);
    })
    .await;
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
