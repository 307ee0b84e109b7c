use super::{Fault, LIMIT, OVERHEAD, RECORD, TlsStream};
use crate::{
    net::{buffer::BufferPool, packed::Packed},
    tls::test_ca::{CLIENT, TestCa, WEB},
};
use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex},
    time::{Duration, advance, timeout},
};

/// Counts calls that would be system calls.
#[derive(Clone, Default, Debug)]
struct Calls {
    reads: Rc<Cell<usize>>,
    writes: Rc<Cell<usize>>,
    written: Rc<Cell<usize>>,
    unfinished: Rc<Cell<usize>>,
    pushes: Rc<Cell<usize>>,
}

impl Calls {
    /// Reads, writes and bytes written since the last call.
    fn take(&self) -> (usize, usize, usize) {
        (self.reads.take(), self.writes.take(), self.written.take())
    }
}

#[derive(Debug)]
struct Counted {
    io: DuplexStream,
    calls: Calls,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.calls.reads.set(self.calls.reads.get() + usize::from(result.is_ready()));
        result
    }
}

impl Packed for Counted {
    fn poll_write_unfinished(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.calls.unfinished.set(self.calls.unfinished.get() + 1);
        self.poll_write_vectored(cx, slices)
    }

    fn push(&self) -> io::Result<()> {
        self.calls.pushes.set(self.calls.pushes.get() + 1);
        Ok(())
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(count)) = result {
            self.calls.writes.set(self.calls.writes.get() + 1);
            self.calls.written.set(self.calls.written.get() + count);
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A client and a server over a connection that holds `size` bytes in each direction.
async fn pair(size: usize) -> (TlsStream<Counted>, TlsStream<Counted>) {
    let (ca, pool) = (TestCa::new("ca"), BufferPool::new(64 << 10, 4));
    let (near, far) = duplex(size);
    let counted = |io| Counted { io, calls: Calls::default() };
    let (server, client, expected) = (ca.endpoint(WEB), ca.endpoint(CLIENT), [WEB.parse().unwrap()]);
    let (accepted, connected) =
        tokio::join!(server.accept(counted(near), &pool), client.connect(counted(far), &expected, &pool));
    let (client, server) = (connected.unwrap().0, accepted.unwrap().0);
    client.io.calls.take();
    server.io.calls.take();
    (client, server)
}

/// A pattern in which every error in order or length is detected.
fn pattern() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..65_521).map(|_| random.u8(..)).collect()
}

async fn send(mut stream: impl AsyncWrite + Unpin, total: usize) {
    let pattern = pattern();
    let mut left = total;
    while left > 0 {
        let count = pattern.len().min(left);
        stream.write_all(&pattern[..count]).await.unwrap();
        left -= count;
    }
    stream.shutdown().await.unwrap();
}

async fn receive(mut stream: impl AsyncRead + Unpin, total: usize) {
    let pattern = pattern();
    let (mut got, mut buffer) = (0, vec![0; 48 << 10]);
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let offset = got % pattern.len();
            let same = rest.len().min(pattern.len() - offset);
            assert!(rest[..same] == pattern[offset..offset + same], "wrong byte after {got}");
            got += same;
            rest = &rest[same..];
        }
    }
    assert_eq!(got, total);
}

#[tokio::test]
async fn both_ways_at_once_through_a_narrow_connection() {
    const TOTAL: usize = 64 << 20;
    let (client, server) = pair(24 << 10).await;
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    tokio::join!(
        send(client_write, TOTAL),
        send(server_write, TOTAL),
        receive(client_read, TOTAL),
        receive(server_read, TOTAL)
    );
}

#[tokio::test]
async fn single_bytes_arrive_in_order() {
    let (mut client, mut server) = pair(100).await;
    let sender = async {
        for number in 0..3000_u32 {
            client.write_all(&[number.to_le_bytes()[0]]).await.unwrap();
            client.flush().await.unwrap();
        }
        client.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(sender, server.read_to_end(&mut heard));
    assert_eq!((read.unwrap(), heard), (3000, (0..3000_u32).map(|number| number.to_le_bytes()[0]).collect()));
}

#[tokio::test]
async fn head_and_body_become_one_record_and_one_write() {
    let (mut client, mut server) = pair(1 << 20).await;
    let (head, body) = ([1; 9], [2; 1000]);
    let slices = [IoSlice::new(&head), IoSlice::new(&[]), IoSlice::new(&body)];
    let count = poll_fn(|cx| Pin::new(&mut client).poll_write_vectored(cx, &slices)).await.unwrap();
    assert_eq!((count, client.io.calls.take()), (1009, (0, 0, 0)), "nothing goes out before the flush");
    client.flush().await.unwrap();
    assert_eq!(client.io.calls.take(), (0, 1, 1009 + OVERHEAD));
    assert!(client.is_write_vectored());
    let mut heard = [0; 2000];
    assert_eq!(server.read(&mut heard).await.unwrap(), 1009);
    assert_eq!(server.io.calls.take().0, 1);
}

/// Counts wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn the_end_of_bulk_waits_one_turn_for_more() {
    let (mut client, _server) = pair(4 << 20).await;
    let wakes = Arc::new(Wakes::default());
    let waker = Arc::clone(&wakes).into();
    let mut say = |bytes: usize| {
        let mut cx = Context::from_waker(&waker);
        let bytes = vec![3; bytes];
        if !bytes.is_empty() {
            assert!(Pin::new(&mut client).poll_write(&mut cx, &bytes).is_ready());
        }
        assert!(Pin::new(&mut client).poll_flush(&mut cx).is_ready());
        let calls = &client.io.calls;
        (calls.unfinished.get(), calls.pushes.get(), wakes.0.load(Ordering::Relaxed))
    };
    assert_eq!(say(4 * RECORD), (1, 0, 1), "its end may stay, and whoever flushes comes again");
    assert_eq!(say(4 * RECORD), (2, 0, 2), "there was more");
    assert_eq!(say(0), (2, 1, 2), "there was no more");
    assert_eq!(say(0), (2, 1, 2), "it was sent already");
    assert_eq!(say(4 * RECORD), (3, 1, 3));
    assert_eq!(say(1), (3, 1, 3), "what is short goes out, and takes with it what waits");
    assert_eq!(say(0), (3, 1, 3));
}

#[tokio::test]
async fn bulk_takes_a_call_per_buffer() {
    let (mut client, mut server) = pair(4 << 20).await;
    let bulk = vec![3; 16 * RECORD];
    client.write_all(&bulk).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.io.calls.take(), (0, 1, LIMIT), "full records in one write");
    let (mut heard, mut calls) = (vec![0; bulk.len()], 0);
    let mut got = 0;
    while got < heard.len() {
        got += server.read(&mut heard[got..]).await.unwrap();
        calls += 1;
    }
    assert!(heard == bulk);
    assert_eq!((server.io.calls.take().0, calls), (LIMIT.div_ceil(64 << 10), 5), "the pool's buffers have 64 KiB");
    assert!(server.inbound.is_empty(), "an idle connection holds no buffer");
    // If there are more bytes than fit, the excess is sent during the write.
    client.write_all(&vec![4; 40 * RECORD]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.io.calls.take(), (0, 3, 40 * (RECORD + OVERHEAD)));
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_writer() {
    let (mut client, mut server) = pair(10_000).await;
    let chunk = vec![5; 100_000];
    let mut written = 0;
    let blocked = poll_fn(|cx| {
        loop {
            match Pin::new(&mut client).poll_write(cx, &chunk) {
                Poll::Ready(count) => written += count.unwrap(),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    });
    blocked.await;
    assert!((15 * RECORD..=LIMIT + 10_000).contains(&written), "{written}");
    assert!(client.queued <= LIMIT && client.tls.wants_write());
    // It continues when the peer reads.
    let mut heard = vec![0; written];
    let (flushed, read) = tokio::join!(client.flush(), server.read_exact(&mut heard));
    flushed.unwrap();
    assert_eq!((read.unwrap(), client.queued), (written, 0));
    // It is also woken.
    let mut heard = vec![0; 10 * chunk.len()];
    let write = async {
        for _ in 0..10 {
            client.write_all(&chunk).await.unwrap();
        }
        client.flush().await.unwrap();
    };
    let (_, read) = tokio::join!(write, server.read_exact(&mut heard));
    assert_eq!(read.unwrap(), 1_000_000);
}

#[tokio::test]
async fn a_goodbye_ends_one_direction() {
    let (mut client, mut server) = pair(1 << 16).await;
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last");
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "and stays ended");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(server.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    heard.clear();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
}

#[tokio::test]
async fn an_end_without_goodbye_is_an_error_after_what_came_before() {
    let (mut client, mut server) = pair(1 << 16).await;
    client.write_all(b"half").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut heard = [0; 16];
    assert_eq!(server.read(&mut heard).await.unwrap(), 4);
    let error = server.read(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(matches!(Fault::of(&error), Some(Fault::Truncated)));
    assert_eq!(server.write(b"x").await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_forged_record_is_answered_with_an_alert_and_ends_everything() {
    let (mut client, mut server) = pair(1 << 16).await;
    client.write_all(b"good").await.unwrap();
    client.flush().await.unwrap();
    client.io.write_all(&[&[23, 3, 3, 0, 40][..], &[9; 40]].concat()).await.unwrap();
    let mut heard = [0; 16];
    assert_eq!(server.read(&mut heard).await.unwrap(), 4, "what came before is good");
    for _ in 0..2 {
        let error = server.read(&mut heard).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::InvalidData, "TLS: cannot decrypt peer's message".to_owned())
        );
    }
    assert!(server.write(b"x").await.is_err() && server.flush().await.is_err() && server.shutdown().await.is_err());
    let error = client.read(&mut heard).await.unwrap_err();
    assert_eq!(error.to_string(), "the peer ended the TLS connection with the alert BadRecordMac (20)");
}

#[tokio::test]
async fn a_forged_record_after_our_goodbye_is_an_error_like_any_other() {
    let (mut client, mut server) = pair(1 << 16).await;
    server.shutdown().await.unwrap();
    client.io.write_all(&[&[23, 3, 3, 0, 40][..], &[9; 40]].concat()).await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_failed_write_tells_what_the_peer_said_last() {
    let (mut client, mut server) = pair(1 << 16).await;
    client.io.write_all(&[&[23, 3, 3, 0, 40][..], &[9; 40]].concat()).await.unwrap();
    assert!(server.read(&mut [0; 1]).await.is_err());
    drop(server);
    client.write_all(b"too late").await.unwrap();
    let error = client.flush().await.unwrap_err();
    assert!(matches!(Fault::of(&error), Some(Fault::Alert(alert)) if alert.0 == 20), "{error}");
}

#[tokio::test]
async fn a_flood_of_new_keys_is_ended() {
    let (mut client, mut server) = pair(1 << 20).await;
    for _ in 0..40 {
        client.tls.refresh_traffic_keys().unwrap();
    }
    client.flush().await.unwrap();
    let error = server.read(&mut [0; 1]).await.unwrap_err();
    assert!(error.to_string().contains("TooManyKeyUpdateRequests"), "{error}");
}

#[tokio::test]
async fn new_keys_with_every_byte_get_through_but_not_in_one_go() {
    const BYTES: usize = 8000;
    let (mut client, mut server) = pair(1 << 20).await;
    for _ in 0..BYTES {
        client.tls.refresh_traffic_keys().unwrap();
        client.write_all(&[6]).await.unwrap();
    }
    client.flush().await.unwrap();
    let (mut heard, mut turns) = (vec![0; BYTES], 0);
    let mut buffer = ReadBuf::new(&mut heard);
    poll_fn(|cx| {
        turns += 1;
        while buffer.remaining() > 0 {
            match Pin::new(&mut server).poll_read(cx, &mut buffer) {
                Poll::Ready(result) => result.unwrap(),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    })
    .await;
    assert!(heard.iter().all(|byte| *byte == 6));
    assert!(turns > 5, "{turns}");
    // They are answered by one message, independent of their number.
    server.write_all(b"x").await.unwrap();
    server.flush().await.unwrap();
    assert!(server.io.calls.take().2 < 100);
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn activity_is_the_time_of_the_last_bytes() {
    let (mut client, mut server) = pair(1 << 16).await;
    let (activity, before) = (server.activity(), server.activity().last());
    advance(Duration::from_secs(3)).await;
    client.write_all(b"x").await.unwrap();
    assert!(timeout(Duration::from_secs(1), server.read(&mut [0; 1])).await.is_err(), "it was not flushed");
    assert_eq!(activity.last(), before);
    client.flush().await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 1);
    assert_eq!(activity.last() - before, Duration::from_secs(4));
}
