//! Every identity of the node has one valid certificate, fetched once and renewed in time.
//!
//! Each identity is kept by a task of its own, the only writer of its state. It ends when the last
//! [handle](super::handle::CertHandle) is gone, which forgets the identity.

pub mod describe;
mod keeper;
mod schedule;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::{Semaphore, mpsc, watch};
use tracing::Span;

pub use self::describe::CertInfo;
use self::keeper::Keeper;
use super::{
    handle::{CertHandle, CertState},
    source::CertSource,
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
};

/// What the time is. Tests have their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that shows what the function returns.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How certificates are kept. The defaults are Istio's where it has one.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Renewals at once, and as many first fetches beside them: a new pod never waits behind renewals.
    pub at_once: usize,
    /// When a silent source has failed. A CA across the world that is busy needs a few seconds.
    pub patience: Duration,
    /// The pause after a first failure; it doubles with every further one.
    pub first_pause: Duration,
    /// The longest pause between two tries.
    pub longest_pause: Duration,
    /// What the time is.
    pub clock: Clock,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            at_once: 8,
            patience: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(150),
            clock: Clock::default(),
        }
    }
}

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

/// The state of every identity that is kept.
#[derive(Debug, Default)]
struct Registry(Mutex<HashMap<SpiffeId, Arc<watch::Sender<CertState>>>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, Arc<watch::Sender<CertState>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an identity that nobody has a handle of, and says whether it did.
    fn forget_unused(&self, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) -> bool {
        // New handles come under the same lock.
        let mut states = self.lock();
        if state.receiver_count() > 0 {
            return false;
        }
        remove(&mut states, identity, state);
        true
    }

    fn forget(&self, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) {
        remove(&mut self.lock(), identity, state);
    }
}

fn remove(
    states: &mut HashMap<SpiffeId, Arc<watch::Sender<CertState>>>,
    identity: &SpiffeId,
    state: &Arc<watch::Sender<CertState>>,
) {
    // Another keeper may have the identity meanwhile.
    if states.get(identity).is_some_and(|kept| Arc::ptr_eq(kept, state)) {
        states.remove(identity);
    }
}

#[cfg(test)]
mod tests;
