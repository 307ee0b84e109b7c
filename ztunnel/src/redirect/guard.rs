//! The guards of a pod's devices: their programs, their devices, and whether the kernel supports them.

use std::{fmt, io};

use super::{link::Interface, sys};

/// The direction of the packets that a guard examines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Out of the pod.
    Egress,
    /// Into the pod.
    Ingress,
}

/// One guard of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guard {
    /// The device's index in the pod's network namespace.
    pub device: u32,
    /// The direction of the packets.
    pub way: Way,
}

impl Guard {
    /// The guards of a device. The loopback device has none: captured packets reach the daemon over it.
    pub(super) fn of(interface: &Interface) -> impl Iterator<Item = Self> + use<> {
        let (device, loopback) = (interface.index, interface.loopback);
        [Way::Egress, Way::Ingress].into_iter().filter(move |_| !loopback).map(move |way| Self { device, way })
    }

    /// The program for a device.
    pub(super) fn program(self, ethernet: bool) -> &'static str {
        match (self.way, ethernet) {
            (Way::Egress, true) => "egress",
            (Way::Egress, false) => "egress_ip",
            (Way::Ingress, true) => "ingress",
            (Way::Ingress, false) => "ingress_ip",
        }
    }

    /// The attach point in the kernel.
    pub(super) fn place(self) -> sys::At {
        match self.way {
            Way::Egress => sys::At::TcxEgress,
            Way::Ingress => sys::At::TcxIngress,
        }
    }
}

/// Every program that [`Guard::program`] names.
pub(super) const GUARDS: [&str; 4] = ["egress", "egress_ip", "ingress", "ingress_ip"];

/// The name of the pin: `INDEX-egress`.
impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Egress => "egress",
            Way::Ingress => "ingress",
        };
        write!(f, "{}-{way}", self.device)
    }
}

/// Whether programs can be linked to devices.
///
/// # Errors
/// When they can't: before Linux 6.6, or without CONFIG_NET_XGRESS.
pub(super) fn supported() -> io::Result<()> {
    /// `lo` is the first interface of every network namespace.
    const LOOPBACK: u32 = 1;
    sys::attached_to_device(LOOPBACK, sys::At::TcxEgress).map(|_| ())
}
