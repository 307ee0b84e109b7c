//! Connecting out of a pod's network namespace: to where the pod wanted, and to the pod's application in a client's name.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use ebpf_common::mark;
use socket2::Socket;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::{
    netns::{Netns, NetnsError},
    socket::{self, Family, Keepalive},
};

/// Marks a socket as the daemon's own, so that its connect is not captured. Nothing in a pod can do the same.
pub trait OwnSockets: Send + Sync {
    /// Marks the socket.
    ///
    /// # Errors
    /// When the kernel refuses; the socket must not be connected then.
    fn claim(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}

/// Connects from within one network namespace. Its connections end in a reset unless told otherwise.
#[derive(Clone)]
pub struct Dialer {
    netns: Netns,
    own: Arc<dyn OwnSockets>,
    deadline: Duration,
    keepalive: Keepalive,
}

/// Why a connection could not be made.
#[derive(Debug, Error)]
pub enum DialError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The socket could not be made or set up.
    #[error("cannot {what} for a connection to {to}: {source}")]
    Socket {
        /// The step.
        what: &'static str,
        /// The destination.
        to: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The local address could not be taken.
    #[error("cannot connect to {to} from {from}: {source}")]
    Source {
        /// The destination.
        to: SocketAddr,
        /// The local address.
        from: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The connect failed.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The destination.
        to: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The connect took too long.
    #[error("no answer from {to} within {after:?}")]
    TimedOut {
        /// The destination.
        to: SocketAddr,
        /// The deadline.
        after: Duration,
    },
}

impl Dialer {
    /// A dialer for a namespace. A connect that takes longer than `deadline` fails.
    #[must_use]
    pub fn new(netns: Netns, own: Arc<dyn OwnSockets>, deadline: Duration, keepalive: Keepalive) -> Self {
        Self { netns, own, deadline, keepalive }
    }

    /// Connects to where the pod wanted to go, from an address of the pod (`None`: the kernel's choice). `begun` learns the
    /// local address before the connection is there; what it gives comes back with the connection.
    ///
    /// # Errors
    /// Each names the step and the destination.
    pub async fn upstream<T>(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        begun: impl FnOnce(SocketAddr) -> T,
    ) -> Result<(TcpStream, T), DialError> {
        let socket = self.socket(to, mark::UPSTREAM)?;
        let options = socket::set_data_options(&socket, self.keepalive);
        options.map_err(|source| DialError::Socket { what: "set TCP options", to, source })?;
        if let Some(ip) = from {
            let from = SocketAddr::new(ip, 0);
            // The port is chosen at connect, for the whole tuple: otherwise 28,000 connections would be the end.
            socket::bind_without_port(&socket).map_err(|source| DialError::Source { to, from, source })?;
            socket.bind(&from.into()).map_err(|source| DialError::Source { to, from, source })?;
        }
        let begun = |stream: &TcpStream| Ok(begun(stream.local_addr()?));
        self.connect(socket, to, begun).await
    }

    /// Connects to the pod's application from the client's address, and from a port of the caller's choice.
    ///
    /// # Errors
    /// Each names the step and the destination; [`DialError::Source`] means that another port may do.
    pub async fn deliver(&self, to: SocketAddr, from: SocketAddr) -> Result<TcpStream, DialError> {
        let socket = self.socket(to, mark::DELIVER)?;
        let setup = |what| move |source| DialError::Socket { what, to, source };
        // No keepalive: the other end is in this kernel, and can't vanish.
        socket.set_tcp_nodelay(true).map_err(setup("set TCP_NODELAY"))?;
        socket::set_local(&socket);
        socket::set_transparent(&socket, Family::of(from.ip())).map_err(setup("set IP_TRANSPARENT"))?;
        // Several deliveries share a client's port when they go to different ports of the pod.
        socket.set_reuse_address(true).map_err(setup("set SO_REUSEADDR"))?;
        // The kernel lets a port in TIME-WAIT be used again after a second where it knows that both ends are here,
        // and it knows that of sockets bound to the loopback device.
        socket.bind_device(Some(b"lo")).map_err(setup("bind to the loopback device"))?;
        socket.bind(&from.into()).map_err(|source| DialError::Source { to, from, source })?;
        match self.connect(socket, to, |_| Ok(())).await {
            Ok((stream, ())) => Ok(stream),
            Err(DialError::Connect { to, source }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Err(DialError::Source { to, from, source })
            }
            Err(error) => Err(error),
        }
    }

    fn socket(&self, to: SocketAddr, mark: u32) -> Result<Socket, DialError> {
        let setup = |what| move |source| DialError::Socket { what, to, source };
        let made = self.netns.enter(|| socket::tcp(Family::of(to.ip())))?;
        let socket = made.map_err(setup("make a socket"))?;
        socket.set_mark(mark).map_err(setup("set SO_MARK"))?;
        self.own.claim(socket.as_fd()).map_err(setup("claim a socket"))?;
        // A dial that is given up may be connected already: over there that must not look like an orderly end.
        socket::reset_on_close(&socket);
        Ok(socket)
    }

    async fn connect<T>(
        &self,
        socket: Socket,
        to: SocketAddr,
        begun: impl FnOnce(&TcpStream) -> io::Result<T>,
    ) -> Result<(TcpStream, T), DialError> {
        let failed = |source| DialError::Connect { to, source };
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(failed(error)),
            _ => {}
        }
        let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
        let begun = begun(&stream).map_err(failed)?;
        match timeout(self.deadline, stream.writable()).await {
            Ok(writable) => writable.map_err(failed)?,
            Err(_elapsed) => return Err(DialError::TimedOut { to, after: self.deadline }),
        }
        match stream.take_error().map_err(failed)? {
            Some(error) => Err(failed(error)),
            None => Ok((stream, begun)),
        }
    }
}
