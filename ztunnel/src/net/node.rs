//! Which connections are the kubelet's.

use std::{io, net::SocketAddr};

/// Whose end of a connection it is that a pod did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// No process of this node that is in no pod.
    Elsewhere,
    /// The kubelet.
    Kubelet,
    /// Another process of this node.
    Other {
        /// Why it is not taken for the kubelet.
        why: String,
    },
}

/// The TCP connections of processes of the node that are in no pod.
pub trait NodeConnections: Send + Sync {
    /// Which process has a connection, open in one direction at least, between these two ends; `local` is its own. Waits for
    /// nobody.
    ///
    /// # Errors
    /// When it can't be told.
    fn client(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Client>;
}
