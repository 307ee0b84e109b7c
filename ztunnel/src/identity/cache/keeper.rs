//! Keeps the certificate of one identity.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{registry::Registry, schedule, settings::CacheSettings};
use crate::{
    identity::{
        Credentials,
        certificate::rfc3339,
        handle::CertState,
        source::{CertSource, SourceError},
    },
    model::{cause::causes, identity::SpiffeId},
};

/// The interval at which the wall clock is checked. It may be set, and it goes on while the machine sleeps; timers notice
/// neither.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// The only writer of one identity's state.
pub(super) struct Keeper {
    identity: SpiffeId,
    state: Arc<watch::Sender<CertState>>,
    registry: Arc<Registry>,
    source: Arc<dyn CertSource>,
    settings: CacheSettings,
    first: Arc<Semaphore>,
    renewals: Arc<Semaphore>,
    generation: watch::Receiver<u64>,
    /// Failures since the last success.
    failures: u32,
}

/// No state stays in the registry without a task that renews it, in whatever way the task ends.
impl Drop for Keeper {
    fn drop(&mut self) {
        self.registry.forget(&self.identity, &self.state);
    }
}

impl Keeper {
    pub(super) fn new(
        identity: SpiffeId,
        state: Arc<watch::Sender<CertState>>,
        registry: Arc<Registry>,
        source: Arc<dyn CertSource>,
        settings: CacheSettings,
        [first, renewals]: [Arc<Semaphore>; 2],
    ) -> Self {
        let generation = source.generation();
        Self { identity, state, registry, source, settings, first, renewals, generation, failures: 0 }
    }

    /// Fetches and renews until no handle exists any more.
    pub(super) async fn run(mut self) {
        let unused = unused(self.identity.clone(), Arc::clone(&self.state), Arc::clone(&self.registry));
        tokio::select! {
            () = self.keep() => {}
            () = unused => {}
        }
    }

    async fn keep(&mut self) {
        loop {
            // The generation is marked as seen before the request: a change while the request is under way counts as new.
            self.generation.borrow_and_update();
            let wait = match self.fetch().await {
                Ok(credentials) => self.succeeded(credentials),
                Err(error) => self.failed(&error),
            };
            self.due(wait).await;
        }
    }

    async fn fetch(&self) -> Result<Credentials, SourceError> {
        let is_first = self.state.borrow().credentials.is_none();
        let turn = if is_first { &self.first } else { &self.renewals };
        // The semaphore is never closed. If it were, the fetch would only be unbounded.
        let _turn = turn.acquire().await.ok();
        let (limit, begun) = (self.settings.timeout, Instant::now());
        let issued = timeout(limit, self.source.issue(&self.identity)).await;
        self.settings.fetches.ended(matches!(issued, Ok(Ok(_))), begun.elapsed());
        let credentials = match issued {
            Ok(result) => result?,
            Err(_) => return Err(SourceError::TimedOut(limit)),
        };
        if credentials.identity != self.identity || !credentials.is_valid(self.settings.clock.now()) {
            return Err(SourceError::Unusable {
                asked: self.identity.clone(),
                given: credentials.identity,
                until: rfc3339(credentials.not_after),
            });
        }
        Ok(credentials)
    }

    fn succeeded(&mut self, credentials: Credentials) -> Duration {
        self.failures = 0;
        let wait = schedule::renewal(&credentials, self.settings.clock.now());
        self.state.send_if_modified(|state| {
            let is_same = state.credentials.as_ref().is_some_and(|kept| is_same(kept, &credentials));
            let had_failed = state.failure.take().is_some();
            if !is_same {
                info!(
                    identity = %self.identity,
                    serial = credentials.serial,
                    not_after = rfc3339(credentials.not_after),
                    renewal_in = ?whole(wait),
                    "certificate issued"
                );
                state.credentials = Some(Arc::new(credentials));
            }
            !is_same || had_failed
        });
        wait
    }

    fn failed(&mut self, error: &SourceError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let now = self.settings.clock.now();
        let kept = self.state.borrow().credentials.clone();
        let valid = kept.filter(|kept| kept.is_valid(now));
        let wait = schedule::retry(self.failures, &self.settings, valid.as_deref(), now);
        let why = causes(error);
        warn!(
            identity = %self.identity,
            error = why,
            retry_in = ?whole(wait),
            valid_until = valid.map(|kept| rfc3339(kept.not_after)),
            "no new certificate"
        );
        // Every waiter learns the reason at once.
        self.state.send_modify(|state| state.failure = Some(why.into()));
        wait
    }

    /// Waits until the next attempt is due.
    async fn due(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        loop {
            let check = Instant::now() + CLOCK_CHECK;
            tokio::select! {
                () = sleep_until(due) => return,
                () = sleep_until(check) => if self.failures == 0 && !self.is_valid(self.settings.clock.now()) {
                    info!(
                        identity = %self.identity,
                        "the clock was changed, or stood still: it is outside of the certificate's validity"
                    );
                    return;
                },
                () = changed(&mut self.generation) => {
                    self.failures = 0;
                    return;
                }
            }
        }
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.state.borrow().credentials.as_ref().is_some_and(|kept| kept.is_valid(now))
    }
}

/// Returns when there is no handle for this state, and no new handle can be made.
async fn unused(identity: SpiffeId, state: Arc<watch::Sender<CertState>>, registry: Arc<Registry>) {
    loop {
        state.closed().await;
        if registry.forget_unused(&identity, &state) {
            debug!(%identity, "certificate forgotten");
            return;
        }
    }
}

/// A source that is gone has no further generations.
async fn changed(generation: &mut watch::Receiver<u64>) {
    if generation.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether both are the same: files may be fetched again without a change.
fn is_same(one: &Credentials, other: &Credentials) -> bool {
    one.chain == other.chain && one.roots == other.roots && one.key == other.key && one.not_after == other.not_after
}

/// The duration in whole milliseconds, for the log.
fn whole(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
