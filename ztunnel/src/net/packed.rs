//! Writes whose last segment may wait for more: what is sent in large pieces fills its packets.
//!
//! Data sockets have `TCP_NODELAY`: every write goes out at once, its end as well, and of 64 KiB and some the rest becomes a
//! packet of its own, which costs on its way as much as a full one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::libc;
use socket2::SockRef;
use tokio::{
    io::{AsyncWrite, Interest},
    net::TcpStream,
};

/// A connection to which it can be said that more will follow.
pub trait Packed: AsyncWrite {
    /// Writes as [`AsyncWrite::poll_write_vectored`] does, but the end, less than a packet, may stay where it is until more
    /// is written or [`push`](Self::push) is called.
    fn poll_write_unfinished(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends what has stayed.
    ///
    /// # Errors
    /// When the connection is broken.
    fn push(&self) -> io::Result<()>;
}

impl Packed for TcpStream {
    fn poll_write_unfinished(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_write_ready(cx))?;
            let write = || SockRef::from(&*this).send_vectored_with_flags(slices, libc::MSG_MORE | libc::MSG_NOSIGNAL);
            match this.try_io(Interest::WRITABLE, write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn push(&self) -> io::Result<()> {
        // Set already; to set it once more sends what waits.
        SockRef::from(self).set_tcp_nodelay(true)
    }
}

/// Keeps nothing.
#[cfg(test)]
impl Packed for tokio::io::DuplexStream {
    fn poll_write_unfinished(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, slices)
    }

    fn push(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{ErrorKind, IoSlice, Read as _},
        pin::Pin,
        time::{Duration, Instant},
    };

    use tokio::net::{TcpListener, TcpStream};

    use super::Packed as _;

    /// After so long the kernel sends what it was told to keep.
    const KERNELS_PATIENCE: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn the_end_stays_until_it_is_pushed_and_nothing_is_lost_or_swapped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        near.set_nodelay(true).unwrap();
        let mut far = listener.accept().await.unwrap().0.into_std().unwrap();
        let (begun, mut heard) = (Instant::now(), [0; 16]);
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b"c")];
        assert_eq!(poll_fn(|cx| Pin::new(&mut near).poll_write_unfinished(cx, &slices)).await.unwrap(), 3);
        match far.read(&mut heard) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            Ok(_) => assert!(begun.elapsed() >= KERNELS_PATIENCE, "it was sent at once"),
        }
        poll_fn(|cx| Pin::new(&mut near).poll_write_unfinished(cx, &[IoSlice::new(b"d")])).await.unwrap();
        near.push().unwrap();
        drop(near);
        far.set_nonblocking(false).unwrap();
        let mut text = Vec::new();
        far.read_to_end(&mut text).unwrap();
        assert!(b"abcd".ends_with(&text) && text.ends_with(b"d"), "{text:?}");
    }
}
