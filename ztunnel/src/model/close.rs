//! Why a connection ended: one closed list, which also gives the text for the log and the metric label.

use std::fmt;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides finished.
    Complete,
    /// The client reset the connection; the reset was passed on.
    ClientReset,
    /// The server reset the connection; the reset was passed on.
    ServerReset,
    /// A side stopped answering (keepalive or retransmissions ran out).
    PeerLost,
    /// The destination refused the connect.
    ConnectRefused,
    /// The destination did not answer in time.
    ConnectTimedOut,
    /// There is no route to the destination.
    Unreachable,
    /// The destination is the daemon itself, or an address that no captured connection can have.
    Recursive,
    /// The client's address is valid on one link only, so the connection to the destination can't use it.
    LinkLocalSource,
    /// The client's address is not an address of the pod that connects.
    ForeignSource,
    /// The destination is not an address of the pod.
    NotThisPod,
    /// The daemon could not make or configure a socket.
    LocalFault,
    /// The service has no endpoint that can take the connection.
    NoHealthyUpstream,
    /// The destination is not in the mesh, and the outbound traffic policy is REGISTRY_ONLY.
    UnknownDestination,
    /// The pod has no valid certificate.
    NoCertificate,
    /// The TLS handshake failed: the peer has another identity than expected, or speaks no TLS.
    TlsFailed,
    /// The peer speaks TLS, but not HBONE.
    TunnelFailed,
    /// The peer's HBONE port did not answer the connect.
    TunnelTimedOut,
    /// The HBONE connection broke while it carried this connection.
    TunnelLost,
    /// The peer refused the stream.
    TunnelRefused,
    /// Policy denies the connection.
    Denied,
    /// A change of policy denies the connection, which was allowed before.
    PolicyChanged,
    /// The certificate of the HBONE connection's peer is not trusted any more.
    Distrusted,
    /// The peer's request is not a valid CONNECT to this pod.
    BadRequest,
    /// A limit is reached.
    TooMany,
    /// The pod left the mesh.
    Released,
    /// The mesh has removed the pod's address that the connection uses.
    AddressRemoved,
    /// The daemon is stopping and the connection outlived the drain.
    Drained,
}

impl CloseReason {
    /// Every reason.
    pub const ALL: [CloseReason; 28] = [
        CloseReason::Complete,
        CloseReason::ClientReset,
        CloseReason::ServerReset,
        CloseReason::PeerLost,
        CloseReason::ConnectRefused,
        CloseReason::ConnectTimedOut,
        CloseReason::Unreachable,
        CloseReason::Recursive,
        CloseReason::LinkLocalSource,
        CloseReason::ForeignSource,
        CloseReason::NotThisPod,
        CloseReason::LocalFault,
        CloseReason::NoHealthyUpstream,
        CloseReason::UnknownDestination,
        CloseReason::NoCertificate,
        CloseReason::TlsFailed,
        CloseReason::TunnelFailed,
        CloseReason::TunnelTimedOut,
        CloseReason::TunnelLost,
        CloseReason::TunnelRefused,
        CloseReason::Denied,
        CloseReason::PolicyChanged,
        CloseReason::Distrusted,
        CloseReason::BadRequest,
        CloseReason::TooMany,
        CloseReason::Released,
        CloseReason::AddressRemoved,
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
            CloseReason::ForeignSource => "foreign_source",
            CloseReason::NotThisPod => "not_this_pod",
            CloseReason::LocalFault => "local_fault",
            CloseReason::NoHealthyUpstream => "no_healthy_upstream",
            CloseReason::UnknownDestination => "unknown_destination",
            CloseReason::NoCertificate => "no_certificate",
            CloseReason::TlsFailed => "tls_failed",
            CloseReason::TunnelFailed => "tunnel_failed",
            CloseReason::TunnelTimedOut => "tunnel_timed_out",
            CloseReason::TunnelLost => "tunnel_lost",
            CloseReason::TunnelRefused => "tunnel_refused",
            CloseReason::Denied => "denied",
            CloseReason::PolicyChanged => "policy_changed",
            CloseReason::Distrusted => "distrusted",
            CloseReason::BadRequest => "bad_request",
            CloseReason::TooMany => "too_many",
            CloseReason::Released => "released",
            CloseReason::AddressRemoved => "address_removed",
            CloseReason::Drained => "drained",
        }
    }

    /// The value of Istio's metric label `response_flags`.
    #[must_use]
    pub const fn flags(self) -> &'static str {
        match self {
            CloseReason::Complete
            | CloseReason::ClientReset
            | CloseReason::ServerReset
            | CloseReason::PeerLost
            | CloseReason::TunnelLost
            | CloseReason::Released
            | CloseReason::AddressRemoved
            | CloseReason::Drained => "-",
            CloseReason::Denied | CloseReason::PolicyChanged => "DENY",
            CloseReason::TlsFailed | CloseReason::Distrusted => "TLS_FAILURE",
            CloseReason::TunnelFailed => "H2_HANDSHAKE_FAILURE",
            CloseReason::TunnelTimedOut => "NETWORK_POLICY",
            CloseReason::NoCertificate => "IDENTITY_ERROR",
            CloseReason::ConnectRefused
            | CloseReason::ConnectTimedOut
            | CloseReason::Unreachable
            | CloseReason::Recursive
            | CloseReason::LinkLocalSource
            | CloseReason::ForeignSource
            | CloseReason::NotThisPod
            | CloseReason::LocalFault
            | CloseReason::NoHealthyUpstream
            | CloseReason::UnknownDestination
            | CloseReason::TunnelRefused
            | CloseReason::BadRequest
            | CloseReason::TooMany => "CONNECT",
        }
    }

    /// The reason with this label, which the node of a peer reports.
    #[must_use]
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }

    /// Whether both sides ended the connection.
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
            CloseReason::LinkLocalSource => {
                "the client's link-local address cannot be the source address of the connection"
            }
            CloseReason::ForeignSource => "the source address is not an address of this pod",
            CloseReason::NotThisPod => "the destination is not an address of this pod",
            CloseReason::LocalFault => "the daemon could not make a socket",
            CloseReason::NoHealthyUpstream => "no healthy upstream",
            CloseReason::UnknownDestination => {
                "the destination is not in the mesh's registry (outboundTrafficPolicy REGISTRY_ONLY)"
            }
            CloseReason::NoCertificate => "the pod has no valid certificate",
            CloseReason::TlsFailed => "TLS handshake failed",
            CloseReason::TunnelFailed => "HTTP/2 handshake failed",
            CloseReason::TunnelTimedOut => "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
            CloseReason::TunnelLost => "the HBONE connection was lost",
            CloseReason::TunnelRefused => "the destination's node refused the stream",
            CloseReason::Denied => "connection closed due to policy rejection",
            CloseReason::PolicyChanged => "connection closed due to policy change",
            CloseReason::Distrusted => "the peer's certificate is not trusted any more",
            CloseReason::BadRequest => "the request is not a valid HBONE CONNECT",
            CloseReason::TooMany => "too many connections",
            CloseReason::Released => "the pod left the mesh",
            CloseReason::AddressRemoved => "the mesh has removed the address from the pod",
            CloseReason::Drained => "connection closed due to connection drain",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::CloseReason;
    use ebpf_common::HBONE_PORT;
    use std::collections::HashSet;

    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }

    #[test]
    fn the_text_names_the_port_of_tunnels() {
        assert!(CloseReason::TunnelTimedOut.to_string().ends_with(&format!(" {HBONE_PORT}")));
    }
}
