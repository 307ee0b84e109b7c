//! A certificate with its key and the roots that it is used with.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::model::identity::SpiffeId;

/// A certificate with its key, and the trusted roots.
pub struct Credentials {
    /// The identity.
    pub identity: SpiffeId,
    /// The certificate, then its intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's private key.
    pub key: PrivateKeyDer<'static>,
    /// The trusted roots: one root, or several while they are being replaced.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// The certificate's serial number, in decimal.
    pub serial: String,
    /// The start of the validity.
    pub not_before: SystemTime,
    /// The end of the validity.
    pub not_after: SystemTime,
}

impl Credentials {
    /// Whether the certificate may be used at this time.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

// The key must not get into a log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
