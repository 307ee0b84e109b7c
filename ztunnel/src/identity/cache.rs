//! Every identity of the node has one valid certificate, fetched once and renewed in time.
//!
//! Each identity is kept by a task of its own, the only writer of its state. It ends when the last
//! [handle](super::handle::CertHandle) is gone, which forgets the identity.

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
    handle::{CertHandle, CertState},
    source::CertSource,
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
};

/// Certificates for whoever asks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    registry: Arc<Registry>,
    wanted: mpsc::UnboundedSender<Wanted>,
    clock: Clock,
}

/// An identity that nobody keeps yet.
#[derive(Debug)]
struct Wanted(SpiffeId, Arc<watch::Sender<CertState>>);

/// Keeps them; [`CertCache::run`] is the task.
pub struct CertCache {
    registry: Arc<Registry>,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    source: Arc<dyn CertSource>,
    settings: CacheSettings,
    keepers: TaskSet,
}

/// The cache and what others have of it.
pub fn channel(source: Arc<dyn CertSource>, settings: CacheSettings, tasks: TaskCount) -> (CertCache, Certificates) {
    let registry = Arc::new(Registry::default());
    // Bounded by the number of identities: each is announced once.
    let (tx, rx) = mpsc::unbounded_channel();
    let certificates = Certificates { registry: Arc::clone(&registry), wanted: tx, clock: settings.clock.clone() };
    let keepers = TaskSet::new(tasks);
    (CertCache { registry, wanted: rx, source, settings, keepers }, certificates)
}

impl Certificates {
    /// The certificate of an identity, which is kept fresh as long as a handle is there.
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

    /// All identities that have a certificate, and when it expires. Waits for nobody.
    #[must_use]
    pub fn expiries(&self) -> Vec<(SpiffeId, SystemTime)> {
        let expiry = |(identity, state): (&SpiffeId, &Arc<watch::Sender<CertState>>)| {
            Some((identity.clone(), state.borrow().credentials.as_ref()?.not_after))
        };
        self.registry.lock().iter().filter_map(expiry).collect()
    }

    /// The certificates of a cache that is gone.
    #[cfg(test)]
    pub fn of_nobody() -> Self {
        let clock = CacheSettings::default().clock;
        Self { registry: Arc::default(), wanted: mpsc::unbounded_channel().0, clock }
    }

    /// All identities and their certificates, by name.
    pub async fn describe(&self) -> Vec<CertInfo> {
        let mut states: Vec<_> =
            self.registry.lock().iter().map(|(identity, state)| (identity.clone(), state.borrow().clone())).collect();
        states.sort_by(|one, other| one.0.cmp(&other.0));
        let now = self.clock.now();
        states.iter().map(|(identity, state)| CertInfo::new(identity, state, now)).collect()
    }
}

impl CertCache {
    /// Keeps every identity that somebody has a handle of, until nobody can ask for one any more.
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

/// A cache that is gone keeps nothing: handles learn that there will be no news.
impl Drop for CertCache {
    fn drop(&mut self) {
        self.wanted.close();
        self.registry.lock().clear();
    }
}

#[cfg(test)]
mod tests;
