//! The one accept loop: it backs off when the machine is short of something, caps what is open, and stops on drain.

use std::{
    fmt::Display,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::libc;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tracing::{error, warn};

use super::{
    dial::{Sockets, ends},
    open::OpenLimit,
};
use crate::model::addr::{OrigDst, PeerAddr};

/// A connection that was just accepted. The permit goes back when it is dropped.
#[derive(Debug)]
pub struct Accepted<S = TcpStream> {
    /// The connection.
    pub stream: S,
    /// Who connected.
    pub peer: PeerAddr,
    /// Where it wanted to go.
    pub dst: OrigDst,
    /// Its place among the connections that may be open.
    pub permit: OwnedSemaphorePermit,
}

impl<S> Accepted<S> {
    /// The same with another form of its stream. `None`, and a line in the log, when it can't have that.
    #[must_use]
    pub fn convert<T>(self, form: impl FnOnce(S) -> io::Result<T>) -> Option<Accepted<T>> {
        let Self { stream, peer, dst, permit } = self;
        match form(stream) {
            Ok(stream) => Some(Accepted { stream, peer, dst, permit }),
            Err(error) => {
                warn!(src.addr = %peer, %error, "cannot take a connection");
                None
            }
        }
    }
}

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Whether somebody else has closed one of a pod's listeners: who has CAP_NET_ADMIN in the pod can (`ss -K`). Clones are the
/// same.
#[derive(Clone, Debug, Default)]
pub struct Deaf(Arc<AtomicBool>);

impl Deaf {
    /// Whether that is so.
    #[must_use]
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Takes connections from one listener. One beyond what `open` has permits for is held here, the rest in the kernel's
/// backlog; a listener to which nobody comes holds no permit.
pub struct Acceptor {
    listener: TcpListener,
    /// Of the pod whose listener it is.
    pod: Option<(Arc<dyn Sockets>, OpenLimit)>,
    deaf: Deaf,
    open: Arc<Semaphore>,
    backoff: Duration,
    resume: Option<Instant>,
    waiting: Option<(TcpStream, PeerAddr, OrigDst)>,
}

impl Acceptor {
    /// An acceptor for a listener of the daemon's own.
    #[must_use]
    pub fn new(listener: TcpListener, open: Arc<Semaphore>) -> Self {
        Self::with(listener, None, Deaf::default(), open)
    }

    /// An acceptor for a listener of a pod, which tells when somebody has closed it.
    #[must_use]
    pub fn of_pod(
        listener: TcpListener,
        sockets: Arc<dyn Sockets>,
        limit: OpenLimit,
        deaf: Deaf,
        open: Arc<Semaphore>,
    ) -> Self {
        Self::with(listener, Some((sockets, limit)), deaf, open)
    }

    fn with(
        listener: TcpListener,
        pod: Option<(Arc<dyn Sockets>, OpenLimit)>,
        deaf: Deaf,
        open: Arc<Semaphore>,
    ) -> Self {
        Self { listener, pod, deaf, open, backoff: BACKOFF_FIRST, resume: None, waiting: None }
    }

    /// The next connection. Errors are dealt with here: those of one connection are passed over, those of the machine
    /// make it pause. May be dropped and called again at any time; a pause goes on then.
    pub async fn next(&mut self) -> Accepted {
        loop {
            if let Some(resume) = self.resume {
                sleep_until(resume).await;
                self.resume = None;
            }
            if self.waiting.is_some() {
                let Ok(permit) = Arc::clone(&self.open).acquire_owned().await else {
                    // The semaphore is never closed; were it, nothing more could be taken.
                    return std::future::pending().await;
                };
                if let Some((stream, peer, dst)) = self.waiting.take() {
                    return Accepted { stream, peer, dst, permit };
                }
            }
            match accept(&self.listener, self.pod.as_ref().map(|(sockets, _)| &**sockets)).await {
                Ok((stream, peer, _)) if self.pod.as_ref().is_some_and(|(_, limit)| !limit.has_room_for(&stream)) => {
                    // Dropped, it is reset; in the backlog its client would wait for nothing.
                    drop(stream);
                    self.pause(&format!(
                        "a connection of {peer} was reset: the process has too few descriptors; raise RLIMIT_NOFILE"
                    ));
                }
                Ok(accepted) => {
                    self.backoff = BACKOFF_FIRST;
                    self.waiting = Some(accepted);
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {
                    if !self.deaf.0.swap(true, Ordering::Relaxed) {
                        error!(error = %cause, "somebody has closed a listener of the daemon");
                    }
                    // Nobody comes here any more.
                    return std::future::pending().await;
                }
                Err(error) => self.pause(&error),
            }
        }
    }

    fn pause(&mut self, error: &dyn Display) {
        warn!(%error, pause_ms = self.backoff.as_millis(), "cannot accept; pausing");
        self.resume = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }
}

async fn accept(listener: &TcpListener, sockets: Option<&dyn Sockets>) -> io::Result<(TcpStream, PeerAddr, OrigDst)> {
    let (stream, peer) = listener.accept().await?;
    let (peer, dst) = match sockets {
        Some(sockets) => sockets.ends(&stream, peer)?,
        None => ends(&stream, peer)?,
    };
    Ok((stream, peer, dst))
}

/// Errors that speak of one connection that is gone already, not of the listener or the machine.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotConnected
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::{Acceptor, Deaf};
    use crate::{
        model::addr::{OrigDst, PeerAddr},
        net::{
            dial::{Begun, DialError, Sockets, ends},
            open::{OpenLimit, Resources},
        },
    };
    use socket2::SockRef;
    use std::{
        io,
        net::{IpAddr, Shutdown, SocketAddr},
        sync::Arc,
    };
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpStream},
        sync::Semaphore,
    };

    /// What `ss -K` does to a listener, a shutdown does as well.
    #[tokio::test]
    async fn close_a_listener_under_the_daemon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = std::net::TcpListener::from(std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned().unwrap());
        let deaf = Deaf::default();
        let mut acceptor = Acceptor::with(listener, None, deaf.clone(), Arc::new(Semaphore::new(1)));
        {
            let mut nobody = Box::pin(acceptor.next());
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
        }
        assert!(!deaf.is_so());
        SockRef::from(&own).shutdown(Shutdown::Both).unwrap();
        let mut nobody = Box::pin(acceptor.next());
        while !deaf.is_so() {
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }

    /// A pod that makes no connections.
    struct Passive;

    impl Sockets for Passive {
        fn upstream(&self, to: SocketAddr, _from: Option<IpAddr>) -> Result<Begun, DialError> {
            Err(DialError::Exhausted { to })
        }

        fn deliver(&self, to: SocketAddr, _from: SocketAddr) -> Result<Begun, DialError> {
            Err(DialError::Exhausted { to })
        }

        fn ends(&self, accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)> {
            ends(accepted, peer)
        }
    }

    #[tokio::test]
    async fn a_pod_that_takes_all_descriptors_leaves_the_daemon_its_own() {
        let places = Arc::new(Semaphore::new(10));
        for (highest, is_kept) in [(0, false), (i32::MAX, true)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let limit = OpenLimit::new(Resources { highest, ..Resources::within(10, 4096, 1 << 20) });
            let mut acceptor =
                Acceptor::of_pod(listener, Arc::new(Passive), limit, Deaf::default(), Arc::clone(&places));
            let mut clients = [TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap()];
            if is_kept {
                let _both = (acceptor.next().await, acceptor.next().await);
                continue;
            }
            let closed = async {
                for client in &mut clients {
                    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0, "a client waits for nothing");
                }
            };
            tokio::select! {
                _ = acceptor.next() => panic!("it was kept"),
                () = closed => {}
            }
        }
    }

    #[tokio::test]
    async fn no_more_connections_than_permits_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let open = Arc::new(Semaphore::new(1));
        let mut acceptor = Acceptor::new(listener, Arc::clone(&open));
        {
            let mut nobody = Box::pin(acceptor.next());
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
            assert_eq!(open.available_permits(), 1, "waiting for a client takes no permit");
        }
        let _client = TcpStream::connect(addr).await.unwrap();
        let _other = TcpStream::connect(addr).await.unwrap();
        let first = acceptor.next().await;
        assert_eq!(first.dst.socket(), addr);
        {
            let mut second = Box::pin(acceptor.next());
            assert!(futures_util::poll!(second.as_mut()).is_pending());
        }
        drop(first);
        acceptor.next().await;
    }
}
