//! Finds the network namespaces of pods by their processes, in `/proc`: no container runtime is asked.
//!
//! The cgroup of a process names its pod ([`cgroup`]). A pass over all processes ([`sweep`]) collects their network
//! namespaces. The addresses of a namespace prove that it is the pod's: a process of a pod may be in any namespace that
//! it could enter or make. If several namespaces have the pod's addresses, the one with which an earlier daemon has
//! enrolled the pod counts. If there is none, no namespace counts.

mod cgroup;
mod overview;
mod process;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};

pub use self::overview::{Overview, Unusable, overview};
use self::{
    cgroup::Belongs,
    process::Process,
    sweep::{Candidate, Seen, Sweep},
};
use crate::{
    lifecycle::tasks::TaskCount,
    model::{cause::causes, netns::OpenNetns, workload::NamespacedName},
    net::netns::{Netns, NetnsId},
    redirect::NetnsLink,
};

/// Processes that are examined without a pause. Most nodes have fewer.
const PORTION: usize = 2048;
/// The pause after a portion, as a multiple of the time that it took. So a pod with very many processes does not cost a
/// whole CPU.
const PAUSE: u32 = 3;
/// The time to examine the namespaces of one pod. The kernel answers at once, unless somebody keeps it busy.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses and namespaces that a message names.
const NAMED: usize = 8;

/// Why the network namespace of a pod was not found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotFound {
    /// The processes could not be listed.
    #[error(
        "cannot list the processes of the node in {}: {error}; set --proc to the /proc of the node, and let \
         the daemon read it",
        proc.display()
    )]
    Unreadable {
        /// The folder.
        proc: PathBuf,
        /// The cause.
        error: String,
    },
    /// The pod has no process.
    #[error(
        "none of the {processes} processes in {} is in a cgroup of the pod (UID {uid}): its containers have not started yet, or \
         --proc is not the /proc of the node",
        proc.display()
    )]
    NoProcess {
        /// The pod.
        uid: Arc<str>,
        /// The folder.
        proc: PathBuf,
        /// The number of all processes.
        processes: usize,
    },
    /// This process may not examine the pod's processes.
    #[error(
        "cannot look at the network namespace of a process of the pod in {}: {error}; the daemon needs CAP_SYS_PTRACE",
        proc.display()
    )]
    Denied {
        /// The folder.
        proc: PathBuf,
        /// The cause.
        error: io::ErrorKind,
    },
    /// All processes of the pod are in the node's network namespace.
    #[error(
        "all processes of the pod are in the network namespace of the node, so the network namespace of the \
         pod cannot be found; label the pod istio.io/dataplane-mode: none"
    )]
    OnTheHost,
    /// All processes of the pod are in namespaces without the pod's addresses.
    #[error(
        "none of the network namespaces of the pod's processes has the pod's address {address}; they have {found}{}",
        if *.is_cut { ", and further network namespaces were not examined" } else { "" }
    )]
    NotItsOwn {
        /// An address of the pod.
        address: IpAddr,
        /// The addresses of the namespaces.
        found: String,
        /// Some namespaces were not examined.
        is_cut: bool,
    },
    /// Several namespaces have the pod's addresses.
    #[error(
        "the pod has processes in several network namespaces that have the pod's addresses (processes {processes}); one \
         of these processes created a namespace and gave it these addresses: end that process, or delete the \
         pod"
    )]
    Several {
        /// One process in each of the namespaces.
        processes: String,
    },
}

/// A pod whose network namespace is searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Its name.
    pub name: NamespacedName,
    /// Its UID.
    pub uid: Arc<str>,
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

/// A network namespace that is proved to be a pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The namespace.
    pub netns: OpenNetns,
    /// The oldest process of the pod that is in it.
    pub process: u32,
}

/// The result of one pass over all processes.
#[derive(Debug)]
pub struct Sighting {
    seen: HashMap<Arc<str>, Seen>,
    processes: usize,
}

impl Sighting {
    /// Takes the findings about a pod, by its UID.
    pub fn take(&mut self, uid: &str) -> SeenPod {
        SeenPod { seen: self.seen.remove(uid).unwrap_or_default(), processes: self.processes }
    }
}

/// The findings about one pod.
#[derive(Debug)]
pub struct SeenPod {
    seen: Seen,
    processes: usize,
}

/// The questions about network namespaces.
pub trait Inspect: Send + Sync + 'static {
    /// The addresses in it.
    ///
    /// # Errors
    /// It is no network namespace, or the kernel does not answer; as a sentence.
    fn addresses(&self, netns: &OpenNetns) -> impl Future<Output = Result<Vec<IpAddr>, String>> + Send;

    /// The node's own network namespace.
    fn host(&self) -> NetnsId;

    /// Whether a namespace is on record for a pod: an earlier daemon has enrolled the pod with it.
    fn is_recorded(&self, netns: &OpenNetns, pod: &NamespacedName) -> bool;
}

/// The kernel that this daemon runs on.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The node's own network namespace.
    pub host: NetnsId,
    /// Tasks of the whole daemon.
    pub tasks: TaskCount,
    /// The pods, as `namespace/name`, that were on record when the daemon started, by the cookies of their namespaces.
    pub recorded: Arc<HashMap<u64, String>>,
}

impl Inspect for Linux {
    async fn addresses(&self, netns: &OpenNetns) -> Result<Vec<IpAddr>, String> {
        let link = Netns::of_open(netns)
            .map_err(|error| causes(&error))
            .and_then(|netns| NetnsLink::open(&netns, self.tasks.clone()).map_err(|error| causes(&error)))?;
        link.facts().await.map(|facts| facts.addresses).map_err(|error| causes(&error))
    }

    fn host(&self) -> NetnsId {
        self.host
    }

    fn is_recorded(&self, netns: &OpenNetns, pod: &NamespacedName) -> bool {
        let recorded = Netns::of_open(netns).ok().and_then(|netns| self.recorded.get(&netns.cookie()));
        recorded.is_some_and(|recorded| *recorded == pod.to_string())
    }
}

/// Finds network namespaces by the processes in a folder such as `/proc`.
#[derive(Debug)]
pub struct Finder<I> {
    proc: Arc<Path>,
    inspect: Arc<I>,
}

impl<I> Clone for Finder<I> {
    fn clone(&self) -> Self {
        Self { proc: Arc::clone(&self.proc), inspect: Arc::clone(&self.inspect) }
    }
}

impl<I: Inspect> Finder<I> {
    /// A finder that reads this folder.
    #[must_use]
    pub fn new(proc: &Path, inspect: I) -> Self {
        Self { proc: proc.into(), inspect: Arc::new(inspect) }
    }

    /// Those of the given pods whose process, by which their network namespace was found, has left it.
    pub async fn without_witness<T: Send + 'static>(&self, found: Vec<(T, Found)>) -> Vec<T> {
        let proc = Arc::clone(&self.proc);
        let is_there = move |found: &Found| {
            let netns = Process::open(&proc, found.process).and_then(|process| process.netns());
            netns.is_ok_and(|netns| (netns.device, netns.inode) == found.netns.place())
        };
        let asking = move || found.into_iter().filter(|(_, found)| !is_there(found)).map(|(of, _)| of).collect();
        spawn_blocking(asking).await.unwrap_or_default()
    }

    /// Whether a namespace is the node's own.
    #[must_use]
    pub fn is_host(&self, netns: &OpenNetns) -> bool {
        let NetnsId { device, inode } = self.inspect.host();
        netns.place() == (device, inode)
    }

    /// Checks that a namespace has all of these addresses.
    ///
    /// # Errors
    /// It lacks an address, or the kernel does not answer.
    pub async fn proves(&self, netns: &OpenNetns, addresses: &[IpAddr]) -> Result<(), String> {
        let found = self.inspect.addresses(netns).await?;
        match addresses.iter().find(|address| !found.contains(address)) {
            Some(missing) => Err(format!("it lacks {missing}")),
            None => Ok(()),
        }
    }

    /// Whether a namespace certainly lacks one of these addresses. If the kernel does not answer in time, that is no
    /// proof.
    pub async fn disproves(&self, netns: &OpenNetns, addresses: &[IpAddr]) -> bool {
        let found = self.inspect.addresses(netns).await;
        found.is_ok_and(|found| addresses.iter().any(|address| !found.contains(address)))
    }

    /// Goes through all processes of the node, and collects those of the wanted pods, by UID.
    ///
    /// # Errors
    /// The processes could not be listed.
    pub async fn sweep(&self, wanted: HashSet<Arc<str>>) -> Result<Sighting, NotFound> {
        let failed =
            |error: io::Error| NotFound::Unreadable { proc: self.proc.to_path_buf(), error: error.to_string() };
        let (seen, processes) = self.try_sweep(wanted).await.map_err(failed)?;
        Ok(Sighting { seen, processes })
    }

    async fn try_sweep(&self, wanted: HashSet<Arc<str>>) -> io::Result<(HashMap<Arc<str>, Seen>, usize)> {
        let proc = Arc::clone(&self.proc);
        let failed = |failure| {
            io::Error::other(format!(
                "the search through the processes of the node was \
             interrupted: {failure}"
            ))
        };
        let mut sweep = spawn_blocking(|| Sweep::begin(proc, wanted)).await.map_err(failed)??;
        loop {
            let begun = Instant::now();
            let portion = move || sweep.go_on(PORTION).map(|is_all| (sweep, is_all));
            let (went_on, is_all) = spawn_blocking(portion).await.map_err(failed)??;
            if is_all {
                return Ok(went_on.end());
            }
            sweep = went_on;
            sleep(begun.elapsed() * PAUSE).await;
        }
    }

    /// Chooses the pod's namespace among those of its processes.
    ///
    /// # Errors
    /// None is the pod's, or several may be.
    pub async fn choose(&self, pod: &Sought, seen: SeenPod) -> Result<Found, NotFound> {
        let SeenPod { seen, processes } = seen;
        let proc = || self.proc.to_path_buf();
        if seen.processes == 0 {
            return Err(NotFound::NoProcess { uid: Arc::clone(&pod.uid), proc: proc(), processes });
        }
        let until = Instant::now() + TIMEOUT;
        let (mut own, mut others) = (Vec::new(), Vec::new());
        let (mut is_on_host, mut is_cut) = (false, seen.is_cut);
        for candidate in &seen.candidates {
            if candidate.netns == self.inspect.host() {
                is_on_host = true;
                continue;
            }
            // The process may have ended or moved meanwhile.
            let Some(netns) = self.open(pod, *candidate).await else { continue };
            match timeout_at(until, self.inspect.addresses(&netns)).await {
                Ok(Ok(found)) if pod.addresses.iter().all(|address| found.contains(address)) => {
                    own.push(Found { netns, process: candidate.process });
                }
                Ok(Ok(found)) => others.push(list(&found)),
                Ok(Err(error)) => others.push(error),
                Err(_elapsed) => {
                    is_cut = true;
                    break;
                }
            }
        }
        match (own.len(), seen.denied) {
            (1, _) => own.pop().ok_or(NotFound::OnTheHost),
            (0, Some(error)) if others.is_empty() => Err(NotFound::Denied { proc: proc(), error }),
            (0, None) if others.is_empty() && is_on_host => Err(NotFound::OnTheHost),
            (0, _) => {
                let found = others.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
                let is_cut = is_cut || others.len() > NAMED;
                Err(match pod.addresses.first() {
                    Some(address) if !found.is_empty() => NotFound::NotItsOwn { address: *address, found, is_cut },
                    _ => NotFound::NoProcess { uid: Arc::clone(&pod.uid), proc: proc(), processes },
                })
            }
            _ if own.iter().any(|found| self.inspect.is_recorded(&found.netns, &pod.name)) => {
                own.retain(|found| self.inspect.is_recorded(&found.netns, &pod.name));
                own.pop().ok_or(NotFound::OnTheHost)
            }
            _ => {
                let processes = own.iter().take(NAMED).map(|found| found.process.to_string());
                Err(NotFound::Several { processes: processes.collect::<Vec<_>>().join(" and ") })
            }
        }
    }

    /// Opens the namespace of a candidate, if its process still exists, belongs to the pod, and is in that namespace.
    async fn open(&self, pod: &Sought, candidate: Candidate) -> Option<OpenNetns> {
        let (proc, uid) = (Arc::clone(&self.proc), Arc::clone(&pod.uid));
        let opening = move || {
            let process = Process::open(&proc, candidate.process).ok()?;
            let netns = process.open_netns().ok()?;
            let Candidate { netns: NetnsId { device, inode }, .. } = candidate;
            let is_same = netns.place() == (device, inode) && process.pod().ok()? == Belongs::To(uid.to_string());
            is_same.then_some(netns)
        };
        spawn_blocking(opening).await.ok().flatten()
    }
}

fn list(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    let mut text = addresses.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if addresses.len() > NAMED {
        text.push_str(", …");
    }
    text
}

#[cfg(test)]
pub(in crate::pods) mod tests;
