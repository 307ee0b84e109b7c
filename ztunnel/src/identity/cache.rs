//! The cache keeps one valid certificate for every identity of the node: it is fetched once and renewed in time.
//!
//! Each identity has a task of its own, which alone writes the state of the identity. The task ends when the last
//! [handle](super::handle::CertHandle) is dropped; then the identity is forgotten.

pub mod describe;
mod keeper;
mod registry;
mod schedule;
mod settings;

use std::{sync::Arc, time::SystemTime};

use tokio::sync::{Semaphore, mpsc, watch};
use tracing::Span;

pub use self::describe::CertInfo;
pub use self::settings::{CacheSettings, Clock};
use self::{keeper::Keeper, registry::Registry};
use super::{
    Credentials,
    handle::{CertHandle, CertState},
    source::CertSource,
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
};

/// The handle through which certificates are requested. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    registry: Arc<Registry>,
    wanted: mpsc::UnboundedSender<Wanted>,
    clock: Clock,
}

/// The state of the certificate of one identity.
#[derive(Clone, Debug)]
pub struct CertStanding {
    /// The identity.
    pub identity: SpiffeId,
    /// When its certificate expires; `None`: it has no valid certificate.
    pub valid_until: Option<SystemTime>,
    /// The validity of its newest certificate, if that is not valid now.
    pub untimely: Option<(SystemTime, SystemTime)>,
    /// Why the last attempt to get a certificate failed.
    pub failure: Option<String>,
}

/// An identity that has no task yet.
#[derive(Debug)]
struct Wanted(SpiffeId, Arc<watch::Sender<CertState>>);

/// The cache; [`CertCache::run`] is its task.
pub struct CertCache {
    registry: Arc<Registry>,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    source: Arc<dyn CertSource>,
    settings: CacheSettings,
    keepers: TaskSet,
}

/// The cache, and the handle for its users.
pub fn channel(source: Arc<dyn CertSource>, settings: CacheSettings, tasks: TaskCount) -> (CertCache, Certificates) {
    let registry = Arc::new(Registry::default());
    // The length is bounded by the number of identities: each is sent once.
    let (tx, rx) = mpsc::unbounded_channel();
    let certificates = Certificates { registry: Arc::clone(&registry), wanted: tx, clock: settings.clock.clone() };
    let keepers = TaskSet::new(tasks);
    (CertCache { registry, wanted: rx, source, settings, keepers }, certificates)
}

impl Certificates {
    /// The certificate of an identity. It is renewed while a handle exists.
    #[must_use]
    pub fn handle(&self, identity: SpiffeId) -> CertHandle {
        let mut states = self.registry.lock();
        if let Some(state) = states.get(&identity) {
            return CertHandle::new(identity, state.subscribe());
        }
        let state = Arc::new(watch::Sender::new(CertState::default()));
        let handle = CertHandle::new(identity.clone(), state.subscribe());
        if self.wanted.send(Wanted(identity.clone(), Arc::clone(&state))).is_ok() {
            states.insert(identity, state);
        } else {
            let failure = Some("the certificate cache has stopped".into());
            state.send_replace(CertState { credentials: None, failure });
        }
        handle
    }

    /// All identities that have a certificate, and when it expires. Does not wait.
    #[must_use]
    pub fn expiries(&self) -> Vec<(SpiffeId, SystemTime)> {
        let expiry = |(identity, state): (&SpiffeId, &Arc<watch::Sender<CertState>>)| {
            Some((identity.clone(), state.borrow().credentials.as_ref()?.not_after))
        };
        self.registry.lock().iter().filter_map(expiry).collect()
    }

    /// The state of every identity's certificate, by identity. Does not wait.
    #[must_use]
    pub fn standings(&self) -> Vec<CertStanding> {
        let now = self.clock.now();
        let standing = |(identity, state): (&SpiffeId, &Arc<watch::Sender<CertState>>)| {
            let state = state.borrow();
            let credentials = state.credentials.as_deref();
            let (valid, other): (Option<&Credentials>, Option<&Credentials>) =
                (credentials.filter(|one| one.is_valid(now)), credentials.filter(|one| !one.is_valid(now)));
            CertStanding {
                identity: identity.clone(),
                valid_until: valid.map(|one| one.not_after),
                untimely: other.map(|one| (one.not_before, one.not_after)),
                failure: state.failure.as_deref().map(str::to_owned),
            }
        };
        let mut standings: Vec<_> = self.registry.lock().iter().map(standing).collect();
        standings.sort_by(|one, other| one.identity.cmp(&other.identity));
        standings
    }

    /// The handle of a cache that is gone.
    #[cfg(test)]
    pub fn of_nobody() -> Self {
        let clock = CacheSettings::default().clock;
        Self { registry: Arc::default(), wanted: mpsc::unbounded_channel().0, clock }
    }

    /// All identities and their certificates, sorted by identity.
    pub async fn describe(&self) -> Vec<CertInfo> {
        let mut states: Vec<_> =
            self.registry.lock().iter().map(|(identity, state)| (identity.clone(), state.borrow().clone())).collect();
        states.sort_by(|one, other| one.0.cmp(&other.0));
        let now = self.clock.now();
        states.iter().map(|(identity, state)| CertInfo::new(identity, state, now)).collect()
    }
}

impl CertCache {
    /// Keeps every identity that has a handle, until all users of the cache are gone.
    pub async fn run(mut self) {
        let (first, renewals) =
            (Arc::new(Semaphore::new(self.settings.at_once)), Arc::new(Semaphore::new(self.settings.at_once)));
        loop {
            tokio::select! {
                wanted = self.wanted.recv() => {
                    let Some(Wanted(identity, state)) = wanted else { break };
                    let keeper = Keeper::new(
                        identity,
                        state,
                        Arc::clone(&self.registry),
                        Arc::clone(&self.source),
                        self.settings.clone(),
                        [Arc::clone(&first), Arc::clone(&renewals)],
                    );
                    self.keepers.spawn(Span::none(), keeper.run());
                }
                () = self.keepers.reap_next(), if !self.keepers.is_empty() => {}
            }
        }
        self.keepers.join_all().await;
    }
}

/// After the cache is gone nothing is renewed: handles learn that there will be no further changes.
impl Drop for CertCache {
    fn drop(&mut self) {
        self.wanted.close();
        self.registry.lock().clear();
    }
}

#[cfg(test)]
mod tests;
