//! The location of a gateway or a waypoint, through which connections pass.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A gateway or waypoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// Its location.
    pub place: GatewayLocation,
    /// Its port for HBONE.
    pub port: u16,
}

/// The location of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayLocation {
    /// At a service or workload of this host name.
    Hostname {
        /// The namespace from which the host name is resolved.
        namespace: Arc<str>,
        /// The host name.
        hostname: Arc<str>,
    },
    /// At an address.
    Address {
        /// The network of the address; the default network is empty.
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
