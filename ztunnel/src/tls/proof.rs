//! What a handshake was good with, and the roots that it is checked against.

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

/// Why a peer that was proved is not trusted any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Distrust {
    /// The root that vouched for it is gone.
    #[error("the peer's certificate does not lead to a root that is trusted here any more")]
    Root(#[source] webpki::Error),
    /// A certificate of the two ends is over, and connections are not to outlive that.
    #[error("the certificate of the peer, or our own, has expired")]
    Expired,
}

/// Which end of a handshake someone is.
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
    /// One unreadable root must not take the others with it.
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

    /// Whether the bundle is this one.
    pub(super) fn is_of(&self, ders: &Arc<[CertificateDer<'static>]>) -> bool {
        Arc::ptr_eq(&self.ders, ders) || self.ders == *ders
    }

    /// Whether everyone who was trusted with the other bundle is with this one.
    pub(super) fn includes(&self, other: &Self) -> bool {
        other.ders.iter().all(|der| self.ders.contains(der))
    }

    /// The root that a chain, leaf first, leads to.
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

/// What a handshake was good with: what the peer showed, and what stood at this end.
#[derive(Clone)]
pub struct Proof(pub(super) Arc<Shown>);

pub(super) struct Shown {
    /// The peer's certificate and those behind it.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) role: Role,
    /// When all of it was valid.
    pub(super) at: SystemTime,
    /// Whom this end trusted.
    pub(super) roots: Arc<Roots>,
    /// The root of the own certificate.
    pub(super) own_root: Option<Arc<TrustAnchor<'static>>>,
}

impl Proof {
    pub(super) fn new(shown: Shown) -> Self {
        Self(Arc::new(shown))
    }

    /// Against other roots, and as of the time of the handshake: that certificates have expired since is another matter.
    pub(super) fn check(&self, roots: &Roots) -> Result<(), Distrust> {
        let Shown { chain, role, at, .. } = &*self.0;
        roots.root_of(chain, *role, *at).map(drop).map_err(Distrust::Root)
    }
}

// Nothing of it is for a log.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("certificates", &self.0.chain.len()).finish_non_exhaustive()
    }
}
