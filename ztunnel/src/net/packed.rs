//! Writes whose last segment may wait for more data, so that large amounts are sent in full packets.
//!
//! Data sockets have `TCP_NODELAY`: every write is sent at once, including its last part. If a write has a little more than 64
//! KiB, the last part becomes a packet of its own, which costs as much on its way as a full packet.

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

/// A connection whose writer can announce that more data will follow.
pub trait Packed: AsyncWrite {
    /// Writes like [`AsyncWrite::poll_write_vectored`], but the last part, which is less than a packet, may wait until more is
    /// written or [`push`](Self::push) is called.
    fn poll_write_unfinished(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Sends the waiting part.
    ///
    /// # Errors
    /// If the connection is broken.
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
        // The option is set already. Setting it again sends the waiting part.
        SockRef::from(self).set_tcp_nodelay(true)
    }
}

/// Never keeps a part back.
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

    /// The time after which the kernel sends the part that it keeps back.
    const KERNEL_DELAY: Duration = Duration::from_millis(200);

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
            Ok(_) => assert!(begun.elapsed() >= KERNEL_DELAY, "it was sent at once"),
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
