//! The identities that are kept, each with its state.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{identity::handle::CertState, model::identity::SpiffeId};

type States = HashMap<SpiffeId, Arc<watch::Sender<CertState>>>;

/// The state of every identity that is kept.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<States>);

impl Registry {
    pub(super) fn lock(&self) -> MutexGuard<'_, States> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an identity that nobody has a handle of, and says whether it did.
    pub(super) fn forget_unused(&self, identity: &SpiffeId, state: &Arc<watch::Sender<CertState>>) -> bool {
        // New handles come under the same lock.
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
    // Another keeper may have the identity meanwhile.
    if states.get(identity).is_some_and(|kept| Arc::ptr_eq(kept, state)) {
        states.remove(identity);
    }
}
