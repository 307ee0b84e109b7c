use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::advance,
};

use super::{BURST, CALM_DOWN, PER_SECOND, PIECE, Pace, Paced, TURN_BYTES, TURN_FRAMES, TURN_TIME, UNTIMED_FRAMES};

fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
    let size = u32::try_from(length).unwrap().to_be_bytes();
    let mut bytes = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
    bytes.resize(bytes.len() + length, 7);
    bytes
}

/// The number of bytes that one read returns with a buffer of this size; `None`: the turn is over.
async fn read(paced: &mut Paced<&[u8]>, size: usize) -> Option<usize> {
    let mut space = vec![0; size];
    let mut buffer = ReadBuf::new(&mut space);
    // Only frames and bytes may end a turn in this test, also on a slow machine.
    if let Some(since) = &mut paced.pace.turn.borrow_mut().timed_since {
        *since = Instant::now();
    }
    poll_fn(|cx| match Pin::new(&mut *paced).poll_read(cx, &mut buffer) {
        Poll::Ready(result) => Poll::Ready(result.map(|()| true).unwrap()),
        Poll::Pending => Poll::Ready(false),
    })
    .await
    .then(|| buffer.filled().len())
}

/// The number of bytes that a turn reads.
async fn turn(bytes: &[u8]) -> usize {
    let pace = Rc::new(Pace::new());
    let mut paced = Paced::to_client(bytes, 0, &pace);
    let mut taken = 0;
    while let Some(count @ 1..) = read(&mut paced, 4 << 20).await {
        taken += count;
    }
    taken
}

#[tokio::test]
async fn a_turn_ends_after_some_frames_however_small_they_are() {
    for kind in [2, 6, 8, 99] {
        let frame = frame(kind, 0, 5);
        let taken = turn(&frame.repeat(4 * TURN_FRAMES)).await;
        assert!(taken <= TURN_FRAMES * frame.len() + PIECE, "type {kind}: {taken} bytes in one turn");
    }
}

#[tokio::test]
async fn a_turn_ends_after_some_bytes_and_large_frames_come_in_large_pieces() {
    let bytes = frame(0, 0, 1 << 20).repeat(4);
    assert!(turn(&bytes).await <= TURN_BYTES + (1 << 20) + PIECE);
    let pace = Rc::new(Pace::new());
    let mut paced = Paced::to_client(&bytes[..], 0, &pace);
    assert_eq!(read(&mut paced, 4 << 20).await, Some(PIECE), "the first may be frames of any kind");
    pace.begin_turn();
    assert_eq!(read(&mut paced, 4 << 20).await, Some((1 << 20) + 9));
}

#[tokio::test]
async fn a_turn_ends_after_some_time_and_the_next_one_goes_on() {
    let bytes = frame(0, 0, 0).repeat(UNTIMED_FRAMES + 1);
    let pace = Rc::new(Pace::new());
    let mut paced = Paced::to_client(&bytes[..], 0, &pace);
    let length = UNTIMED_FRAMES * 9;
    assert_eq!(read(&mut paced, length).await, Some(length));
    assert_eq!(pace.turn.borrow().timed_since, None, "a short turn asks no clock");
    assert_eq!(read(&mut paced, 4).await, Some(4));
    let past = Instant::now().checked_sub(TURN_TIME).unwrap();
    assert!(pace.turn.borrow_mut().timed_since.replace(past).is_some());
    let mut space = [0; 200];
    let mut buffer = ReadBuf::new(&mut space);
    assert!(futures_util::poll!(poll_fn(|cx| Pin::new(&mut paced).poll_read(cx, &mut buffer))).is_pending());
    pace.begin_turn();
    assert_eq!(read(&mut paced, 200).await, Some(5));
}

#[tokio::test]
async fn the_frames_are_found_however_the_bytes_are_cut() {
    for size in [1, 2, 8, 9, 10, 1000] {
        let bytes = [vec![b'P'; 24], frame(4, 0, 12), frame(0, 0, 300), frame(7, 0, 8), frame(0, 1, 0)].concat();
        let pace = Rc::new(Pace::new());
        let mut paced = Paced::to_client(&bytes[..], 24, &pace);
        while let Some(1..) = read(&mut paced, size).await {}
        assert_eq!((pace.turn.borrow().frames, pace.left.get(), pace.is_exhausted()), (4, true, false), "{size}");
        // SETTINGS and GOAWAY have a cost; DATA of 300 bytes adds nothing.
        assert_eq!(pace.allowance.borrow().left, BURST - 2, "{size}");
    }
}

/// Whether the allowance lasts for this many frames.
async fn after(count: u32, frame: &[u8], pace: &Rc<Pace>) -> bool {
    let bytes = frame.repeat(count as usize);
    let mut paced = Paced::to_client(&bytes[..], 0, pace);
    while let Some(1..) = read(&mut paced, 1 << 20).await {
        pace.begin_turn();
    }
    !pace.is_exhausted()
}

#[tokio::test(start_paused = true)]
async fn frames_that_carry_nothing_have_an_allowance_that_grows_with_time() {
    let useless = [frame(2, 0, 5), frame(3, 0, 4), frame(4, 0, 6), frame(6, 0, 8), frame(8, 0, 4), frame(200, 0, 0)];
    let data = [frame(0, 0, 0), frame(0, 8, 1)];
    for frame in useless.iter().chain(&data) {
        let pace = Rc::new(Pace::new());
        assert!(after(BURST, frame, &pace).await, "type {}", frame[3]);
        advance(Duration::from_secs(1)).await;
        assert!(after(PER_SECOND, frame, &pace).await, "type {}", frame[3]);
        assert!(!after(1, frame, &pace).await, "type {}", frame[3]);
    }
    let pace = Rc::new(Pace::new());
    assert!(!after(40, &frame(99, 0, 1 << 20), &pace).await, "long ones count as many");
}

#[tokio::test(start_paused = true)]
async fn a_peer_may_acknowledge_what_it_gets_and_measure_what_it_sends() {
    let pace = Rc::new(Pace::new());
    for _ in 0..3 * BURST {
        pace.sent(1);
        assert!(after(2, &frame(8, 0, 4), &pace).await, "two WINDOW_UPDATEs for one byte");
    }
    assert!(after(BURST, &[frame(0, 0, 1024), frame(6, 0, 8)].concat(), &pace).await, "a PING for each KiB");
    assert!(after(3 * BURST, &[frame(1, 4, 20), frame(3, 0, 4)].concat(), &pace).await, "streams that are given up");
    for _ in 0..60 {
        assert!(
            after(PER_SECOND, &[frame(0, 0, 1), frame(6, 0, 8)].concat(), &pace).await,
            "a PING for each short message"
        );
        advance(Duration::from_secs(1)).await;
    }
}

/// Short messages are no licence for frames that carry nothing, in whatever order and at whatever pace they come.
#[tokio::test(start_paused = true)]
async fn bytes_in_between_do_not_renew_the_allowance() {
    let useless = [frame(2, 0, 5), frame(4, 0, 6), frame(6, 0, 8), frame(8, 0, 4), frame(200, 0, 0), frame(0, 8, 1)];
    for useless in useless {
        for shorts in [1, 10] {
            let unit = [frame(0, 0, 1).repeat(shorts), useless.clone()].concat();
            let pace = Rc::new(Pace::new());
            assert!(after(BURST, &unit, &pace).await, "type {}", useless[3]);
            assert!(!after(1, &unit, &pace).await, "type {}", useless[3]);
            // Twice the steady rate, in short bursts.
            let pace = Rc::new(Pace::new());
            let mut bursts = 0;
            while after(PER_SECOND / 50, &unit, &pace).await {
                bursts += 1;
                assert!(bursts < 3 * BURST / (PER_SECOND / 50), "type {}", useless[3]);
                advance(Duration::from_millis(10)).await;
            }
        }
        let unit = [frame(9, 0, 20), useless.clone()].concat();
        assert!(!after(BURST + 1, &unit, &Rc::new(Pace::new())).await, "CONTINUATION, type {}", useless[3]);
    }
}

/// Accepts one byte in every second write.
#[derive(Default)]
struct Slow {
    taken: Vec<u8>,
    is_ready: bool,
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_ready = !self.is_ready;
        if self.is_ready {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.taken.extend(bytes.first());
        Poll::Ready(Ok(1))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn nothing_comes_between_the_bytes_of_the_farewell() {
    let pace = Rc::new(Pace::new());
    let mut paced = Paced::to_server(Slow::default(), &pace);
    paced.write_all(b"before").await.unwrap();
    paced.flush().await.unwrap();
    pace.exhausted.set(true);
    for _ in 0..4 {
        // The flush is dropped after some bytes were written.
        assert!(futures_util::poll!(Box::pin(paced.flush())).is_pending());
    }
    paced.write_all(b"after").await.unwrap();
    paced.flush().await.unwrap();
    assert_eq!(paced.io.taken, [b"before", CALM_DOWN, b"after"].concat());
}
