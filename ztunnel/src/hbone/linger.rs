//! The end of a client's bytes: nothing that was sent gets lost because something was not read.
//!
//! A socket that is closed with bytes unread, or to which more come, resets its connection, and then what the peer has not
//! received yet is lost. Of HTTP/2's WINDOW_UPDATEs there are nearly always some on the way. So whoever is done says it with
//! a FIN, and reads on until the peer's. A server's connection is seen off by whoever serves it.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long the peer may take to receive all that was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are read only to be forgotten, at once.
const SCRATCH: usize = 4096;

/// A connection whose shutdown ends with the peer's end.
pub(super) struct Linger<S> {
    io: S,
    /// Until when the peer's end is waited for, once the own was said.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, until: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, until } = self.get_mut();
        if until.is_none() {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
        }
        let until = until.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        let mut scratch = [0; SCRATCH];
        while until.as_mut().poll(cx).is_pending() {
            let mut forgotten = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut forgotten)) {
                Ok(()) if !forgotten.filled().is_empty() => {}
                // Its end, or the connection's.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
