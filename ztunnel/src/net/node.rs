//! Which connections are the node's own.

use std::{io, net::SocketAddr};

/// The TCP connections of processes of the node that are in no pod.
pub trait NodeConnections: Send + Sync {
    /// Whether such a process has a connection, open in one direction at least, between these two ends; `local` is its own.
    /// Never waits.
    ///
    /// # Errors
    /// When it can't be told.
    fn holds(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool>;
}
