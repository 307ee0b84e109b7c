//! The daemon's side: enrols the pods that the plugin hands over, and answers when they are enrolled.
//!
//! Of the plugin only the network namespace and the addresses count, which are proved to belong together. Membership and
//! identity of the pod come from the Kubernetes API, by name and UID.

use std::{
    fs::{DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Span, debug, info, warn};

use super::{
    Place,
    message::{self, Action, Answer, Incoming, Request},
    seen::Seen,
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::{
        name::check_name,
        netns::OpenNetns,
        node_pods::NodePods,
        workload::{Membership, NamespacedName},
    },
    net::netns::NetnsId,
    pods::{
        arrivals::{Arrival, Arrivals},
        kubernetes::{
            can_start,
            sandbox::{SandboxNews, Sandboxes},
        },
        proc::{Finder, Inspect},
    },
};

/// Pods that wait at the same time: twice of what a large node runs, all of which may start together.
const WAITING: usize = 512;
/// How long a plugin may take to say what it wants.
const SPEAK: Duration = Duration::from_secs(2);
/// Deadline for the watch of the Kubernetes API to report a pod that the kubelet starts.
const KNOWN: Duration = Duration::from_secs(10);
/// How long a pod may take to be enrolled.
const ENROLLED: Duration = Duration::from_secs(20);
/// Deadline for a CHECK, and for the proof of a network namespace.
const CHECKED: Duration = Duration::from_secs(3);
/// Addresses of one pod.
const MOST_ADDRESSES: usize = 32;
/// The pause after a failure of the socket.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the plugin cannot be served.
#[derive(Debug, Error)]
#[error(
    "cannot {what} {path}: {source}; the plugin ztunnel-cni connects to the daemon there; set --state to a \
     directory that belongs to root"
)]
pub struct ServeError {
    what: &'static str,
    path: String,
    source: io::Error,
}

/// Serves the plugin: [`Server::run`] is its task.
pub struct Server<I> {
    listener: UnixListener,
    shared: Arc<Shared<I>>,
    places: Arc<Semaphore>,
    owner: u32,
    tasks: TaskCount,
}

/// What a request needs.
pub struct Shared<I> {
    /// The node's pods as the Kubernetes API reports them.
    pub news: watch::Receiver<NodePods>,
    /// Passes new sandboxes to the follower.
    pub sandboxes: Sandboxes,
    /// Reports whether a pod is enrolled.
    pub arrivals: Arrivals,
    /// Reads the addresses in network namespaces.
    pub finder: Finder<I>,
}

impl<I: Inspect> Server<I> {
    /// Listens at the place, for processes of root. An older daemon may still listen there: new connections no longer reach it.
    ///
    /// # Errors
    /// The folder or the socket cannot be made.
    pub fn bind(place: &Place, shared: Shared<I>, tasks: TaskCount) -> Result<Self, ServeError> {
        Self::bind_for(place, shared, tasks, 0)
    }

    /// The same for processes of another user.
    fn bind_for(place: &Place, shared: Shared<I>, tasks: TaskCount, owner: u32) -> Result<Self, ServeError> {
        let failed = |what, path: &Path| {
            let path = path.display().to_string();
            move |source| ServeError { what, path, source }
        };
        let (folder, socket) = (place.folder(), place.socket());
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", folder)(error)),
            _ => {}
        }
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed("close to others", folder))?;
        let next = folder.join("cni.sock.next");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &next)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&next).map_err(failed("listen at", &next))?;
        std::fs::set_permissions(&next, Permissions::from_mode(0o600)).map_err(failed("close to others", &next))?;
        std::fs::rename(&next, &socket).map_err(failed("listen at", &socket))?;
        Ok(Self { listener, shared: Arc::new(shared), places: Arc::new(Semaphore::new(WAITING)), owner, tasks })
    }

    /// Serves for as long as this is polled.
    pub async fn run(self) {
        let mut requests = TaskSet::new(self.tasks.clone());
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = requests.reap_next(), if !requests.is_empty() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a connection of the CNI plugin");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.owner => {}
                Ok(peer) => {
                    warn!(
                        uid = peer.uid(),
                        "a process that does not run as root requested the enrolment of a pod; its \
                         connection is closed"
                    );
                    continue;
                }
                Err(error) => {
                    warn!(
                        %error,
                        "cannot determine the user of a process that requested the enrolment of a pod; its \
                         connection is closed"
                    );
                    continue;
                }
            }
            // Without a place the connection is closed, and the plugin tries again.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                debug!("the limit of waiting pods is reached; a connection of the CNI plugin is closed");
                continue;
            };
            let shared = Arc::clone(&self.shared);
            requests.spawn(Span::none(), async move {
                shared.serve(stream).await;
                drop(place);
            });
        }
    }
}

impl<I: Inspect> Shared<I> {
    async fn serve(&self, mut stream: UnixStream) {
        let asked = match timeout(SPEAK, receive(&stream)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return warn!(%error, "the request of the CNI plugin is not valid"),
            Err(_late) => return warn!("the CNI plugin did not send its request in time"),
        };
        let (request, file) = asked;
        let begun = Instant::now();
        let answer = match check(&request) {
            Ok(pod) => self.answer(&pod, &request, file).await,
            Err(reason) => Answer::Refused { reason },
        };
        let (pod, sandbox) = (format!("{}/{}", request.namespace, request.name), &request.sandbox);
        let took = begun.elapsed().as_millis();
        match &answer {
            Answer::Enrolled => info!(pod, sandbox, ms = took, "the pod is enrolled: its containers may start"),
            Answer::Outside { reason } => {
                debug!(pod, sandbox, ms = took, reason, "the pod is not in the mesh: it may start");
            }
            Answer::Refused { reason } => warn!(pod, sandbox, ms = took, reason, "the pod may not start now"),
        }
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        match timeout(SPEAK, stream.write_all(&line)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(
                pod, %error,
                "the CNI plugin has closed the connection and does not wait for the answer"
            ),
            Err(_late) => debug!(pod, "the CNI plugin did not read the answer"),
        }
    }

    async fn answer(&self, pod: &NamespacedName, request: &Request, file: Option<File>) -> Answer {
        let within = if request.action == Action::Add { ENROLLED } else { CHECKED };
        let until = Instant::now() + within;
        let mut news = self.news.clone();
        if let Some(reason) = self.outside(&mut news, pod, request).await {
            return reason.map_or_else(|reason| Answer::Refused { reason }, |reason| Answer::Outside { reason });
        }
        let netns = match self.prove(request, file).await {
            Ok(netns) => netns,
            Err(reason) => return Answer::Refused { reason },
        };
        let (device, inode) = netns.place();
        let wanted = Arrival::Enrolled(NetnsId { device, inode });
        let mut arrival = self.arrivals.expect(pod);
        if request.action == Action::Add {
            let (pod, uid, addresses) = (pod.clone(), request.uid.clone(), request.addresses.clone());
            if !self.sandboxes.tell(SandboxNews::Made { pod, uid, netns: netns.clone(), addresses }).await {
                return Answer::Refused { reason: "the daemon is stopping".to_owned() };
            }
        }
        let enrolled = async {
            loop {
                if *arrival.borrow() == wanted {
                    return None;
                }
                tokio::select! {
                    // The manager has the other end as long as it is expected.
                    _ = arrival.changed() => {}
                    // It may leave the mesh meanwhile.
                    Ok(()) = news.changed() => {
                        if let Some(Known::Outside(reason)) = known(&news.borrow(), pod, &request.uid) {
                            return Some(reason);
                        }
                    }
                }
            }
        };
        match timeout_at(until, enrolled).await {
            Ok(None) => Answer::Enrolled,
            Ok(Some(reason)) => Answer::Outside { reason },
            Err(_late) => {
                let reason = match self.arrivals.expect(pod).borrow().clone() {
                    Arrival::Refused(reason) => reason,
                    Arrival::Unknown => "the mesh does not have the pod".to_owned(),
                    Arrival::Enrolled(_) => "the pod is enrolled with another network namespace".to_owned(),
                };
                if request.action == Action::Add {
                    // The container runtime removes the sandbox now.
                    self.sandboxes.tell(SandboxNews::Gone { pod: pod.clone(), netns }).await;
                }
                Answer::Refused { reason: format!("not enrolled within {} s: {reason}", within.as_secs()) }
            }
        }
    }

    /// Waits until the pod is known. `None`: it is in the mesh; else why it may start all the same, or (`Err`) why not.
    async fn outside(
        &self,
        news: &mut watch::Receiver<NodePods>,
        pod: &NamespacedName,
        request: &Request,
    ) -> Option<Result<String, String>> {
        let is_known = |news: &NodePods| known(news, pod, &request.uid).is_some();
        let found = timeout(KNOWN, news.wait_for(is_known)).await.ok().and_then(Result::ok);
        match found.and_then(|news| known(&news, pod, &request.uid)) {
            Some(Known::InMesh) => None,
            Some(Known::Outside(reason)) => Some(Ok(reason)),
            None => {
                // As if no daemon were there.
                let news = self.news.borrow().clone();
                let seen = Seen::of(&news).unwrap_or_default();
                let reason = seen.reason(&pod.namespace);
                let why = news.problem.as_deref().unwrap_or("the API server has not reported the pod");
                let late = format!("the pod (UID {}) is not known within {} s: {why}", request.uid, KNOWN.as_secs());
                let told = format!("{late}; {reason}");
                Some(if seen.may_be_in_mesh(&pod.namespace) { Err(told) } else { Ok(told) })
            }
        }
    }

    /// The network namespace, which is none of the node and has all of the addresses.
    async fn prove(&self, request: &Request, file: Option<File>) -> Result<OpenNetns, String> {
        let path = || request.netns.clone();
        let file = file.ok_or_else(|| format!("the request for {} has no open network namespace", path()))?;
        let netns =
            OpenNetns::new(file, path().into()).map_err(|error| format!("cannot examine {}: {error}", path()))?;
        if self.finder.is_host(&netns) {
            return Err(format!("{} is the network namespace of the node", path()));
        }
        match timeout(CHECKED, self.finder.proves(&netns, &request.addresses)).await {
            Ok(Ok(())) => Ok(netns),
            Ok(Err(why)) => Err(format!("{} is not the network namespace of the pod: {why}", path())),
            Err(_late) => Err(format!("the kernel does not list the addresses in {}", path())),
        }
    }
}

/// Whether a pod is in the mesh, by the Kubernetes API.
enum Known {
    /// It is in the mesh as soon as it has an address.
    InMesh,
    /// It is not, for this reason.
    Outside(String),
}

/// `None`: it does not know the pod yet, or not its Namespace.
fn known(news: &NodePods, name: &NamespacedName, uid: &str) -> Option<Known> {
    let pod = news.pods.as_ref()?.get(name).filter(|pod| pod.has_uid(uid))?;
    news.namespaces.get(&name.namespace)?;
    if can_start(pod) {
        return Some(Known::InMesh);
    }
    Some(Known::Outside(match pod.workload.membership {
        Membership::NotLabelled => "neither the pod nor its Namespace has the label of the mesh".to_owned(),
        Membership::OptedOut => "the pod has the label istio.io/dataplane-mode: none".to_owned(),
        Membership::Refused(reason) => reason.to_string(),
        Membership::InMesh => "its runtime class has a network stack of its own, which cannot be captured".to_owned(),
    }))
}

/// Whether a request is one that can be answered; the pod.
fn check(request: &Request) -> Result<NamespacedName, String> {
    if request.version != message::VERSION {
        return Err(format!(
            "the plugin and the daemon have different versions of the protocol ({} and {}); the daemon \
             replaces the plugin when it starts with --cni-install",
            request.version,
            message::VERSION
        ));
    }
    let name = |what: &str, text: &str| check_name(text).map_err(|error| format!("{what}: {error}"));
    name("the namespace of the pod", &request.namespace)?;
    name("the name of the pod", &request.name)?;
    if request.uid.is_empty() {
        return Err("the container runtime does not set the UID of the pod (K8S_POD_UID in CNI_ARGS)".to_owned());
    }
    if request.addresses.is_empty() || request.addresses.len() > MOST_ADDRESSES {
        let number = request.addresses.len();
        return Err(format!(
            "the CNI plugins have given the pod {number} addresses; 1 to {MOST_ADDRESSES} are \
             supported"
        ));
    }
    Ok(NamespacedName::new(&*request.namespace, &*request.name))
}

async fn receive(stream: &UnixStream) -> io::Result<(Request, Option<File>)> {
    let (mut incoming, mut file, mut buffer) = (Incoming::default(), None, [0; 1024]);
    loop {
        let reading = || message::read_with_file(stream.as_raw_fd(), &mut buffer);
        let (read, came) = stream.async_io(Interest::READABLE, reading).await?;
        file = file.or_else(|| came.map(File::from));
        if let Some(request) = incoming.take(buffer.get(..read).unwrap_or_default())? {
            return Ok((request, file));
        }
    }
}

/// Writes the namespaces to the file whenever they change, for the plugin while no daemon answers. Sets `is_written` after the
/// first time.
pub async fn keep_seen(place: Place, mut news: watch::Receiver<NodePods>, is_written: watch::Sender<bool>) {
    let mut written = None;
    loop {
        let seen = Seen::of(&news.borrow_and_update());
        if let Some(seen) = seen.filter(|seen| written.as_ref() != Some(seen)) {
            let (path, next) = (place.seen(), seen.clone());
            match spawn_blocking(move || next.write(&path)).await {
                Ok(Ok(())) => {
                    written = Some(seen);
                    is_written.send_replace(true);
                }
                Ok(Err(error)) => {
                    warn!(
                        path = %place.seen().display(), %error,
                        "cannot write the list of namespaces in the mesh; trying again"
                    );
                    sleep(CHECKED).await;
                    continue;
                }
                Err(_stopping) => return,
            }
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
