//! `ambient.mesh.v1`: messages of this project's control plane that complement Istio's, so that a daemon of this
//! project has the same mesh as with a folder of manifests. They add labels, named ports, policies as they were
//! written, AUDIT policies, and the origin of policies.
//!
//! Details of workloads and services are in an [`Extension`], which Istio's ztunnel skips. Objects for which Istio has
//! no message are resources of a type of their own, which [`object`](super::object) describes.
//! [`Settings::detail`](super::settings::Settings::detail) announces these messages. A daemon that does not know their
//! format uses only Istio's messages: its access decisions are the same, and its reasons have less detail.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message};

use super::standard::Any;
use super::workload::{BalancingScope, Extension, Locality};

/// The format of all messages in this file and of [`object`](super::object). It is incremented when an older daemon would misread a message, or would
/// miss a restriction in it.
pub const FORMAT: u32 = 1;

/// A message that is sent in an [`Extension`].
pub trait Extending: Message + Default {
    /// The name of the extension; it is also the name of the message.
    const NAME: &'static str;

    /// The extension.
    fn extension(&self) -> Extension {
        let type_url = format!("type.googleapis.com/{}", Self::NAME);
        let config = Any { type_url, value: self.encode_to_vec().into() };
        Extension { name: Self::NAME.to_owned(), config: Some(config) }
    }

    /// Finds the message among the extensions.
    ///
    /// # Errors
    /// The message cannot be decoded.
    fn find(extensions: &[Extension]) -> Result<Option<Self>, prost::DecodeError> {
        let found = extensions.iter().find(|extension| extension.name == Self::NAME);
        let config = found.and_then(|extension| extension.config.as_ref());
        config.map(|config| Self::decode(Bytes::clone(&config.value))).transpose()
    }
}

/// Fields of a workload that Istio's message lacks.
#[derive(Clone, PartialEq, Message)]
pub struct WorkloadDetail {
    /// `metadata.uid`.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    /// Named TCP ports.
    #[prost(message, repeated, tag = "3")]
    pub ports: Vec<NamedPort>,
    /// Addresses of the workload's node, 4 or 16 bytes each.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub node_addresses: Vec<Bytes>,
    /// Whether the workload is in the mesh, or why not.
    #[prost(enumeration = "Membership", tag = "5")]
    pub membership: i32,
    /// The workload is described by a WorkloadEntry.
    #[prost(bool, tag = "6")]
    pub is_entry: bool,
    /// The workload is being deleted, or its node no longer reports.
    #[prost(bool, tag = "7")]
    pub leaving: bool,
    /// The workload takes connections. The status in Istio's message is that of its endpoints.
    #[prost(bool, tag = "8")]
    pub ready: bool,
    /// The message is not a workload: it stands for an endpoint of a service.
    #[prost(bool, tag = "9")]
    pub is_endpoint: bool,
    /// The position of this endpoint among several endpoints of a service at one address.
    #[prost(uint32, tag = "10")]
    pub place: u32,
    /// Endpoints that differ from Istio's message, by service.
    #[prost(message, repeated, tag = "11")]
    pub endpoints: Vec<Endpoints>,
}

/// Fields of a service that Istio's message lacks.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceDetail {
    /// Kind of the object.
    #[prost(enumeration = "ServiceKind", tag = "1")]
    pub kind: i32,
    /// How the service is addressed.
    #[prost(enumeration = "Addressing", tag = "2")]
    pub addressing: i32,
    /// The host of which the service is an alias.
    #[prost(string, tag = "3")]
    pub alias: String,
    /// Further addresses that lead to the service.
    #[prost(message, repeated, tag = "4")]
    pub external: Vec<ExternalAddress>,
    /// Ports, with their names.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<ServicePort>,
    /// The labels that select the pods behind the service.
    #[prost(btree_map = "string, string", tag = "6")]
    pub selector: BTreeMap<String, String>,
    /// The service's endpoints may have IPv4 addresses.
    #[prost(bool, tag = "7")]
    pub v4: bool,
    /// The service's endpoints may have IPv6 addresses.
    #[prost(bool, tag = "8")]
    pub v6: bool,
    /// All connections of a client go to one endpoint.
    #[prost(bool, tag = "9")]
    pub is_sticky: bool,
    /// The namespaces whose pods see the service; absent: all.
    #[prost(message, optional, tag = "10")]
    pub visible_to: Option<Namespaces>,
    /// How strongly near endpoints are preferred.
    #[prost(enumeration = "Distribution", tag = "11")]
    pub distribution: i32,
    /// The scopes in which an endpoint can be near.
    #[prost(enumeration = "BalancingScope", repeated, tag = "12")]
    pub scopes: Vec<i32>,
    /// Connections go to their original destination address.
    #[prost(bool, tag = "13")]
    pub passthrough: bool,
    /// Endpoints for which no message of a workload exists.
    #[prost(message, repeated, tag = "14")]
    pub endpoints: Vec<Endpoint>,
}

impl Extending for WorkloadDetail {
    const NAME: &'static str = "ambient.mesh.v1.WorkloadDetail";
}

impl Extending for ServiceDetail {
    const NAME: &'static str = "ambient.mesh.v1.ServiceDetail";
}

/// A TCP port with a name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamedPort {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The number.
    #[prost(uint32, tag = "2")]
    pub number: u32,
}

/// The endpoints of a service that one workload provides.
#[derive(Clone, PartialEq, Message)]
pub struct Endpoints {
    /// `NAMESPACE/HOSTNAME`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The endpoints.
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a service.
#[derive(Clone, PartialEq, Message)]
pub struct Endpoint {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// The service's ports, and the endpoint's port for each.
    #[prost(btree_map = "uint32, uint32", tag = "2")]
    pub ports: BTreeMap<u32, u32>,
    /// Whether the endpoint takes connections.
    #[prost(enumeration = "Health", tag = "3")]
    pub health: i32,
    /// Its weight.
    #[prost(uint32, tag = "4")]
    pub weight: u32,
    /// The node on which it runs.
    #[prost(string, tag = "5")]
    pub node: String,
    /// The locality of that node.
    #[prost(message, optional, tag = "6")]
    pub locality: Option<Locality>,
    /// The workload that has the address.
    #[prost(message, optional, tag = "7")]
    pub workload: Option<Name>,
}

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Name {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The name.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// A further address of a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExternalAddress {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// The address applies to pods of all namespaces.
    #[prost(bool, tag = "2")]
    pub leads_everyone: bool,
}

/// A port of a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ServicePort {
    /// Its name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// The number that clients use.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Number of the workload's port; 0: the port is given by name.
    #[prost(uint32, tag = "3")]
    pub target_port: u32,
    /// Name of the workload's port.
    #[prost(string, tag = "4")]
    pub target_name: String,
}

/// Some namespaces.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Namespaces {
    /// Their names.
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
}

/// Whether the mesh carries a workload's traffic, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Membership {
    /// The mesh carries it.
    InMesh = 0,
    /// Neither the pod nor its namespace has the label.
    NotLabelled = 1,
    /// The pod's own label says `none`.
    OptedOut = 2,
    /// The pod has ended.
    Finished = 3,
    /// The pod uses the network namespace of its node.
    HostNetwork = 4,
    /// The pod has no usable address.
    NoAddress = 5,
    /// The pod has a sidecar of Istio.
    SidecarIstio = 6,
    /// The pod has a sidecar of Linkerd.
    SidecarLinkerd = 7,
    /// The pod has a sidecar of Kuma.
    SidecarKuma = 8,
    /// The pod has a sidecar of Consul.
    SidecarConsul = 9,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Health {
    /// It takes connections.
    Ready = 0,
    /// It is terminating and still takes connections.
    Draining = 1,
    /// It does not take connections.
    Unready = 2,
}

/// Kind of the object of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum ServiceKind {
    /// A Service of Kubernetes.
    Kubernetes = 0,
    /// A ServiceEntry.
    Entry = 1,
}

/// How a service is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Addressing {
    /// By the given addresses.
    Given = 0,
    /// It has no address.
    Headless = 1,
    /// It has addresses that are not known.
    Unknown = 2,
    /// It is an alias of a host.
    Alias = 3,
}

/// The preference of a client among endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Distribution {
    /// No preference.
    Any = 0,
    /// The nearest endpoints first.
    Prefer = 1,
    /// Only near endpoints.
    Require = 2,
}
