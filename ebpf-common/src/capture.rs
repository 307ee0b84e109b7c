//! Which destinations of an enrolled pod are captured: one decision for the connect hook and for `explain`.

use crate::{Addr, Verdict, stays_on_link};

/// Facts that the decision needs about the pod that connects. The hook takes them from its maps, `explain` from the
/// mesh.
pub trait Exceptions {
    /// Whether the address is one of the pod's own.
    fn is_own(&self, addr: &Addr) -> bool;
    /// Whether the pod excludes connections to this port, in host order.
    fn excludes_port(&self, port: u16) -> bool;
    /// Whether the pod excludes connections to this address.
    fn excludes_addr(&self, addr: &Addr) -> bool;
}

/// Whether a connection is captured, or why it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capture {
    /// The connection goes to the daemon.
    Captured,
    /// The connection stays in the pod or on its link; see [`stays_on_link`].
    OnLink,
    /// The pod connects to an address of its own.
    Own,
    /// The pod excludes the port.
    ExcludedPort,
    /// The pod excludes the address.
    ExcludedAddr,
}

impl Capture {
    /// Decides about a connection of a pod whose outbound traffic is captured.
    #[inline(always)]
    #[must_use]
    pub fn of(addr: &Addr, port: u16, pod: &impl Exceptions) -> Self {
        if stays_on_link(addr) {
            return Self::OnLink;
        }
        if pod.is_own(addr) {
            return Self::Own;
        }
        if pod.excludes_port(port) {
            return Self::ExcludedPort;
        }
        if pod.excludes_addr(addr) {
            return Self::ExcludedAddr;
        }
        Self::Captured
    }

    /// The verdict under which the hook counts the decision.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Captured => Verdict::Captured,
            Self::OnLink | Self::Own => Verdict::Local,
            Self::ExcludedPort | Self::ExcludedAddr => Verdict::ExcludedOutbound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Capture, Exceptions};
    use crate::{Addr, Verdict, map_addr};

    /// A pod with the addresses 10.0.0.1 and fd00::1 that excludes port 443 and two addresses.
    struct Pod;

    impl Exceptions for Pod {
        fn is_own(&self, addr: &Addr) -> bool {
            ["10.0.0.1", "fd00::1"].iter().any(|own| map_addr(own.parse().unwrap()) == *addr)
        }

        fn excludes_port(&self, port: u16) -> bool {
            port == 443
        }

        fn excludes_addr(&self, addr: &Addr) -> bool {
            ["10.9.9.9", "fd00::9"].iter().any(|excluded| map_addr(excluded.parse().unwrap()) == *addr)
        }
    }

    #[test]
    fn every_reason_has_its_verdict_and_the_first_one_counts() {
        let table = [
            ("10.0.0.2", 80, Capture::Captured, Verdict::Captured),
            ("fd00::2", 80, Capture::Captured, Verdict::Captured),
            ("127.0.0.1", 443, Capture::OnLink, Verdict::Local),
            ("0.0.0.0", 80, Capture::OnLink, Verdict::Local),
            ("::", 80, Capture::OnLink, Verdict::Local),
            ("fe80::2", 80, Capture::OnLink, Verdict::Local),
            ("::ffff:127.0.0.1", 80, Capture::OnLink, Verdict::Local),
            ("10.0.0.1", 443, Capture::Own, Verdict::Local),
            ("fd00::1", 80, Capture::Own, Verdict::Local),
            ("10.0.0.2", 443, Capture::ExcludedPort, Verdict::ExcludedOutbound),
            ("10.9.9.9", 443, Capture::ExcludedPort, Verdict::ExcludedOutbound),
            ("10.9.9.9", 80, Capture::ExcludedAddr, Verdict::ExcludedOutbound),
            ("fd00::9", 80, Capture::ExcludedAddr, Verdict::ExcludedOutbound),
        ];
        for (addr, port, capture, verdict) in table {
            let found = Capture::of(&map_addr(addr.parse().unwrap()), port, &Pod);
            assert_eq!((found, found.verdict()), (capture, verdict), "{addr} {port}");
        }
    }
}
