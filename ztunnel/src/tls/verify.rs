//! Whether a peer's certificate is good, and whose it is.
//!
//! Both ends ask for a chain to one of the roots, with the purpose (extended key usage) of the peer's role, and for exactly
//! one URI among the leaf's alternative names, a SPIFFE ID in Istio's form: of two identities nobody could say which one
//! is meant. Names of other kinds beside it are nobody's business. A certificate that limits the use of its key (key usage) has to
//! allow what it is used for here: the leaf's digital signatures, those of the CAs behind it signing certificates. Who accepts then asks for the own trust domain, who
//! connects for one of the identities that are expected there.

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

/// What is wrong with the identity in a certificate whose chain is good.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityFault {
    /// The certificate can't be read, or says the same thing twice.
    #[error("its certificate can't be read")]
    Unreadable,
    /// More certificates than any path through them may have.
    #[error("it presented {0} certificates beside its own: at most {most} are looked at", most = LONGEST_CHAIN)]
    Chain(usize),
    /// The use of its key is limited, and not to this.
    #[error("the key usage of {whose} does not allow {needed}; issue it with {needed}, or without the extension")]
    KeyUsage {
        /// Which certificate.
        whose: &'static str,
        /// As RFC 5280 names it.
        needed: &'static str,
    },
    /// No URI among its alternative names, or several.
    #[error("its certificate has {0} URI names instead of one")]
    Uris(usize),
    /// The URI is not an identity.
    #[error("its certificate's name is no identity: {0}")]
    NotSpiffe(IdentityError),
    /// The identity is of another mesh.
    #[error("{found} is not of the trust domain {own}")]
    TrustDomain {
        /// The peer's.
        found: SpiffeId,
        /// Ours.
        own: TrustDomain,
    },
    /// Someone else answered.
    #[error("{found} answered instead of {}", Listed(expected))]
    Unexpected {
        /// Who.
        found: SpiffeId,
        /// Who was expected.
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

/// Certificates between a leaf and a root; webpki follows a path of six. It would try every one of the hundreds that fit into
/// a message, again and again, for a stranger who copied the one that signs from our own chain.
const LONGEST_CHAIN: usize = 8;

fn check_length(intermediates: &[CertificateDer<'_>]) -> Result<(), IdentityFault> {
    match intermediates.len() {
        0..=LONGEST_CHAIN => Ok(()),
        more => Err(IdentityFault::Chain(more)),
    }
}

/// Asked of a chain that is good otherwise: what verifies it does not look at the use of keys.
fn check_usage(intermediates: &[CertificateDer<'_>]) -> Result<(), IdentityFault> {
    for der in intermediates {
        // What can't be read has not served.
        let Ok(view) = X509View::parse(der) else { continue };
        if view.is_ca_that_may_not_sign().map_err(|_twice| IdentityFault::Unreadable)? {
            return Err(IdentityFault::KeyUsage { whose: "a CA certificate behind its own", needed: "keyCertSign" });
        }
    }
    Ok(())
}

/// A service may have many identities; a log line has room for some.
struct Listed<'a>(&'a [SpiffeId]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        if self.0.is_empty() {
            return f.write_str("nobody (no identity is expected there)");
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

/// What a peer's certificate says.
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

/// When the first of those certificates expires that stand between a chain's leaf and its root, if there are any. The chain
/// has been verified; names alone tell here which of them may have served, so of two for one name the one that ends first
/// counts. What is not valid at that time has not served.
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

/// Validity is stated in whole seconds; the last one belongs to it.
fn is_valid_at(view: &X509View<'_>, at: SystemTime) -> bool {
    view.not_before() <= at && at < view.not_after() + Duration::from_secs(1)
}

/// Every mesh's CA may have the same name: a chain that leads to the right name and the wrong key is of an unknown CA, and
/// not, as TLS would have it, a signature that went wrong.
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

/// Accepts the servers of one connection. With nobody expected it accepts nobody.
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
    /// The server's name is not looked at: addresses prove nothing.
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
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
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
