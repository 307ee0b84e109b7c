//! Why a connection is refused: the close reason, the detail for the log, and the answer for a peer.

use std::io;

use http::StatusCode;

use super::tunnel::TunnelDialError;
use crate::{
    hbone::pool::OpenError,
    model::{cause::causes, close::CloseReason},
    net::{dial::DialError, syn::Unreachable},
    policy::Denial,
    route::decide,
    store::demand::Unresolved,
    tls,
    wire::{self, connect::ConnectResponse},
};

/// A connection that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlowRefusal {
    pub(crate) reason: CloseReason,
    /// A more specific text than the reason's.
    pub(crate) detail: Option<String>,
    /// Which error tells that the destination can't be reached, if that is the reason.
    pub(crate) unreachable: Unreachable,
}

impl From<CloseReason> for FlowRefusal {
    fn from(reason: CloseReason) -> Self {
        Self { reason, detail: None, unreachable: Unreachable::Host }
    }
}

impl From<decide::RouteRefusal> for FlowRefusal {
    fn from(refusal: decide::RouteRefusal) -> Self {
        Self { detail: refusal.detail, ..refusal.reason.into() }
    }
}

impl From<Unresolved> for FlowRefusal {
    fn from(unresolved: Unresolved) -> Self {
        let reason = match unresolved {
            Unresolved::Silence { .. } => CloseReason::UnknownDestination,
            Unresolved::TooMany { .. } => CloseReason::TooMany,
        };
        Self::new(reason, unresolved.to_string())
    }
}

impl FlowRefusal {
    /// A refusal with a more specific text than the reason's.
    pub(crate) fn new(reason: CloseReason, detail: String) -> Self {
        Self { detail: Some(detail), ..reason.into() }
    }

    /// The HTTP status for the peer.
    pub(crate) fn status(&self) -> StatusCode {
        match self.reason {
            CloseReason::Denied | CloseReason::PolicyChanged => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Policy has changed while the connection was being set up.
    pub(crate) fn of_change(denial: &Denial) -> Self {
        Self::new(CloseReason::PolicyChanged, policy_changed(denial))
    }

    pub(crate) fn of_dial(error: &DialError) -> Self {
        Self { unreachable: unreachable(error), ..Self::new(reason_of_dial(error), error.to_string()) }
    }

    /// As [`Self::of_dial`], for a connection with the client's source address.
    pub(crate) fn of_upstream(error: &DialError) -> Self {
        Self { unreachable: unreachable(error), ..Self::new(reason_of_upstream(error), error.to_string()) }
    }

    pub(crate) fn of_tunnel(error: &OpenError<TunnelDialError>) -> Self {
        let reason = match error {
            OpenError::Connect(shared) => match &**shared {
                TunnelDialError::Dial(error) => match reason_of_upstream(error) {
                    CloseReason::ConnectTimedOut => CloseReason::TunnelTimedOut,
                    reason => reason,
                },
                TunnelDialError::Tls(tls::ConnectError::NoCertificate(_) | tls::ConnectError::Unusable(_)) => {
                    CloseReason::NoCertificate
                }
                TunnelDialError::Tls(_) => CloseReason::TlsFailed,
                TunnelDialError::Memory(_) => CloseReason::TooMany,
            },
            OpenError::Handshake { .. } | OpenError::Lost { .. } => CloseReason::TunnelFailed,
            OpenError::NoConnection { .. } => CloseReason::TunnelTimedOut,
            OpenError::TimedOut { .. } => CloseReason::ConnectTimedOut,
            OpenError::Refused { response, .. } => reason_of_answer(response),
        };
        let detail = match reason {
            // The text of the reason says what to check first; the error does not.
            CloseReason::TunnelTimedOut => format!("{reason}: {}", causes(error)),
            _ => causes(error),
        };
        let unreachable = match error {
            OpenError::Connect(shared) => match &**shared {
                TunnelDialError::Dial(error) => unreachable(error),
                _ => Unreachable::Host,
            },
            _ => Unreachable::Host,
        };
        Self { unreachable, ..Self::new(reason, detail) }
    }
}

/// Why a connection ends after a change of policy.
pub(super) fn policy_changed(denial: &Denial) -> String {
    format!("{}: {denial}", CloseReason::PolicyChanged)
}

/// The close reason for a peer's refusal. A peer of this implementation may send its close reason. A reason that only this node
/// can determine is not accepted from a peer.
fn reason_of_answer(response: &ConnectResponse) -> CloseReason {
    if response.status == StatusCode::UNAUTHORIZED {
        return CloseReason::Denied;
    }
    match response.refusal.as_ref().and_then(wire::refusal::HboneRefusal::close_reason) {
        Some(
            reason @ (CloseReason::ConnectRefused
            | CloseReason::ConnectTimedOut
            | CloseReason::Unreachable
            | CloseReason::NotThisPod
            | CloseReason::TooMany
            | CloseReason::Denied),
        ) => reason,
        _ => CloseReason::TunnelRefused,
    }
}

fn unreachable(error: &DialError) -> Unreachable {
    match error {
        DialError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::NetworkUnreachable => Unreachable::Network,
            io::ErrorKind::PermissionDenied => Unreachable::Prohibited,
            _ => Unreachable::Host,
        },
        _ => Unreachable::Host,
    }
}

fn reason_of_upstream(error: &DialError) -> CloseReason {
    match error {
        DialError::Source { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
            CloseReason::ForeignSource
        }
        error => reason_of_dial(error),
    }
}

pub(crate) fn reason_of_dial(error: &DialError) -> CloseReason {
    match error {
        DialError::TimedOut { .. } => CloseReason::ConnectTimedOut,
        DialError::Exhausted { .. } => CloseReason::TooMany,
        DialError::Connect { source, .. } => match source.kind() {
            // `BrokenPipe`: the connection was accepted and reset at once.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                CloseReason::ConnectRefused
            }
            io::ErrorKind::TimedOut => CloseReason::ConnectTimedOut,
            _ => CloseReason::Unreachable,
        },
        DialError::Netns(_) | DialError::Socket { .. } | DialError::Source { .. } => CloseReason::LocalFault,
    }
}
