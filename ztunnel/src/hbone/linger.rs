//! The close of a client's connection: no sent byte is lost because received bytes were not read.
//!
//! If a socket is closed while bytes are unread, or if bytes arrive after its close, the kernel resets the connection. Bytes
//! that the peer has not received yet are lost then. Some WINDOW_UPDATE of HTTP/2 is nearly always on the way. So this side
//! sends a FIN and reads until the peer's FIN. The server's side of a connection does not need this: `server.rs` waits for the
//! peer itself.

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

/// How long the peer may take to receive all sent bytes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The number of bytes that are read and discarded at once.
const SCRATCH: usize = 4096;

/// A connection whose shutdown waits for the peer's FIN.
pub(super) struct Linger<S> {
    io: S,
    /// The deadline for the peer's FIN, set when this side has sent its own.
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
        let until = until.get_or_insert_with(|| Box::pin(sleep(TIMEOUT)));
        let mut scratch = [0; SCRATCH];
        while until.as_mut().poll(cx).is_pending() {
            let mut forgotten = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut forgotten)) {
                Ok(()) if !forgotten.filled().is_empty() => {}
                // The peer's FIN, or the end of the connection.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
