//! Copies bytes in both directions between an application and a stream; half-closes and resets are passed on as half-closes and
//! resets.
//!
//! As in [`net::copy`](crate::net::copy), which copies between two sockets, a direction that waits holds no buffer. The windows
//! limit the bytes that a slow reader has not taken: bytes are released to the peer only after they were written.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::Poll,
};

use tokio::{
    io::AsyncWrite as _,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    task::yield_now,
};

use super::stream::{HboneStream, Incoming, Reset};
use crate::net::{
    buffer::{BufferPool, Size},
    copy::{self, CopyError, Side, Transferred, error_of, flush},
    socket,
};

/// The number of bytes that one direction copies before the worker's other tasks get their turn.
const FAIR_SHARE: usize = 1 << 20;
/// A message counts at least this many bytes of the share.
const MESSAGE: usize = 4 << 10;
/// The number of bytes of a stream that are gathered for one write.
const GATHER: usize = 256 << 10;

/// Copies in both directions until both sides have finished, or one side fails.
///
/// After an error the stream is already reset. All bytes that were read from the failing side have then been written to the
/// other side, which had a short time to receive them. The caller closes the socket with a reset.
///
/// # Errors
/// The error names the side that failed. Its kind is `ConnectionReset` if the peer reset the stream, and `ConnectionAborted` if
/// the HBONE connection was lost.
pub async fn both(
    tcp: &mut TcpStream,
    tunnel: &mut HboneStream,
    tunnel_side: Side,
    pool: &BufferPool,
    bytes: &Transferred,
) -> Result<(), CopyError> {
    let result = {
        let (from, to) = tcp.split();
        let relay = Relay {
            tunnel: RefCell::new(&mut *tunnel),
            tunnel_side,
            tcp_side: tunnel_side.other(),
            up_done: Cell::new(false),
            down_done: Cell::new(false),
            unread: Cell::new(false),
        };
        let (up, down) = (bytes.from(relay.tcp_side), bytes.from(tunnel_side));
        let result = tokio::try_join!(relay.up(from, pool, up), relay.down(to, down));
        result.map(|((), ())| relay.unread.get())
    };
    if let Ok(true) = result {
        // A close with unread bytes resets the connection, and bytes that have not arrived would be lost.
        flush(tcp).await;
    }
    if let Err(error) = &result {
        if error.side == tunnel_side {
            flush(tcp).await;
        } else {
            tunnel.flush().await;
            tunnel.reset(if error.is_reset() { Reset::Application } else { Reset::Cancelled });
        }
    }
    result.map(drop)
}

struct Relay<'a> {
    tunnel: RefCell<&'a mut HboneStream>,
    tunnel_side: Side,
    tcp_side: Side,
    /// The end of the application has been passed on, or the stream takes no more bytes.
    up_done: Cell<bool>,
    /// The end of the stream has been passed on.
    down_done: Cell<bool>,
    /// The application may send more bytes, which will not be read.
    unread: Cell<bool>,
}

impl Relay<'_> {
    /// Copies from the application to the stream.
    async fn up(&self, mut from: ReadHalf<'_>, pool: &BufferPool, count: &Cell<u64>) -> Result<(), CopyError> {
        let (mut share, mut size) = (0, Size::Small);
        loop {
            if !self.wait_readable(&from).await? {
                self.unread.set(true);
                return self.up_ends().await;
            }
            let mut at_urgent = false;
            loop {
                let Some(room) = self.wait_room(&from, pool.bytes(size)).await? else {
                    self.unread.set(true);
                    return self.up_ends().await;
                };
                let mut buffer = pool.borrow(size);
                let room = room.min(buffer.bytes().len());
                let into = buffer.bytes_mut().get_mut(..room).unwrap_or_default();
                let read = if at_urgent { copy::read_urgent(&from, into) } else { copy::read(&mut from, into).await };
                let Some(length) = read.map_err(|source| self.tcp_failed(source))? else {
                    break;
                };
                let open = match length {
                    0 => self.tunnel.borrow_mut().finish(),
                    _ => self.tunnel.borrow_mut().send(buffer, length),
                };
                if !open && self.tunnel_takes_no_more().await? {
                    self.unread.set(length > 0);
                    return self.up_ends().await;
                }
                if length == 0 {
                    return self.up_ends().await;
                }
                count.set(count.get() + length as u64);
                size = size.after(length, room);
                self.take_turns(&mut share, length).await;
                at_urgent = length < room && socket::is_at_urgent(from.as_ref());
                if length < room && !at_urgent {
                    break;
                }
            }
            self.tunnel.borrow_mut().release_room();
        }
    }

    async fn up_ends(&self) -> Result<(), CopyError> {
        self.tunnel.borrow_mut().release_room();
        self.up_done.set(true);
        // The other direction may have been polled before this one and wait. It has to watch for errors of its destination now.
        yield_now().await;
        Ok(())
    }

    /// Waits for bytes or the end from the application; `false`: the stream takes no more bytes.
    async fn wait_readable(&self, from: &ReadHalf<'_>) -> Result<bool, CopyError> {
        poll_fn(|cx| {
            if let Poll::Ready(result) = from.as_ref().poll_read_ready(cx) {
                return Poll::Ready(result.map(|()| true).map_err(|source| self.tcp_failed(source)));
            }
            // As long as the other direction reads, it notices a fault. Checked on every poll, because the other direction may
            // end while this one waits.
            if self.down_done.get()
                && let Poll::Ready(fault) = self.tunnel.borrow_mut().poll_fault(cx)
            {
                return Poll::Ready(fault.map_or(Ok(false), |fault| Err(self.tunnel_failed(fault.into()))));
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the stream takes bytes; `None`: it takes no more. A reset of the application meanwhile is noticed at once.
    async fn wait_room(&self, from: &ReadHalf<'_>, size: usize) -> Result<Option<usize>, CopyError> {
        let mut error = pin!(error_of(from.as_ref()));
        let mut stall = None;
        let room = poll_fn(|cx| {
            let mut tunnel = self.tunnel.borrow_mut();
            if let Poll::Ready(room) = tunnel.poll_room(cx, size) {
                return Poll::Ready(Ok(room));
            }
            stall.get_or_insert_with(|| tunnel.stall());
            error.as_mut().poll(cx).map(|source| Err(self.tcp_failed(source)))
        });
        match room.await? {
            Some(room) => Ok(Some(room)),
            None => self.tunnel_takes_no_more().await.map(|_ended| None),
        }
    }

    /// Returns why the stream refused bytes, after the other direction has delivered its bytes. `true`: the peer needs no more
    /// bytes.
    async fn tunnel_takes_no_more(&self) -> Result<bool, CopyError> {
        poll_fn(|cx| {
            if !self.down_done.get() {
                return Poll::Pending;
            }
            let fault = self.tunnel.borrow_mut().poll_fault(cx);
            fault.map(|fault| fault.map_or(Ok(true), |fault| Err(self.tunnel_failed(fault.into()))))
        })
        .await
    }

    /// Copies from the stream to the application.
    async fn down(&self, mut to: WriteHalf<'_>, count: &Cell<u64>) -> Result<(), CopyError> {
        let mut share = 0;
        loop {
            if !self.wait_arrival(&to).await? {
                self.shut_down(&mut to).await?;
                self.down_done.set(true);
                yield_now().await;
                return Ok(());
            }
            loop {
                let written = {
                    let mut tunnel = self.tunnel.borrow_mut();
                    if tunnel.inbox.is_empty() {
                        break;
                    }
                    let written = tunnel.inbox.write(|pieces| match pieces {
                        [piece] => to.try_write(piece),
                        pieces => to.try_write_vectored(pieces),
                    });
                    if let Ok(written) = written {
                        tunnel.release(written);
                    }
                    written
                };
                match written {
                    Ok(written) => {
                        count.set(count.get() + written as u64);
                        self.take_turns(&mut share, written).await;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_writable(&to).await?,
                    Err(source) => return Err(self.tcp_failed(source)),
                }
            }
        }
    }

    /// Waits for bytes from the stream; `false`: its end. After the application has finished, the other direction does not read
    /// from it any more, so this direction has to watch for its reset.
    async fn wait_arrival(&self, to: &WriteHalf<'_>) -> Result<bool, CopyError> {
        let mut error = pin!(error_of(to.as_ref()));
        poll_fn(|cx| {
            let mut tunnel = self.tunnel.borrow_mut();
            let incoming = tunnel.gather(cx, GATHER).clone();
            if !tunnel.inbox.is_empty() {
                return Poll::Ready(Ok(true));
            }
            match incoming {
                Incoming::Open => {}
                Incoming::Ended => return Poll::Ready(Ok(false)),
                Incoming::Failed(fault) => return Poll::Ready(Err(self.tunnel_failed(fault.into()))),
            }
            if self.up_done.get()
                && let Poll::Ready(source) = error.as_mut().poll(cx)
            {
                return Poll::Ready(Err(self.tcp_failed(source)));
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the application takes bytes. A fault of the stream meanwhile is noticed at once. Bytes that arrive meanwhile
    /// are gathered, up to the stream's window, because many small pieces in h2 need much memory.
    async fn wait_writable(&self, to: &WriteHalf<'_>) -> Result<(), CopyError> {
        let mut writable = pin!(to.as_ref().writable());
        let _stall = self.tunnel.borrow().stall();
        poll_fn(|cx| {
            let mut tunnel = self.tunnel.borrow_mut();
            let incoming = tunnel.gather(cx, usize::MAX).clone();
            let fault = match incoming {
                Incoming::Failed(fault) => Some(fault),
                Incoming::Open => None,
                Incoming::Ended => match tunnel.poll_fault(cx) {
                    Poll::Ready(fault) => fault,
                    Poll::Pending => None,
                },
            };
            if let Some(fault) = fault {
                return Poll::Ready(Err(self.tunnel_failed(fault.into())));
            }
            writable.as_mut().poll(cx).map_err(|source| self.tcp_failed(source))
        })
        .await
    }

    /// Passes on the end of the stream.
    async fn shut_down(&self, to: &mut WriteHalf<'_>) -> Result<(), CopyError> {
        match poll_fn(|cx| Pin::new(&mut *to).poll_shutdown(cx)).await {
            Ok(()) => Ok(()),
            // The application is gone already; the other direction reports the reason.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Err(source) => Err(self.tcp_failed(source)),
        }
    }

    async fn take_turns(&self, share: &mut usize, length: usize) {
        *share += length.max(MESSAGE);
        if *share >= FAIR_SHARE {
            *share = 0;
            yield_now().await;
        }
    }

    fn tcp_failed(&self, source: io::Error) -> CopyError {
        CopyError { side: self.tcp_side, source }
    }

    fn tunnel_failed(&self, source: io::Error) -> CopyError {
        CopyError { side: self.tunnel_side, source }
    }
}
