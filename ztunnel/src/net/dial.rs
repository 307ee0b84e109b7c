//! Connects from a pod's network namespace: to the original destination of an outbound connection, and to the pod's application
//! from the client's address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, OnceLock},
    time::Duration,
};

use ebpf_common::mark;
use socket2::Socket;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

use super::{
    netns::{Netns, NetnsError},
    open::{OpenLimit, OpenPermit},
    socket::{self, Family, Keepalive},
};
use crate::model::{
    addr::{OrigDst, PeerAddr},
    flow::Direction,
};

/// Marks a socket as the daemon's own, so that its connect is not captured. A process in a pod can't do this.
pub trait OwnSockets: Send + Sync {
    /// Marks the socket.
    ///
    /// # Errors
    /// When the kernel refuses; the socket must not be connected then.
    fn claim(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}

/// The system calls for a pod's connections, which need the kernel of a real node. With a fake of this trait, the code above
/// runs in tests. The methods are called once for a connection, never for each byte.
pub trait Sockets: Send + Sync {
    /// Begins to connect to the original destination, from an address of the pod (`None`: the kernel chooses).
    ///
    /// # Errors
    /// Each error names the step and the destination.
    fn upstream(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<Begun, DialError>;

    /// Begins to connect to the pod's application from the client's address and a port that the caller chooses.
    ///
    /// # Errors
    /// Each error names the step and the destination. After [`DialError::Source`] another port may succeed.
    fn deliver(&self, to: SocketAddr, from: SocketAddr) -> Result<Begun, DialError>;

    /// Sends a packet with all headers to the pod's own network namespace.
    ///
    /// # Errors
    /// When the packet could not be sent.
    fn inject(&self, packet: &[u8], to: IpAddr, as_what: Injected) -> io::Result<()>;

    /// The original destination and the client of a connection that a listener has accepted from `peer`.
    ///
    /// # Errors
    /// If the connection is gone already.
    fn ends(&self, accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)>;
}

/// The meaning of a packet that the daemon sends within a pod's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Injected {
    /// The SYN of the pod, which goes to the daemon's listener.
    Syn,
    /// The answer to a SYN of the pod.
    Answer,
}

/// A connection that is being established.
#[derive(Debug)]
pub struct Begun {
    /// Becomes writable when it is established, or has failed.
    pub stream: TcpStream,
    /// Its local address.
    pub local: SocketAddr,
}

/// An established connection, and the values to keep while it is open.
#[derive(Debug)]
pub struct Dialled<T> {
    /// The connection.
    pub stream: TcpStream,
    /// The result of `begun`, and the permit of the socket.
    pub held: (T, OpenPermit),
}

/// Connects as a pod, within a time limit. Its connections are reset on close unless the caller changes that.
#[derive(Clone)]
pub struct Dialer {
    sockets: Arc<dyn Sockets>,
    deadline: Duration,
    limit: OpenLimit,
}

/// The sockets of a pod on a real node. They are made in its network namespace.
pub struct PodSockets {
    netns: Netns,
    own: Arc<dyn OwnSockets>,
    keepalive: Keepalive,
    /// For each address family and meaning, made when the first packet is sent.
    raw: [OnceLock<Socket>; 4],
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
    /// The local address is not available.
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
    /// The pod has used its share of descriptors. The rest are for the daemon itself and for other pods.
    #[error("cannot connect to {to}: the pod has used its share of the process's descriptors; raise RLIMIT_NOFILE")]
    Exhausted {
        /// The destination.
        to: SocketAddr,
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
    /// A dialer with these sockets. A connect that takes longer than `deadline` fails.
    #[must_use]
    pub fn new(sockets: Arc<dyn Sockets>, deadline: Duration, limit: OpenLimit) -> Self {
        Self { sockets, deadline, limit }
    }

    /// The pod's sockets.
    #[must_use]
    pub fn sockets(&self) -> &Arc<dyn Sockets> {
        &self.sockets
    }

    /// Connects to the original destination, from an address of the pod (`None`: the kernel chooses). `begun` gets the local
    /// address before the connection is established; its result is returned with the connection.
    ///
    /// # Errors
    /// Each error names the step and the destination.
    pub async fn upstream<T>(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        begun: impl FnOnce(SocketAddr) -> T,
    ) -> Result<Dialled<T>, DialError> {
        let place = self.limit.socket(Direction::Outbound).ok_or(DialError::Exhausted { to })?;
        let Begun { stream, local } = self.sockets.upstream(to, from)?;
        let begun = begun(local);
        Ok(Dialled { stream: self.connected(stream, to).await?, held: (begun, place) })
    }

    /// Connects to the pod's application from the client's address and a port that the caller chooses.
    ///
    /// # Errors
    /// Each error names the step and the destination. After [`DialError::Source`] another port may succeed.
    pub async fn deliver(&self, to: SocketAddr, from: SocketAddr) -> Result<(TcpStream, OpenPermit), DialError> {
        let place = self.limit.socket(Direction::Inbound).ok_or(DialError::Exhausted { to })?;
        let Begun { stream, .. } = self.sockets.deliver(to, from)?;
        let stream = self.connected(stream, to).await.map_err(|error| of_source(error, from))?;
        Ok((stream, place))
    }

    async fn connected(&self, stream: TcpStream, to: SocketAddr) -> Result<TcpStream, DialError> {
        let failed = |source| DialError::Connect { to, source };
        if !self.limit.has_room_for(&stream) {
            return Err(DialError::Exhausted { to });
        }
        self.limit.fit(&stream);
        match timeout(self.deadline, stream.writable()).await {
            Ok(writable) => writable.map_err(failed)?,
            Err(_elapsed) => return Err(DialError::TimedOut { to, after: self.deadline }),
        }
        if to.is_ipv6() {
            // From now on an ICMP error is no reason to give the connection up.
            socket::set_receive_errors_v6(&stream, false);
        }
        match stream.take_error().map_err(failed)? {
            Some(error) => Err(failed(error)),
            None => Ok(stream),
        }
    }
}

/// If an address is not available, it is the local one.
fn of_source(error: DialError, from: SocketAddr) -> DialError {
    match error {
        DialError::Connect { to, source } if source.kind() == io::ErrorKind::AddrNotAvailable => {
            DialError::Source { to, from, source }
        }
        error => error,
    }
}

impl PodSockets {
    /// The sockets of the pod with this namespace.
    #[must_use]
    pub fn new(netns: Netns, own: Arc<dyn OwnSockets>, keepalive: Keepalive) -> Self {
        Self { netns, own, keepalive, raw: Default::default() }
    }

    fn socket(&self, to: SocketAddr, mark: u32) -> Result<Socket, DialError> {
        let setup = |what| move |source| DialError::Socket { what, to, source };
        let made = self.netns.enter(|| socket::tcp(Family::of(to.ip())))?;
        let socket = made.map_err(setup("make a socket"))?;
        // This has to precede the mark: the hook on `setsockopt` removes the daemon's bits from the marks of other sockets.
        self.own.claim(socket.as_fd()).map_err(setup("claim a socket"))?;
        socket.set_mark(mark).map_err(setup("set SO_MARK"))?;
        // A dial that is given up may be connected already. For the peer that must not look like an orderly end.
        socket::reset_on_close(&socket);
        socket::keep_urgent_data(&socket).map_err(setup("set SO_OOBINLINE"))?;
        Ok(socket)
    }

    fn raw(&self, family: Family, as_what: Injected) -> io::Result<&Socket> {
        let [syn_v4, answer_v4, syn_v6, answer_v6] = &self.raw;
        let (place, mark) = match (family, as_what) {
            // Without the second bit the SYN would be taken again.
            (Family::V4, Injected::Syn) => (syn_v4, mark::CAPTURE | mark::INJECTED),
            (Family::V6, Injected::Syn) => (syn_v6, mark::CAPTURE | mark::INJECTED),
            // Answers go to the pod's own address, by the routes of every other packet.
            (Family::V4, Injected::Answer) => (answer_v4, 0),
            (Family::V6, Injected::Answer) => (answer_v6, 0),
        };
        if let Some(socket) = place.get() {
            return Ok(socket);
        }
        let socket = self.netns.enter(|| socket::raw(family)).map_err(io::Error::other)??;
        self.own.claim(socket.as_fd())?;
        socket.set_mark(mark)?;
        Ok(place.get_or_init(|| socket))
    }
}

impl Sockets for PodSockets {
    fn upstream(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<Begun, DialError> {
        let socket = self.socket(to, mark::UPSTREAM)?;
        let options = socket::set_data_options(&socket, self.keepalive);
        options.map_err(|source| DialError::Socket { what: "set TCP options", to, source })?;
        if to.is_ipv6() {
            socket::set_receive_errors_v6(&socket, true);
        }
        if let Some(ip) = from {
            let from = SocketAddr::new(ip, 0);
            // The kernel chooses the port at connect, for the whole tuple. Otherwise 28,000 connections would be the maximum.
            socket::bind_without_port(&socket).map_err(|source| DialError::Source { to, from, source })?;
            socket.bind(&from.into()).map_err(|source| DialError::Source { to, from, source })?;
        }
        begin(socket, to)
    }

    fn deliver(&self, to: SocketAddr, from: SocketAddr) -> Result<Begun, DialError> {
        let socket = self.socket(to, mark::DELIVER)?;
        let setup = |what| move |source| DialError::Socket { what, to, source };
        // Without keepalive: the other end is in this kernel, and can't disappear.
        socket.set_tcp_nodelay(true).map_err(setup("set TCP_NODELAY"))?;
        socket::set_local(&socket);
        socket::set_transparent(&socket, Family::of(from.ip())).map_err(setup("set IP_TRANSPARENT"))?;
        // Several deliveries share a client's port if they go to different ports of the pod.
        socket.set_reuse_address(true).map_err(setup("set SO_REUSEADDR"))?;
        // The kernel reuses a port in TIME-WAIT after a second if it knows that both ends are on this machine. It knows that
        // for sockets bound to the loopback device.
        socket.bind_device(Some(b"lo")).map_err(setup("bind to the loopback device"))?;
        socket.bind(&from.into()).map_err(|source| DialError::Source { to, from, source })?;
        connect(&socket, to).map_err(|error| of_source(error, from))?;
        let failed = |source| DialError::Connect { to, source };
        Ok(Begun { stream: TcpStream::from_std(socket.into()).map_err(failed)?, local: from })
    }

    fn inject(&self, packet: &[u8], to: IpAddr, as_what: Injected) -> io::Result<()> {
        let socket = self.raw(Family::of(to), as_what)?;
        // The port of a raw socket's address means nothing, and IPv6 requires 0.
        socket.send_to(packet, &SocketAddr::new(to, 0).into()).map(|_| ())
    }

    fn ends(&self, accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)> {
        ends(accepted, peer)
    }
}

/// The client and the original destination of an accepted connection, from the kernel.
pub(super) fn ends(accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)> {
    Ok((PeerAddr::new(peer), OrigDst::new(accepted.local_addr()?)))
}

/// Begins to connect.
fn begin(socket: Socket, to: SocketAddr) -> Result<Begun, DialError> {
    let failed = |source| DialError::Connect { to, source };
    connect(&socket, to)?;
    let stream = TcpStream::from_std(socket.into()).map_err(failed)?;
    let local = stream.local_addr().map_err(failed)?;
    Ok(Begun { stream, local })
}

fn connect(socket: &Socket, to: SocketAddr) -> Result<(), DialError> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
            Err(DialError::Connect { to, source: error })
        }
        _ => Ok(()),
    }
}
