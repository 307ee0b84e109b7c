//! The identities in the cache, each with its state.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{identity::handle::CertState, model::identity::SpiffeId};

type States = HashMap<SpiffeId, Arc<watch::Sender<CertState>>>;

/// The state of every identity in the cache.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<States>);

impl Registry {
    pub(super) fn lock(&self) -> MutexGuard<'_, States> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an identity without handles; returns whether it was forgotten.
    pub(super) fn forget_unused(&self, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) -> bool {
        // New handles are made under the same lock.
        let mut states = self.lock();
        if state.receiver_count() > 0 {
            return false;
        }
        remove(&mut states, identity, state);
        true
    }

    pub(super) fn forget(&self, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) {
        remove(&mut self.lock(), identity, state);
    }
}

fn remove(states: &mut States, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) {
    // Another task may have the identity by now.
    if states.get(identity).is_some_and(|kept| Arc::ptr_eq(kept, state)) {
        states.remove(identity);
    }
}
