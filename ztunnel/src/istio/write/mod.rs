//! From the [`model`](crate::model) to a control plane's resources: the other direction of [`read`](super::read). Pure.

mod detail;
mod object;
mod policy;
mod service;
mod settings;
mod workload;

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;

pub use self::object::{authentication_object, authorization_object, hidden_service};
pub use self::policy::policy;
pub use self::service::service;
pub use self::settings::settings;
pub use self::workload::{uid, workload, workload_as};
use super::discovery::Resource;
use super::standard::Any;
use super::workload::{Destination, GatewayAddress, NamespacedHostname, NetworkAddress};
use crate::model::gateway::{Gateway, GatewayLocation};

/// The context in which resources are written.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The cluster of its workloads.
    pub cluster: &'a str,
    /// The network of its addresses.
    pub network: &'a str,
}

/// A resource without a version.
fn resource(name: String, type_url: &str, message: &impl Message) -> Resource {
    let resource = Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() };
    Resource { name, resource: Some(resource), ..Resource::default() }
}

fn bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

fn range(network: &str, range: &IpNet) -> NetworkAddress {
    let length = Some(range.prefix_len().into());
    NetworkAddress { network: network.to_owned(), address: bytes(range.network()), length }
}

fn gateway(gateway: &Gateway) -> GatewayAddress {
    let destination = match &gateway.place {
        GatewayLocation::Hostname { namespace, hostname } => Destination::Hostname(NamespacedHostname {
            namespace: namespace.to_string(),
            hostname: hostname.to_string(),
        }),
        GatewayLocation::Address { network, address } => Destination::Address(NetworkAddress {
            network: network.to_string(),
            address: bytes(*address),
            length: None,
        }),
    };
    GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.port.into() }
}
