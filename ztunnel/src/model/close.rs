//! Why a connection ended: one closed list, from which log text and metric label follow.

use std::fmt;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides finished.
    Complete,
    /// The side that connected reset the connection; the reset was passed on.
    ClientReset,
    /// The side that was connected to reset the connection; the reset was passed on.
    ServerReset,
    /// A side stopped answering (keepalive or retransmissions ran out).
    PeerLost,
    /// The destination refused the connect.
    ConnectRefused,
    /// The destination did not answer in time.
    ConnectTimedOut,
    /// There is no way to the destination.
    Unreachable,
    /// The destination is the daemon itself, or an address that no captured connection can have.
    Recursive,
    /// The client's address is valid on one link only and can't be kept.
    LinkLocalSource,
    /// The destination is not an address of the pod.
    NotThisPod,
    /// The daemon could not make or configure a socket.
    LocalFault,
    /// The pod left the mesh.
    Released,
    /// The daemon is stopping and the connection outlived the drain.
    Drained,
}

impl CloseReason {
    /// Every reason.
    pub const ALL: [CloseReason; 13] = [
        CloseReason::Complete,
        CloseReason::ClientReset,
        CloseReason::ServerReset,
        CloseReason::PeerLost,
        CloseReason::ConnectRefused,
        CloseReason::ConnectTimedOut,
        CloseReason::Unreachable,
        CloseReason::Recursive,
        CloseReason::LinkLocalSource,
        CloseReason::NotThisPod,
        CloseReason::LocalFault,
        CloseReason::Released,
        CloseReason::Drained,
    ];

    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            CloseReason::Complete => "complete",
            CloseReason::ClientReset => "client_reset",
            CloseReason::ServerReset => "server_reset",
            CloseReason::PeerLost => "peer_lost",
            CloseReason::ConnectRefused => "connect_refused",
            CloseReason::ConnectTimedOut => "connect_timed_out",
            CloseReason::Unreachable => "unreachable",
            CloseReason::Recursive => "recursive",
            CloseReason::LinkLocalSource => "link_local_source",
            CloseReason::NotThisPod => "not_this_pod",
            CloseReason::LocalFault => "local_fault",
            CloseReason::Released => "released",
            CloseReason::Drained => "drained",
        }
    }

    /// Whether the connection ended as its two sides wanted.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self, CloseReason::Complete)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CloseReason::Complete => "complete",
            CloseReason::ClientReset => "connection reset by the client",
            CloseReason::ServerReset => "connection reset by the server",
            CloseReason::PeerLost => "a side stopped answering",
            CloseReason::ConnectRefused => "connection refused by the destination",
            CloseReason::ConnectTimedOut => "the destination did not answer the connect",
            CloseReason::Unreachable => "no route to the destination",
            CloseReason::Recursive => "attempted recursive call to ourselves",
            CloseReason::LinkLocalSource => "the client's link-local address can't be kept",
            CloseReason::NotThisPod => "the destination is not an address of this pod",
            CloseReason::LocalFault => "the daemon could not make a socket",
            CloseReason::Released => "the pod left the mesh",
            CloseReason::Drained => "connection closed due to connection drain",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::CloseReason;
    use std::collections::HashSet;

    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }
}
