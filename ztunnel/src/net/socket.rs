//! Socket options that the standard libraries lack, and the options for each kind of socket.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::model::addr::{LISTENER_V4, LISTENER_V6};

const SO_NETNS_COOKIE: libc::c_int = 71;
const IPV6_TRANSPARENT: libc::c_int = 75;
const SIOCATMARK: libc::c_int = 0x8905;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn domain(self) -> Domain {
        match self {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        }
    }
}

/// The time after which a silent peer is given up: after `idle`, `probes` probes are sent, with `interval` between them.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Number of unanswered probes.
    pub probes: u32,
}

/// A non-blocking TCP socket.
///
/// # Errors
/// As `socket(2)`.
pub fn tcp(family: Family) -> io::Result<Socket> {
    Socket::new(family.domain(), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// A non-blocking socket for packets with all headers. It receives nothing.
///
/// # Errors
/// As `socket(2)`: CAP_NET_RAW is missing.
pub fn raw(family: Family) -> io::Result<Socket> {
    // For this protocol the kernel takes the IP header from the caller, in both families.
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    Socket::new(family.domain(), Type::RAW.nonblocking().cloexec(), Some(protocol))
}

/// Has a connect fail with an ICMP error that arrives while the socket is in use: without this IPv6 keeps the error until the next
/// SYN has no answer, a second later.
pub fn set_receive_errors_v6(socket: &impl AsFd, wanted: bool) {
    // A kernel that refuses delays such errors.
    let _kept = set_int(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_RECVERR, wanted.into());
}

/// A listener that accepts connections to any address, if packets are steered to it.
///
/// It is bound to an address that no packet carries, and to a port that the kernel chooses. It takes no port from the pod's
/// applications, and nobody can connect to it directly.
///
/// # Errors
/// As `socket(2)`, `setsockopt(2)` (`IP_TRANSPARENT` needs CAP_NET_ADMIN), `bind(2)`, `listen(2)`.
pub fn steered_listener(family: Family, options: ListenOptions) -> io::Result<std::net::TcpListener> {
    let socket = tcp(family)?;
    set_transparent(&socket, family)?;
    // An accepted socket holds the port that its client requested. An application must still be able to bind this port.
    socket.set_reuse_address(true)?;
    let unreachable: IpAddr = match family {
        Family::V4 => LISTENER_V4.into(),
        Family::V6 => {
            socket.set_only_v6(true)?;
            LISTENER_V6.into()
        }
    };
    listen(socket, SocketAddr::new(unreachable, 0), options)
}

/// The options of a pod's listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Keepalive of accepted connections.
    pub keepalive: Keepalive,
    /// Whether the clients are in this kernel.
    pub is_local: bool,
    /// The maximum number of connections that wait to be accepted.
    pub backlog: i32,
}

/// Listens. All options are set before, because accepted connections inherit them. A connection may arrive as soon as the
/// socket listens, before it is served.
///
/// # Errors
/// As `setsockopt(2)`, `bind(2)`, `listen(2)`.
pub fn listen(socket: Socket, at: SocketAddr, options: ListenOptions) -> io::Result<std::net::TcpListener> {
    // A connection that nobody accepts is reset as well.
    socket.set_linger(Some(Duration::ZERO))?;
    set_data_options(&socket, options.keepalive)?;
    keep_urgent_data(&socket)?;
    if options.is_local {
        set_local(&socket);
    }
    socket.bind(&at.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// Allows the socket to use addresses that do not belong to the machine.
///
/// # Errors
/// As `setsockopt(2)`: CAP_NET_ADMIN or CAP_NET_RAW is missing.
pub fn set_transparent(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => set_int(socket.as_fd(), libc::SOL_IPV6, IPV6_TRANSPARENT, 1),
    }
}

/// Delays the choice of the port until connect, when the whole tuple is known (`IP_BIND_ADDRESS_NO_PORT`, both families).
///
/// # Errors
/// As `setsockopt(2)`.
pub fn bind_without_port(socket: &Socket) -> io::Result<()> {
    set_int(socket.as_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// The options of every data socket whose other end is on another machine: no delay for small writes, and keepalive. Accepted
/// sockets inherit them from their listener.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_data_options(socket: &impl AsFd, keepalive: Keepalive) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let settings =
        TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval).with_retries(keepalive.probes);
    socket.set_tcp_keepalive(&settings)
}

/// Keeps urgent data among the other bytes (`SO_OOBINLINE`), where it is read like them. The daemon does not read out-of-band
/// data, so urgent data would be lost otherwise. Accepted sockets inherit the option from their listener.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn keep_urgent_data(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_out_of_band_inline(true)
}

/// Whether the next byte is urgent: a read stops before it, even if more bytes follow.
pub fn is_at_urgent(socket: &impl AsFd) -> bool {
    nix::ioctl_read_bad!(siocatmark, SIOCATMARK, libc::c_int);
    let mut is_at_mark: libc::c_int = 0;
    // SAFETY: the request writes one c_int to the pointer, which is to a live one.
    let asked = unsafe { siocatmark(socket.as_fd().as_raw_fd(), &raw mut is_at_mark) };
    asked.is_ok() && is_at_mark != 0
}

/// For a connection that stays in this kernel: congestion control has no use there, and the pacing of BBR, if the machine uses
/// it, costs a tenth of the time of a copy.
pub fn set_local(socket: &impl AsFd) {
    // Every kernel has it. If it is refused, the machine's default works as well.
    let _kept = SockRef::from(socket).set_tcp_congestion(b"reno");
}

/// Sets the size of a socket's buffers, which otherwise grow with the traffic up to several MiB each.
pub fn bound_buffers(socket: &impl AsFd, bytes: usize) {
    let socket = SockRef::from(socket);
    // A kernel that refuses chooses the sizes itself.
    let _receive = socket.set_recv_buffer_size(bytes);
    let _send = socket.set_send_buffer_size(bytes);
}

/// Makes the next close a reset.
pub fn reset_on_close(socket: &impl AsFd) {
    // A socket that the peer has already reset refuses the option, and does not need it any more.
    let _already_gone = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Makes the next close an orderly close again.
pub fn finish_on_close(socket: &impl AsFd) {
    // As in `reset_on_close`.
    let _already_gone = SockRef::from(socket).set_linger(None);
}

/// The number of written bytes that the peer has not acknowledged yet.
///
/// # Errors
/// As `ioctl(2)`.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one c_int to the pointer, which is to a live one.
    unsafe { siocoutq(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Whether a connection waits at a listener to be accepted.
pub fn has_waiting(listener: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    // What can't be told holds nobody up.
    let asked = poll(&mut polled, PollTimeout::ZERO).is_ok();
    let [polled] = polled;
    // One that somebody has closed is ready for ever.
    let is_open = |ready: PollFlags| !ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL);
    asked && polled.revents().is_some_and(|ready| ready.contains(PollFlags::POLLIN) && is_open(ready))
}

/// The cookie of this thread's current network namespace.
///
/// # Errors
/// As `socket(2)`, `getsockopt(2)`: kernels before 5.14 do not have the option.
pub fn netns_cookie() -> io::Result<u64> {
    // Not an IP socket, because a namespace may lack an address family.
    let socket = Socket::new(Domain::UNIX, Type::DGRAM.cloexec(), None)?;
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the pointer, which is to a live u64 of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn set_int(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as given from the pointer, which is to a live c_int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use socket2::SockRef;

    use super::{Family, Keepalive, ListenOptions, listen, tcp};

    #[test]
    fn what_is_accepted_has_the_options_of_its_listener() {
        let keepalive = Keepalive { idle: Duration::from_secs(61), interval: Duration::from_secs(11), probes: 7 };
        let options = ListenOptions { keepalive, is_local: true, backlog: 1 };
        let listener = listen(tcp(Family::V4).unwrap(), "127.0.0.1:0".parse().unwrap(), options).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), keepalive.idle);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), keepalive.probes);
        assert_eq!(accepted.linger().unwrap(), Some(Duration::ZERO));
        assert!(accepted.tcp_congestion().unwrap().starts_with(b"reno"));
    }
}
