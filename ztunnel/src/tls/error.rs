//! Why a handshake failed. The variants show which side has to act.

use std::{fmt, io, time::Duration};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};
use thiserror::Error;

use super::{config::ConfigError, verify::IdentityFault};
use crate::identity::handle::Unavailable;

/// A fatal TLS alert, by its number (RFC 8446, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", AlertDescription::from(self.0), self.0)
    }
}

impl From<AlertDescription> for Alert {
    fn from(alert: AlertDescription) -> Self {
        Self(alert.into())
    }
}

/// The fault of a peer that speaks TLS.
#[derive(Debug, Error)]
pub enum PeerFault {
    /// It has no certificate.
    #[error("it presented no certificate")]
    NoCertificate,
    /// Its certificate has expired, or is not valid yet.
    #[error("{0}; if this is unexpected, compare the clocks of the nodes")]
    Validity(rustls::Error),
    /// Its certificate comes from an untrusted CA.
    #[error("its certificate does not lead to a root that is trusted here")]
    UnknownCa,
    /// Its certificate is for another role, for example a client presents a server's certificate.
    #[error("its certificate is not for this purpose: {0}")]
    Purpose(rustls::Error),
    /// Its certificate does not have the required identity.
    #[error("{0}")]
    Identity(IdentityFault),
    /// It does not speak TLS 1.3.
    #[error("it does not speak TLS 1.3")]
    Version,
    /// It refused this end.
    #[error("it refused with the alert {0}")]
    Alert(Alert),
    /// It violates the protocol, or supports no common parameters.
    #[error("{0}")]
    Protocol(rustls::Error),
}

impl PeerFault {
    /// The value of a metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            PeerFault::NoCertificate => "no_client_certificate",
            PeerFault::Validity(rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => "not_yet_valid",
            PeerFault::Validity(_) => "expired",
            PeerFault::UnknownCa => "unknown_ca",
            PeerFault::Purpose(_) => "eku",
            PeerFault::Identity(fault) => fault.label(),
            PeerFault::Version => "protocol_version",
            PeerFault::Alert(_) => "peer_alert",
            PeerFault::Protocol(_) => "protocol",
        }
    }
}

impl From<rustls::Error> for PeerFault {
    fn from(error: rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(fault) = &error else {
            return match error {
                rustls::Error::NoCertificatesPresented => Self::NoCertificate,
                rustls::Error::AlertReceived(alert) => Self::Alert(alert.into()),
                rustls::Error::PeerIncompatible(
                    PeerIncompatible::SupportedVersionsExtensionRequired
                    | PeerIncompatible::Tls12NotOffered
                    | PeerIncompatible::Tls12NotOfferedOrEnabled
                    | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                    | PeerIncompatible::ServerDoesNotSupportTls12Or13,
                ) => Self::Version,
                other => Self::Protocol(other),
            };
        };
        match fault {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Validity(error),
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::Purpose(error),
            CertificateError::Other(other) => match other.0.downcast_ref::<IdentityFault>() {
                Some(fault) => Self::Identity(fault.clone()),
                None => Self::Protocol(error),
            },
            _ => Self::Protocol(error),
        }
    }
}

/// Why a connection was not accepted. The peer was told by an alert if it could understand one.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The handshake took too long.
    #[error("the TLS handshake was not finished after {0:?}")]
    Deadline(Duration),
    /// The pod has no valid certificate.
    #[error(transparent)]
    NoCertificate(#[from] Unavailable),
    /// The pod's certificate can't be used.
    #[error(transparent)]
    Unusable(#[from] ConfigError),
    /// The received bytes are not TLS.
    #[error("the peer did not send TLS (this port does not accept plaintext)")]
    NotTls,
    /// It speaks TLS, but does not offer HTTP/2.
    #[error("the peer does not offer HTTP/2 (ALPN h2)")]
    NoAlpn,
    /// The peer is at fault.
    #[error("the peer was refused: {0}")]
    Peer(PeerFault),
    /// The connection broke.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(#[source] io::Error),
}

impl AcceptError {
    /// The value of a metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            AcceptError::Deadline(_) => "deadline",
            AcceptError::NoCertificate(_) => "no_certificate",
            AcceptError::Unusable(_) => "unusable_certificate",
            AcceptError::NotTls => "not_tls",
            AcceptError::NoAlpn => "no_alpn",
            AcceptError::Peer(fault) => fault.label(),
            AcceptError::Io(_) => "io",
        }
    }
}

impl From<rustls::Error> for AcceptError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::NoApplicationProtocol => Self::NoAlpn,
            other => Self::Peer(other.into()),
        }
    }
}

/// Why a connection could not be made. A server that refuses *our* certificate may report this only after the handshake: then
/// it is a [`Fault`](super::stream::Fault) of the stream.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The handshake took too long.
    #[error("the TLS handshake was not finished after {0:?}")]
    Deadline(Duration),
    /// The pod has no valid certificate.
    #[error(transparent)]
    NoCertificate(#[from] Unavailable),
    /// The pod's certificate can't be used.
    #[error(transparent)]
    Unusable(#[from] ConfigError),
    /// The server does not speak TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// It speaks TLS, but not HTTP/2.
    #[error("the peer does not speak HTTP/2 (ALPN h2)")]
    NoAlpn,
    /// The peer is at fault, or refused.
    #[error("the peer failed the TLS handshake: {0}")]
    Peer(PeerFault),
    /// The connection broke.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(#[source] io::Error),
}

impl ConnectError {
    /// The value of a metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            ConnectError::Deadline(_) => "deadline",
            ConnectError::NoCertificate(_) => "no_certificate",
            ConnectError::Unusable(_) => "unusable_certificate",
            ConnectError::NotTls => "not_tls",
            ConnectError::NoAlpn => "no_alpn",
            ConnectError::Peer(fault) => fault.label(),
            ConnectError::Io(_) => "io",
        }
    }
}

impl From<rustls::Error> for ConnectError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::NoAlpn,
            other => Self::Peer(other.into()),
        }
    }
}
