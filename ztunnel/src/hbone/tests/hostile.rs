//! Peers that violate the protocol, or abuse it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::io::AsyncWriteExt as _;

use super::{
    Served, Settings, client, local, ok,
    raw::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, PUSH_PROMISE,
        RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, connect, connect_block, frame, header,
    },
    serve, to,
};
use crate::hbone::{client::OpenError, server::End, server::Responder};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Accepts every stream and does nothing with it.
fn accepting(settings: &Settings) -> Served {
    let tunnels = RefCell::new(Vec::new());
    serve(settings, move |incoming| tunnels.borrow_mut().extend(incoming.responder.accept(&ok()).ok()))
}

/// Checks the GOAWAY of a server for a client that has begun correctly and then writes these bytes, and the end that the server
/// reports.
async fn check(bytes: &[u8], goodbye: Option<u32>) {
    let served = accepting(&Settings::default());
    let mut raw = Raw::client(served.far).await;
    let Raw { read, write } = &mut raw;
    // A server that gives up does not read the rest.
    let (_cut_off, code) = tokio::join!(write.write_all(bytes), read.goodbye());
    assert_eq!(code, goodbye, "{:?}", served.end.borrow());
    tokio::task::yield_now().await;
    assert!(matches!(*served.end.borrow(), Some(End::Failed(_))), "{:?}", served.end.borrow());
}

#[tokio::test(start_paused = true)]
async fn settings_are_istios_to_the_byte() {
    local(async {
        let served = accepting(&Settings::default());
        let mut raw = Raw::client(served.far).await;
        let first = raw.read.frame().await.unwrap();
        assert_eq!((first.kind, first.flags, first.stream), (SETTINGS, 0, 0));
        let expected = [0, 3, 0, 0, 0, 0xc8, 0, 4, 0, 0x40, 0, 0, 0, 5, 0, 0x10, 0, 0, 0, 6, 0, 1, 0, 0];
        assert_eq!(first.payload, expected);
        let window = raw.read.next(WINDOW_UPDATE).await.unwrap();
        assert_eq!((window.stream, window.payload), (0, 16_711_681_u32.to_be_bytes().to_vec()));

        let (near, far) = tokio::io::duplex(1 << 16);
        let mut tasks = crate::lifecycle::tasks::TaskSet::default();
        let _client = client(near, &Settings::default(), &mut tasks).await;
        let mut raw = Raw::new(far);
        assert_eq!(raw.read.preface().await, PREFACE);
        let first = raw.read.frame().await.unwrap();
        let expected = [0, 2, 0, 0, 0, 0, 0, 4, 0, 0x40, 0, 0, 0, 5, 0, 0x10, 0, 0, 0, 6, 0, 0, 0x40, 0];
        assert_eq!((first.kind, first.payload), (SETTINGS, expected.to_vec()));
        let window = raw.read.next(WINDOW_UPDATE).await.unwrap();
        assert_eq!((window.stream, window.payload), (0, 16_711_681_u32.to_be_bytes().to_vec()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn frames_that_make_no_sense_end_the_connection() {
    local(async {
        let open = connect(1);
        let with = |bytes: Vec<u8>| [open.clone(), bytes].concat();
        // Garbage: a frame longer than allowed.
        check(&[0xff; 64], Some(6)).await;
        check(&with(frame(WINDOW_UPDATE, 0, 0, &[0; 4])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])), Some(FLOW_CONTROL_ERROR)).await;
        check(&with(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(DATA, 0, 5, b"x")), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(RST_STREAM, 0, 9, &[0; 4])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(CONTINUATION, END_HEADERS, 1, &[])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(HEADERS, END_HEADERS, 2, &connect_block("a:1"))), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(HEADERS, END_HEADERS, 3, &[0xff; 9])), Some(PROTOCOL_ERROR)).await;
        check(&with(frame(PING, 0, 0, &[0; 7])), Some(PROTOCOL_ERROR)).await;
        // 101 empty DATA frames.
        check(&with(frame(DATA, 0, 1, &[]).repeat(101)), Some(ENHANCE_YOUR_CALM)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_speaks_http1_is_closed() {
    local(async {
        let served = accepting(&Settings::default());
        let mut raw = Raw::new(served.far);
        assert!(raw.read.rest().await.iter().all(|frame| frame.kind == SETTINGS));
        assert_eq!(*served.end.borrow(), Some(End::NoPreface));

        let served = accepting(&Settings::default());
        let mut raw = Raw::new(served.far);
        raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(raw.read.rest().await.iter().all(|frame| frame.kind == SETTINGS));
        assert!(matches!(*served.end.borrow(), Some(End::Failed(_))), "{:?}", served.end.borrow());

        // A client, connected to a server of this kind.
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut tasks = crate::lifecycle::tasks::TaskSet::default();
        let client = client(near, &Settings::default(), &mut tasks).await;
        let mut raw = Raw::new(far);
        raw.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let error = client.connect(&to("10.0.0.1:80"), Duration::from_secs(15)).await.unwrap_err();
        assert!(matches!(error, OpenError::Protocol(_) | OpenError::Unprocessed(_)), "{error:?}");
        assert!(!client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_stream_is_closed_after_a_minute() {
    local(async {
        let start = tokio::time::Instant::now();
        let served = accepting(&Settings::default());
        let mut raw = Raw::client(served.far).await;
        let Raw { read, write } = &mut raw;
        let answers = async {
            let mut code = None;
            while let Some(frame) = read.frame().await {
                match frame.kind {
                    PING if frame.flags & ACK == 0 => {
                        // The last answer may fail: the server is gone.
                        let _closed = write.write_all(&super::raw::frame(PING, ACK, 0, &frame.payload)).await;
                    }
                    GOAWAY => code = Some(frame.code()),
                    _ => {}
                }
            }
            code
        };
        assert_eq!(answers.await, Some(0));
        assert_eq!((*served.end.borrow()).clone(), Some(End::Unused));
        assert_eq!(start.elapsed().as_secs(), 60);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn rapid_resets_are_cut_off() {
    local(async {
        let (seen, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (count, held) = (Rc::clone(&seen), Rc::clone(&most));
        // The worst case: the requests are never answered, and nothing checks whether the client has reset them.
        let responders: RefCell<Vec<Responder>> = RefCell::default();
        let served = serve(&Settings::default(), move |incoming| {
            count.set(count.get() + 1);
            responders.borrow_mut().push(incoming.responder);
            held.set(held.get().max(responders.borrow().len()));
        });
        let mut raw = Raw::client(served.far).await;
        let Raw { read, write } = &mut raw;
        let attack = async {
            for stream in (1..200_000).step_by(2) {
                let pair = [connect(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
                if write.write_all(&pair).await.is_err() {
                    return stream / 2;
                }
            }
            100_000
        };
        let (sent, code) = tokio::join!(attack, read.goodbye());
        assert_eq!(code, Some(ENHANCE_YOUR_CALM));
        assert!(sent < 20_000, "{sent} of 100,000 streams were taken");
        assert!(seen.get() <= 2000 && most.get() <= 400, "{} handed out, {} at once", seen.get(), most.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn rapid_resets_of_answered_requests_are_cut_off() {
    local(async {
        let seen = Rc::new(Cell::new(0));
        let count = Rc::clone(&seen);
        let mut tasks = crate::lifecycle::tasks::TaskSet::default();
        let served = serve(&Settings::default(), move |incoming| {
            count.set(count.get() + 1);
            tasks.spawn_local(async move {
                let mut responder = incoming.responder;
                let _gone = responder.gone().await;
            });
        });
        let mut raw = Raw::client(served.far).await;
        let Raw { read, write } = &mut raw;
        let attack = async {
            for stream in (1..200_000).step_by(2) {
                let pair = [connect(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])];
                for bytes in pair {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                    // So slowly that every stream is handed out before it is reset.
                    tokio::task::yield_now().await;
                    tokio::task::yield_now().await;
                }
            }
        };
        let ((), code) = tokio::join!(attack, read.goodbye());
        assert_eq!(code, Some(ENHANCE_YOUR_CALM));
        assert!((500..3000).contains(&seen.get()), "{}", seen.get());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_continuations_is_cut_off() {
    local(async {
        let begin = frame(HEADERS, 0, 1, &connect_block("10.0.0.1:80"));
        let small = frame(CONTINUATION, 0, 1, &header("x-a", b"b"));
        check(&[begin.clone(), small.repeat(1000)].concat(), Some(ENHANCE_YOUR_CALM)).await;
        let large = frame(CONTINUATION, 0, 1, &vec![0; 1 << 20]);
        check(&[begin.clone(), large.repeat(10)].concat(), Some(ENHANCE_YOUR_CALM)).await;
        // One header that never ends.
        let endless = [0x00, 3, b'x', b'-', b'a', 127, 0xff, 0xff, 0x7f];
        let more = frame(CONTINUATION, 0, 1, &vec![b'a'; 1 << 20]);
        let mut bytes = [begin, frame(CONTINUATION, 0, 1, &endless)].concat();
        bytes.extend(more.repeat(10));
        let served = accepting(&Settings::default());
        let mut raw = Raw::client(served.far).await;
        let Raw { read, write } = &mut raw;
        let (_cut_off, code) = tokio::join!(write.write_all(&bytes), read.goodbye());
        assert!(matches!(code, Some(PROTOCOL_ERROR | COMPRESSION_ERROR | ENHANCE_YOUR_CALM)), "{code:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn headers_over_64_kib_are_answered_with_431() {
    local(async {
        let served = accepting(&Settings::default());
        let mut raw = Raw::client(served.far).await;
        let block = [connect_block("10.0.0.1:80"), header("baggage", &vec![b'a'; 66_000])].concat();
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        let answer = raw.read.next(HEADERS).await.unwrap();
        assert_eq!((answer.flags & END_STREAM, answer.stream), (END_STREAM, 1));
        // `:status` is name 8 of the static table; "431" in Huffman.
        assert_eq!(answer.payload, [0x48, 0x83, 0x69, 0x90, 0xff]);
        let reset = raw.read.next(RST_STREAM).await.unwrap();
        assert_eq!(reset.code(), PROTOCOL_ERROR);
        // The connection continues.
        raw.send(&connect(3)).await;
        assert_eq!(raw.read.next(HEADERS).await.unwrap().stream, 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn streams_beyond_the_limit_are_refused() {
    local(async {
        let served = accepting(&Settings::default());
        let mut raw = Raw::client(served.far).await;
        let Raw { read, write } = &mut raw;
        let open = async {
            for stream in (1..=401).step_by(2) {
                write.write_all(&connect(stream)).await.unwrap();
            }
        };
        let ((), refused) = tokio::join!(open, read.next(RST_STREAM));
        let refused = refused.unwrap();
        assert_eq!((refused.stream, refused.code()), (401, REFUSED_STREAM));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn data_for_closed_streams_is_an_error_of_the_stream_only() {
    local(async {
        // The server refuses every request. The stream is closed, but the client's bytes on the way still arrive.
        let served = serve(&Settings::default(), |incoming| {
            let refused = crate::wire::connect::ConnectResponse { status: http::StatusCode::UNAUTHORIZED, ..ok() };
            incoming.responder.refuse(&refused).unwrap();
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&connect(1)).await;
        let answer = raw.read.next(HEADERS).await.unwrap();
        assert_eq!(answer.flags, END_HEADERS | END_STREAM);
        let reset = raw.read.frame().await.unwrap();
        assert_eq!((reset.kind, reset.stream, reset.code()), (RST_STREAM, 1, 0));
        raw.send(&frame(DATA, 0, 1, b"late")).await;
        raw.send(&connect(3)).await;
        assert_eq!(raw.read.next(HEADERS).await.unwrap().stream, 3);
        // The server has forgotten its reset by then.
        raw.send(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 8])).await;
        raw.send(&frame(DATA, 0, 3, b"later")).await;
        raw.send(&connect(5)).await;
        loop {
            let frame = raw.read.frame().await.unwrap();
            match frame.kind {
                RST_STREAM if frame.stream == 3 => assert!(matches!(frame.code(), 0 | STREAM_CLOSED)),
                HEADERS => break assert_eq!(frame.stream, 5),
                _ => {}
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn floods_of_frames_that_want_an_answer_are_bounded_by_who_reads_it() {
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])] {
        // A peer that reads gets its answers.
        local(async {
            let served = accepting(&Settings::default());
            let mut raw = Raw::client(served.far).await;
            let Raw { read, write } = &mut raw;
            let kind = flood[3];
            let send = async {
                write.write_all(&flood.repeat(10_000)).await.unwrap();
            };
            let hear = async {
                for _ in 0..10_000 {
                    read.next(kind).await.unwrap();
                }
            };
            tokio::join!(send, hear);
        })
        .await;
        // If a peer does not read, the server soon stops reading from it as well, and then the peer counts as dead.
        local(async {
            let served = accepting(&Settings::default());
            let mut raw = Raw::client(served.far).await;
            let mut sent = 0;
            while tokio::time::timeout(Duration::from_secs(60), raw.write.write_all(&flood))
                .await
                .is_ok_and(|r| r.is_ok())
            {
                sent += flood.len();
            }
            assert!(sent < 512 << 10, "{sent} bytes were taken");
            tokio::task::yield_now().await;
            assert!(served.end.borrow().is_some());
        })
        .await;
    }
}

/// Frames that cost worker time and transfer no bytes.
#[tokio::test(start_paused = true)]
async fn a_peer_that_keeps_a_worker_busy_with_frames_that_carry_nothing_is_told_to_calm_down() {
    let floods = [
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]),
        frame(0xfa, 0, 0, &[]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PING, ACK, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(RST_STREAM, 0, 3, &8u32.to_be_bytes()),
        // A byte in between changes nothing.
        [frame(DATA, 0, 1, b"x"), frame(PING, 0, 0, &[7; 8])].concat(),
    ];
    for flood in floods {
        local(async {
            let served = accepting(&Settings::default());
            let mut raw = Raw::client(served.far).await;
            raw.send(&connect(1)).await;
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &connect_block("10.0.0.1:80"))).await;
            let Raw { read, write } = &mut raw;
            let flood = flood.repeat(30_000);
            // The server does not read the rest.
            let (_cut_off, code) = tokio::join!(write.write_all(&flood), read.goodbye());
            assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{:?} {:?}", &flood[..9], served.end.borrow());
            tokio::task::yield_now().await;
            assert_eq!(*served.end.borrow(), Some(End::Flooded));
        })
        .await;
    }
}

/// The same frames from a server, whose client has a stream on the connection.
#[tokio::test(start_paused = true)]
async fn a_server_that_keeps_a_worker_busy_with_frames_that_carry_nothing_is_told_to_calm_down_and_left() {
    let floods = [
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]),
        frame(0xfa, 0, 0, &[]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PING, ACK, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(DATA, 0, 1, &[]),
    ];
    for flood in floods {
        local(async {
            let (near, far) = tokio::io::duplex(1 << 16);
            let (io, activity) = super::Watched::new(near);
            let settings = Settings::default();
            let (client, driver) = client::handshake(io, activity, &settings, super::plenty(&settings)).await.unwrap();
            let mut raw = Raw::new(far);
            raw.read.preface().await;
            raw.send(&frame(SETTINGS, 0, 0, &[])).await;
            let Raw { read, write } = &mut raw;
            let (connected, end) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(None)));
            let (seen, told) = (Rc::clone(&connected), Rc::clone(&end));
            let mut tasks = crate::lifecycle::tasks::TaskSet::default();
            tasks.spawn_local(async move {
                let end = driver.run().await;
                told.replace(Some(end));
            });
            let request = to("10.0.0.1:80");
            let stream = async {
                let mut tunnel = client.connect(&request, Duration::from_secs(15)).await.unwrap().0;
                seen.set(true);
                super::hear(&mut tunnel).await.unwrap_err()
            };
            let attack = async {
                read.next(HEADERS).await.unwrap();
                // ":status: 200" is number 8 of the static table.
                write.write_all(&frame(HEADERS, END_HEADERS, 1, &[0x88])).await.unwrap();
                while !connected.get() {
                    tokio::task::yield_now().await;
                }
                let flood = flood.repeat(60_000);
                // The client does not read the rest.
                tokio::join!(write.write_all(&flood), read.goodbye()).1
            };
            let (error, code) = tokio::join!(stream, attack);
            assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{:?} {:?}", &flood[..9], end.borrow());
            assert!(!client.is_usable(), "{:?}", &flood[..9]);
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
            drop((client, raw));
            tasks.join_all().await;
            // h2 itself counts empty DATA.
            let is_data = flood[3] == DATA;
            let end = end.borrow_mut().take().unwrap();
            assert!(
                if is_data { matches!(end, client::End::Failed(_)) } else { end == client::End::Flooded },
                "{end:?}"
            );
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_ignores_the_farewell_gets_no_more_streams_and_is_closed_after_its_last() {
    local(async {
        let Served { far, drain, end, tasks: _tasks } = accepting(&Settings::default());
        let mut raw = Raw::client(far).await;
        raw.send(&connect(1)).await;
        raw.read.next(HEADERS).await.unwrap();
        drain.start();
        // The peer answers no PING, but it is not dead.
        for number in 1..=10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            raw.send(&connect(1 + 2 * number)).await;
        }
        let mut refused = Vec::new();
        while refused.last() != Some(&21) {
            let frame = raw.read.frame().await.unwrap();
            if frame.kind == RST_STREAM {
                assert_eq!(frame.code(), REFUSED_STREAM);
                refused.push(frame.stream);
            }
        }
        assert_eq!(refused, [13, 15, 17, 19, 21], "those that cannot have crossed the farewell");
        for number in 0..=5 {
            raw.send(&frame(RST_STREAM, 0, 1 + 2 * number, &8u32.to_be_bytes())).await;
        }
        let start = tokio::time::Instant::now();
        raw.read.rest().await;
        assert_eq!((*end.borrow()).clone(), Some(End::Drained));
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_who_says_nothing() {
    local(async {
        let Served { far, drain, end, tasks: _tasks } = accepting(&Settings::default());
        let start = tokio::time::Instant::now();
        drain.start();
        Raw::new(far).read.rest().await;
        assert_eq!((*end.borrow()).clone(), Some(End::Drained));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    })
    .await;
}
