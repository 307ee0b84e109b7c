//! One type per meaning of an address. IPv4-mapped IPv6 addresses become IPv4 here, once, and nowhere else.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The address to which the daemon's listeners in pods are bound: the dummy address of RFC 7600. No packet carries it, so only
/// steering leads to these listeners.
pub const LISTENER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The same for IPv6, from the discard prefix of RFC 6666.
pub const LISTENER_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// Converts `::ffff:a.b.c.d` to IPv4. Scope and flow info of IPv6 addresses stay.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(SocketAddr);

        impl $name {
            /// From an address as the kernel gives it.
            #[must_use]
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address and port.
            #[must_use]
            pub fn socket(self) -> SocketAddr {
                self.0
            }

            /// The address alone.
            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// The original destination of a captured connection, from `getsockname`.
    OrigDst
}

address! {
    /// The socket that connected, from `getpeername` of an accepted connection.
    PeerAddr
}

/// Whether an address is IPv6 link-local (`fe80::/10`). It is valid on one link only, so TCP to it is not carried.
#[must_use]
pub fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether an address is an address of the daemon's listeners.
#[must_use]
pub fn is_listener(ip: IpAddr) -> bool {
    ip == IpAddr::V4(LISTENER_V4) || ip == IpAddr::V6(LISTENER_V6)
}

#[cfg(test)]
mod tests {
    use super::{OrigDst, is_link_local_v6};

    #[test]
    fn mapped_addresses_become_ipv4() {
        let dst = OrigDst::new("[::ffff:10.0.0.1]:80".parse().unwrap());
        assert_eq!(dst.to_string(), "10.0.0.1:80");
        let dst = OrigDst::new("[fd00::1]:80".parse().unwrap());
        assert_eq!(dst.to_string(), "[fd00::1]:80");
    }

    #[test]
    fn link_local_is_fe80_10() {
        assert!(is_link_local_v6("fe80::1".parse().unwrap()) && is_link_local_v6("febf::1".parse().unwrap()));
        assert!(!is_link_local_v6("fec0::1".parse().unwrap()) && !is_link_local_v6("169.254.0.1".parse().unwrap()));
    }
}
