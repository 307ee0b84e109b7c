//! The agreement between the node daemon and its BPF programs: marks, map keys and values, verdicts, and which
//! destinations are captured.
//!
//! Every type that is exchanged between kernel and daemon is `repr(C)`, has no padding (asserted below) and is defined
//! only here. Raise [`LAYOUT`] whenever such a type changes: pins of another layout are never adopted.
#![no_std]

pub mod capture;

use core::net::IpAddr;

/// Version of everything in this crate; part of the pin path (`<pin dir>/v<LAYOUT>`).
pub const LAYOUT: u32 = 1;

/// Socket marks. The daemon uses the upper five bits only, so that a mark that the pod itself set survives below them.
pub mod mark {
    /// The bits of a mark that belong to the daemon.
    pub const MASK: u32 = 0xf800_0000;
    /// The bits by which the routing rules select packets.
    pub const ROUTES: u32 = 0xf000_0000;
    /// Set by the connect hook: this connection goes to the daemon's outbound listener.
    pub const CAPTURE: u32 = 0x1000_0000;
    /// Set by the daemon on the sockets with which it delivers a connection to the application.
    pub const DELIVER: u32 = 0x2000_0000;
    /// Set by the daemon, besides [`CAPTURE`], on a SYN that it puts back after it has connected to the destination: the SYN
    /// is not held again. The routing rules ignore it.
    pub const INJECTED: u32 = 0x0800_0000;
    /// Set by the daemon on the sockets that leave the pod (Istio's packet mark, 1337).
    pub const UPSTREAM: u32 = 0x539;
}

/// Bytes of a held SYN that are passed to the daemon: at least the headers that an IPv6 packet with every TCP option has.
pub const HELD_BYTES: usize = 128;

/// A SYN that `hold` has taken from the network: a record of the ring buffer `HELD_SYNS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSyn {
    /// The time at which it was taken, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The offset of its TCP header in `bytes`.
    pub tcp: u32,
    /// The number of bytes: the IP header, its extension headers, and the TCP header.
    pub length: u32,
    /// The headers, from the IP header on. The rest is 0.
    pub bytes: [u8; HELD_BYTES],
}

/// The port of HBONE connections.
pub const HBONE_PORT: u16 = 15008;

/// `AF_INET`, as the BPF contexts give it.
pub const AF_INET: u32 = 2;
/// `AF_INET6`, as the BPF contexts give it.
pub const AF_INET6: u32 = 10;

/// An IP address in the maps: IPv6 in network order, IPv4 as `::ffff:a.b.c.d`.
pub type Addr = [u8; 16];

/// The form in the maps of an IPv4 address in network order.
#[inline(always)]
#[must_use]
pub const fn mapped(octets: [u8; 4]) -> Addr {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3]]
}

/// The form in the maps of an address.
#[must_use]
pub const fn map_addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Whether an address is IPv4.
#[inline(always)]
#[must_use]
pub const fn is_mapped(addr: &Addr) -> bool {
    let zeros = addr[0] | addr[1] | addr[2] | addr[3] | addr[4] | addr[5] | addr[6] | addr[7] | addr[8] | addr[9] == 0;
    zeros && addr[10] == 0xff && addr[11] == 0xff
}

/// Whether a destination never leaves the pod (loopback, unspecified) or its link (IPv6 link-local: the daemon could
/// not carry its scope to another node).
#[inline(always)]
#[must_use]
pub const fn stays_on_link(addr: &Addr) -> bool {
    let zeros = addr[0] | addr[1] | addr[2] | addr[3] | addr[4] | addr[5] | addr[6] | addr[7] | addr[8] | addr[9] == 0;
    if is_mapped(addr) {
        return addr[12] == 127 || (addr[12] | addr[13] | addr[14] | addr[15]) == 0;
    }
    let low = zeros && (addr[10] | addr[11] | addr[12] | addr[13] | addr[14]) == 0;
    (low && addr[15] <= 1) || (addr[0] == 0xfe && addr[1] & 0xc0 == 0x80)
}

/// Whether an address is a loopback address (127.0.0.0/8, `::1`).
#[inline(always)]
#[must_use]
pub const fn is_loopback(addr: &Addr) -> bool {
    stays_on_link(addr) && addr[0] != 0xfe && (addr[12] == 127 || addr[15] == 1 && addr[10] == 0)
}

/// The worker that serves connections from this client port.
///
/// The BPF program selects the listener with this function, and the daemon selects the source ports of deliveries with
/// it. If the source port of a delivery belongs to the same worker, the delivery can only collide with connections in
/// that worker's own table.
#[inline(always)]
#[must_use]
pub const fn worker_of(port: u16, workers: u32) -> u32 {
    if workers == 0 {
        return 0;
    }
    ((port as u32).wrapping_mul(0x9e37_79b1) >> 16) % workers
}

/// The kernel's facts about one enrolled pod; the value of `PODS`, keyed by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// A combination of [`Pod::CAPTURE_OUTBOUND`], [`Pod::SPEAKS_V4`] and [`Pod::SPEAKS_V6`].
    pub flags: u32,
    /// The number of workers that listen; see [`worker_of`].
    pub workers: u32,
}

impl Pod {
    /// The connect hook marks the pod's sockets.
    pub const CAPTURE_OUTBOUND: u32 = 1;
    /// The pod has an IPv4 address from which it can reach others.
    pub const SPEAKS_V4: u32 = 2;
    /// The same for IPv6.
    pub const SPEAKS_V6: u32 = 4;
}

/// Key of `LOCAL_ADDRS`: an address that the pod's netns owns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalAddr {
    /// Netns cookie.
    pub cookie: u64,
    /// The address.
    pub addr: Addr,
}

/// Key of `INTERFACES`: an interface of the pod's netns through which the capture routes lead.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Netns cookie.
    pub cookie: u64,
    /// Its index.
    pub index: u64,
}

/// The direction of a connection, from the pod's point of view.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod connects.
    Outbound = 0,
    /// Another host or pod connects to the pod.
    Inbound = 1,
}

/// Key of `EXCLUDED_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExcludedPort {
    /// Netns cookie.
    pub cookie: u64,
    /// A [`Direction`].
    pub direction: u32,
    /// The port, host order, or [`ExcludedPort::EVERY`].
    pub port: u32,
}

impl ExcludedPort {
    /// Stands for all ports. Only for [`Direction::Inbound`].
    pub const EVERY: u16 = 0;
}

/// Data of an `EXCLUDED_CIDRS` key: cookie (big endian), family and address. The cookie lets one trie serve all pods.
/// The family prevents an IPv6 prefix such as `::/0` from covering the IPv4 addresses.
pub type CidrData = [u8; 28];

/// Bits of [`CidrData`] before the address.
pub const CIDR_BITS_BEFORE: u32 = 96;

/// The trie data for a pod and an address. A prefix of n bits of the address is a prefix of [`CIDR_BITS_BEFORE`] + n
/// bits of this.
#[inline(always)]
#[must_use]
pub fn cidr_data(cookie: u64, addr: &Addr) -> CidrData {
    let mut data = [0; 28];
    let (head, rest) = data.split_at_mut(8);
    let (family, tail) = rest.split_at_mut(4);
    head.copy_from_slice(&cookie.to_be_bytes());
    family.copy_from_slice(&if is_mapped(addr) { AF_INET } else { AF_INET6 }.to_be_bytes());
    tail.copy_from_slice(addr);
    data
}

/// The purpose of a listener of the daemon in a pod.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Accepts the pod's captured connections.
    Outbound = 0,
    /// Accepts plaintext connections to the pod.
    Inbound = 1,
    /// Accepts HBONE connections to the pod.
    Hbone = 2,
}

/// Key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Netns cookie.
    pub cookie: u64,
    /// A [`Purpose`].
    pub purpose: u32,
    /// [`AF_INET`] or [`AF_INET6`]: an IPv4 packet cannot be given to a listener for IPv6 only.
    pub family: u16,
    /// The worker that owns the listener.
    pub worker: u16,
}

/// The decision of a BPF program about one connect or one packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Connect: marked, goes to the daemon.
    Captured = 0,
    /// Connect: the daemon's own socket in the pod.
    OwnSocket = 1,
    /// Connect: to loopback, the link or the pod itself.
    Local = 2,
    /// Connect: excluded by annotation.
    ExcludedOutbound = 3,
    /// Connect: the mark could not be set; the connect was refused.
    MarkFailed = 4,
    /// Packet: given to the outbound listener.
    Outbound = 5,
    /// Packet: given to the inbound listener.
    Inbound = 6,
    /// Packet: given to the HBONE listener.
    Hbone = 7,
    /// Packet: a delivery of the daemon, or loopback; passed to the application.
    Delivered = 8,
    /// Packet: the pod connects to itself; passed to the application.
    SelfCall = 9,
    /// Packet: excluded by annotation; passed to the application.
    ExcludedInbound = 10,
    /// Packet: the listener for it does not exist; dropped.
    NoListener = 11,
    /// Connect: the daemon does not listen; refused.
    NoDaemon = 12,
    /// Connect: the pod has no address of the family; refused, as the kernel would refuse it.
    NoAddress = 13,
    /// Connect: the socket is bound to a device that has no capture route (yet); refused.
    NoRoute = 14,
    /// Packet: the first packet of a connection that would have bypassed the capture on its way out, or that came from
    /// outside with a source address of the pod; dropped.
    Bypass = 15,
}

impl Verdict {
    /// Every verdict, in the order of their counters.
    pub const ALL: [Verdict; 16] = [
        Verdict::Captured,
        Verdict::OwnSocket,
        Verdict::Local,
        Verdict::ExcludedOutbound,
        Verdict::MarkFailed,
        Verdict::Outbound,
        Verdict::Inbound,
        Verdict::Hbone,
        Verdict::Delivered,
        Verdict::SelfCall,
        Verdict::ExcludedInbound,
        Verdict::NoListener,
        Verdict::NoDaemon,
        Verdict::NoAddress,
        Verdict::NoRoute,
        Verdict::Bypass,
    ];

    /// The verdict's name in metrics and dumps.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Captured => "captured",
            Verdict::OwnSocket => "own_socket",
            Verdict::Local => "local",
            Verdict::ExcludedOutbound => "excluded_outbound",
            Verdict::MarkFailed => "mark_failed",
            Verdict::Outbound => "outbound",
            Verdict::Inbound => "inbound",
            Verdict::Hbone => "hbone",
            Verdict::Delivered => "delivered",
            Verdict::SelfCall => "self_call",
            Verdict::ExcludedInbound => "excluded_inbound",
            Verdict::NoListener => "no_listener",
            Verdict::NoDaemon => "no_daemon",
            Verdict::NoAddress => "no_address",
            Verdict::NoRoute => "no_route",
            Verdict::Bypass => "bypass",
        }
    }
}

/// One CPU's counts of one pod, indexed by [`Verdict`]; the value of `VERDICTS`, keyed by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Counts by verdict.
    pub by_verdict: [u64; 16],
}

/// Names of the maps in the object, which are also the names of their pins.
pub mod maps {
    /// Netns cookie -> [`Pod`](super::Pod).
    pub const PODS: &str = "PODS";
    /// [`LocalAddr`](super::LocalAddr) -> 1.
    pub const LOCAL_ADDRS: &str = "LOCAL_ADDRS";
    /// [`Interface`](super::Interface) -> 1.
    pub const INTERFACES: &str = "INTERFACES";
    /// [`ExcludedPort`](super::ExcludedPort) -> 1.
    pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
    /// Trie over [`CidrData`](super::CidrData) -> 1.
    pub const EXCLUDED_CIDRS: &str = "EXCLUDED_CIDRS";
    /// [`Listener`](super::Listener) -> socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// Netns cookie -> [`Counts`](super::Counts) of each CPU.
    pub const VERDICTS: &str = "VERDICTS";
    /// Socket -> 1 for the daemon's own sockets.
    pub const OWN_SOCKETS: &str = "OWN_SOCKETS";
    /// Ring buffer of [`HeldSyn`](super::HeldSyn), one of each daemon for each pod. It has no pin.
    pub const HELD_SYNS: &str = "HELD_SYNS";
    /// Ring buffer of log lines.
    pub const LOGS: &str = "AYA_LOGS";
}

const _: () = {
    assert!(size_of::<Pod>() == 8);
    assert!(size_of::<LocalAddr>() == 24);
    assert!(size_of::<Interface>() == 16);
    assert!(size_of::<ExcludedPort>() == 16);
    assert!(size_of::<Listener>() == 16);
    assert!(size_of::<Counts>() == 128);
    assert!(size_of::<HeldSyn>() == 16 + HELD_BYTES);
    assert!(Verdict::ALL.len() <= 16);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each type is repr(C), Copy, without padding (asserted above) and valid for every bit pattern.
    unsafe impl aya::Pod for super::Pod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LocalAddr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ExcludedPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Listener {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counts {}
}

#[cfg(test)]
mod tests {
    use super::{is_loopback, map_addr, stays_on_link, worker_of};

    fn addr(text: &str) -> super::Addr {
        map_addr(text.parse().unwrap())
    }

    #[test]
    fn only_loopback_unspecified_and_link_local_stay() {
        for here in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "fe80::1", "febf::1", "::ffff:127.0.0.1"] {
            assert!(stays_on_link(&addr(here)), "{here}");
        }
        for away in
            ["10.0.0.1", "128.0.0.1", "169.254.169.254", "::2", "fd00::1", "fec0::1", "2001:db8::1", "::127.0.0.1"]
        {
            assert!(!stays_on_link(&addr(away)), "{away}");
        }
    }

    #[test]
    fn loopback_is_narrower() {
        assert!(is_loopback(&addr("127.0.0.1")) && is_loopback(&addr("::1")) && is_loopback(&addr("127.255.0.3")));
        for other in ["0.0.0.0", "::", "fe80::1", "10.0.0.1", "fe80::127:1", "::2"] {
            assert!(!is_loopback(&addr(other)), "{other}");
        }
    }

    #[test]
    fn workers_share_consecutive_ports_evenly() {
        for workers in 1..=8_u32 {
            let mut served = [0_u32; 8];
            for port in (32768..=60999_u16).step_by(2) {
                served[worker_of(port, workers) as usize] += 1;
            }
            let fair = 14_116 / workers;
            for count in &served[..workers as usize] {
                assert!(*count > fair * 9 / 10 && *count < fair * 11 / 10, "{workers} workers: {served:?}");
            }
        }
    }
}
