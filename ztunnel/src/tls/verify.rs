//! The verification of a peer's certificate, and its identity.
//!
//! Both ends require:
//!
//! - a chain to one of the roots, with the purpose (extended key usage) of the peer's role;
//! - exactly one URI among the leaf's alternative names, a SPIFFE ID in Istio's form, because with two identities it would be
//!   unclear which one is meant. Names of other kinds are ignored;
//! - if a certificate limits the usage of its key (key usage), the usage that it has here: digital signatures for the leaf,
//!   signing of certificates for the CAs behind it.
//!
//! In addition, the accepting end requires its own trust domain, and the connecting end one of the expected identities.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use super::provider::provider;
use crate::{
    identity::x509::X509View,
    model::identity::{IdentityError, SpiffeId, TrustDomain},
};

/// The fault of the identity in a certificate whose chain is valid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityFault {
    /// The certificate can't be parsed, or has an extension twice.
    #[error("its certificate cannot be parsed")]
    Unreadable,
    /// There are more certificates than a valid path can have.
    #[error("it presented {0} certificates in addition to its own: at most {most} are accepted", most = LONGEST_CHAIN)]
    Chain(usize),
    /// The key usage of a certificate does not allow this use.
    #[error("the key usage of {whose} does not allow {needed}; issue it with {needed}, or without the extension")]
    KeyUsage {
        /// The certificate.
        whose: &'static str,
        /// The missing usage, with its name in RFC 5280.
        needed: &'static str,
    },
    /// There is no URI among its alternative names, or several.
    #[error("its certificate has {0} URI names instead of one")]
    Uris(usize),
    /// The URI is not an identity.
    #[error("the URI name in its certificate is not an identity: {0}")]
    NotSpiffe(IdentityError),
    /// The identity belongs to another trust domain.
    #[error("{found} is not of the trust domain {own}")]
    TrustDomain {
        /// The peer's identity.
        found: SpiffeId,
        /// The own trust domain.
        own: TrustDomain,
    },
    /// A server with another identity answered.
    #[error("{found} answered instead of {}", Listed(expected))]
    Unexpected {
        /// Its identity.
        found: SpiffeId,
        /// The expected identities.
        expected: Arc<[SpiffeId]>,
    },
}

impl IdentityFault {
    /// The value of a metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            IdentityFault::Chain(_) => "chain",
            IdentityFault::KeyUsage { .. } => "key_usage",
            IdentityFault::Unreadable | IdentityFault::Uris(_) | IdentityFault::NotSpiffe(_) => "san",
            IdentityFault::TrustDomain { .. } => "trust_domain",
            IdentityFault::Unexpected { .. } => "unexpected_identity",
        }
    }
}

/// The maximum number of certificates between a leaf and a root; webpki follows a path of six. Hundreds of certificates fit
/// into a message. An unauthenticated peer could send copies of the signing certificate in our own chain, and webpki would try
/// each of them again and again.
const LONGEST_CHAIN: usize = 8;

fn check_length(intermediates: &[CertificateDer<'_>]) -> Result<(), IdentityFault> {
    match intermediates.len() {
        0..=LONGEST_CHAIN => Ok(()),
        more => Err(IdentityFault::Chain(more)),
    }
}

/// Checks the key usage of the intermediates. The chain is verified already, but that verification ignores key usage.
fn check_usage(intermediates: &[CertificateDer<'_>]) -> Result<(), IdentityFault> {
    for der in intermediates {
        // A certificate that can't be parsed was not used in the path.
        let Ok(view) = X509View::parse(der) else { continue };
        if view.is_ca_that_may_not_sign().map_err(|_twice| IdentityFault::Unreadable)? {
            return Err(IdentityFault::KeyUsage { whose: "a CA certificate of its chain", needed: "keyCertSign" });
        }
    }
    Ok(())
}

/// The first few identities: a service may have many, and a log line has limited space.
struct Listed<'a>(&'a [SpiffeId]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        if self.0.is_empty() {
            return f.write_str("an expected identity (there is none)");
        }
        for (index, identity) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{identity}", if index == 0 { "" } else { " or " })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " or {more} more"),
        }
    }
}

impl From<IdentityFault> for rustls::Error {
    /// Keeps the fault for the log; the peer gets `certificate_unknown`.
    fn from(fault: IdentityFault) -> Self {
        CertificateError::Other(OtherError(Arc::new(fault))).into()
    }
}

/// The content of a peer's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) identity: SpiffeId,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, IdentityFault> {
        let view = X509View::parse(der).map_err(|_unreadable| IdentityFault::Unreadable)?;
        if !view.may_sign_handshakes().map_err(|_twice| IdentityFault::Unreadable)? {
            return Err(IdentityFault::KeyUsage { whose: "its certificate", needed: "digitalSignature" });
        }
        let (mut count, mut first) = (0, None);
        for uri in view.uris().map_err(|_twice| IdentityFault::Unreadable)? {
            let uri = uri.map_err(|_invalid| IdentityFault::Unreadable)?;
            count += 1;
            first = first.or(Some(uri));
        }
        let (1, Some(uri)) = (count, first) else { return Err(IdentityFault::Uris(count)) };
        let identity = uri.parse().map_err(IdentityFault::NotSpiffe)?;
        Ok(Self { identity, not_after: view.not_after() })
    }
}

/// The earliest expiry of the certificates between a chain's leaf and its root, if there are any. The chain has been verified.
/// Here only the names show which certificates may be in the path, so of two certificates with one name the earlier expiry is
/// used. A certificate that is not valid at this time was not in the path.
pub(super) fn issuers_end(chain: &[CertificateDer<'_>], at: SystemTime) -> Option<SystemTime> {
    let (leaf, others) = chain.split_first()?;
    let mut signed = vec![X509View::parse(leaf).ok()?];
    let mut others: Vec<_> = others.iter().take(LONGEST_CHAIN).filter_map(|der| X509View::parse(der).ok()).collect();
    others.retain(|other| is_valid_at(other, at) && other.subject_der() != other.issuer_der());
    let mut end = None;
    while let Some(next) = signed.pop() {
        let signs = |other: &X509View<'_>| other.subject_der() == next.issuer_der();
        let (issuers, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(signs);
        end = issuers.iter().map(X509View::not_after).chain(end).min();
        signed.extend(issuers);
        others = rest;
    }
    end
}

/// Validity has whole seconds and includes the last second.
fn is_valid_at(view: &X509View<'_>, at: SystemTime) -> bool {
    view.not_before() <= at && at < view.not_after() + Duration::from_secs(1)
}

/// The CAs of different meshes may have the same name. A chain that leads to the right name but the wrong key is reported as an
/// unknown CA, and not as an invalid signature as TLS would do.
fn foreign(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        other => other,
    }
}

/// Accepts any client of the trust domain.
#[derive(Debug)]
pub(super) struct PeerOf {
    chain: Arc<dyn ClientCertVerifier>,
    own: TrustDomain,
}

impl PeerOf {
    pub(super) fn new(roots: &Arc<RootCertStore>, own: TrustDomain) -> Result<Self, VerifierBuilderError> {
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?;
        Ok(Self { chain, own })
    }
}

impl ClientCertVerifier for PeerOf {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        check_length(intermediates)?;
        let verified = self.chain.verify_client_cert(leaf, intermediates, now).map_err(foreign)?;
        check_usage(intermediates)?;
        let found = Leaf::read(leaf)?.identity;
        if found.trust_domain != self.own {
            return Err(IdentityFault::TrustDomain { found, own: self.own.clone() }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts the expected servers of one connection. If `expected` is empty, it accepts no server.
#[derive(Debug)]
pub(super) struct ServerOneOf {
    roots: Arc<RootCertStore>,
    expected: Arc<[SpiffeId]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerOneOf {
    pub(super) fn new(roots: Arc<RootCertStore>, expected: Arc<[SpiffeId]>) -> Self {
        Self { roots, expected, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerOneOf {
    /// The server's name is ignored, because an address proves nothing.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        check_length(intermediates)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms).map_err(foreign)?;
        check_usage(intermediates)?;
        let found = Leaf::read(leaf)?.identity;
        if !self.expected.contains(&found) {
            return Err(IdentityFault::Unexpected { found, expected: Arc::clone(&self.expected) }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
