//! The only accept loop: it backs off when the machine lacks resources, limits the number of open connections, and stops on
//! drain.

use std::{
    fmt::Display,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::libc;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};
use tracing::{error, warn};

use super::{
    dial::{Sockets, ends},
    open::{OpenLimit, OpenPermit},
};
use crate::model::{
    addr::{OrigDst, PeerAddr},
    flow::Direction,
};

/// A connection that was just accepted. Its permit is returned when it is dropped.
#[derive(Debug)]
pub struct Accepted<S = TcpStream> {
    /// The connection.
    pub stream: S,
    /// The socket that connected.
    pub peer: PeerAddr,
    /// The original destination.
    pub dst: OrigDst,
    /// Its permit to be open.
    pub place: OpenPermit,
}

impl<S> Accepted<S> {
    /// The same with its stream converted. If the conversion fails: `None`, and a line in the log.
    #[must_use]
    pub fn convert<T>(self, form: impl FnOnce(S) -> io::Result<T>) -> Option<Accepted<T>> {
        let Self { stream, peer, dst, place } = self;
        match form(stream) {
            Ok(stream) => Some(Accepted { stream, peer, dst, place }),
            Err(error) => {
                warn!(src.addr = %peer, %error, "cannot accept a connection");
                None
            }
        }
    }
}

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Whether another process has closed one of a pod's listeners. Processes with CAP_NET_ADMIN in the pod can do this (`ss -K`).
/// Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Deaf(Arc<Heard>);

/// The number of pods with a listener that another process has closed. Clones share the number.
#[derive(Clone, Debug, Default)]
pub struct DeafPods(Arc<AtomicUsize>);

#[derive(Debug, Default)]
struct Heard {
    is_deaf: AtomicBool,
    all: DeafPods,
}

impl DeafPods {
    /// The state of one pod. It is counted once its listener was closed, while a clone exists.
    #[must_use]
    pub fn pod(&self) -> Deaf {
        Deaf(Arc::new(Heard { is_deaf: AtomicBool::new(false), all: self.clone() }))
    }

    /// The current number.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Deaf {
    /// Whether a listener was closed.
    #[must_use]
    pub fn is_so(&self) -> bool {
        self.0.is_deaf.load(Ordering::Relaxed)
    }

    /// Records that a listener was closed. Returns whether this is new.
    pub fn tell(&self) -> bool {
        let is_new = !self.0.is_deaf.swap(true, Ordering::Relaxed);
        if is_new {
            self.0.all.0.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if *self.is_deaf.get_mut() {
            self.all.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Accepts connections from one listener. One connection above the limit waits here, the others in the kernel's backlog. A
/// listener without connections uses no permit.
pub struct Acceptor {
    listener: Arc<TcpListener>,
    /// The sockets of the pod that owns the listener.
    sockets: Option<Arc<dyn Sockets>>,
    limit: OpenLimit,
    waits: Waits,
    deaf: Deaf,
    backoff: Duration,
    resume: Option<Instant>,
    waiting: Option<(TcpStream, PeerAddr, OrigDst)>,
}

/// The kind of permit that a connection needs, and the reaction if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// A connection's permit; the connection waits for it.
    ForAPlace(Direction),
    /// A socket's permit, for an HBONE connection. If there is none, the HBONE connection is reset: waiting would delay the
    /// HBONE connections of other peers.
    Never,
}

impl Acceptor {
    /// An acceptor for a listener of the daemon's own.
    #[must_use]
    pub fn new(listener: TcpListener, limit: OpenLimit) -> Self {
        Self::with(Arc::new(listener), None, limit, Waits::ForAPlace(Direction::Inbound), Deaf::default())
    }

    /// An acceptor for a listener of a pod. It reports when another process has closed the listener.
    #[must_use]
    pub fn of_pod(
        listener: Arc<TcpListener>,
        sockets: Arc<dyn Sockets>,
        limit: OpenLimit,
        waits: Waits,
        deaf: Deaf,
    ) -> Self {
        Self::with(listener, Some(sockets), limit, waits, deaf)
    }

    fn with(
        listener: Arc<TcpListener>,
        sockets: Option<Arc<dyn Sockets>>,
        limit: OpenLimit,
        waits: Waits,
        deaf: Deaf,
    ) -> Self {
        Self { listener, sockets, limit, waits, deaf, backoff: BACKOFF_FIRST, resume: None, waiting: None }
    }

    /// A permit. `None`: there is none left.
    async fn place(&self) -> Option<OpenPermit> {
        match self.waits {
            Waits::ForAPlace(direction) => Some(self.limit.accepted(direction).await),
            Waits::Never => self.limit.socket(Direction::Inbound),
        }
    }

    /// The next connection. Errors are handled here: an error of one connection is ignored, and an error of the machine causes
    /// a pause. The future may be dropped and called again at any time; a pause then continues.
    pub async fn next(&mut self) -> Accepted {
        loop {
            if let Some(resume) = self.resume {
                sleep_until(resume).await;
                self.resume = None;
            }
            if self.waiting.is_some() {
                let place = self.place().await;
                match (self.waiting.take(), place) {
                    (Some((stream, peer, dst)), Some(place)) => return Accepted { stream, peer, dst, place },
                    (Some((stream, peer, _)), None) => self.reset(stream, peer),
                    (None, _) => {}
                }
                continue;
            }
            match self.accept().await {
                Ok((stream, peer, _)) if !self.limit.has_room_for(&stream) => {
                    self.reset(stream, peer);
                }
                Ok(accepted) => {
                    self.backoff = BACKOFF_FIRST;
                    self.waiting = Some(accepted);
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {
                    if self.deaf.tell() {
                        error!(error = %cause, "another process has closed a listener of the daemon");
                    }
                    // No connection can arrive here any more.
                    return std::future::pending().await;
                }
                Err(error) => self.pause(&error),
            }
        }
    }

    async fn accept(&self) -> io::Result<(TcpStream, PeerAddr, OrigDst)> {
        let (stream, peer) = self.listener.accept().await?;
        let (peer, dst) = match &self.sockets {
            Some(sockets) => sockets.ends(&stream, peer)?,
            None => ends(&stream, peer)?,
        };
        Ok((stream, peer, dst))
    }

    /// Resets the connection. In the backlog its client would wait in vain.
    fn reset(&mut self, stream: TcpStream, peer: PeerAddr) {
        drop(stream);
        self.pause(&format!(
            "a connection from {peer} was reset: too few file descriptors are left; raise RLIMIT_NOFILE"
        ));
    }

    fn pause(&mut self, error: &dyn Display) {
        warn!(%error, pause_ms = self.backoff.as_millis(), "cannot accept; pausing");
        self.resume = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }
}

/// Whether the error is about one connection that is gone, and not about the listener or the machine.
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
    use super::{Acceptor, Deaf, DeafPods, Waits};
    use crate::{
        model::{
            addr::{OrigDst, PeerAddr},
            flow::Direction,
        },
        net::{
            dial::{Begun, DialError, Injected, Sockets, ends},
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
    };

    /// A shutdown has the same effect on a listener as `ss -K`.
    #[tokio::test]
    async fn close_a_listener_under_the_daemon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = std::net::TcpListener::from(std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned().unwrap());
        let pods = DeafPods::default();
        let (deaf, other) = (pods.pod(), pods.pod());
        let mut acceptor =
            Acceptor::of_pod(Arc::new(listener), Arc::new(Passive), OpenLimit::none(), Waits::Never, deaf.clone());
        {
            let mut nobody = Box::pin(acceptor.next());
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
        }
        assert!(!deaf.is_so() && pods.count() == 0);
        SockRef::from(&own).shutdown(Shutdown::Both).unwrap();
        let mut nobody = Box::pin(acceptor.next());
        while !deaf.is_so() {
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!((pods.count(), other.is_so()), (1, false));
        drop(nobody);
        drop((acceptor, deaf));
        assert_eq!(pods.count(), 0, "what is gone is not deaf");
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

        fn inject(&self, _packet: &[u8], _to: IpAddr, _as_what: Injected) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn ends(&self, accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)> {
            ends(accepted, peer)
        }
    }

    #[tokio::test]
    async fn a_pod_that_takes_all_descriptors_leaves_the_daemon_its_own() {
        for (highest, is_kept) in [(0, false), (i32::MAX, true)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let limit = OpenLimit::new(Resources { highest, ..Resources::within(10, 4096, 1 << 20) });
            let waits = Waits::ForAPlace(Direction::Outbound);
            let mut acceptor = Acceptor::of_pod(Arc::new(listener), Arc::new(Passive), limit, waits, Deaf::default());
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
        let open = OpenLimit::new(Resources::within(1, 4096, 1 << 20));
        let mut acceptor = Acceptor::new(listener, open.clone());
        {
            let mut nobody = Box::pin(acceptor.next());
            assert!(futures_util::poll!(nobody.as_mut()).is_pending());
            assert!(open.stream(Direction::Inbound).is_some(), "waiting for a client takes no place");
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
