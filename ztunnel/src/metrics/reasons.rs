//! The closed lists of reasons that are label values. Each reason has a series at 0 from the start, so that Prometheus sees the
//! first event as an increase.

use crate::model::flow::Direction;

/// Why a TLS handshake fails, on either side: the labels of the errors in `tls`.
const HANDSHAKE: [&str; 19] = [
    "chain",
    "deadline",
    "eku",
    "expired",
    "io",
    "key_usage",
    "no_alpn",
    "no_certificate",
    "no_client_certificate",
    "not_tls",
    "not_yet_valid",
    "peer_alert",
    "protocol",
    "protocol_version",
    "san",
    "trust_domain",
    "unexpected_identity",
    "unknown_ca",
    "unusable_certificate",
];

/// The reasons that may come from a clock that is wrong, of this node or of the peer's.
pub(super) const UNTIMELY: [&str; 2] = ["expired", "not_yet_valid"];

/// Reasons for which only the accepting side refuses: the labels of `flow::admission`.
const ADMISSION: [&str; 4] = ["connections", "connections_of_peer", "evicted", "memory"];

/// Abuse by a client that ends an HBONE connection: the labels of `hbone`.
const ABUSE_BY_CLIENTS: [&str; 2] = ["resets", "useless_frames"];

/// Abuse by a server that ends an HBONE connection.
const ABUSE_BY_SERVERS: [&str; 1] = ["useless_frames"];

/// The reasons for which a handshake of a direction can fail.
pub(super) fn of_handshake(direction: Direction) -> impl Iterator<Item = &'static str> {
    let own: &[&'static str] = match direction {
        Direction::Outbound => &[],
        Direction::Inbound => &ADMISSION,
    };
    HANDSHAKE.iter().chain(own).copied()
}

/// The reasons for which this node ends an HBONE connection of a direction because of abuse.
pub(super) fn of_abuse(direction: Direction) -> impl Iterator<Item = &'static str> {
    let reasons: &[&'static str] = match direction {
        Direction::Outbound => &ABUSE_BY_SERVERS,
        Direction::Inbound => &ABUSE_BY_CLIENTS,
    };
    reasons.iter().copied()
}

#[cfg(test)]
mod tests;
