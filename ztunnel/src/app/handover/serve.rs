//! The side of the daemon that runs.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{
    protocol::{Asker, Granted, PROTOCOLS, Reply, Request, Sandbox, WITH_SANDBOXES, agree, receive, send, send_files},
    socket,
};
use crate::{
    app::lock::Lock,
    lifecycle::{drain::DrainTrigger, keeps::Keeps},
    pods::{
        handover::Frozen,
        kubernetes::sandbox::{KnownSandbox, Sandboxes},
        manager::ManagerHandle,
    },
};

/// The first message has to arrive within this time.
const ASK: Duration = Duration::from_secs(5);
/// Time for a new daemon to read the mesh and to get its certificates. The control plane may be unreachable.
const PREPARE: Duration = Duration::from_secs(15 * 60);
/// Time for a new daemon to enrol all pods. Meanwhile changes of the mesh enrol and release no pod.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// Time for a new daemon to end after an abort.
const END: Duration = Duration::from_secs(60);
/// After a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// What a daemon hands over, and how.
pub struct Handover {
    /// The lock on state and pins.
    pub lock: Lock,
    /// Copies of the listeners of the HTTP endpoints, with the addresses as configured.
    pub endpoints: Vec<(SocketAddr, TcpListener)>,
    /// Stops the HTTP endpoints of this daemon.
    pub close_endpoints: DrainTrigger,
    /// The manager of the pods.
    pub manager: ManagerHandle,
    /// The sandboxes of this node's pods; `None`: the pods are not in the Kubernetes API.
    pub sandboxes: Option<Sandboxes>,
    /// Whether this daemon writes copies of the mesh.
    pub keeps: Keeps,
    /// This node.
    pub node: String,
}

/// Listens for a daemon that takes over.
///
/// # Errors
/// What the system says.
pub fn listen(state: &Path) -> io::Result<UnixListener> {
    socket::listen(state, socket::NAME)
}

/// The reason of an abort.
struct GivenUp(String);

impl Handover {
    /// Listens until a daemon has taken over.
    pub async fn serve(self, listener: UnixListener) {
        loop {
            let Some(stream) = accept(&listener).await else { continue };
            let is_handed_over = {
                let exchange = self.exchange(stream);
                tokio::pin!(exchange);
                loop {
                    tokio::select! {
                        biased;
                        is_handed_over = &mut exchange => break is_handed_over,
                        Some(other) = accept(&listener) => refuse(other, "another handover is in progress", true).await,
                    }
                }
            };
            if is_handed_over {
                return;
            }
        }
    }

    /// Serves one connection. Returns whether the other side has taken over.
    async fn exchange(&self, mut stream: UnixStream) -> bool {
        let protocol = match timeout(ASK, receive(&mut stream)).await {
            Ok(Ok(Request::Ask(asker))) => match self.check(&asker) {
                Ok(protocol) => {
                    info!(
                        version = asker.version,
                        protocol,
                        "another daemon takes over when it has read the \
                         mesh"
                    );
                    protocol
                }
                Err(reason) => {
                    warn!(
                        reason,
                        version = asker.version,
                        "another daemon requested a handover and cannot \
                         take over"
                    );
                    refuse(stream, &reason, false).await;
                    return false;
                }
            },
            Ok(Ok(_)) => {
                refuse(stream, "the first message of a handover must be a request for it", false).await;
                return false;
            }
            // As `ztunnel ready` does.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
            Ok(Err(error)) => {
                warn!(%error, "a process connected to the handover socket and sent an invalid message");
                return false;
            }
            Err(_elapsed) => {
                warn!("a process connected to the handover socket and sent no message");
                return false;
            }
        };
        self.manager.expect_successor(true);
        let given_up = self.hand_over(&mut stream, protocol).await.err();
        self.manager.expect_successor(false);
        let Some(GivenUp(reason)) = given_up else { return true };
        warn!(reason, "the other daemon does not take over; this daemon keeps its pods");
        // The other side may have ended.
        let _gone = timeout(ASK, send(&mut stream, &Reply::Aborted { reason })).await;
        false
    }

    fn check(&self, asker: &Asker) -> Result<u32, String> {
        let version = env!("CARGO_PKG_VERSION");
        let Some(protocol) = agree(PROTOCOLS, asker.protocols) else {
            let ([own_oldest, own_newest], [oldest, newest]) = (PROTOCOLS, asker.protocols);
            return Err(format!(
                "its version {version} knows the versions {own_oldest} to {own_newest} of the handover \
                 protocol, and version {} of the new daemon knows {oldest} to {newest}: stop the old daemon \
                 first",
                asker.version
            ));
        };
        if asker.layout != ebpf_common::LAYOUT {
            return Err(format!(
                "its BPF maps have layout {}, and those of the new daemon layout {}: stop the old daemon first",
                ebpf_common::LAYOUT,
                asker.layout
            ));
        }
        if asker.node != self.node {
            return Err(format!(
                "it serves node {}, and the new daemon has --node {}: every node needs its own --state and \
                 --bpf-pin",
                self.node, asker.node
            ));
        }
        Ok(protocol)
    }

    async fn hand_over(&self, stream: &mut UnixStream, protocol: u32) -> Result<(), GivenUp> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let endpoints = self.endpoints.iter().map(|(address, _)| *address).collect();
        let lost = |error: io::Error| GivenUp(format!("the connection to the new daemon was lost: {error}"));
        send(stream, &Reply::Granted(Granted { protocol, version, endpoints })).await.map_err(lost)?;
        let listeners = self.endpoints.iter().map(|(_, listener)| listener.as_fd());
        let files: Vec<_> = self.lock.files().chain(listeners).collect();
        send_files(stream, &files).await.map_err(lost)?;
        match timeout(PREPARE, receive(stream)).await {
            Ok(Ok(Request::Begin)) => {}
            Ok(Ok(_)) => return Err(GivenUp("the new daemon sent an unexpected message".to_owned())),
            Ok(Err(error)) => return Err(lost(error)),
            Err(_elapsed) => {
                return Err(GivenUp(format!("the new daemon was not ready within {} s", PREPARE.as_secs())));
            }
        }
        let orders = self.manager.orders();
        let Some(frozen) = orders.freeze().await else {
            return Err(GivenUp("this daemon is stopping".to_owned()));
        };
        // Pods whose sandboxes are made from here on are not enrolled by this daemon.
        let sandboxes = match &self.sandboxes {
            Some(sandboxes) if protocol >= WITH_SANDBOXES => sandboxes.all().await.unwrap_or_default(),
            _ => Vec::new(),
        };
        let taken = self.take_over(stream, frozen, &sandboxes).await;
        let Err(GivenUp(reason)) = taken else {
            info!("another daemon has taken over; this daemon serves its open connections");
            self.keeps.leave();
            self.close_endpoints.start();
            if !orders.retire().await {
                error!(
                    "the pods are handed over, and this daemon cannot keep its open connections, because \
                     it is stopping"
                );
            }
            // The end of the connection tells the same.
            let _gone = send(stream, &Reply::Left).await;
            return Ok(());
        };
        orders.resume().await;
        self.see_off(stream, &reason).await;
        Err(GivenUp(reason))
    }

    async fn take_over(
        &self,
        stream: &mut UnixStream,
        Frozen { pods, connections_before }: Frozen,
        known: &[KnownSandbox],
    ) -> Result<(), GivenUp> {
        let lost = |error: io::Error| GivenUp(format!("the connection to the new daemon was lost: {error}"));
        let sandboxes = known.iter().map(|sandbox| Sandbox {
            namespace: sandbox.pod.namespace.to_string(),
            name: sandbox.pod.name.to_string(),
            uid: sandbox.uid.clone(),
            addresses: sandbox.addresses.clone(),
            netns: sandbox.netns.path().to_owned(),
        });
        let frozen = Reply::Frozen { pods, connections_before, sandboxes: sandboxes.collect() };
        let files: Vec<BorrowedFd<'_>> = known.iter().map(|sandbox| sandbox.netns.file().as_fd()).collect();
        let sent = async {
            send(stream, &frozen).await?;
            send_files(stream, &files).await
        };
        match timeout(ASK, sent).await {
            Ok(sent) => sent.map_err(lost)?,
            Err(_elapsed) => return Err(GivenUp("the new daemon does not read its messages".to_owned())),
        }
        match timeout(TAKE_OVER, receive(stream)).await {
            Ok(Ok(Request::Done)) => Ok(()),
            Ok(Ok(_)) => Err(GivenUp("the new daemon sent an unexpected message".to_owned())),
            Ok(Err(error)) => Err(lost(error)),
            Err(_elapsed) => Err(GivenUp(format!("the new daemon did not take over within {} s", TAKE_OVER.as_secs()))),
        }
    }

    /// Tells a daemon of the abort, waits until it has ended, and restores what it may have changed until then.
    async fn see_off(&self, stream: &mut UnixStream, reason: &str) {
        let aborted = Reply::Aborted { reason: reason.to_owned() };
        if !matches!(timeout(ASK, send(stream, &aborted)).await, Ok(Ok(()))) {
            return;
        }
        let ended = async { while receive::<Request>(stream).await.is_ok() {} };
        if timeout(END, ended).await.is_err() {
            warn!("the other daemon has not taken over, and it does not end");
        }
        let orders = self.manager.orders();
        if orders.freeze().await.is_some() {
            orders.resume().await;
        }
    }
}

/// The next connection, if its user is that of this daemon.
async fn accept(listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept().await {
        Ok((stream, _)) => match socket::own(&stream) {
            Ok(()) => Some(stream),
            Err(error) => {
                warn!(%error, "a process without permission connected to the handover socket");
                None
            }
        },
        Err(error) => {
            warn!(%error, "cannot accept at the handover socket");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// Refuses a handover.
async fn refuse(mut stream: UnixStream, reason: &str, busy: bool) {
    let refused = Reply::Refused { reason: reason.to_owned(), busy };
    let _gone = timeout(ASK, send(&mut stream, &refused)).await;
}
