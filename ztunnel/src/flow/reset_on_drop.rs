//! One side of a connection, which ends in a reset unless told otherwise: whatever goes wrong, the death of the daemon
//! included, the application learns that the connection did not end as it should.

use tokio::net::TcpStream;

use crate::net::socket;

/// A stream that is reset when it is closed, by whomever, unless [`Leg::finish`] came first.
#[derive(Debug)]
pub(crate) struct ResetOnDrop(TcpStream);

impl ResetOnDrop {
    /// Takes a stream of a steered listener or a dialer: they make them so.
    #[must_use]
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// The stream, to be looked at.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.0
    }

    /// The stream.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.0
    }

    /// Both directions ended well: close without a reset.
    pub(crate) fn finish(self) {
        socket::finish_on_close(&self.0);
    }
}
