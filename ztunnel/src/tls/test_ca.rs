//! Certificates for tests: valid ones and all kinds of invalid ones.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use super::{Endpoint, Settings};
use crate::identity::{
    Credentials,
    handle::{CertHandle, CertState},
};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

const HOUR: Duration = Duration::from_secs(3600);

/// The content of a certificate.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) usages: Vec<KeyUsagePurpose>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// A valid certificate.
pub(crate) fn good(identity: &str) -> Wanted {
    Wanted {
        uris: vec![identity.to_owned()],
        dns: Vec::new(),
        purposes: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        // As in Istio's certificates.
        usages: vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
        not_before: SystemTime::now() - HOUR,
        not_after: SystemTime::now() + HOUR,
    }
}

pub(crate) struct TestCa {
    root: CertificateDer<'static>,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The certificates that are sent after the leaf.
    between: Vec<CertificateDer<'static>>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap();
        Self { root: issuer.der().clone(), issuer, between: Vec::new() }
    }

    /// A CA below this one.
    pub(crate) fn below(&self, name: &str) -> Self {
        self.below_until(name, SystemTime::now() + 24 * HOUR)
    }

    /// The same, with an expiry.
    pub(crate) fn below_until(&self, name: &str, end: SystemTime) -> Self {
        let mut params = authority(name);
        params.not_after = end.into();
        self.sign(params)
    }

    /// A CA below this one whose key has another usage.
    pub(crate) fn below_for(&self, name: &str, usages: Vec<KeyUsagePurpose>) -> Self {
        let mut params = authority(name);
        params.key_usages = usages;
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Self {
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let between = std::iter::once(issuer.der().clone()).chain(self.between.iter().cloned()).collect();
        Self { root: self.root.clone(), between, issuer }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(crate) fn leaf(&self, wanted: &Wanted) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(wanted.dns.clone()).unwrap();
        for uri in &wanted.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        }
        params.extended_key_usages.clone_from(&wanted.purposes);
        params.key_usages.clone_from(&wanted.usages);
        params.not_before = wanted.not_before.into();
        params.not_after = wanted.not_after.into();
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (leaf.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// Credentials whose holder trusts `roots`, and claims to be `identity` regardless of the certificate.
    pub(crate) fn credentials(
        &self,
        identity: &str,
        wanted: &Wanted,
        roots: &[CertificateDer<'static>],
    ) -> Arc<Credentials> {
        let (leaf, key) = self.leaf(wanted);
        let mut chain = vec![leaf];
        chain.extend(self.between.iter().cloned());
        Arc::new(Credentials {
            identity: identity.parse().unwrap(),
            chain,
            key,
            roots: roots.into(),
            serial: "1".to_owned(),
            // The handle must not reject the invalid ones: they have to reach the peer.
            not_before: SystemTime::now() - HOUR,
            not_after: SystemTime::now() + 2 * HOUR,
        })
    }

    /// Valid credentials whose holder trusts these CAs.
    pub(crate) fn trusting(&self, identity: &str, roots: &[&TestCa]) -> CertState {
        let roots: Vec<_> = roots.iter().map(|ca| ca.root()).collect();
        CertState { credentials: Some(self.credentials(identity, &good(identity), &roots)), failure: None }
    }

    pub(crate) fn good(&self, identity: &str) -> Arc<Credentials> {
        self.credentials(identity, &good(identity), &[self.root()])
    }

    pub(crate) fn endpoint(&self, identity: &str) -> Endpoint {
        endpoint(self.good(identity)).0
    }
}

/// An endpoint, and the sender that gives it new credentials.
pub(crate) fn endpoint(credentials: Arc<Credentials>) -> (Endpoint, watch::Sender<CertState>) {
    let identity = credentials.identity.clone();
    let (sender, state) = watch::channel(CertState { credentials: Some(credentials), failure: None });
    (Endpoint::new(CertHandle::new(identity, state), Settings::default()), sender)
}
