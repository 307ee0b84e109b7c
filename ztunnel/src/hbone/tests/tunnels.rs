//! How streams are opened, end and break.

use std::{io::ErrorKind, time::Duration};

use tokio::time::Instant;

use super::{
    Pair, Settings, buffers, client, hear, hear_all, local, ok, pair,
    raw::{self, Raw},
    say, serve, to,
};
use crate::{
    hbone::{
        client::OpenError,
        server::{End, Gone},
        stream::{Lost, Reset},
    },
    model::close::CloseReason,
    wire::connect::{ConnectResponse, HboneRefusal},
};

const DEADLINE: Duration = Duration::from_secs(15);

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_ends_are_ends() {
    local(async {
        let Pair { mut near, mut far, served: _served, .. } = pair(&Settings::default()).await;
        let pool = buffers();
        say(&mut near, &pool, b"question").await;
        assert!(near.finish());
        assert_eq!(hear_all(&mut far).await.unwrap(), b"question");
        say(&mut far, &pool, &vec![7; 3 << 20]).await;
        assert!(far.finish());
        assert_eq!(hear_all(&mut near).await.unwrap(), vec![7; 3 << 20]);
        assert_eq!((near.unsent(), far.unsent()), (0, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_arrives_with_its_reason() {
    local(async {
        let refusal = ConnectResponse::refused(
            http::StatusCode::UNAUTHORIZED,
            HboneRefusal::new(CloseReason::Denied, "by default/deny"),
        );
        let answer = refusal.clone();
        let mut served = serve(&Settings::default(), move |incoming| {
            let answer = incoming.request.map_or_else(|error| error.response(), |_| answer.clone());
            incoming.responder.refuse(&answer).unwrap();
        });
        let io = std::mem::replace(&mut served.far, tokio::io::duplex(1).0);
        let client = client(io, &Settings::default(), &mut served.tasks).await;
        let error = client.connect(&to("10.0.0.1:80"), DEADLINE).await.unwrap_err();
        assert_eq!(error.to_string(), "the peer refused the CONNECT with 401 Unauthorized (denied: by default/deny)");
        assert!(matches!(error, OpenError::Refused(said) if said == refusal));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_cancels_and_is_noticed() {
    local(async {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let mut working = crate::lifecycle::tasks::TaskSet::default();
        let mut served = serve(&Settings::default(), move |mut incoming| {
            let tell = tell.take().unwrap();
            working.spawn_local(async move {
                let gone = incoming.responder.gone().await;
                let accepted = incoming.responder.accept(&ok()).err();
                tell.send((gone, accepted)).unwrap();
            });
        });
        let io = std::mem::replace(&mut served.far, tokio::io::duplex(1).0);
        let client = client(io, &Settings::default(), &mut served.tasks).await;
        let start = Instant::now();
        let error = client.connect(&to("10.0.0.1:80"), DEADLINE).await.unwrap_err();
        assert!(matches!(error, OpenError::TimedOut(_)), "{error}");
        assert_eq!(start.elapsed(), DEADLINE);
        assert_eq!(told.await.unwrap(), (Gone, Some(Gone)));
        assert!(client.is_usable());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_a_reset_after_what_was_sent_before_it() {
    for how in [Some(Reset::Application), Some(Reset::Denied), Some(Reset::Cancelled), None] {
        local(async {
            let Pair { mut near, mut far, served: _served, client } = pair(&Settings::default()).await;
            say(&mut near, &buffers(), b"last words").await;
            near.flush().await;
            assert_eq!(near.unsent(), 0);
            match how {
                Some(how) => near.reset(how),
                None => drop(near),
            }
            assert_eq!(hear(&mut far).await.unwrap(), b"last words");
            let error = hear(&mut far).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let expected = match how {
                Some(Reset::Application) => "CONNECT_ERROR",
                Some(Reset::Denied) => "policy",
                Some(Reset::Cancelled) | None => "CANCEL",
            };
            let reason = Lost::of(&error).map(|lost| lost.reason);
            assert_eq!(reason, (how == Some(Reset::Denied)).then_some(CloseReason::PolicyChanged), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(client.is_usable());
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_after_the_end_is_a_reset_too() {
    local(async {
        let Pair { mut near, mut far, served: _served, .. } = pair(&Settings::default()).await;
        assert!(near.finish());
        assert_eq!(hear(&mut far).await.unwrap(), b"");
        near.reset(Reset::Application);
        let fault = std::future::poll_fn(|cx| far.poll_fault(cx)).await.unwrap();
        assert_eq!(std::io::Error::from(fault).kind(), ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_has_all_it_wants_may_say_so_after_its_end() {
    local(async {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let served = serve(&Settings::default(), move |incoming| {
            tell.take().unwrap().send(incoming.responder.accept(&ok()).unwrap()).unwrap();
        });
        let mut raw = Raw::client(served.far).await;
        raw.send(&raw::connect(1)).await;
        let mut tunnel = told.await.unwrap();
        raw.send(&raw::frame(raw::DATA, raw::END_STREAM, 1, b"bye")).await;
        raw.send(&raw::frame(raw::RST_STREAM, 0, 1, &[0; 4])).await;
        assert!(std::future::poll_fn(|cx| tunnel.poll_fault(cx)).await.is_none());
        assert_eq!(hear(&mut tunnel).await.unwrap(), b"bye");
        assert_eq!(hear(&mut tunnel).await.unwrap(), b"");
        assert!(!tunnel.finish());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_is_told_apart() {
    local(async {
        let check = async |answer: Vec<u8>| {
            let (near, far) = tokio::io::duplex(1 << 16);
            let mut tasks = crate::lifecycle::tasks::TaskSet::default();
            let client = client(near, &Settings::default(), &mut tasks).await;
            let mut raw = Raw::new(far);
            raw.send(&raw::frame(raw::SETTINGS, 0, 0, &[])).await;
            let answer = async {
                raw.read.preface().await;
                raw.read.next(raw::HEADERS).await.unwrap();
                raw.send(&answer).await;
                raw
            };
            let request = to("10.0.0.1:80");
            let (result, raw) = tokio::join!(client.connect(&request, DEADLINE), answer);
            drop(raw);
            result.unwrap_err()
        };
        let reset = |code: u8| raw::frame(raw::RST_STREAM, 0, 1, &[0, 0, 0, code]);
        assert!(matches!(check(reset(7)).await, OpenError::Unprocessed(_)));
        assert!(matches!(check(reset(8)).await, OpenError::Reset(_)));
        assert!(matches!(check(reset(0)).await, OpenError::Reset(_)));
        let goaway = |last: u8| raw::frame(raw::GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
        assert!(matches!(check(goaway(0)).await, OpenError::Unprocessed(_)));
        assert!(matches!(check(vec![0xff; 99]).await, OpenError::Protocol(_)));
        // Status 204, and an invalid response.
        let status = |value: u8, flags: u8| raw::frame(raw::HEADERS, raw::END_HEADERS | flags, 1, &[value]);
        assert!(matches!(check(status(0x89, raw::END_STREAM)).await, OpenError::Refused(said) if said.status == 204));
        assert!(matches!(check(raw::frame(raw::DATA, 0, 1, b"x")).await, OpenError::Protocol(_)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_no_reset() {
    local(async {
        let Pair { mut near, mut far, mut served, client } = pair(&Settings::default()).await;
        say(&mut near, &buffers(), b"x").await;
        near.flush().await;
        assert_eq!(hear(&mut far).await.unwrap(), b"x");
        served.tasks.abort_all().await;
        for tunnel in [&mut near, &mut far] {
            let error = hear(tunnel).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
            let fault = std::future::poll_fn(|cx| tunnel.poll_fault(cx)).await.unwrap();
            assert_eq!(std::io::Error::from(fault).kind(), ErrorKind::ConnectionAborted);
            assert!(!tunnel.finish());
        }
        assert!(!client.is_usable());
        let error = client.connect(&to("10.0.0.1:80"), DEADLINE).await.unwrap_err();
        assert!(matches!(error, OpenError::Unprocessed(_)), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_streams_end_and_opens_no_more() {
    local(async {
        let Pair { mut near, mut far, served, client } = pair(&Settings::default()).await;
        served.drain.start();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!client.is_usable());
        let error = client.connect(&to("10.0.0.1:80"), DEADLINE).await.unwrap_err();
        assert!(matches!(error, OpenError::Unprocessed(_)), "{error}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        say(&mut near, &buffers(), b"still here").await;
        assert_eq!(hear(&mut far).await.unwrap(), b"still here");
        assert!(near.finish() && far.finish());
        assert_eq!((hear(&mut near).await.unwrap(), hear(&mut far).await.unwrap()), (vec![], vec![]));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*served.end.borrow(), Some(End::Drained));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_by_who_needs_it_no_more() {
    local(async {
        // The client closes the connection.
        let Pair { near, far, served, client } = pair(&Settings::default()).await;
        drop(client);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*served.end.borrow(), None, "a tunnel keeps its connection");
        drop((near, far));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*served.end.borrow(), Some(End::PeerClosed));
        // The server closes the connection after the idle time.
        let Pair { near, far, served, client } = pair(&Settings::default()).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(*served.end.borrow(), None, "an open tunnel is no idleness");
        drop((near, far));
        tokio::time::sleep(Duration::from_secs(599)).await;
        assert!(served.end.borrow().is_none() && client.is_usable());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!client.is_usable());
        assert_eq!(*served.end.borrow(), Some(End::Idle));
    })
    .await;
}
