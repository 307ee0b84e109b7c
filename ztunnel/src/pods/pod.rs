//! One enrolled pod: from the path of its network namespace to listeners on every worker.

use std::{collections::HashMap, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use ebpf_common::{AF_INET, AF_INET6, Listener, Purpose};
use thiserror::Error;
use tracing::{error, info, warn};

use super::{
    claims::{ClaimError, Claimed, Claims},
    dispatch,
    kernel::{Kernel, Link as _, Namespace},
    reconcile::Desired,
    syns,
    worker::{Listeners, WorkerHandle, WorkerPod},
};
use crate::{
    flow::{
        admission::{Admission, Limits},
        enforcement::{EnforcementPoint, EnforcementPoints},
        table::Upstreams,
    },
    identity::cache::Certificates,
    model::{
        cause::causes,
        local::{ConnectMode, Exclusions, LocalPod},
        netns::NetnsFile,
        workload::NamespacedName,
    },
    net::{
        dial::Dialer,
        listen::{Deaf, DeafPods},
        memory::Budget,
        netns::NetnsError,
        open::{OpenLimit, Resources},
        socket::Family,
    },
    redirect::{EnrolError, Enrolment, NetnsFacts, link::LinkError},
    store::publish::Reader,
    tls,
};

/// Settings of all pods.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// A connect that takes longer than this fails.
    pub connect_timeout: Duration,
    /// Connections that wait to be accepted, per listener.
    pub backlog: i32,
    /// The resources that the connections of a pod may use.
    pub open: Resources,
    /// Whether connections from before the enrolment are reset.
    pub cut_existing: bool,
    /// When connects of pods succeed that do not say so themselves.
    pub connect: ConnectMode,
    /// Limits of the HBONE connections to a pod.
    pub tunnels: Limits,
    /// Settings of TLS for HBONE connections.
    pub tls: tls::Settings,
    /// The daemon's memory for buffers.
    pub memory: Budget,
    /// Counts pods whose listeners somebody else has closed.
    pub deaf: DeafPods,
}

/// Why a pod is not enrolled.
#[derive(Debug, Error)]
pub enum PodError {
    /// Its network namespace can't be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Netlink failed in it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It is the node's own network namespace.
    #[error(
        "{netns} is the node's own network namespace, in which the daemon cannot distinguish the pod from \
         the node; remove the pod from the mesh"
    )]
    HostNetns {
        /// The namespace.
        netns: PathBuf,
    },
    /// Another pod has the namespace, or may have it.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The namespace does not have the pod's addresses.
    #[error(
        "{netns} is not this pod's network namespace: it lacks the pod's address {address} and has {found}; \
         correct status.podIPs{}",
        if *.is_named { " or the annotation ambient.mesh/netns" } else { "" }
    )]
    NotItsOwn {
        /// The namespace.
        netns: PathBuf,
        /// The pod's address.
        address: IpAddr,
        /// The namespace's addresses.
        found: String,
        /// The pod's manifest names it.
        is_named: bool,
    },
    /// The namespace is another one than before.
    #[error("{netns} is not the network namespace with which the pod was enrolled")]
    Elsewhere {
        /// The namespace.
        netns: PathBuf,
    },
    /// A listener could not be made.
    #[error("cannot listen in {netns}: {source}; the daemon needs CAP_NET_ADMIN")]
    Listen {
        /// The namespace.
        netns: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The redirection failed.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
}

/// Why a pod could not be changed in place.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The pod has to be closed, and enrolled again.
    #[error(transparent)]
    Anew(PodError),
    /// The pod has its desired state, but a step of the redirection failed. It should be tried again.
    #[error(transparent)]
    NotYet(PodError),
}

/// An enrolled pod.
pub struct Pod<K: Kernel> {
    /// Its network namespace, kept open.
    pub netns: K::Namespace,
    /// The state and the changes of the namespace.
    pub link: K::Link,
    /// The addresses and interfaces of the namespace at the last look.
    pub facts: NetnsFacts,
    /// The state with which it is enrolled.
    pub desired: Desired,
    /// Decides who may connect to it.
    enforcement_point: EnforcementPoint,
    /// Set when somebody else closes one of its listeners.
    pub deaf: Deaf,
    /// When its connects succeed: what is in force.
    pub connect: ConnectMode,
    /// IP families that have listeners.
    pub listening: Vec<Family>,
    /// Connections from before the enrolment, which the mesh does not carry.
    pub connections_before: usize,
}

/// A namespace that has been proved to be the pod's.
struct Proved<K: Kernel> {
    netns: K::Namespace,
    link: K::Link,
    facts: NetnsFacts,
}

/// The node on which a pod is enrolled.
pub struct Node<'a, K> {
    /// The kernel.
    pub kernel: &'a mut K,
    /// The workers.
    pub workers: &'a [WorkerHandle],
    /// The cookie of the node's own network namespace.
    pub host_cookie: u64,
    /// Settings.
    pub settings: &'a PodSettings,
    /// The enforcement points of the pods.
    pub enforcement_points: &'a EnforcementPoints,
    /// The mesh.
    pub mesh: &'a Reader,
    /// The source of the pods' certificates.
    pub certificates: &'a Certificates,
    /// Set while pods are taken over from another daemon, which still serves them: the number of connections of each
    /// pod from before its enrolment, by cookie. All other connections belong to that daemon.
    pub taken_over: Option<&'a HashMap<u64, usize>>,
}

impl<K: Kernel> Node<'_, K> {
    /// Enrols a pod, if the network namespace is its own by the claims.
    ///
    /// # Errors
    /// The pod is then not enrolled, not even in part.
    pub async fn enrol(
        &mut self,
        name: &NamespacedName,
        desired: &Desired,
        claims: &Claims<'_>,
    ) -> Result<Pod<K>, PodError> {
        let Proved { netns, link, facts } = self.prove(name, desired, claims).await?;
        let was_captured = self.kernel.has_captured(netns.cookie());
        let inherited = self.taken_over.filter(|_| was_captured);
        let before = if inherited.is_some() { Vec::new() } else { self.survey(name, &netns) };
        let listening: Vec<_> = Family::ALL.into_iter().filter(|family| facts.speaks(*family)).collect();
        let listeners = self.listen(&netns, &listening)?;
        let excluded = self.kernel.enrol(&enrolment(name, desired, &netns, &link, &facts, &listeners)).await?;
        let in_force = LocalPod { exclusions: excluded, ..desired.local() };
        let enforcement_point = self.enforcement_points.point(name.clone(), self.mesh.clone(), in_force);
        let deaf = self.settings.deaf.pod();
        if let Err(source) = self.serve(name, desired, &netns, (&enforcement_point, &deaf), listeners).await {
            if was_captured {
                self.close(&netns).await;
            } else {
                self.release(&netns, &link).await;
            }
            return Err(PodError::Listen { netns: netns.path().to_owned(), source });
        }
        let connect = self.hold(name, desired, &netns).await;
        let inherited = inherited.map(|before| before.get(&netns.cookie()).copied().unwrap_or_default());
        let connections_before = inherited.unwrap_or_else(|| self.cut(name, &netns, &before));
        info!(
            pod = %name,
            netns = %netns.path().display(),
            cookie = netns.cookie(),
            connections_before,
            connect = connect.name(),
            "pod enrolled"
        );
        let desired = desired.clone();
        Ok(Pod { netns, link, facts, desired, enforcement_point, deaf, connect, listening, connections_before })
    }

    /// Changes a pod to the desired state, without a new enrolment. Connections of removed addresses end, and so do
    /// connections that policy denies and that only an exclusion allowed. All others stay open. The identity must be
    /// the same.
    ///
    /// # Errors
    /// The pod can't be changed in place: see [`UpdateError`].
    pub async fn update(
        &mut self,
        name: &NamespacedName,
        pod: &mut Pod<K>,
        desired: &Desired,
        claims: &Claims<'_>,
    ) -> Result<(), UpdateError> {
        let have = pod.desired.clone();
        if have.netns != desired.netns {
            let netns = self.kernel.open(&desired.netns).map_err(|error| UpdateError::Anew(error.into()))?;
            if netns.cookie() != pod.netns.cookie() {
                return Err(UpdateError::Anew(PodError::Elsewhere { netns: netns.path().to_owned() }));
            }
            pod.netns = netns;
        }
        let mut facts = pod.facts.clone();
        if have.addresses != desired.addresses {
            let added = desired.addresses.iter().filter(|address| !have.addresses.contains(address));
            claims.addresses(name, added).map_err(|error| UpdateError::Anew(error.into()))?;
            // The namespace was proved to be the pod's by the addresses before. It has to have all of the new ones as well.
            let found = pod.link.facts().await.map_err(|error| UpdateError::Anew(error.into()))?;
            facts = found.limited(&desired.addresses, self.kernel.per_pod_limit());
            if let Some(missing) = desired.addresses.iter().find(|address| !facts.addresses.contains(address)) {
                return Err(UpdateError::Anew(not_its_own(desired, *missing, &facts)));
            }
            for worker in self.workers {
                worker.readdress(pod.netns.cookie(), desired.addresses.clone()).await;
            }
        }
        self.adjust(name, pod, desired);
        if have.connect != desired.connect {
            pod.connect = self.hold(name, desired, &pod.netns).await;
        }
        if (&have.netns, &have.addresses) != (&desired.netns, &desired.addresses) {
            let routes = pod.link.redirect(&facts, &desired.addresses).await;
            self.follow(name, pod, facts, routes).await.map_err(UpdateError::NotYet)?;
        }
        Ok(())
    }

    /// Has the pod's connects held, or not, as it is desired. Returns what is in force: a pod whose connects can't be held is served
    /// nevertheless.
    async fn hold(&mut self, name: &NamespacedName, desired: &Desired, netns: &K::Namespace) -> ConnectMode {
        let wanted = desired.connect.unwrap_or(self.settings.connect);
        let source = match self.kernel.hold(netns, wanted == ConnectMode::Held) {
            Ok(source) => source,
            Err(error) => {
                let error = causes(&error);
                error!(pod = %name, wanted = wanted.name(), error, "cannot change how the pod's connects are answered");
                None
            }
        };
        let in_force = if source.is_some() { ConnectMode::Held } else { ConnectMode::Early };
        if in_force != wanted {
            warn!(pod = %name, "connects of the pod succeed before their destination is reached: the kernel can't hold them");
        }
        // The pods' SYNs are read by different workers.
        let reader = netns.cookie() as usize % self.workers.len().max(1);
        if let Some(worker) = self.workers.get(reader) {
            worker.hold(netns.cookie(), source).await;
        }
        in_force
    }

    /// Applies a change of a pod that another daemon has taken over to the connections that this daemon still serves.
    pub async fn follow_left(&self, pod: &mut Pod<K>, desired: &Desired) {
        let before = std::mem::replace(&mut pod.desired, desired.clone());
        if before.addresses != desired.addresses {
            for worker in self.workers {
                worker.readdress(pod.netns.cookie(), desired.addresses.clone()).await;
            }
        }
        pod.enforcement_point.set_local(desired.local());
    }

    /// Changes the exclusions and probe ports of a pod to the desired ones.
    fn adjust(&mut self, name: &NamespacedName, pod: &mut Pod<K>, desired: &Desired) {
        let before = std::mem::replace(&mut pod.desired, desired.clone());
        let facts = |desired: &Desired| (desired.exclusions.clone(), desired.probe_ports.clone(), desired.awaits_mesh);
        if facts(&before) == facts(desired) {
            return;
        }
        let cookie = pod.netns.cookie();
        let excluded = match self.kernel.set_exclusions(cookie, &desired.exclusions) {
            Ok(()) => desired.exclusions.clone(),
            Err(error) => {
                error!(
                    pod = %name, %error,
                    "cannot apply the exclusions of the pod; all its connections are captured"
                );
                Exclusions::default()
            }
        };
        pod.enforcement_point.set_local(LocalPod { exclusions: excluded, ..desired.local() });
    }

    /// Follows a change in the pod's namespace, after its rules and routes were repaired. A new IP family gets
    /// listeners.
    ///
    /// # Errors
    /// No part of the capture is lost. The call should be repeated.
    pub async fn follow(
        &mut self,
        name: &NamespacedName,
        pod: &mut Pod<K>,
        facts: NetnsFacts,
        routes: Result<(), LinkError>,
    ) -> Result<(), PodError> {
        let fresh: Vec<_> =
            Family::ALL.into_iter().filter(|family| facts.speaks(*family) && !pod.listening.contains(family)).collect();
        let listeners = self.listen(&pod.netns, &fresh)?;
        self.kernel.follow(&enrolment(name, &pod.desired, &pod.netns, &pod.link, &facts, &listeners), routes)?;
        for (worker, listeners) in self.workers.iter().zip(self.by_worker(listeners)) {
            if !listeners.is_empty() {
                let served = worker.listen(pod.netns.cookie(), listeners).await;
                served.map_err(|source| PodError::Listen { netns: pod.netns.path().to_owned(), source })?;
            }
        }
        pod.listening.extend(fresh);
        pod.facts = facts;
        Ok(())
    }

    /// Releases a pod: new connections are not captured, open connections are reset, and the namespace is restored.
    pub async fn release(&mut self, netns: &K::Namespace, link: &K::Link) {
        // This comes first, so that new connections bypass the daemon while the open ones are reset. The open ones are
        // reset while the routes still exist, so that the resets reach the pod.
        self.kernel.detach(netns.cookie());
        self.close(netns).await;
        self.kernel.release(netns, Some(link)).await;
    }

    /// Closes a pod: it stays captured, but no worker serves it, so every connection from it or to it is refused.
    pub async fn close(&self, netns: &K::Namespace) {
        for worker in self.workers {
            worker.remove(netns.cookie()).await;
        }
    }

    /// Enrols a pod again that another daemon has begun to take over, with the listeners that this daemon still has.
    ///
    /// # Errors
    /// The pod stays captured. The call should be repeated.
    pub async fn regain(
        &mut self,
        name: &NamespacedName,
        pod: &mut Pod<K>,
        listeners: Vec<(usize, Purpose, std::net::TcpListener)>,
    ) -> Result<(), PodError> {
        let limit = self.kernel.per_pod_limit();
        let facts = pod.link.facts().await?.limited(&pod.desired.addresses, limit);
        let cookie = pod.netns.cookie();
        let mut places = Vec::new();
        for (worker, purpose, listener) in listeners {
            let local = listener.local_addr();
            let local = local.map_err(|source| PodError::Listen { netns: pod.netns.path().to_owned(), source })?;
            places.push((place(cookie, purpose, Family::of(local.ip()), worker), purpose, listener));
        }
        // The listeners of the first worker are registered last.
        places.sort_by_key(|(place, ..)| std::cmp::Reverse(place.worker));
        self.kernel.enrol(&enrolment(name, &pod.desired, &pod.netns, &pod.link, &facts, &places)).await?;
        pod.connect = self.hold(name, &pod.desired, &pod.netns).await;
        pod.facts = facts;
        Ok(())
    }

    async fn prove(
        &mut self,
        name: &NamespacedName,
        desired: &Desired,
        claims: &Claims<'_>,
    ) -> Result<Proved<K>, PodError> {
        let netns = self.kernel.open(&desired.netns)?;
        let path = || netns.path().to_owned();
        if netns.cookie() == self.host_cookie {
            return Err(PodError::HostNetns { netns: path() });
        }
        let (cookie, holder) = (netns.cookie(), self.kernel.holder(netns.cookie()));
        claims.check(name, &Claimed { cookie, netns: netns.id(), file: &desired.netns, holder }, &desired.addresses)?;
        let link = self.kernel.link(&netns)?;
        let facts = link.facts().await?.limited(&desired.addresses, self.kernel.per_pod_limit());
        if let Some(address) = desired.addresses.iter().find(|address| !facts.addresses.contains(address)) {
            self.kernel.refresh_closed(&netns, &facts);
            return Err(not_its_own(desired, *address, &facts));
        }
        Ok(Proved { netns, link, facts })
    }

    fn listen(&self, netns: &K::Namespace, families: &[Family]) -> Result<Vec<Listening>, PodError> {
        let mut listeners = Vec::new();
        // The listeners of the first worker are registered last: when they are in the map, the others are, too.
        for worker in (0..self.workers.len()).rev() {
            for family in families {
                for purpose in [Purpose::Outbound, Purpose::Inbound, Purpose::Hbone] {
                    let key = place(netns.cookie(), purpose, *family, worker);
                    let made = self.kernel.listen(netns, *family, purpose, self.settings.backlog)?;
                    let listener =
                        made.map_err(|source| PodError::Listen { netns: netns.path().to_owned(), source })?;
                    listeners.push((key, purpose, listener));
                }
            }
        }
        Ok(listeners)
    }

    fn by_worker(&self, listeners: Vec<Listening>) -> Vec<Listeners> {
        let mut by_worker: Vec<Listeners> = self.workers.iter().map(|_| Vec::new()).collect();
        for (key, purpose, listener) in listeners {
            if let Some(of_worker) = by_worker.get_mut(usize::from(key.worker)) {
                of_worker.push((purpose, listener));
            }
        }
        by_worker
    }

    async fn serve(
        &self,
        name: &NamespacedName,
        desired: &Desired,
        netns: &K::Namespace,
        (enforcement_point, deaf): (&EnforcementPoint, &Deaf),
        listeners: Vec<Listening>,
    ) -> io::Result<()> {
        let upstreams = Upstreams::default();
        let open = OpenLimit::new(self.settings.open);
        let memory = self.settings.memory.pod();
        let admission = Admission::new(self.settings.tunnels);
        let certificate = self.certificates.handle(desired.identity.clone());
        let tls = tls::Endpoint::new(certificate, self.settings.tls.clone());
        let ends = dispatch::among(self.workers.len()).into_iter().zip(syns::among(self.workers.len()));
        let sockets = self.kernel.sockets(netns);
        for ((worker, listeners), (ends, (syn_dispatch, syn_inbox))) in
            self.workers.iter().zip(self.by_worker(listeners)).zip(ends)
        {
            let (dispatch, inbox) = ends;
            let dialer = Dialer::new(Arc::clone(&sockets), self.settings.connect_timeout, open.clone());
            worker
                .add(WorkerPod {
                    name: name.clone(),
                    cookie: netns.cookie(),
                    addresses: desired.addresses.clone(),
                    listeners,
                    dispatch,
                    inbox,
                    syn_dispatch,
                    syn_inbox,
                    dialer,
                    upstreams: upstreams.clone(),
                    open: open.clone(),
                    deaf: deaf.clone(),
                    memory: memory.clone(),
                    enforcement_point: enforcement_point.clone(),
                    admission: admission.clone(),
                    tls: tls.clone(),
                })
                .await?;
        }
        Ok(())
    }

    /// The connections of the pod before it is enrolled.
    fn survey(&self, name: &NamespacedName, netns: &K::Namespace) -> Vec<K::Connection> {
        let before = self.kernel.connections(netns);
        let before = before.inspect_err(|error| warn!(pod = %name, %error, "cannot list the connections of the pod"));
        before.unwrap_or_default()
    }

    /// Resets the earlier connections if the settings say so. Returns the number of those that are left.
    fn cut(&self, name: &NamespacedName, netns: &K::Namespace, before: &[K::Connection]) -> usize {
        if before.is_empty() || !self.settings.cut_existing {
            return before.len();
        }
        match self.kernel.cut(netns, before) {
            Ok(cut) => {
                info!(pod = %name, cut, "reset the connections that the pod had before it was enrolled");
                0
            }
            Err(error) => {
                warn!(
                    pod = %name, %error,
                    "cannot reset the connections that the pod had before it was enrolled"
                );
                before.len()
            }
        }
    }
}

impl PodError {
    /// Whether the network namespace of the pod has no address left, as when the runtime has removed the pod's network.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::NotItsOwn { found, is_named: false, .. } if found == NO_ADDRESS)
    }
}

/// A network namespace without addresses.
const NO_ADDRESS: &str = "none";

fn not_its_own(desired: &Desired, address: IpAddr, facts: &NetnsFacts) -> PodError {
    let found: Vec<_> = facts.addresses.iter().map(ToString::to_string).collect();
    let found = if found.is_empty() { NO_ADDRESS.to_owned() } else { found.join(", ") };
    let is_named = matches!(desired.netns, NetnsFile::Named(_));
    PodError::NotItsOwn { netns: desired.netns.path().to_owned(), address, found, is_named }
}

/// A listener and its key in the map.
type Listening = (Listener, Purpose, std::net::TcpListener);

fn enrolment<'a, N, L>(
    name: &'a NamespacedName,
    desired: &'a Desired,
    netns: &'a N,
    link: &'a L,
    facts: &'a NetnsFacts,
    listeners: &'a [Listening],
) -> Enrolment<'a, N, L> {
    Enrolment {
        name,
        netns,
        link,
        facts,
        addresses: &desired.addresses,
        exclusions: &desired.exclusions,
        listeners: listeners.iter().map(|(key, _, listener)| (*key, listener)).collect(),
    }
}

fn place(cookie: u64, purpose: Purpose, family: Family, worker: usize) -> Listener {
    let family = if family == Family::V4 { AF_INET } else { AF_INET6 };
    Listener {
        cookie,
        purpose: purpose as u32,
        // Both fit: families are small numbers, and the configuration limits the number of workers.
        family: family as u16,
        worker: worker as u16,
    }
}
