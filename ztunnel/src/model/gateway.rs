//! Where a gateway or a waypoint is: someone in the mesh whom connections pass through on their way.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A gateway or waypoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// Where it is.
    pub place: GatewayLocation,
    /// The port of its tunnels.
    pub port: u16,
}

/// Where a gateway is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayLocation {
    /// At a service or workload of this host name.
    Hostname {
        /// The namespace that knows the host name.
        namespace: Arc<str>,
        /// The host name.
        hostname: Arc<str>,
    },
    /// At an address.
    Address {
        /// The network that the address belongs to; empty is the default one.
        network: Arc<str>,
        /// The address, canonical.
        address: IpAddr,
    },
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            GatewayLocation::Hostname { namespace, hostname } => write!(f, "{namespace}/{hostname}"),
            GatewayLocation::Address { network, address } if network.is_empty() => write!(f, "{address}"),
            GatewayLocation::Address { network, address } => write!(f, "{network}/{address}"),
        }
    }
}
