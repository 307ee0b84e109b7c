//! The evidence with which a handshake succeeded, and the roots against which it is verified.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use thiserror::Error;
use tracing::warn;
use webpki::{EndEntityCert, KeyUsage};

use super::provider::provider;
use crate::model::identity::SpiffeId;

/// Why a peer that was authenticated is not trusted any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Distrust {
    /// The root of its certificate was removed.
    #[error("the peer's certificate does not lead to a root that is trusted here any more")]
    Root(#[source] webpki::Error),
    /// The certificate of one of the ends has expired, and connections must not outlive their certificates.
    #[error("the certificate of the peer, or our own, has expired")]
    Expired,
}

/// The role of a peer in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

impl Role {
    fn usage(self) -> KeyUsage {
        match self {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        }
    }
}

/// The roots of one bundle.
pub(super) struct Roots {
    ders: Arc<[CertificateDer<'static>]>,
    store: Arc<RootCertStore>,
}

impl Roots {
    /// Reads the roots. A root that can't be parsed is left out; the others are used.
    pub(super) fn read(identity: &SpiffeId, ders: &Arc<[CertificateDer<'static>]>) -> Self {
        let mut store = RootCertStore::empty();
        for der in ders.iter() {
            if let Err(error) = store.add(der.clone()) {
                warn!(%identity, %error, "a root certificate can't be used, and is left out");
            }
        }
        Self { ders: Arc::clone(ders), store: Arc::new(store) }
    }

    pub(super) fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }

    /// Whether the roots were read from this bundle.
    pub(super) fn is_of(&self, ders: &Arc<[CertificateDer<'static>]>) -> bool {
        Arc::ptr_eq(&self.ders, ders) || self.ders == *ders
    }

    /// Whether every root of the other bundle is in this bundle.
    pub(super) fn includes(&self, other: &Self) -> bool {
        other.ders.iter().all(|der| self.ders.contains(der))
    }

    /// The root of a chain (leaf first).
    pub(super) fn root_of(
        &self,
        chain: &[CertificateDer<'static>],
        role: Role,
        at: SystemTime,
    ) -> Result<TrustAnchor<'static>, webpki::Error> {
        let (leaf, between) = chain.split_first().ok_or(webpki::Error::BadDer)?;
        let leaf = EndEntityCert::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
        let path = leaf.verify_for_usage(algorithms, &self.store.roots, between, at, role.usage(), None, None)?;
        Ok(path.anchor().to_owned())
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("count", &self.ders.len()).finish_non_exhaustive()
    }
}

/// The evidence with which a handshake succeeded: the certificates of the peer, and the state of this end.
#[derive(Clone)]
pub struct Proof(pub(super) Arc<Shown>);

pub(super) struct Shown {
    /// The peer's certificate and its intermediates.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) role: Role,
    /// A time at which all certificates were valid.
    pub(super) at: SystemTime,
    /// The roots that this end trusted.
    pub(super) roots: Arc<Roots>,
    /// The root of the own certificate.
    pub(super) own_root: Option<Arc<TrustAnchor<'static>>>,
}

impl Proof {
    pub(super) fn new(shown: Shown) -> Self {
        Self(Arc::new(shown))
    }

    /// Verifies against other roots, as of the time of the handshake. Certificates that have expired since are not considered
    /// here.
    pub(super) fn check(&self, roots: &Roots) -> Result<(), Distrust> {
        let Shown { chain, role, at, .. } = &*self.0;
        roots.root_of(chain, *role, *at).map(drop).map_err(Distrust::Root)
    }
}

// The certificates are not written to a log.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("certificates", &self.0.chain.len()).finish_non_exhaustive()
    }
}
