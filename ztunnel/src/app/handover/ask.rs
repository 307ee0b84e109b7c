//! The side of the new daemon.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixStream},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    protocol::{Asker, Granted, PROTOCOLS, Reply, Request, Sandbox, receive, receive_files, send},
    socket,
};
use crate::{
    app::lock::{Lock, LockError, OtherLock},
    model::{netns::OpenNetns, workload::NamespacedName},
    pods::kubernetes::sandbox::KnownSandbox,
    redirect::pins::PinDir,
};

/// A daemon that runs answers within that time.
const ANSWER: Duration = Duration::from_secs(10);
/// A daemon may be busy with the enrolment of a pod when it is asked to stop changes.
const FREEZE: Duration = Duration::from_secs(60);
/// For this time a daemon is searched that holds the lock and does not listen yet, or no longer listens.
const SEARCH: Duration = Duration::from_secs(3);
/// For this time another daemon that takes over is waited for. If it was killed, the daemon that runs continues within that time.
const BUSY: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a daemon can't take over.
#[derive(Debug, Error)]
pub enum TakeOverError {
    /// The directories cannot be used, or are locked by a program that does not hand over.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The program that has locked the directories does not answer.
    #[error(
        "{lock}; it did not answer the request for a handover at {path}: {why}; stop that daemon first if it \
         hangs or its version has no handover"
    )]
    Silent {
        /// The lock.
        lock: LockError,
        /// The socket.
        path: PathBuf,
        /// The cause.
        why: io::Error,
    },
    /// The other daemon refuses.
    #[error("the running daemon does not hand over: {0}")]
    Refused(String),
    /// Another daemon takes over.
    #[error("the running daemon does not hand over: {0}")]
    Busy(String),
    /// The other daemon has locked other files.
    #[error(transparent)]
    Other(#[from] OtherLock),
    /// The other daemon has aborted the handover.
    #[error("the running daemon aborted the handover and keeps its pods: {0}")]
    Aborted(String),
}

/// The daemon from which this one takes over.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    endpoints: HashMap<SocketAddr, OwnedFd>,
    /// Its version.
    pub version: String,
}

/// The pods of the other daemon, which has stopped all changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Number of its enrolled pods.
    pub pods: usize,
    /// By cookie: number of connections of a pod from before its enrolment.
    pub connections_before: HashMap<u64, usize>,
    /// The sandboxes of pods that the CNI plugin has reported to it.
    pub sandboxes: Vec<KnownSandbox>,
}

/// An answer of the other daemon.
enum Heard {
    Said(Reply),
    /// The other daemon has ended: only this daemon has the lock.
    Gone(io::Error),
}

/// Takes the lock. If a daemon holds it, asks that daemon to hand over.
///
/// # Errors
/// Neither is possible.
pub async fn start(state: &Path, pins: &PinDir, node: &str) -> Result<(Lock, Option<Predecessor>), TakeOverError> {
    let begun = Instant::now();
    loop {
        let lock = match Lock::take(state, pins) {
            Ok(lock) => return Ok((lock, None)),
            Err(lock @ LockError::Held { .. }) => lock,
            Err(error) => return Err(error.into()),
        };
        let asker = Asker {
            protocols: PROTOCOLS,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: ebpf_common::LAYOUT,
            node: node.to_owned(),
        };
        match timeout(ANSWER, ask(state, pins, asker)).await {
            Ok(Ok(Err(TakeOverError::Busy(_)))) if begun.elapsed() < BUSY => sleep(PAUSE).await,
            Ok(Ok(granted)) => return granted.map(|(lock, predecessor)| (lock, Some(predecessor))),
            // The other daemon may start or end just now.
            Ok(Err(_)) if begun.elapsed() < SEARCH => sleep(PAUSE).await,
            Ok(Err(why)) => return Err(TakeOverError::Silent { lock, path: state.join(socket::NAME), why }),
            Err(_elapsed) => {
                let why = io::ErrorKind::TimedOut.into();
                return Err(TakeOverError::Silent { lock, path: state.join(socket::NAME), why });
            }
        }
    }
}

pub(super) async fn ask(
    state: &Path,
    pins: &PinDir,
    asker: Asker,
) -> io::Result<Result<(Lock, Predecessor), TakeOverError>> {
    let mut stream = socket::connect(state, socket::NAME).await?;
    info!("another daemon is running on this node; requesting a handover");
    send(&mut stream, &Request::Ask(asker)).await?;
    let Granted { protocol, version, endpoints } = match receive(&mut stream).await? {
        Reply::Granted(granted) => granted,
        Reply::Refused { reason, busy: true } => return Ok(Err(TakeOverError::Busy(reason))),
        Reply::Refused { reason, busy: false } => return Ok(Err(TakeOverError::Refused(reason))),
        other => return Err(out_of_turn(&other)),
    };
    let mut files = receive_files(&stream, endpoints.len() + 2).await?.into_iter();
    let (Some(state_lock), Some(pin_lock)) = (files.next(), files.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let lock = match Lock::handed_over([state_lock, pin_lock], state, pins) {
        Ok(lock) => lock,
        Err(other) => return Ok(Err(other.into())),
    };
    info!(protocol, version, "the running daemon will hand over to this daemon");
    let endpoints = endpoints.into_iter().zip(files).collect();
    Ok(Ok((lock, Predecessor { stream, endpoints, version })))
}

impl Predecessor {
    /// The listener of the other daemon at an address, if it has one there.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn listener(&mut self, at: SocketAddr) -> io::Result<Option<TcpListener>> {
        let taken = self.endpoints.remove(&at).map(|listener| TcpListener::from_std(listener.into()));
        taken.transpose()
    }

    /// Waits until the other daemon aborts the handover, or ends, while this daemon prepares.
    ///
    /// # Errors
    /// The other daemon has aborted the handover.
    pub async fn given_up(&mut self) -> Result<(), TakeOverError> {
        match self.hear().await {
            Heard::Gone(why) => {
                warn!(%why, "the old daemon has ended; this daemon continues without it");
                Ok(())
            }
            Heard::Said(Reply::Aborted { reason }) => Err(TakeOverError::Aborted(reason)),
            Heard::Said(other) => Err(TakeOverError::Aborted(out_of_turn(&other).to_string())),
        }
    }

    /// Has the other daemon stop all changes. `None`: it has ended.
    ///
    /// # Errors
    /// The other daemon has aborted the handover.
    pub async fn begin(&mut self) -> Result<Option<Frozen>, TakeOverError> {
        if let Err(why) = send(&mut self.stream, &Request::Begin).await {
            warn!(%why, "the old daemon has ended; this daemon continues without it");
            return Ok(None);
        }
        let frozen = async {
            let (pods, connections_before, told) = match self.hear().await {
                Heard::Said(Reply::Frozen { pods, connections_before, sandboxes }) => {
                    (pods, connections_before, sandboxes)
                }
                other => return Err(other),
            };
            let sandboxes = self.sandboxes(told).await.map_err(Heard::Gone)?;
            Ok(Frozen { pods, connections_before, sandboxes })
        };
        match timeout(FREEZE, frozen).await {
            Ok(Ok(frozen)) => Ok(Some(frozen)),
            Ok(Err(Heard::Said(Reply::Aborted { reason }))) => Err(TakeOverError::Aborted(reason)),
            Ok(Err(Heard::Said(other))) => Err(TakeOverError::Aborted(out_of_turn(&other).to_string())),
            // It runs, and continues when this daemon ends.
            Ok(Err(Heard::Gone(error))) if error.kind() == io::ErrorKind::InvalidData => {
                Err(TakeOverError::Aborted(format!("its message cannot be read: {error}")))
            }
            Ok(Err(Heard::Gone(why))) => {
                warn!(%why, "the old daemon has ended; this daemon continues without it");
                Ok(None)
            }
            Err(_elapsed) => Err(TakeOverError::Aborted("it does not answer".to_owned())),
        }
    }

    /// Has the other daemon retire. On return only this daemon has the pods.
    ///
    /// # Errors
    /// The other daemon has aborted the handover.
    pub async fn done(mut self) -> Result<(), TakeOverError> {
        if let Err(why) = send(&mut self.stream, &Request::Done).await {
            // An earlier message counts.
            return match self.hear().await {
                Heard::Said(Reply::Aborted { reason }) => Err(TakeOverError::Aborted(reason)),
                Heard::Said(_) | Heard::Gone(_) => {
                    warn!(%why, "the old daemon has ended; this daemon continues without it");
                    Ok(())
                }
            };
        }
        match timeout(FREEZE, self.hear()).await {
            Ok(Heard::Said(Reply::Left)) => {
                info!(version = self.version, "took over from the old daemon, which keeps its open connections");
                Ok(())
            }
            Ok(Heard::Said(Reply::Aborted { reason })) => Err(TakeOverError::Aborted(reason)),
            Ok(Heard::Said(other)) => Err(TakeOverError::Aborted(out_of_turn(&other).to_string())),
            Ok(Heard::Gone(why)) => {
                warn!(%why, "the old daemon has ended; this daemon continues without it");
                Ok(())
            }
            // It hangs. When it continues, it reads this message first.
            Err(_elapsed) => {
                warn!("the old daemon does not answer; this daemon continues without it");
                Ok(())
            }
        }
    }

    /// The sandboxes with their network namespaces, which follow the message.
    async fn sandboxes(&self, told: Vec<Sandbox>) -> io::Result<Vec<KnownSandbox>> {
        let files = receive_files(&self.stream, told.len()).await?;
        let known = told.into_iter().zip(files).map(|(sandbox, file)| {
            Ok(KnownSandbox {
                pod: NamespacedName::new(sandbox.namespace, sandbox.name),
                uid: sandbox.uid,
                netns: OpenNetns::new(File::from(file), sandbox.netns)?,
                addresses: sandbox.addresses,
            })
        });
        known.collect()
    }

    async fn hear(&mut self) -> Heard {
        match receive(&mut self.stream).await {
            Ok(reply) => Heard::Said(reply),
            Err(error) => Heard::Gone(error),
        }
    }
}

fn out_of_turn(reply: &Reply) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the running daemon sent an unexpected message: \
         {reply:?}"
        ),
    )
}
