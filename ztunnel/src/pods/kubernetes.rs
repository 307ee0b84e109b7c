//! The local source on Kubernetes. The API server lists the pods of this node, and the network namespace of each pod is
//! found by its processes ([`proc`](super::proc)). No annotation names the namespace: a user who may write a pod could
//! name any.
//!
//! A namespace that was found is kept open, so that it stays the same whatever happens to the process by which it was
//! found. It is searched again when the pod is another one (by its UID), when its addresses change, and when no process
//! of the pod is known to be in it. It is given up only when it no longer has the pod's addresses.
//!
//! If the CNI plugin reports a [`sandbox`] before the first container of the pod starts, its network namespace and its
//! addresses are used from then on.

pub mod sandbox;

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use self::sandbox::{KnownSandbox, Made, SandboxNews, Sandboxes};
use super::{
    local::LocalSource,
    proc::{Finder, Found, Inspect, NotFound, Sighting, Sought},
};
use crate::model::{
    identity::TrustDomain,
    local::{LocalPod, LocalPods},
    node_pods::{NodePod, NodePods},
    workload::{Membership, NamespacedName, RefuseReason},
};

/// The pause before the namespace of a pod is searched again. It doubles up to [`AGAIN_MOST`].
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// How often the daemon checks that the processes by which the namespaces were found still exist.
const WITNESS: Duration = Duration::from_secs(5);

/// The facts of this node's pods, from the cluster and the machine.
#[derive(Debug)]
pub struct FromCluster {
    facts: watch::Receiver<Facts>,
    node: Arc<str>,
}

/// The facts at one moment.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// `None`: the cluster has not listed all pods yet.
    pods: Option<Arc<LocalPods>>,
    /// Why the network namespace of a pod is not known.
    missing: Arc<BTreeMap<NamespacedName, Missing>>,
    /// The namespace of each pod has been searched at least once.
    is_complete: bool,
    problem: Option<Arc<str>>,
}

/// Why the network namespace of a pod is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    /// A sentence for people.
    reason: String,
    /// Every pod is in this state for some time.
    is_passing: bool,
}

impl LocalSource for FromCluster {
    fn current(&self) -> Option<Arc<LocalPods>> {
        self.facts.borrow().pods.clone()
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.facts.changed().await.is_err() {
                pending::<()>().await;
            }
        })
    }

    fn missing_netns(&self, pod: &NamespacedName) -> String {
        let known = self.facts.borrow().missing.get(pod).map(|missing| missing.reason.clone());
        known.unwrap_or_else(|| {
            format!(
                "the mesh has the pod, but the Kubernetes API server has no pod of this name on node {}: \
                 the pod is enrolled when both have it",
                self.node
            )
        })
    }

    fn is_passing(&self, pod: &NamespacedName) -> bool {
        self.facts.borrow().missing.get(pod).is_none_or(|missing| missing.is_passing)
    }

    fn is_complete(&self) -> bool {
        self.facts.borrow().is_complete
    }

    fn problem(&self) -> Option<Arc<str>> {
        self.facts.borrow().problem.clone()
    }
}

/// Keeps the facts up to date: [`Follower::run`] is its task.
pub struct Follower<I> {
    finder: Finder<I>,
    news: watch::Receiver<NodePods>,
    sandboxes: mpsc::Receiver<SandboxNews>,
    trust_domain: TrustDomain,
    pods: BTreeMap<NamespacedName, Tracked>,
    problem: Option<Arc<str>>,
    is_told: bool,
    facts: watch::Sender<Facts>,
}

/// A pod of this node.
struct Tracked {
    pod: NodePod,
    found: Option<Found>,
    /// Why the last search did not find its namespace.
    missing: Option<NotFound>,
    search: Search,
    pause: Duration,
    /// Its sandbox, if the CNI plugin has reported it.
    sandbox: Option<Made>,
}

/// Whether the namespace of a pod is searched.
enum Search {
    /// No search is due.
    Over,
    /// A search is due at this time.
    At(Instant),
    /// A search is running.
    Running,
}

type Chosen = (NamespacedName, Sought, Result<Found, NotFound>);

/// An event in the follower's loop.
enum Event {
    News(bool),
    Sandbox(SandboxNews),
    Seen(Vec<(NamespacedName, Sought)>, Result<Sighting, NotFound>),
    Chosen(Chosen),
    Due,
    Witness,
}

impl<I: Inspect> Follower<I> {
    /// The follower of a node's pods, the source that it feeds, and the channel for sandboxes. The pods of sandboxes
    /// have identities in the trust domain.
    #[must_use]
    pub fn new(
        node: &str,
        trust_domain: TrustDomain,
        news: watch::Receiver<NodePods>,
        finder: Finder<I>,
    ) -> (Self, FromCluster, Sandboxes) {
        let (facts, reader) = watch::channel(Facts::default());
        let (told, sandboxes) = sandbox::channel();
        let pods = BTreeMap::new();
        let follower = Self { finder, news, sandboxes, trust_domain, pods, problem: None, is_told: false, facts };
        (follower, FromCluster { facts: reader, node: node.into() }, told)
    }

    /// Follows the cluster and the machine, until the changes from the cluster end.
    pub async fn run(mut self) {
        let mut sweep: OptionFuture<BoxFuture<'static, Event>> = None.into();
        let mut is_sweeping = false;
        let mut choosing: FuturesUnordered<BoxFuture<'static, Chosen>> = FuturesUnordered::new();
        let mut witness = interval(WITNESS);
        witness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.news.mark_changed();
        loop {
            let due = self.due().filter(|_| !is_sweeping);
            let event = tokio::select! {
                changed = self.news.changed() => Event::News(changed.is_ok()),
                news = sandbox_news(&mut self.sandboxes) => Event::Sandbox(news),
                Some(event) = &mut sweep, if is_sweeping => event,
                Some(chosen) = choosing.next(), if !choosing.is_empty() => Event::Chosen(chosen),
                () = until(due) => Event::Due,
                _ = witness.tick() => Event::Witness,
            };
            match event {
                Event::News(false) => return,
                Event::News(true) => self.take_news(),
                Event::Sandbox(news) => self.take_sandbox(news),
                Event::Due => {
                    sweep = Some(self.sweep()).into();
                    is_sweeping = true;
                }
                Event::Seen(sought, seen) => {
                    (sweep, is_sweeping) = (None.into(), false);
                    self.choose(sought, seen, &mut choosing);
                }
                Event::Chosen((name, sought, result)) => self.decide(&name, &sought, result).await,
                Event::Witness => self.ask_witnesses().await,
            }
        }
    }

    /// The time of the next search.
    fn due(&self) -> Option<Instant> {
        let at = self.pods.values().filter_map(|tracked| match tracked.search {
            Search::At(at) => Some(at),
            Search::Over | Search::Running => None,
        });
        at.min()
    }

    fn take_news(&mut self) {
        let NodePods { pods, problem, .. } = self.news.borrow_and_update().clone();
        if let Some(pods) = pods {
            let mut before = std::mem::take(&mut self.pods);
            for (name, pod) in pods {
                let tracked = before.remove(&name).filter(|before| before.pod.workload.uid == pod.workload.uid);
                self.pods.insert(name, Tracked::next(tracked, pod));
            }
            self.is_told = true;
        }
        self.problem = problem;
        self.tell();
    }

    /// Applies a change of a sandbox. The sender has seen the pod in the Kubernetes API, so the pod is known here as
    /// well.
    fn take_sandbox(&mut self, news: SandboxNews) {
        self.take_news();
        match news {
            SandboxNews::Made { pod, uid, netns, addresses } => {
                let Some(tracked) = self.pods.get_mut(&pod).filter(|tracked| tracked.pod.has_uid(&uid)) else {
                    debug!(%pod, uid, "the pod of a new sandbox is gone");
                    return;
                };
                let status = tracked.pod.workload.addresses.clone();
                // A sandbox that another daemon has handed over may be known already.
                if tracked.found.as_ref().is_none_or(|found| found.netns != netns) {
                    info!(%pod, netns = %netns.path().display(), "the container runtime has created a sandbox for the pod");
                    // No process in it is known yet. The next check of the processes starts a search.
                    tracked.found = Some(Found { netns: netns.clone(), process: NO_PROCESS });
                }
                (tracked.missing, tracked.search) = (None, Search::Over);
                tracked.sandbox = Some(Made::new(netns, addresses, status));
            }
            SandboxNews::Asked(reply) => {
                let known = self.pods.iter().filter_map(|(name, tracked)| tracked.known_sandbox(name));
                let _asker_gone = reply.send(known.collect());
            }
            SandboxNews::Gone { pod, netns } => {
                let Some(tracked) = self.pods.get_mut(&pod) else { return };
                if tracked.sandbox.take_if(|sandbox| *sandbox.netns() == netns).is_some() {
                    (tracked.found, tracked.search) = (None, Search::Over);
                    if is_sought(&tracked.pod) {
                        tracked.search = Search::At(Instant::now());
                    }
                }
            }
        }
        self.tell();
    }

    /// Starts the searches that are due.
    fn sweep(&mut self) -> BoxFuture<'static, Event> {
        let now = Instant::now();
        let mut sought = Vec::new();
        for (name, tracked) in &mut self.pods {
            if matches!(tracked.search, Search::At(at) if at <= now) {
                tracked.search = Search::Running;
                sought.push((name.clone(), tracked.sought()));
            }
        }
        let finder = self.finder.clone();
        Box::pin(async move {
            let uids = sought.iter().map(|(_, pod)| Arc::clone(&pod.uid)).collect();
            let seen = finder.sweep(uids).await;
            Event::Seen(sought, seen)
        })
    }

    /// Starts to examine the namespaces that were seen, those of all pods at the same time.
    fn choose(
        &self,
        sought: Vec<(NamespacedName, Sought)>,
        seen: Result<Sighting, NotFound>,
        choosing: &mut FuturesUnordered<BoxFuture<'static, Chosen>>,
    ) {
        let mut seen = seen;
        for (name, pod) in sought {
            let finder = self.finder.clone();
            let of_pod = seen.as_mut().map(|seen| seen.take(&pod.uid)).map_err(|error| error.clone());
            choosing.push(Box::pin(async move {
                let result = match of_pod {
                    Ok(seen) => finder.choose(&pod, seen).await,
                    Err(error) => Err(error),
                };
                (name, pod, result)
            }));
        }
    }

    /// Applies the result of a search, if the pod is still the same.
    async fn decide(&mut self, name: &NamespacedName, sought: &Sought, result: Result<Found, NotFound>) {
        let Some(tracked) = self.pods.get_mut(name).filter(|tracked| matches!(tracked.search, Search::Running)) else {
            return;
        };
        if tracked.sought() != *sought {
            tracked.search = Search::At(Instant::now());
            return;
        }
        match result {
            Ok(found) => {
                let held = tracked.found.as_ref().filter(|held| held.netns != found.netns);
                // The pod keeps the namespace that it has: a process that makes a namespace of its own with these
                // addresses does not change that, not even on a node that is so busy that no question is answered.
                let is_held = match held {
                    Some(held) => !self.finder.disproves(&held.netns, &sought.addresses).await,
                    None => false,
                };
                if is_held {
                    tracked.again();
                } else {
                    info!(pod = %name, process = found.process, netns = %found.netns.path().display(), "network namespace of the pod found");
                    (tracked.found, tracked.missing, tracked.search) = (Some(found), None, Search::Over);
                    tracked.pause = AGAIN_FIRST;
                }
            }
            Err(reason) => {
                if tracked.found.is_none() && tracked.missing.as_ref() != Some(&reason) {
                    warn!(pod = %name, %reason, "the network namespace of a labelled pod is not known");
                }
                tracked.missing = Some(reason);
                tracked.again();
            }
        }
        self.tell();
    }

    /// Checks that the processes by which the namespaces were found still exist.
    async fn ask_witnesses(&mut self) {
        let idle = self.pods.iter().filter(|(_, tracked)| matches!(tracked.search, Search::Over));
        let asked: Vec<_> = idle.filter_map(|(name, tracked)| Some((name.clone(), tracked.found.clone()?))).collect();
        if asked.is_empty() {
            return;
        }
        for name in self.finder.without_witness(asked).await {
            if let Some(tracked) = self.pods.get_mut(&name) {
                debug!(pod = %name, "the process that led to the pod's network namespace has ended");
                tracked.search = Search::At(Instant::now());
            }
        }
    }

    /// Publishes the facts.
    fn tell(&self) {
        let is_live = self.problem.is_none();
        let local = |tracked: &Tracked| tracked.local(is_live, &self.trust_domain);
        let pods = || self.pods.iter().map(|(name, tracked)| (name.clone(), local(tracked))).collect();
        let missing = self.pods.iter().filter_map(|(name, tracked)| Some((name.clone(), tracked.reason()?))).collect();
        let facts = Facts {
            pods: self.is_told.then(|| Arc::new(pods())),
            missing: Arc::new(missing),
            is_complete: self.is_told && !self.pods.values().any(Tracked::is_undecided),
            problem: self.problem.clone(),
        };
        self.facts.send_if_modified(|known| {
            let is_news = (&known.pods, &known.missing, known.is_complete, &known.problem)
                != (&facts.pods, &facts.missing, facts.is_complete, &facts.problem);
            if is_news {
                *known = facts;
            }
            is_news
        });
    }
}

impl Tracked {
    /// The current pod, with the earlier findings about it if it is the same pod.
    fn next(before: Option<Self>, pod: NodePod) -> Self {
        let is_sought = is_sought(&pod);
        let before = before.map(|before| before.compared_with(&pod));
        match before {
            Some(before) if before.sandbox.is_some() => Self { pod, ..before },
            // If its addresses have changed, the namespace has to be proved again.
            Some(before) if is_sought && before.pod.workload.addresses == pod.workload.addresses => {
                let search = match before.search {
                    Search::Over if before.found.is_none() => Search::At(Instant::now()),
                    search => search,
                };
                Self { pod, search, ..before }
            }
            _ => {
                let search = if is_sought { Search::At(Instant::now()) } else { Search::Over };
                Self { pod, found: None, missing: None, search, pause: AGAIN_FIRST, sandbox: None }
            }
        }
    }

    /// Forgets a sandbox that the pod's status contradicts.
    fn compared_with(mut self, pod: &NodePod) -> Self {
        let told = &pod.workload.addresses;
        if let Some(sandbox) = &mut self.sandbox
            && let Err(own) = sandbox.compare(told)
        {
            warn!(
                pod = %pod.workload.name, status = ?told, sandbox = ?own,
                "the addresses in the status of the pod differ from the addresses that the container runtime \
                 reported for its sandbox; the daemon uses the addresses in the status"
            );
            self.sandbox = None;
        }
        self
    }

    fn sought(&self) -> Sought {
        let uid = self.pod.local.cgroup_uid.as_ref().unwrap_or(&self.pod.workload.uid);
        let addresses = match &self.sandbox {
            Some(sandbox) => sandbox.addresses(),
            None => &self.pod.workload.addresses,
        };
        Sought { name: self.pod.workload.name.clone(), uid: Arc::clone(uid), addresses: addresses.to_vec() }
    }

    /// Whether the first search for its namespace is due or running.
    fn is_undecided(&self) -> bool {
        self.found.is_none() && self.missing.is_none() && !matches!(self.search, Search::Over)
    }

    fn known_sandbox(&self, pod: &NamespacedName) -> Option<KnownSandbox> {
        let sandbox = self.sandbox.as_ref()?;
        Some(KnownSandbox {
            pod: pod.clone(),
            uid: self.pod.workload.uid.to_string(),
            netns: sandbox.netns().clone(),
            addresses: sandbox.addresses().to_vec(),
        })
    }

    /// Plans another search, after a pause.
    fn again(&mut self) {
        self.search = Search::At(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(AGAIN_MOST);
    }

    fn local(&self, is_live: bool, trust_domain: &TrustDomain) -> LocalPod {
        let sandbox = self.sandbox.as_ref().filter(|_| can_start(&self.pod));
        let sandbox = sandbox.map(|sandbox| sandbox.facts(&self.pod.workload.identity, trust_domain));
        LocalPod {
            netns: self.found.as_ref().map(|found| found.netns.clone().into()),
            service_account: Some(Arc::clone(&self.pod.workload.identity.service_account)),
            // Old labels must not keep a pod in the mesh that has left it.
            is_labelled: is_live && (is_sought(&self.pod) || sandbox.is_some()),
            sandbox,
            ..LocalPod::clone(&self.pod.local)
        }
    }

    /// Why its namespace is not known.
    fn reason(&self) -> Option<Missing> {
        if self.found.is_some() {
            return None;
        }
        let (reason, is_passing) = match (self.pod.workload.membership, &self.missing) {
            (Membership::InMesh, Some(missing)) => (missing.to_string(), false),
            (Membership::InMesh, None) => ("the daemon is searching for the pod's network namespace".to_owned(), true),
            (Membership::Refused(reason), _) => {
                (reason.to_string(), matches!(reason, RefuseReason::Finished | RefuseReason::NoAddress))
            }
            (Membership::OptedOut | Membership::NotLabelled, _) => (
                "the mesh has the pod, but in the Kubernetes API neither the pod nor its Namespace has the label \
                 istio.io/dataplane-mode: ambient: the pod is enrolled when both agree"
                    .to_owned(),
                true,
            ),
        };
        Some(Missing { reason, is_passing })
    }
}

/// This value means that no process is known in a network namespace.
const NO_PROCESS: u32 = 0;

/// The next change of a sandbox. Never completes once the senders are gone.
async fn sandbox_news(sandboxes: &mut mpsc::Receiver<SandboxNews>) -> SandboxNews {
    match sandboxes.recv().await {
        Some(news) => news,
        None => pending().await,
    }
}

/// Whether a pod is in the mesh as soon as it has an address: it has the label, and can be in the mesh.
#[must_use]
pub fn can_start(pod: &NodePod) -> bool {
    matches!(pod.workload.membership, Membership::InMesh | Membership::Refused(RefuseReason::NoAddress))
        && pod.local.own_network_stack().is_none()
}

/// Whether a pod's network namespace has to be found: the pod has the label, and can be in the mesh.
fn is_sought(pod: &NodePod) -> bool {
    pod.workload.membership == Membership::InMesh
        && pod.local.own_network_stack().is_none()
        && !pod.workload.uid.is_empty()
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
