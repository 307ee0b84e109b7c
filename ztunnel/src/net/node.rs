//! Detection of the kubelet's connections.

use std::{io, net::SocketAddr};

/// The client of a connection that comes from outside of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// It is not a process of this node outside of all pods.
    Elsewhere,
    /// The kubelet.
    Kubelet,
    /// Another process of this node, outside of all pods.
    Other {
        /// Why it is not the kubelet.
        why: String,
    },
}

/// The TCP connections of processes of the node that are in no pod.
pub trait NodeConnections: Send + Sync {
    /// The process that has a connection between these two ends, which is open in at least one direction. `local` is the
    /// process's own end. Does not wait.
    ///
    /// # Errors
    /// If the process can't be determined.
    fn client(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Client>;
}
