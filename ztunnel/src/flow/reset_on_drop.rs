//! One side of a connection, which ends in a reset by default. So after every fault, also the death of the daemon, the
//! application knows that the connection did not end regularly.

use tokio::net::TcpStream;

use crate::net::socket;

/// A TCP stream that is reset when it is closed, also by the kernel, unless [`ResetOnDrop::finish`] was called before.
#[derive(Debug)]
pub(crate) struct ResetOnDrop(TcpStream);

impl ResetOnDrop {
    /// Takes a TCP stream of a steered listener or a dialer. Both set the stream to reset on close.
    #[must_use]
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// A shared reference to the stream.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.0
    }

    /// A mutable reference to the stream.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.0
    }

    /// Closes without a reset, after both directions have ended regularly.
    pub(crate) fn finish(self) {
        socket::finish_on_close(&self.0);
    }
}
