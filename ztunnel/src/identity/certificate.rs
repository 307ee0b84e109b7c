//! Parsed certificates: their fields, the faults that prevent their use, and their PEM form.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, UnixTime,
    pem::{self, PemObject as _},
};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::error::X509Error;

use super::{
    disk::{self, ReadError},
    x509::{KeyType, X509View},
};
use crate::model::identity::{IdentityError, SpiffeId};

/// The fields of one certificate that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The whole certificate.
    pub der: CertificateDer<'static>,
    /// Its serial number, in decimal.
    pub serial: String,
    /// Its subject; empty for workloads.
    pub subject: String,
    /// Its issuer.
    pub issuer: String,
    /// The start of its validity.
    pub not_before: SystemTime,
    /// The end of its validity.
    pub not_after: SystemTime,
    /// Its URI names.
    pub uris: Vec<String>,
    /// The type of its key.
    pub key_type: KeyType,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// The encoded subject: an issuer's name must be equal byte for byte.
    pub(super) subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    pub(super) key_id: Option<Vec<u8>>,
}

/// Why a file of certificates or keys can't be read.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The PEM is malformed.
    #[error("{} is not PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: pem::Error,
    },
    /// The PEM has no certificate.
    #[error("{} holds no certificate: it needs a PEM section CERTIFICATE", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The PEM has no key.
    #[error(
        "{} holds no private key that can be read: it needs one unencrypted PEM section PRIVATE KEY, EC PRIVATE KEY or \
         RSA PRIVATE KEY",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A PEM section CERTIFICATE has invalid content.
    #[error("{} has a certificate that cannot be parsed", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: X509Error,
    },
}

/// Why a certificate or key can't be used, although it could be read.
#[derive(Debug, Error)]
pub enum Flaw {
    /// It has expired.
    #[error("it has expired at {}: replace it", rfc3339(*.0))]
    Expired(SystemTime),
    /// It is not valid yet.
    #[error("it is not valid before {}: is the clock right?", rfc3339(*.0))]
    NotYetValid(SystemTime),
    /// The key belongs to another certificate.
    #[error("it is not the key of {}: the two files must be replaced together", .0.display())]
    OtherKey(PathBuf),
    /// The key is not P-256, P-384 or RSA.
    #[error("a key of this kind can't be used: it must be EC P-256, EC P-384 or RSA of at least 2048 bits")]
    KeyType,
    /// It is not a CA certificate.
    #[error(
        "it is not a CA certificate: it needs the basic constraint CA:TRUE and, if it has a key usage, keyCertSign"
    )]
    NotCa,
    /// A peer that trusts these roots would not accept it.
    #[error(
        "it does not lead to a root in {}; if an intermediate certificate is missing, add it to cert-chain.pem",
        roots.display()
    )]
    Untrusted {
        /// The file with the roots.
        roots: PathBuf,
        /// The fault in the chain.
        source: webpki::Error,
    },
    /// It is for another identity.
    #[error("it must have exactly one URI name, {expected}, but has {found:?}")]
    OtherIdentity {
        /// The requested identity.
        expected: SpiffeId,
        /// The URI names in the certificate.
        found: Vec<String>,
    },
}

impl Certificate {
    /// Parses a certificate.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(der: CertificateDer<'static>) -> Result<Self, X509Error> {
        let view = X509View::parse(&der)?;
        // An issuer's names decide nothing here, so an invalid name is skipped.
        let uris = view.uris()?.filter_map(Result::ok).map(str::to_owned).collect();
        Ok(Self {
            serial: view.serial(),
            subject: view.subject(),
            issuer: view.issuer(),
            not_before: view.not_before(),
            not_after: view.not_after(),
            uris,
            key_type: view.key_type(),
            is_ca: view.is_ca()?,
            subject_der: view.subject_der().to_vec(),
            issuer_der: view.issuer_der().to_vec(),
            public_key: view.public_key().to_vec(),
            key_id: view.key_id().map(<[u8]>::to_vec),
            der,
        })
    }

    /// Its identity.
    ///
    /// # Errors
    /// If it does not have exactly one URI name, or the name is not an identity.
    pub fn identity(&self) -> Result<SpiffeId, IdentityError> {
        match self.uris.as_slice() {
            [uri] => uri.parse(),
            uris => Err(IdentityError::other_form(&uris.join(", "))),
        }
    }

    /// Whether its issuer is its own subject, as in roots.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// The SHA-256 fingerprint, in the usual form.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let sum = digest::digest(&digest::SHA256, &self.der);
        let bytes: Vec<_> = sum.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }

    pub(super) fn check_time(&self, now: SystemTime) -> Result<(), Flaw> {
        if now < self.not_before {
            return Err(Flaw::NotYetValid(self.not_before));
        }
        if self.not_after <= now {
            return Err(Flaw::Expired(self.not_after));
        }
        Ok(())
    }
}

/// Reads all certificates of a file, at least one.
///
/// # Errors
/// The error names the file.
pub fn read_certificates(path: &Path) -> Result<Vec<Certificate>, FileError> {
    let certificates = parse_certificates(path, &disk::read(path)?)?;
    if certificates.is_empty() {
        return Err(FileError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

pub(super) fn parse_certificates(path: &Path, bytes: &[u8]) -> Result<Vec<Certificate>, FileError> {
    CertificateDer::pem_slice_iter(bytes)
        .map(|der| {
            let der = der.map_err(|source| FileError::Pem { path: path.to_owned(), source })?;
            Certificate::parse(der).map_err(|source| FileError::Certificate { path: path.to_owned(), source })
        })
        .collect()
}

pub(super) fn parse_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|source| match source {
        pem::Error::NoItemsFound => FileError::NoKey { path: path.to_owned() },
        source => FileError::Pem { path: path.to_owned(), source },
    })
}

/// Whether a peer that trusts the roots accepts the chain (leaf first), both for a client and for a server.
pub(crate) fn verify(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(webpki::Error::BadDer)?;
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let leaf = EndEntityCert::try_from(leaf)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, intermediates, now, usage, None, None)?;
    }
    Ok(())
}

/// A certificate as PEM.
#[must_use]
pub fn to_pem(der: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", der.as_ref())
}

/// A private key as PEM.
#[must_use]
pub fn key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    encode(label, key.secret_der())
}

fn encode(label: &str, der: &[u8]) -> String {
    let config = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
    ::pem::encode_config(&::pem::Pem::new(label, der), config)
}

/// A time in the form of RFC 3339, in whole seconds of UTC. Times before 1970 become 1970.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    // The format ends with the year 9999.
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::rfc3339;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_are_written_in_whole_seconds_of_utc() {
        let text = |seconds, nanos| rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(text(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_827_696, 999_999_999), "2000-02-29T12:34:56Z");
        // The expiry of a certificate that does not expire (RFC 5280, 4.1.2.5).
        assert_eq!(text(253_402_300_799, 0), "9999-12-31T23:59:59Z");
        assert_eq!(text(253_402_300_800, 0), "253402300800 s after 1970");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }
}
