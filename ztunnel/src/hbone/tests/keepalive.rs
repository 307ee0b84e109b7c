//! Dead peers are detected, and live peers are not disturbed.

use std::{io::ErrorKind, time::Duration};

use tokio::{io::AsyncWriteExt as _, time::Instant};

use super::{
    Settings, client, hear, local, ok,
    raw::{ACK, DATA, HEADERS, PING, Raw, SETTINGS, connect, frame},
    serve, to,
};
use crate::{
    hbone::{client::OpenError, server::End},
    lifecycle::tasks::TaskSet,
};

/// The payload of a PING that a user of h2 sends; Istio's ztunnel sends the same.
const PAYLOAD: [u8; 8] = [0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4];

#[tokio::test(start_paused = true)]
async fn a_server_finds_a_dead_client_within_20_seconds() {
    local(async {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let served = serve(&Settings::default(), move |incoming| {
            tell.take().unwrap().send(incoming.responder.accept(&ok()).unwrap()).unwrap();
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&connect(1)).await;
        let mut tunnel = told.await.unwrap();
        let start = Instant::now();
        let ping = raw.read.next(PING).await.unwrap();
        assert_eq!((ping.flags, ping.payload.as_slice()), (0, &PAYLOAD[..]));
        assert_eq!(start.elapsed().as_secs(), 10);
        let error = hear(&mut tunnel).await.unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 20);
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(
            error.to_string().contains("the peer does not answer: no data was received from the peer for 20 s"),
            "{error}"
        );
        assert_eq!(*served.end.borrow(), Some(End::Dead(Duration::from_secs(20))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_finds_a_dead_server_within_20_seconds() {
    local(async {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut tasks = TaskSet::default();
        let client = client(near, &Settings::default(), &mut tasks).await;
        let mut raw = Raw::new(far);
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        let start = Instant::now();
        let error = client.connect(&to("10.0.0.1:80"), Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(matches!(&error, OpenError::Lost { why } if why.contains("does not answer")), "{error}");
        assert!(!client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_is_not_asked_and_one_that_answers_lives() {
    local(async {
        let mut tunnels = Vec::new();
        let served = serve(&Settings::default(), move |incoming| tunnels.extend(incoming.responder.accept(&ok())));
        let mut raw = Raw::client(served.far).await;
        raw.send(&connect(1)).await;
        raw.read.next(HEADERS).await.unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            raw.send(&frame(DATA, 0, 1, b"x")).await;
        }
        let start = Instant::now();
        let Raw { read, write } = &mut raw;
        for round in 1..=100 {
            let ping = read.frame().await.unwrap();
            assert_eq!((ping.kind, ping.flags), (PING, 0), "asked although it sent");
            assert_eq!(start.elapsed().as_secs(), 10 * round);
            write.write_all(&frame(PING, ACK, 0, &ping.payload)).await.unwrap();
        }
        // The peer never answers again, but counts as alive as long as it sends.
        let ping = read.frame().await.unwrap();
        assert_eq!(ping.kind, PING);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            write.write_all(&frame(DATA, 0, 1, b"x")).await.unwrap();
        }
        assert_eq!(*served.end.borrow(), None);
        let silent = Instant::now();
        while read.frame().await.is_some() {}
        assert_eq!(silent.elapsed().as_secs(), 20);
        assert!(matches!(*served.end.borrow(), Some(End::Dead(_))));
    })
    .await;
}
