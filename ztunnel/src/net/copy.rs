//! Copies bytes in both directions between two connections; half-closes and resets are passed on as half-closes and resets.
//!
//! A direction that waits holds no buffer: it borrows one from the worker's pool when bytes are there, and returns it when they
//! are written.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, Read as _},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    task::{coop::has_budget_remaining, yield_now},
    time::sleep,
};

use super::{
    buffer::{BufferPool, Size},
    socket,
};

/// The number of bytes copied so far, readable during and after the copy.
#[derive(Debug, Default)]
pub struct Transferred {
    to_server: Cell<u64>,
    to_client: Cell<u64>,
}

impl Transferred {
    /// Bytes from the client to the server.
    #[must_use]
    pub fn to_server(&self) -> u64 {
        self.to_server.get()
    }

    /// Bytes from the server to the client.
    #[must_use]
    pub fn to_client(&self) -> u64 {
        self.to_client.get()
    }

    /// The count of the bytes from this side.
    pub(crate) fn from(&self, side: Side) -> &Cell<u64> {
        match side {
            Side::Client => &self.to_server,
            Side::Server => &self.to_client,
        }
    }
}

/// A side of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected.
    Client,
    /// The side that accepted the connection.
    Server,
}

impl Side {
    /// The other side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// Why a copy ended before both sides had finished.
#[derive(Debug, thiserror::Error)]
#[error("the {side:?} side failed: {source}")]
pub struct CopyError {
    /// The side that failed.
    pub side: Side,
    /// The cause.
    pub source: io::Error,
}

impl CopyError {
    /// Whether the side reset the connection. `false`: it did not answer any more.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    }
}

/// The number of bytes that one direction copies before the worker's other tasks get their turn.
const FAIR_SHARE: usize = 1 << 20;

/// Copies in both directions until both sides have finished, or one side fails.
///
/// After an error the caller resets both connections. All bytes that were read from the failing side have then been written to
/// the other side, which had a short time to acknowledge them.
///
/// # Errors
/// The error names the side that failed.
pub async fn both(
    client: &mut TcpStream,
    server: &mut TcpStream,
    pool: &BufferPool,
    bytes: &Transferred,
) -> Result<(), CopyError> {
    let result = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let (client_done, server_done) = (Cell::new(false), Cell::new(false));
        let up = Direction {
            from: client_read,
            to: server_write,
            from_side: Side::Client,
            to_side: Side::Server,
            count: &bytes.to_server,
            done: &client_done,
            other_done: &server_done,
        };
        let down = Direction {
            from: server_read,
            to: client_write,
            from_side: Side::Server,
            to_side: Side::Client,
            count: &bytes.to_client,
            done: &server_done,
            other_done: &client_done,
        };
        tokio::try_join!(up.run(pool), down.run(pool)).map(|((), ())| ())
    };
    if let Err(error) = &result {
        let survivor = if error.side == Side::Client { server } else { client };
        flush(survivor).await;
    }
    result
}

struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    from_side: Side,
    to_side: Side,
    count: &'a Cell<u64>,
    /// This direction has passed on the end of its source.
    done: &'a Cell<bool>,
    /// The other direction has passed on the end of its source.
    other_done: &'a Cell<bool>,
}

impl Direction<'_> {
    async fn run(mut self, pool: &BufferPool) -> Result<(), CopyError> {
        let (mut share, mut size) = (0, Size::Small);
        loop {
            self.wait().await?;
            let mut buffer = pool.borrow(size);
            let mut at_urgent = false;
            while let Some(length) = self.read(buffer.bytes_mut(), at_urgent).await? {
                if length == 0 {
                    self.finish().await?;
                    self.done.set(true);
                    // The other direction may have been polled before this one and wait. It has to watch for errors of its
                    // destination now.
                    yield_now().await;
                    return Ok(());
                }
                let (filled, full) = (buffer.bytes().get(..length).unwrap_or_default(), length == buffer.bytes().len());
                self.write(filled).await?;
                self.count.set(self.count.get() + length as u64);
                share += length;
                if share >= FAIR_SHARE {
                    share = 0;
                    yield_now().await;
                }
                size = size.after(length, buffer.bytes().len());
                at_urgent = !full && socket::is_at_urgent(self.from.as_ref());
                if !full && !at_urgent {
                    break;
                }
                if buffer.bytes().len() < pool.bytes(size) {
                    buffer = pool.borrow(size);
                }
            }
        }
    }

    /// Waits for bytes or the end from the source. After the destination has closed its side, no direction reads from it any
    /// more, so this direction has to watch for its reset.
    async fn wait(&self) -> Result<(), CopyError> {
        let mut error = pin!(error_of(self.to.as_ref()));
        poll_fn(|cx| {
            if let Poll::Ready(result) = self.from.as_ref().poll_read_ready(cx) {
                return Poll::Ready(result.map_err(|source| self.failed(self.from_side, source)));
            }
            // Checked on every poll: the other direction, which is in the same task, may finish while this one waits.
            if self.other_done.get()
                && let Poll::Ready(source) = error.as_mut().poll(cx)
            {
                return Poll::Ready(Err(self.failed(self.to_side, source)));
            }
            Poll::Pending
        })
        .await
    }

    /// `None`: there was nothing to read.
    async fn read(&mut self, into: &mut [u8], at_urgent: bool) -> Result<Option<usize>, CopyError> {
        let read = if at_urgent { read_urgent(&self.from, into) } else { read(&mut self.from, into).await };
        read.map_err(|source| self.failed(self.from_side, source))
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            match self.to.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A reset of the source has to be noticed while its bytes can't be written.
                    tokio::select! {
                        writable = self.to.writable() => {
                            writable.map_err(|source| self.failed(self.to_side, source))?;
                        }
                        error = error_of(self.from.as_ref()) => return Err(self.failed(self.from_side, error)),
                    }
                }
                Err(source) => return Err(self.failed(self.to_side, source)),
            }
        }
        Ok(())
    }

    /// Passes on the end of the source.
    async fn finish(&mut self) -> Result<(), CopyError> {
        match poll_fn(|cx| Pin::new(&mut self.to).poll_shutdown(cx)).await {
            Ok(()) => Ok(()),
            // The destination is gone already; the other direction reports the reason.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Err(source) => Err(self.failed(self.to_side, source)),
        }
    }

    fn failed(&self, side: Side, source: io::Error) -> CopyError {
        CopyError { side, source }
    }
}

/// Reads without waiting. `None`: there was nothing to read.
pub(crate) async fn read(from: &mut ReadHalf<'_>, into: &mut [u8]) -> io::Result<Option<usize>> {
    let mut buffer = ReadBuf::new(into);
    let is_there = poll_fn(|cx| match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
        Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
        Poll::Pending => Poll::Ready(Ok(false)),
    })
    .await?;
    if is_there {
        return Ok(Some(buffer.filled().len()));
    }
    // The reason may also be that this task has used its budget in the runtime. Waiting for readiness would not end its turn.
    if !has_budget_remaining() {
        yield_now().await;
    }
    Ok(None)
}

/// Continues to read at urgent data. A read stops before urgent data, which tokio takes as a sign that no bytes are left. The
/// kernel does not report the bytes behind it again, so waiting for them might never end.
pub(crate) fn read_urgent(from: &ReadHalf<'_>, into: &mut [u8]) -> io::Result<Option<usize>> {
    let socket = SockRef::from(from.as_ref());
    match (&*socket).read(into) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until the socket has failed, and returns its error. Never returns for a socket that has only finished.
pub(crate) async fn error_of(socket: &TcpStream) -> io::Error {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if ready.is_error() => match socket.take_error() {
                Ok(Some(error)) | Err(error) => return error,
                Ok(None) => return io::ErrorKind::ConnectionReset.into(),
            },
            Ok(_spurious) => yield_now().await,
            Err(error) => return error,
        }
    }
}

/// Gives written bytes a short time to be acknowledged, because the reset that follows discards the others.
pub(crate) async fn flush(socket: &TcpStream) {
    let mut pause = Duration::from_millis(1);
    while pause <= Duration::from_millis(128) {
        match socket::unacknowledged(socket) {
            Ok(0) | Err(_) => return,
            Ok(_) => sleep(pause).await,
        }
        pause *= 2;
    }
}

#[cfg(test)]
mod tests;
