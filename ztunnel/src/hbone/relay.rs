//! Copies bytes both ways between an application and a tunnel: half-closes and resets arrive as what they are.
//!
//! As [`net::copy`](crate::net::copy), which does it between two sockets: whoever waits holds no buffer. What a slow reader
//! has not taken stays within the windows, because bytes are released to the peer only when they have been written.

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

/// How much one direction copies before the worker's other tasks get their turn.
const FAIR_SHARE: usize = 1 << 20;
/// What a message counts at least towards it.
const MESSAGE: usize = 4 << 10;
/// How much of a tunnel is gathered for one write.
const GATHER: usize = 256 << 10;

/// Copies both ways until both sides have finished, or one fails.
///
/// After an error the tunnel is reset already: what had been read from the failing side has been written to the other one,
/// and has been given a short time to arrive. The caller closes the socket with a reset.
///
/// # Errors
/// Names the side that failed. A tunnel that was reset by its peer is of kind `ConnectionReset`, one whose connection was
/// lost of kind `ConnectionAborted`.
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
        // To close over what is unread is a reset, which takes back what has not arrived.
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
    /// The application's end has been passed on, or the tunnel takes no more.
    up_done: Cell<bool>,
    /// The tunnel's end has been passed on.
    down_done: Cell<bool>,
    /// The application may have more to say, which nobody wants.
    unread: Cell<bool>,
}

impl Relay<'_> {
    /// From the application into the tunnel.
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
        // The other direction may have been polled before this one and sleeps; it has something new to watch.
        yield_now().await;
        Ok(())
    }

    /// Waits for bytes, or an end, from the application; `false`: the tunnel takes no more.
    async fn wait_readable(&self, from: &ReadHalf<'_>) -> Result<bool, CopyError> {
        let mut readable = pin!(from.readable());
        poll_fn(|cx| {
            if let Poll::Ready(result) = readable.as_mut().poll(cx) {
                return Poll::Ready(result.map(|()| true).map_err(|source| self.tcp_failed(source)));
            }
            // While the other direction reads, it notices; looked at on every poll, because it may end while this waits.
            if self.down_done.get()
                && let Poll::Ready(fault) = self.tunnel.borrow_mut().poll_fault(cx)
            {
                return Poll::Ready(fault.map_or(Ok(false), |fault| Err(self.tunnel_failed(fault.into()))));
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the tunnel takes bytes; `None`: it never will. An application that resets meanwhile is noticed at once.
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

    /// The tunnel has refused bytes: says why, unless the other direction still has some to deliver first, and then says
    /// it. `true`: the peer has all it wants.
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

    /// From the tunnel to the application.
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
                    let written = tunnel.inbox.write(|pieces| to.try_write_vectored(pieces));
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

    /// Waits for bytes from the tunnel; `false`: its end. Once the application has said all it will, nobody reads from it,
    /// so that its reset would go unnoticed elsewhere.
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

    /// Waits until the application takes bytes. A tunnel that breaks meanwhile is noticed at once; what arrives meanwhile
    /// is gathered, up to the stream's window, because h2 is bad at keeping many small pieces.
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

    /// Passes the tunnel's end on.
    async fn shut_down(&self, to: &mut WriteHalf<'_>) -> Result<(), CopyError> {
        match poll_fn(|cx| Pin::new(&mut *to).poll_shutdown(cx)).await {
            Ok(()) => Ok(()),
            // The application is gone already; the other direction says how.
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
