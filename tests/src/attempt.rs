//! A connect as an application makes it: the ways to connect, how the attempt ends, and the comparison of two attempts.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt};
use socket2::{Protocol, Socket};

use crate::apps::client::exchange;
use crate::topology::{Family, Pod};
use crate::wait;

/// Shorter than the kernel's first retransmission of a SYN (1 s): an attempt that ends earlier needed none.
pub const AT_ONCE: Duration = Duration::from_millis(900);

/// The error numbers that say that no packet gets to the destination.
pub const UNREACHABLE: [i32; 2] = [libc::EHOSTUNREACH, libc::ENETUNREACH];

/// The errors of routes whose reason no ICMP message carries: `prohibit` and `blackhole`.
const ONLY_FROM_A_ROUTE: [i32; 2] = [libc::EACCES, libc::EINVAL];

/// The longest time of a connect: longer than the kernel looks twice for a neighbour that is missing.
const DEADLINE: Duration = Duration::from_secs(12);

/// The bytes that an attempt exchanges with an echo server.
const HELLO: &[u8] = b"hello";

/// Every listener accepts Fast Open, and the first packet may carry data without a cookie: the least restricted form.
const FAST_OPEN_EVERYWHERE: &str = "1543";

/// A way to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A blocking connect.
    Blocking,
    /// A non-blocking connect, and a poll.
    NonBlocking,
    /// From a socket that is bound to the pod's address.
    FromAddress,
    /// From a socket that is bound to the pod's device.
    FromDevice,
    /// An IPv6 socket, also for an IPv4 destination.
    DualStack,
    /// Fast Open by `TCP_FASTOPEN_CONNECT` and a write.
    FastOpen,
    /// Fast Open by `MSG_FASTOPEN`: connect and first data in one call.
    FastOpenSend,
    /// Multipath TCP.
    Multipath,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The connect succeeded and bytes came back.
    Exchanged,
    /// The connect failed with this error number.
    Failed(i32),
    /// The connect succeeded, but the exchange failed.
    Broken(String),
}

/// An attempt to connect and exchange bytes, and how it ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The way.
    pub way: Way,
    /// The destination.
    pub target: SocketAddr,
    /// How it ended.
    pub end: End,
    /// The time of the connect alone.
    pub took: Duration,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 8] = [
        Self::Blocking,
        Self::NonBlocking,
        Self::FromAddress,
        Self::FromDevice,
        Self::DualStack,
        Self::FastOpen,
        Self::FastOpenSend,
        Self::Multipath,
    ];

    /// Connects, exchanges a few bytes with the echo server at the destination, if the connect succeeds, and closes. Every
    /// step has a deadline. A connect beyond its deadline fails with EINPROGRESS.
    ///
    /// # Errors
    /// When the attempt can't be made; its own failure is its [`End`].
    pub fn attempt(self, pod: &Pod, target: SocketAddr) -> Result<Attempt> {
        let socket = self.socket(pod, target).with_context(|| format!("{self:?} to {target}"))?;
        let begin = Instant::now();
        let connected = self.connect(&socket, target);
        let took = begin.elapsed();
        let end = match connected {
            Ok(sent) => match talk(socket.into(), sent) {
                Ok(()) => End::Exchanged,
                Err(error) => End::Broken(error.to_string()),
            },
            Err(error) => End::Failed(error.raw_os_error().with_context(|| format!("{self:?} to {target}: {error}"))?),
        };
        Ok(Attempt { way: self, target, end, took })
    }

    fn socket(self, pod: &Pod, target: SocketAddr) -> Result<Socket> {
        let family = Family::of(target);
        let socket = match self {
            Self::DualStack => pod.socket(Family::V6)?,
            Self::Multipath => pod.socket_of(family, Protocol::MPTCP).context("the kernel has no MPTCP")?,
            _ => pod.socket(family)?,
        };
        socket.set_write_timeout(Some(DEADLINE))?;
        match self {
            Self::NonBlocking => socket.set_nonblocking(true)?,
            Self::FromAddress => socket.bind(&pod.at(family, 0).into())?,
            Self::FromDevice => socket.bind_device(Some(b"eth0"))?,
            Self::FastOpen => setsockopt(&socket, TcpFastOpenConnect, &true)?,
            Self::Blocking | Self::DualStack | Self::FastOpenSend | Self::Multipath => (),
        }
        Ok(socket)
    }

    /// Connects; returns how many bytes of [`HELLO`] it has sent.
    fn connect(self, socket: &Socket, target: SocketAddr) -> io::Result<usize> {
        match self {
            Self::NonBlocking => {
                let begun = socket.connect(&target.into());
                if !begun.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)) {
                    return Err(begun.err().unwrap_or_else(|| io::Error::other("it connected without a delay")));
                }
                let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                let patience = PollTimeout::try_from(DEADLINE).map_err(io::Error::other)?;
                if poll(&mut polled, patience)? == 0 {
                    return Err(io::Error::from_raw_os_error(libc::EINPROGRESS));
                }
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                socket.set_nonblocking(false)?;
                Ok(0)
            }
            Self::FastOpen => {
                socket.connect(&target.into())?;
                // Where the first packet may carry data, the connect only begins with the write.
                socket.send(HELLO)
            }
            Self::FastOpenSend => {
                let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
                Ok(sendto(socket.as_raw_fd(), HELLO, &SockaddrStorage::from(target), flags)?)
            }
            Self::DualStack => socket.connect(&mapped(target).into()).map(|()| 0),
            Self::Blocking | Self::FromAddress | Self::FromDevice | Self::Multipath => {
                socket.connect(&target.into()).map(|()| 0)
            }
        }
    }
}

/// Allows Fast Open in its least restricted form in a pod.
///
/// # Errors
/// When the kernel has no such setting.
pub fn allow_fast_open(pod: &Pod) -> Result<()> {
    pod.netns.sysctl("ipv4/tcp_fastopen", FAST_OPEN_EVERYWHERE)
}

impl Attempt {
    /// Checks that this attempt ended as an attempt without the mesh did, and not later (beyond `slack`).
    ///
    /// Two things no packet can tell an application: the errors of `prohibit` and `blackhole` routes, for which the
    /// destination is unreachable; and, on a socket that is bound to a device, the reason in an ICMPv6 message that does not
    /// come over that device, for which the connect is refused.
    ///
    /// # Errors
    /// When it did not.
    pub fn same_as(&self, without: &Self, slack: Duration) -> Result<()> {
        let is_v6_on_device = self.way == Way::FromDevice && self.target.is_ipv6();
        let same = match (&without.end, &self.end) {
            (without, with) if without == with => true,
            (End::Failed(without), End::Failed(with)) => {
                let from_a_route = ONLY_FROM_A_ROUTE.contains(without);
                let is_unreachable = from_a_route || UNREACHABLE.contains(without);
                from_a_route && UNREACHABLE.contains(with)
                    || is_v6_on_device && is_unreachable && *with == libc::ECONNREFUSED
            }
            _ => false,
        };
        ensure!(same, "without the mesh: {without:?}, with it: {self:?}");
        ensure!(self.took <= without.took + slack, "later than without the mesh ({without:?}): {self:?}");
        Ok(())
    }
}

fn talk(mut stream: TcpStream, sent: usize) -> io::Result<()> {
    stream.write_all(HELLO.get(sent..).unwrap_or_default())?;
    let mut answer = [0; HELLO.len()];
    stream.read_exact(&mut answer)?;
    if answer == HELLO { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

fn mapped(target: SocketAddr) -> SocketAddr {
    match target.ip() {
        IpAddr::V4(v4) => SocketAddrV6::new(v4.to_ipv6_mapped(), target.port(), 0, 0).into(),
        IpAddr::V6(_) => target,
    }
}

/// A non-blocking connect, from a port of the caller's choice.
#[derive(Debug)]
pub struct Pending {
    socket: Socket,
    own: SocketAddr,
    target: SocketAddr,
    begin: Instant,
    /// The socket tells its error once.
    failed: Cell<Option<i32>>,
}

impl Pending {
    /// Starts it. The socket is closed with a reset, so that its port is free at once.
    ///
    /// # Errors
    /// When the port is in use, or when the connect ends at once.
    pub fn start(pod: &Pod, port: u16, target: SocketAddr) -> Result<Self> {
        let family = Family::of(target);
        let socket = pod.socket(family)?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::new(family.any(), port).into())?;
        socket.set_nonblocking(true)?;
        let begin = Instant::now();
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                Ok(Self { socket, own: pod.at(family, port), target, begin, failed: Cell::new(None) })
            }
            other => bail!("a non-blocking connect from port {port} to {target} gave {other:?}"),
        }
    }

    /// The address of the socket.
    #[must_use]
    pub fn own(&self) -> SocketAddr {
        self.own
    }

    /// Sets the socket's mark.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mark(&self, mark: u32) -> Result<()> {
        Ok(self.socket.set_mark(mark)?)
    }

    /// The answer so far: connected, or an error number.
    ///
    /// # Errors
    /// When the socket can't be asked.
    pub fn answer(&self) -> Result<Option<Result<(), i32>>> {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut polled, PollTimeout::ZERO)? == 0 {
            return Ok(None);
        }
        if let Some(error) = self.socket.take_error()? {
            self.failed.set(Some(error.raw_os_error().context("an error without a number")?));
        }
        Ok(Some(self.failed.get().map_or(Ok(()), Err)))
    }

    /// Checks that there is no answer yet.
    ///
    /// # Errors
    /// When there is one.
    pub fn is_unanswered(&self) -> Result<()> {
        let answer = self.answer()?;
        ensure!(answer.is_none(), "{} -> {} is answered after {:?}: {answer:?}", self.own, self.target, self.age());
        Ok(())
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn answered(&self, patience: Duration) -> Result<Result<(), i32>> {
        wait::until(&format!("an answer to {} -> {}", self.own, self.target), patience, || self.answer())
    }

    /// Waits until it is connected, and exchanges bytes with the echo server.
    ///
    /// # Errors
    /// When the connect or the exchange fails.
    pub fn exchanges(self, patience: Duration) -> Result<TcpStream> {
        let answer = self.answered(patience)?;
        let (own, target) = (self.own, self.target);
        ensure!(answer.is_ok(), "{own} -> {target} failed after {:?}: {answer:?}", self.begin.elapsed());
        self.socket.set_nonblocking(false)?;
        let mut stream = TcpStream::from(self.socket);
        exchange(&mut stream, HELLO).with_context(|| format!("{own} -> {target} is connected, but"))?;
        Ok(stream)
    }

    /// The time since its start.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }
}
