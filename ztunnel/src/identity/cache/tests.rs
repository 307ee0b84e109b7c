use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::Span;

use super::{CacheSettings, Certificates, Clock, channel};
use crate::{
    identity::{
        Credentials,
        source::{CertSource, Issuing, SourceError},
    },
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The source's reaction to a request.
#[derive(Clone, Copy)]
enum Answer {
    /// A certificate that is valid from now on for this time.
    Valid(Duration),
    /// The same, after a delay.
    Slow(Duration, Duration),
    /// The same certificate at every request.
    Same,
    /// An expired certificate.
    Expired,
    /// A certificate for another identity.
    Foreign,
    Fail,
    Hang,
}

/// The reaction to the n-th request for the identity; the first is number 0.
type Script = Box<dyn Fn(&SpiffeId, usize) -> Answer + Send + Sync>;

/// A source that reacts as the test's script says, and records the times of the requests.
struct Scripted {
    script: Script,
    calls: Mutex<Vec<(SpiffeId, Instant)>>,
    generation: watch::Sender<u64>,
    clock: Clock,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Scripted {
    fn calls(&self, identity: &SpiffeId) -> Vec<Instant> {
        self.calls.lock().unwrap().iter().filter(|(who, _)| who == identity).map(|(_, when)| *when).collect()
    }

    fn bump(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    async fn answer(&self, identity: &SpiffeId) -> Result<Credentials, SourceError> {
        let index = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((identity.clone(), Instant::now()));
            calls.iter().filter(|(who, _)| who == identity).count() - 1
        };
        let now = self.clock.now();
        let valid = |ttl| Ok(credentials(identity, index, now, now + ttl));
        match (self.script)(identity, index) {
            Answer::Valid(ttl) => valid(ttl),
            Answer::Slow(delay, ttl) => {
                sleep(delay).await;
                valid(ttl)
            }
            Answer::Same => Ok(credentials(identity, 0, UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(2_000_000_000))),
            Answer::Expired => Ok(credentials(identity, index, now - DAY, now - SECOND)),
            Answer::Foreign => Ok(credentials(&id("foreign"), index, now, now + DAY)),
            Answer::Fail => Err(SourceError::Interrupted),
            Answer::Hang => std::future::pending().await,
        }
    }
}

impl CertSource for Scripted {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        Box::pin(async move {
            let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_at_once.fetch_max(now, Ordering::Relaxed);
            let result = self.answer(identity).await;
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            result
        })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/test/sa/{account}").parse().unwrap()
}

fn credentials(identity: &SpiffeId, index: usize, not_before: SystemTime, not_after: SystemTime) -> Credentials {
    Credentials {
        identity: identity.clone(),
        chain: vec![CertificateDer::from(index.to_be_bytes().to_vec())],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(vec![1])),
        roots: Arc::new([]),
        serial: index.to_string(),
        not_before,
        not_after,
    }
}

struct Bed {
    source: Arc<Scripted>,
    certificates: Certificates,
    clock: Clock,
    /// Seconds by which the wall clock was set forward.
    set_forward: Arc<AtomicU64>,
    tasks: TaskSet,
    count: TaskCount,
}

fn bed(script: impl Fn(&SpiffeId, usize) -> Answer + Send + Sync + 'static) -> Bed {
    let set_forward = Arc::new(AtomicU64::new(0));
    let (started, jumps) = (Instant::now(), Arc::clone(&set_forward));
    // An arbitrary day. The tests' clock follows tokio's paused clock, which advances only while all tasks wait.
    let first = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let clock = Clock::new(move || first + started.elapsed() + Duration::from_secs(jumps.load(Ordering::Relaxed)));
    let source = Arc::new(Scripted {
        script: Box::new(script),
        calls: Mutex::default(),
        generation: watch::Sender::new(1),
        clock: clock.clone(),
        at_once: AtomicUsize::new(0),
        most_at_once: AtomicUsize::new(0),
    });
    let count = TaskCount::default();
    let settings = CacheSettings { clock: clock.clone(), ..CacheSettings::default() };
    let (cache, certificates) = channel(Arc::<Scripted>::clone(&source), settings, count.clone());
    let mut tasks = TaskSet::new(count.clone());
    tasks.spawn(Span::none(), cache.run());
    Bed { source, certificates, clock, set_forward, tasks, count }
}

impl Bed {
    /// The serial number of the handle's current certificate, or why there is none.
    fn serial(&self, handle: &super::CertHandle) -> Result<String, String> {
        handle.current(self.clock.now()).map(|it| it.serial.clone()).map_err(|error| error.reason.to_string())
    }
}

/// Lets everything that is due happen; almost no time passes.
async fn a_moment() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_fetched_once_however_many_wait() {
    let bed = bed(|_, _| Answer::Slow(SECOND, DAY));
    let mut waiting = TaskSet::new(TaskCount::default());
    let got = Arc::new(Mutex::new(Vec::new()));
    for number in 0..100 {
        let handle = bed.certificates.handle(id(if number % 2 == 0 { "even" } else { "odd" }));
        let (got, clock) = (Arc::clone(&got), bed.clock.clone());
        waiting.spawn(Span::none(), async move {
            // The call uses the system's clock, which shows another day than the test's clock.
            let _by_another_clock = handle.credentials(MINUTE).await;
            got.lock().unwrap().push(handle.current(clock.now()).unwrap().serial.clone());
        });
    }
    waiting.join_all().await;
    assert_eq!(*got.lock().unwrap(), vec!["0"; 100]);
    assert_eq!((bed.source.calls(&id("even")).len(), bed.source.calls(&id("odd")).len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_of_its_validity_not_all_at_once() {
    let bed = bed(|_, _| Answer::Valid(DAY));
    let handles: Vec<_> = (0..50).map(|number| bed.certificates.handle(id(&format!("a{number}")))).collect();
    let started = Instant::now();
    sleep(DAY * 3 / 4).await;
    let mut renewals = Vec::new();
    for handle in &handles {
        let calls = bed.source.calls(handle.identity());
        assert_eq!((calls.len(), bed.serial(handle)), (2, Ok("1".to_owned())));
        renewals.push(calls[1] - started);
    }
    let (first, last) = (renewals.iter().min().unwrap(), renewals.iter().max().unwrap());
    assert!(*first >= (DAY / 2).mul_f64(0.89) && *last <= (DAY / 2).mul_f64(1.11), "{first:?} {last:?}");
    // It is practically impossible that fifty draws are within a tenth of the range.
    assert!(*last - *first > (DAY / 2).mul_f64(0.02), "{first:?} {last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_valid_certificate_and_an_expired_one_is_never_used() {
    let bed = bed(|_, index| if index == 0 { Answer::Valid(HOUR) } else { Answer::Fail });
    let handle = bed.certificates.handle(id("a"));
    let started = Instant::now();
    sleep(HOUR - SECOND).await;
    assert_eq!(bed.serial(&handle), Ok("0".to_owned()));
    let calls = bed.source.calls(&id("a"));
    assert!(calls.len() > 10, "{calls:?}");
    // Even after long pauses there is an attempt just before the expiry.
    assert!(*calls.last().unwrap() - started >= HOUR - 5 * SECOND, "{calls:?}");
    let described = bed.certificates.describe().await;
    assert_eq!(described[0].state, "Available");
    assert!(described[0].renewal_failure.is_some());
    sleep(SECOND).await;
    assert!(bed.serial(&handle).unwrap_err().contains("interrupted"));
    assert!(bed.certificates.describe().await[0].state.starts_with("Unavailable: "));
}

#[tokio::test(start_paused = true)]
async fn pauses_between_tries_double_up_to_a_limit() {
    let bed = bed(|_, _| Answer::Fail);
    let _handle = bed.certificates.handle(id("a"));
    sleep(HOUR).await;
    let calls = bed.source.calls(&id("a"));
    for (index, pair) in calls.windows(2).enumerate() {
        let expected = (0.5 * 2_f64.powi(i32::try_from(index).unwrap())).min(15.0);
        let pause = (pair[1] - pair[0]).as_secs_f64();
        assert!(pause >= expected * 0.79 && pause <= expected * 1.21, "pause {index}: {pause} s, not {expected}");
    }
    assert!(calls.len() > 15, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_learns_a_failure_at_once_and_success_later() {
    let bed = bed(|_, index| if index < 3 { Answer::Fail } else { Answer::Valid(DAY) });
    let mut handle = bed.certificates.handle(id("a"));
    let started = Instant::now();
    let error = handle.credentials(MINUTE).await.unwrap_err();
    assert!(started.elapsed() < SECOND && error.reason.contains("interrupted"), "{error}");
    while bed.serial(&handle).is_err() {
        assert!(timeout(MINUTE, handle.changed()).await.unwrap());
    }
    assert_eq!(bed.serial(&handle), Ok("3".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_or_is_anothers_is_refused() {
    let bed = bed(|identity, _| if &*identity.service_account == "a" { Answer::Expired } else { Answer::Foreign });
    let (expired, foreign) = (bed.certificates.handle(id("a")), bed.certificates.handle(id("b")));
    sleep(MINUTE).await;
    assert!(bed.serial(&expired).unwrap_err().contains("valid until"));
    assert!(bed.serial(&foreign).unwrap_err().contains("received a certificate for"));
    assert!(bed.source.calls(&id("a")).len() > 3, "it is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_fetches_everything_and_keeps_the_old_meanwhile() {
    let bed = bed(|_, index| if index == 0 { Answer::Valid(DAY) } else { Answer::Slow(SECOND, DAY) });
    let handles: Vec<_> = (0..20).map(|number| bed.certificates.handle(id(&format!("a{number}")))).collect();
    a_moment().await;
    bed.source.bump();
    a_moment().await;
    let serials = || handles.iter().map(|handle| bed.serial(handle).unwrap()).collect::<Vec<_>>();
    assert_eq!(serials(), vec!["0"; 20]);
    sleep(3 * SECOND).await;
    assert_eq!(serials(), vec!["1"; 20]);
    assert_eq!(bed.source.most_at_once.load(Ordering::Relaxed), 8);
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_comes_during_a_fetch_or_a_pause_is_not_lost() {
    let bed = bed(|identity, index| match (&*identity.service_account, index) {
        ("slow", 0) => Answer::Slow(10 * SECOND, DAY),
        ("failing", 0..=7) => Answer::Fail,
        _ => Answer::Valid(DAY),
    });
    let (slow, failing) = (bed.certificates.handle(id("slow")), bed.certificates.handle(id("failing")));
    sleep(5 * SECOND).await;
    bed.source.bump();
    sleep(6 * SECOND).await;
    assert_eq!(bed.serial(&slow), Ok("1".to_owned()));
    // After eight failures the next attempt is a minute away.
    sleep(MINUTE).await;
    let before = bed.source.calls(&id("failing")).len();
    bed.source.bump();
    a_moment().await;
    assert_eq!(bed.source.calls(&id("failing")).len(), before + 1);
    drop(failing);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_forgotten_with_its_last_handle() {
    let bed = bed(|_, _| Answer::Valid(DAY));
    let handle = bed.certificates.handle(id("a"));
    let clone = handle.clone();
    a_moment().await;
    drop(handle);
    sleep(DAY).await;
    let calls = bed.source.calls(&id("a")).len();
    assert!(calls >= 2 && bed.certificates.describe().await.len() == 1);
    drop(clone);
    a_moment().await;
    assert_eq!(bed.count.alive(), 1, "only the cache itself is left");
    assert!(bed.certificates.describe().await.is_empty());
    sleep(10 * DAY).await;
    assert_eq!(bed.source.calls(&id("a")).len(), calls);
    let again = bed.certificates.handle(id("a"));
    a_moment().await;
    assert_eq!(bed.serial(&again), Ok(calls.to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_handle_taken_before_the_old_one_was_missed_costs_nothing() {
    let bed = bed(|_, _| Answer::Valid(DAY));
    let handle = bed.certificates.handle(id("a"));
    a_moment().await;
    // The task had no chance to notice that there was no handle for a moment.
    drop(handle);
    let handle = bed.certificates.handle(id("a"));
    a_moment().await;
    assert_eq!((bed.serial(&handle), bed.source.calls(&id("a")).len()), (Ok("0".to_owned()), 1));
}

#[tokio::test(start_paused = true)]
async fn forgetting_ends_a_fetch_that_hangs() {
    let bed = bed(|_, _| Answer::Hang);
    drop(bed.certificates.handle(id("a")));
    a_moment().await;
    assert_eq!(bed.count.alive(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_has_failed_after_a_while_and_holds_up_nobody_else() {
    let bed = bed(|identity, index| match (&*identity.service_account, index) {
        ("healthy", _) => Answer::Valid(DAY),
        (_, 0) => Answer::Valid(HOUR),
        (_, 1) => Answer::Hang,
        _ => Answer::Valid(DAY),
    });
    // More identities than are fetched at the same time.
    let handles: Vec<_> = (0..12).map(|number| bed.certificates.handle(id(&format!("a{number}")))).collect();
    a_moment().await;
    bed.source.bump();
    a_moment().await;
    let healthy = bed.certificates.handle(id("healthy"));
    a_moment().await;
    assert_eq!(bed.serial(&healthy), Ok("0".to_owned()), "it must not wait behind renewals");
    sleep(MINUTE + 10 * SECOND).await;
    for handle in &handles {
        assert_eq!(bed.serial(handle), Ok("2".to_owned()));
        let calls = bed.source.calls(handle.identity());
        assert!(calls[2] - calls[1] >= 30 * SECOND, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_forward_has_the_certificate_renewed() {
    let bed = bed(|_, _| Answer::Valid(DAY));
    let handle = bed.certificates.handle(id("a"));
    a_moment().await;
    bed.set_forward.store(DAY.as_secs() * 2, Ordering::Relaxed);
    assert!(bed.serial(&handle).is_err());
    sleep(MINUTE).await;
    assert_eq!(bed.serial(&handle), Ok("1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_certificate_is_no_news() {
    let bed = bed(|_, index| if index == 1 { Answer::Fail } else { Answer::Same });
    let mut handle = bed.certificates.handle(id("a"));
    assert!(handle.changed().await);
    for _ in 0..2 {
        bed.source.bump();
        a_moment().await;
    }
    // The failure and its end are both reported as changes.
    assert!(handle.changed().await);
    bed.source.bump();
    a_moment().await;
    assert!(timeout(MINUTE, handle.changed()).await.is_err());
    assert_eq!(bed.source.calls(&id("a")).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn short_lived_and_old_certificates_are_not_fetched_all_the_time() {
    for (age, rest) in [(120, 10), (3600, 60), (0, 3)] {
        let (age, rest) = (Duration::from_secs(age), Duration::from_secs(rest));
        let now = UNIX_EPOCH + DAY;
        let credentials = credentials(&id("a"), 0, now - age, now + rest);
        for _ in 0..100 {
            let wait = super::schedule::renewal(&credentials, now);
            assert!(wait >= SECOND && wait < rest, "{age:?} {rest:?}: {wait:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_cache_handles_say_so() {
    let mut bed = bed(|_, _| Answer::Valid(DAY));
    let mut handle = bed.certificates.handle(id("a"));
    assert!(handle.changed().await);
    bed.tasks.abort_all().await;
    assert!(!handle.changed().await);
    assert_eq!(bed.serial(&handle), Ok("0".to_owned()), "what is valid can still be used");
    let late = bed.certificates.handle(id("b"));
    assert!(late.credentials(MINUTE).await.unwrap_err().reason.contains("stopped"));
    assert_eq!(bed.count.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_described_has_the_shape_of_istios() {
    let bed = bed(|_, _| Answer::Slow(SECOND, DAY));
    let _handles = [bed.certificates.handle(id("b")), bed.certificates.handle(id("a"))];
    let json = serde_json::to_value(bed.certificates.describe().await).unwrap();
    assert_eq!(json[0]["identity"], "spiffe://cluster.local/ns/test/sa/a");
    assert_eq!(json[0]["state"], "Initializing");
    sleep(2 * SECOND).await;
    let json = serde_json::to_value(bed.certificates.describe().await).unwrap();
    assert_eq!(json[1]["state"], "Available");
    for (key, value) in json[1].as_object().unwrap() {
        assert!(["identity", "state", "certChain", "rootCerts"].contains(&key.as_str()), "{key}: {value}");
    }
}
