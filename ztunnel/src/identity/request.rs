//! A certificate request for a remote authority, and the checks of its answer.

use std::{sync::Arc, time::SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer,
    pem::{self, PemObject as _},
};
use thiserror::Error;
use x509_parser::error::X509Error;

use super::{
    Credentials,
    certificate::{self, Certificate, Flaw},
};
use crate::model::identity::{IdentityError, SpiffeId};

/// Why a certificate can't be requested, or an answer can't be used.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No key or no request could be made.
    #[error("cannot make a key and a certificate request")]
    Make(#[from] rcgen::Error),
    /// The answer must have a leaf and roots at least.
    #[error(
        "the answer has {0} PEM texts: it needs the certificate, its intermediates if there are any, and the roots"
    )]
    Parts(usize),
    /// A text is not PEM.
    #[error("the answer is not PEM")]
    Pem(#[source] pem::Error),
    /// A certificate can't be parsed.
    #[error("the answer has a certificate that cannot be parsed")]
    Broken(#[source] X509Error),
    /// A text has no certificate.
    #[error("a text of the answer holds no certificate")]
    Empty,
    /// The certificate has no identity, or several.
    #[error("the certificate has no identity")]
    NoIdentity(#[source] IdentityError),
    /// The certificate is for another identity.
    #[error("the certificate is for {found}")]
    OtherIdentity {
        /// The identity in the certificate.
        found: SpiffeId,
    },
    /// The certificate is for another key.
    #[error("the certificate is for another key")]
    OtherKey,
    /// The certificate is a CA certificate.
    #[error("the certificate is a CA certificate, which a workload must not have")]
    IsCa,
    /// The certificate has expired, or is not valid yet.
    #[error("the certificate cannot be used now")]
    Time(#[source] Flaw),
    /// A peer would not accept the certificate.
    #[error("the certificate does not lead to the roots of the answer")]
    Untrusted(#[source] webpki::Error),
}

/// A request without its answer. It has a key of its own, which is given out only with an accepted certificate.
pub struct Request {
    identity: SpiffeId,
    key: KeyPair,
}

impl Request {
    /// A new key, and a certificate request for it as PEM (PKCS #10).
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(identity: SpiffeId) -> Result<(Self, String), RequestError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // Empty, as in Istio's certificates; this also makes the name below critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let request = params.serialize_request(&key)?.pem()?;
        Ok((Self { identity, key }, request))
    }

    /// Checks the answer and makes credentials of it: PEM texts of the leaf, its intermediates, and last the roots.
    ///
    /// # Errors
    /// The fault of the answer.
    pub fn accept(self, texts: &[String], now: SystemTime) -> Result<Credentials, RequestError> {
        let Answer { leaf, chain, roots } = Answer::check(texts, &self.identity, self.key.public_key_raw(), now)?;
        Ok(Credentials {
            identity: self.identity,
            chain,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())),
            roots: Arc::from(roots),
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }
}

/// An answer that passed all checks.
pub(super) struct Answer {
    /// The certificate.
    pub(super) leaf: Certificate,
    /// The certificate, then its intermediates; without the roots.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The trusted roots.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Answer {
    /// Checks an answer to a request for this identity with this public key.
    pub(super) fn check(
        texts: &[String],
        identity: &SpiffeId,
        key: &[u8],
        now: SystemTime,
    ) -> Result<Self, RequestError> {
        let [chain @ .., roots] = texts else { return Err(RequestError::Parts(texts.len())) };
        if chain.is_empty() {
            return Err(RequestError::Parts(texts.len()));
        }
        let roots = certificates(roots)?;
        let mut presented = Vec::new();
        for text in chain {
            presented.extend(certificates(text)?);
        }
        let leaf = presented.first().ok_or(RequestError::Empty)?;
        let leaf = Certificate::parse(leaf.clone()).map_err(RequestError::Broken)?;
        let found = leaf.identity().map_err(RequestError::NoIdentity)?;
        if found != *identity {
            return Err(RequestError::OtherIdentity { found });
        }
        if leaf.public_key != key {
            return Err(RequestError::OtherKey);
        }
        if leaf.is_ca {
            return Err(RequestError::IsCa);
        }
        leaf.check_time(now).map_err(RequestError::Time)?;
        // Some authorities send the root with the chain. It is removed, because peers have it.
        presented.retain(|one| !roots.contains(one));
        certificate::verify(&presented, &roots, now).map_err(RequestError::Untrusted)?;
        Ok(Self { leaf, chain: presented, roots })
    }
}

/// The certificates of one PEM text, at least one.
pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, RequestError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(RequestError::Pem)?;
    if all.is_empty() { Err(RequestError::Empty) } else { Ok(all) }
}

#[cfg(test)]
mod tests;
