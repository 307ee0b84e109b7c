//! The certificate of one identity, always the newest.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use super::{Credentials, clock};
use crate::model::identity::SpiffeId;

/// The state of the certificate of an identity.
#[derive(Clone, Debug, Default)]
pub struct CertState {
    /// The newest certificate. It may have expired.
    pub credentials: Option<Arc<Credentials>>,
    /// Why the last attempt to get a certificate failed; `None` if it did not fail.
    pub failure: Option<Arc<str>>,
}

/// There is no valid certificate.
#[derive(Clone, Debug, Error)]
#[error("no valid certificate for {identity}: {reason}")]
pub struct Unavailable {
    /// The identity.
    pub identity: SpiffeId,
    /// Why.
    pub reason: Arc<str>,
}

/// The certificate of one identity. Cheap to clone; the certificate is renewed while a handle exists.
#[derive(Clone, Debug)]
pub struct CertHandle {
    identity: SpiffeId,
    state: watch::Receiver<CertState>,
}

impl CertHandle {
    /// A handle to a state that another task writes.
    #[must_use]
    pub fn new(identity: SpiffeId, state: watch::Receiver<CertState>) -> Self {
        Self { identity, state }
    }

    /// The identity.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The newest certificate, if it is valid at this time.
    ///
    /// # Errors
    /// Why there is no valid certificate.
    pub fn current(&self, now: SystemTime) -> Result<Arc<Credentials>, Unavailable> {
        let state = self.state.borrow();
        match &state.credentials {
            Some(credentials) if credentials.is_valid(now) => Ok(Arc::clone(credentials)),
            Some(_) => Err(self.unavailable(state.failure.as_deref().unwrap_or("it has expired, or is not valid yet"))),
            None => Err(self.unavailable(state.failure.as_deref().unwrap_or("it has not been issued yet"))),
        }
    }

    /// The newest certificate, valid or not.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Credentials>> {
        self.state.borrow().credentials.clone()
    }

    /// As [`Self::current`], but waits at most `limit` for the first answer of the source.
    ///
    /// # Errors
    /// Why there is no valid certificate.
    pub async fn credentials(&self, limit: Duration) -> Result<Arc<Credentials>, Unavailable> {
        let mut state = self.state.clone();
        let answered = state.wait_for(|state| state.credentials.is_some() || state.failure.is_some());
        // If the answer is late or never comes, `current` reports it. `wait_for` returns a lock on the state, which is dropped
        // here: `current` would wait behind a writer, and the writer for this lock.
        drop(timeout(limit, answered).await);
        self.current(clock::now())
    }

    /// Waits until the state changes. `false`: it will not change any more.
    pub async fn changed(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    fn unavailable(&self, reason: &str) -> Unavailable {
        Unavailable { identity: self.identity.clone(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{CertHandle, CertState};
    use std::{sync::mpsc, thread, time::Duration};
    use tokio::sync::watch;

    /// Several readers keep the writer waiting, as the data workers do.
    #[test]
    fn who_asks_and_who_renews_never_wait_for_each_other() {
        const READERS: usize = 4;
        const TIMES: usize = 20_000;
        let failed = CertState { credentials: None, failure: Some("no".into()) };
        let (sender, state) = watch::channel(failed.clone());
        let handle = CertHandle::new("spiffe://td/ns/a/sa/b".parse().unwrap(), state);
        let (done, finished) = mpsc::channel();
        for _ in 0..READERS {
            let (handle, done) = (handle.clone(), done.clone());
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..TIMES {
                        assert!(handle.credentials(Duration::from_secs(1)).await.is_err());
                    }
                });
                done.send(()).unwrap();
            });
        }
        thread::spawn(move || {
            (0..TIMES).for_each(|_| _ = sender.send_replace(failed.clone()));
            done.send(()).unwrap();
        });
        for _ in 0..=READERS {
            finished.recv_timeout(Duration::from_secs(60)).expect("every thread comes to its end");
        }
    }
}
