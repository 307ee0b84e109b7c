//! Nodes proved by the token of their daemon's service account. The Kubernetes API reviews the token.
//!
//! A token is accepted only if it belongs to the service account of the node daemon, has an audience of this mesh, and
//! is bound to a pod. The pod's node is the caller's node. The answer of the API is kept for [`REVIEW_EVERY`], then the
//! API is asked again. When the mesh no longer has the pod on that node, the token ends at once.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{Span, debug, info, warn};

use super::{
    caller::{Caller, Digest, Stranger, sha256},
    unproved::{TooMany, Unproved},
};
use crate::{
    control::kubernetes::{
        Cluster, Failure,
        review::{PodToken, Review},
    },
    lifecycle::tasks::{TaskCount, TaskSet},
    model::workload::NamespacedName,
    store::publish::Reader,
};

/// How long an answer of the API is valid: a token that is revoked there ends within this time.
pub const REVIEW_EVERY: Duration = Duration::from_secs(60);
/// How long a token that was accepted stays accepted while the API cannot be asked. It never outlives its own expiry.
const UNASKED: Duration = Duration::from_secs(600);
/// How long a refusal is kept.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// The pause between two checks of the known tokens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A token has at most this many bytes. Tokens of Kubernetes have about 1200.
const LONGEST: usize = 8 << 10;
/// The number of tokens whose answers are kept. A node has two tokens while its token is replaced.
const MOST: usize = 20_000;
/// How often the log reports that the API cannot be asked.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// Reviews that run at once.
const AT_ONCE: usize = 16;
/// How long a review may wait for its turn.
const WAIT: Duration = Duration::from_secs(5);

/// The tokens that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAccounts {
    /// The service account of the node daemon.
    pub account: NamespacedName,
    /// Accepted audiences. A token must have one of them.
    pub audiences: Vec<String>,
}

/// Nodes proved by the Kubernetes API. Clones share their state.
#[derive(Clone, Debug)]
pub struct ReviewedNodes {
    shared: Arc<Shared>,
    /// Checks the tokens as long as a clone exists.
    _watch: Arc<TaskSet>,
}

#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    accounts: NodeAccounts,
    mesh: Reader,
    known: Mutex<HashMap<Digest, Known>>,
    asking: Semaphore,
    unproved: Unproved,
    /// The last time at which the log reported that the API cannot be asked.
    told: Mutex<Option<Instant>>,
    changed: watch::Sender<u64>,
}

/// The last answer about a token.
#[derive(Clone, Debug)]
enum Known {
    Good(Good),
    Refused { why: String, until: Instant },
}

#[derive(Clone)]
struct Good {
    of: PodToken,
    /// The token itself, for the next review.
    token: Arc<str>,
    /// The time of the API's answer.
    asked: Instant,
    /// The expiry of the token.
    expires: SystemTime,
}

impl std::fmt::Debug for Good {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Good").field("of", &self.of).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// The claim that is read here. The API checks the signature of the token.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

impl ReviewedNodes {
    /// Asks this API server, and compares its answers with the pods of this mesh. Has to be called within a runtime.
    #[must_use]
    pub fn new(cluster: Cluster, accounts: NodeAccounts, mesh: Reader, tasks: TaskCount) -> Self {
        info!(
            service_account = %accounts.account,
            audiences = accounts.audiences.join(","),
            "nodes authenticate with the tokens of a service account"
        );
        let shared = Arc::new(Shared {
            cluster,
            accounts,
            mesh,
            known: Mutex::default(),
            asking: Semaphore::new(AT_ONCE),
            unproved: Unproved::default(),
            told: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let mut watch = TaskSet::new(tasks);
        watch.spawn(Span::none(), look(Arc::clone(&shared)));
        Self { shared, _watch: Arc::new(watch) }
    }

    /// The node to which a token belongs. `from` is the address that the call came from.
    ///
    /// # Errors
    /// The token is not accepted, or the API cannot be asked.
    pub async fn authenticate(&self, token: &[u8], from: IpAddr) -> Result<Caller, Stranger> {
        let digest = sha256(token);
        let shared = &self.shared;
        let known = shared.known().get(&digest).cloned();
        match known {
            Some(Known::Refused { why, until }) if until > Instant::now() => return Err(Stranger::Refused(why)),
            Some(Known::Good(good)) if good.asked.elapsed() < REVIEW_EVERY => {
                shared.counts(&good).map_err(|why| Stranger::Refused(why.to_owned()))?;
                return Ok(Caller { node: good.of.node, token: digest });
            }
            _ => {}
        }
        let (token, expires) = parse(token).map_err(|why| Stranger::Refused(why.to_owned()))?;
        let attempt = shared.unproved.attempt(from).await.map_err(|too_many| {
            Stranger::Unavailable(match too_many {
                TooMany::Refused(wait) => {
                    format!("too many tokens from {from} were refused: try again in {} s", wait.as_secs() + 1)
                }
                TooMany::AtOnce => format!("too many tokens from {from} wait for their review: try again"),
            })
        })?;
        let place = timeout(WAIT, shared.asking.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Stranger::Unavailable("too many tokens wait for their review: try again".to_owned()));
        };
        match shared.ask(digest, token, expires).await {
            Ok(good) => Ok(Caller { node: good.of.node, token: digest }),
            Err(stranger) => {
                if matches!(stranger, Stranger::Refused(_)) {
                    attempt.refused(Instant::now());
                }
                Err(stranger)
            }
        }
    }

    /// Whether a caller's token is still accepted.
    #[must_use]
    pub fn knows(&self, caller: &Caller) -> bool {
        matches!(self.shared.known().get(&caller.token), Some(Known::Good(good)) if good.of.node == caller.node)
    }

    /// A receiver that is notified when tokens end.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// The number of accepted tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.known().values().filter(|known| matches!(known, Known::Good(_))).count()
    }

    /// Whether no token is accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the API, and keeps its answer.
    async fn ask(&self, digest: Digest, token: Arc<str>, expires: SystemTime) -> Result<Good, Stranger> {
        let review = match self.cluster.review(&token, &self.accounts.audiences).await {
            Ok(review) => review,
            Err(failure) => {
                let known = self.known().get(&digest).cloned();
                if let Some(Known::Good(good)) = known
                    && good.asked.elapsed() < UNASKED
                    && self.counts(&good).is_ok()
                {
                    debug!(
                        pod = %good.of.pod, %failure,
                        "a token could not be reviewed again; the result of its last review stays in force"
                    );
                    return Ok(good);
                }
                self.complain(&failure);
                self.known().remove(&digest);
                return Err(Stranger::Unavailable("the token cannot be reviewed now: try again".to_owned()));
            }
        };
        let refusal = match review {
            Review::Pod(of) if of.account != self.accounts.account => {
                format!(
                    "the token belongs to service account {}, and the node daemon has service account {}",
                    of.account, self.accounts.account
                )
            }
            Review::Pod(of) => {
                let good = Good { of, token, asked: Instant::now(), expires };
                match self.counts(&good) {
                    Ok(()) => {
                        self.keep(digest, Known::Good(good.clone()));
                        return Ok(good);
                    }
                    Err(why) => why.to_owned(),
                }
            }
            Review::Refused(why) => format!("the token is not accepted: {why}"),
        };
        debug!(why = refusal, "a token was refused");
        self.keep(digest, Known::Refused { why: refusal.clone(), until: Instant::now() + REFUSED_FOR });
        Err(Stranger::Refused(refusal))
    }

    /// Logs that the API cannot be asked, but not for each token.
    fn complain(&self, failure: &Failure) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            warn!(%failure, "tokens of nodes cannot be reviewed");
        }
    }

    /// Keeps an answer, if there is room.
    fn keep(&self, digest: Digest, answer: Known) {
        let mut known = self.known();
        if known.len() >= MOST && !known.contains_key(&digest) {
            known.retain(|_, known| matches!(known, Known::Good(_)));
            // Answers may be dropped: a refusal need not be kept, and there are fewer nodes than this.
            if known.len() >= MOST {
                return;
            }
        }
        known.insert(digest, answer);
    }

    /// Whether the clock and the mesh still allow a token that was accepted.
    fn counts(&self, good: &Good) -> Result<(), &'static str> {
        if good.expires <= SystemTime::now() {
            return Err("the token has expired");
        }
        let mesh = self.mesh.load();
        // This is safe: before the mesh is read, no caller gets anything.
        if mesh.version() == 0 {
            return Ok(());
        }
        match mesh.workload(&good.of.pod) {
            None => Err("the pod of the token is not known, or is gone: try again"),
            Some(pod) if pod.is_entry || pod.uid != good.of.uid => Err("the pod of the token is gone"),
            Some(pod) if pod.node.as_deref() != Some(&*good.of.node) => Err("the pod of the token is on another node"),
            Some(pod) if pod.finished => Err("the pod of the token has ended"),
            Some(_) => Ok(()),
        }
    }

    /// Removes a token, so that the streams of its node end.
    fn end(&self, digest: &Digest, why: &str) {
        if let Entry::Occupied(entry) = self.known().entry(*digest)
            && let Known::Good(good) = entry.get()
        {
            info!(node = %good.of.node, pod = %good.of.pod, why, "the token of a node is not accepted any more");
            entry.remove();
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Ends tokens that have expired or whose pods are gone, and has the others reviewed again.
async fn look(shared: Arc<Shared>) {
    loop {
        sleep(LOOK_EVERY).await;
        let mut due = Vec::new();
        let mut ended = Vec::new();
        {
            let now = Instant::now();
            let mut known = shared.known();
            known.retain(|_, known| !matches!(known, Known::Refused { until, .. } if *until <= now));
            for (digest, known) in known.iter() {
                let Known::Good(good) = known else { continue };
                match shared.counts(good) {
                    Err(why) => ended.push((*digest, why)),
                    Ok(()) if good.asked.elapsed() >= REVIEW_EVERY => due.push((*digest, good.clone())),
                    Ok(()) => {}
                }
            }
        }
        ended.iter().for_each(|(digest, why)| shared.end(digest, why));
        let asking = stream::iter(due).map(|(digest, good)| {
            let shared = Arc::clone(&shared);
            async move {
                let Err(stranger) = shared.ask(digest, good.token, good.expires).await else { return };
                let (Stranger::Refused(why) | Stranger::Unavailable(why)) = stranger;
                info!(
                    node = %good.of.node, pod = %good.of.pod, why,
                    "the token of a node is not accepted any more"
                );
                shared.changed.send_modify(|count| *count += 1);
            }
        });
        asking.buffer_unordered(AT_ONCE / 2).collect::<()>().await;
    }
}

/// Reads a token that may be one of a service account. Returns it with its expiry.
fn parse(token: &[u8]) -> Result<(Arc<str>, SystemTime), &'static str> {
    const WRONG: &str = "the token of the call is not a service account token: send the token of a projected \
         serviceAccountToken volume";
    if token.len() > LONGEST {
        return Err(WRONG);
    }
    let text = std::str::from_utf8(token).map_err(|_| WRONG)?;
    let mut parts = text.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(WRONG);
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| WRONG)?;
    let Claims { exp } = serde_json::from_slice(&claims).map_err(|_| WRONG)?;
    let expires = UNIX_EPOCH.checked_add(Duration::from_secs(exp)).ok_or(WRONG)?;
    if expires <= SystemTime::now() {
        return Err("the token has expired");
    }
    Ok((text.into(), expires))
}

#[cfg(test)]
mod tests;
