//! `ambient.mesh.v1`: messages of this project's control plane that complement Istio's, so that a daemon of this
//! project has the same mesh as with a folder of manifests. They add labels, named ports, policies as they were
//! written, AUDIT policies, and the origin of policies.
//!
//! Details of workloads and services are in an [`Extension`], which Istio's ztunnel skips. Objects for which Istio has
//! no message are resources of a type of their own, [`OBJECT`](super::discovery::OBJECT).
//! [`Settings::detail`](super::settings::Settings::detail) announces these messages. A daemon that does not know their
//! format uses only Istio's messages: its decisions are the same, and its reasons have less detail.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::security;
use super::standard::{Any, Empty};
use super::workload::{BalancingScope, Extension, Locality, Service as ServiceMessage};

/// The format of all messages in this file. It is incremented when an older daemon would misread a message, or would
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

/// A resource of the type [`OBJECT`](super::discovery::OBJECT). Its name is `KIND/NAMESPACE/NAME`, or
/// `Service/NAMESPACE/HOSTNAME` for a service.
#[derive(Clone, PartialEq, Message)]
pub struct Object {
    /// The object.
    #[prost(oneof = "ObjectKind", tags = "1, 2, 3")]
    pub kind: Option<ObjectKind>,
}

/// The name of the resource of an AuthorizationPolicy.
#[must_use]
pub fn authorization_name(namespace: &str, name: &str) -> String {
    format!("AuthorizationPolicy/{namespace}/{name}")
}

/// The name of the resource of a PeerAuthentication.
#[must_use]
pub fn authentication_name(namespace: &str, name: &str) -> String {
    format!("PeerAuthentication/{namespace}/{name}")
}

/// The name of the resource of a service that clients cannot find.
#[must_use]
pub fn hidden_service_name(namespace: &str, hostname: &str) -> String {
    format!("Service/{namespace}/{hostname}")
}

/// The kinds of objects.
#[derive(Clone, PartialEq, Oneof)]
pub enum ObjectKind {
    /// An AuthorizationPolicy, as it was written.
    #[prost(message, tag = "1")]
    Authorization(AuthorizationPolicy),
    /// A PeerAuthentication.
    #[prost(message, tag = "2")]
    Authentication(PeerAuthentication),
    /// A service that clients cannot find. Policies that name it need it.
    #[prost(message, tag = "3")]
    Service(Box<ServiceMessage>),
}

/// An AuthorizationPolicy.
#[derive(Clone, PartialEq, Message)]
pub struct AuthorizationPolicy {
    /// Namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where the policy is written.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
    /// The workloads that the policy selects.
    #[prost(message, optional, tag = "4")]
    pub scope: Option<Scope>,
    /// The effect on a connection that the policy matches.
    #[prost(enumeration = "Action", tag = "5")]
    pub action: i32,
    /// The policy is not enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// The rules of the policy, with their places.
    #[prost(message, repeated, tag = "7")]
    pub rules: Vec<Rule>,
}

/// A PeerAuthentication.
#[derive(Clone, PartialEq, Message)]
pub struct PeerAuthentication {
    /// Namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where the policy is written.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
    /// Time of creation, in Unix seconds.
    #[prost(int64, optional, tag = "4")]
    pub created: Option<i64>,
    /// The workloads that the policy selects.
    #[prost(message, optional, tag = "5")]
    pub scope: Option<Scope>,
    /// Whether clients must have an identity.
    #[prost(enumeration = "Mode", tag = "6")]
    pub mode: i32,
    /// The mode for single ports of the workload.
    #[prost(btree_map = "uint32, enumeration(Mode)", tag = "7")]
    pub ports: BTreeMap<u32, i32>,
}

/// One rule of a policy.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// The clauses; all must match.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
    /// Fields that cannot be evaluated at layer 4.
    #[prost(string, repeated, tag = "2")]
    pub unjudged: Vec<String>,
}

/// One clause of a rule.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// The part of the rule.
    #[prost(enumeration = "Part", tag = "1")]
    pub part: i32,
    /// The index of the condition in `when`.
    #[prost(uint32, tag = "2")]
    pub condition: u32,
    /// The matches; any must match.
    #[prost(message, repeated, tag = "3")]
    pub matches: Vec<Match>,
}

/// The values with which a connection is compared.
#[derive(Clone, PartialEq, Message)]
pub struct Match {
    /// The fields that Istio's message has.
    #[prost(message, optional, tag = "1")]
    pub fields: Option<security::Match>,
    /// Trust domain of the client.
    #[prost(message, repeated, tag = "2")]
    pub trust_domains: Vec<security::StringMatch>,
    /// Trust domains that the client must not have.
    #[prost(message, repeated, tag = "3")]
    pub not_trust_domains: Vec<security::StringMatch>,
}

/// The place of an object in the source of the control plane.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Origin {
    /// The place.
    #[prost(oneof = "OriginPlace", tags = "1, 2, 3")]
    pub place: Option<OriginPlace>,
}

/// The kinds of a place.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum OriginPlace {
    /// A file.
    #[prost(message, tag = "1")]
    File(FilePlace),
    /// An object of the Kubernetes API.
    #[prost(message, tag = "2")]
    Object(ObjectPlace),
    /// A resource of another control plane.
    #[prost(string, tag = "3")]
    Resource(String),
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FilePlace {
    /// Name of the file, relative to the folder.
    #[prost(string, tag = "1")]
    pub file: String,
    /// Line, counted from 1.
    #[prost(uint64, optional, tag = "2")]
    pub line: Option<u64>,
}

/// An object of the Kubernetes API.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ObjectPlace {
    /// Kind.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Namespace and name.
    #[prost(message, optional, tag = "2")]
    pub name: Option<Name>,
}

/// The workloads that a policy selects.
#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    /// The kind of the scope.
    #[prost(oneof = "ScopeKind", tags = "1, 2, 3, 4")]
    pub kind: Option<ScopeKind>,
}

/// The kinds of scopes.
#[derive(Clone, PartialEq, Oneof)]
pub enum ScopeKind {
    /// All workloads.
    #[prost(message, tag = "1")]
    Mesh(Empty),
    /// The workloads of a namespace.
    #[prost(string, tag = "2")]
    Namespace(String),
    /// The workloads with these labels.
    #[prost(message, tag = "3")]
    Selector(Selector),
    /// The workloads behind any of these services.
    #[prost(message, tag = "4")]
    Services(Services),
}

/// Selects workloads by their labels.
#[derive(Clone, PartialEq, Message)]
pub struct Selector {
    /// Their namespace; absent: any.
    #[prost(string, optional, tag = "1")]
    pub namespace: Option<String>,
    /// Their labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
}

/// Some services.
#[derive(Clone, PartialEq, Message)]
pub struct Services {
    /// Their namespaces and names.
    #[prost(message, repeated, tag = "1")]
    pub names: Vec<Name>,
}

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
        #[repr(i32)]
        pub enum $name { $($(#[$of])* $variant = $number,)* }
    };
}

numbers! {
    /// Whether the mesh carries a workload's traffic, or why not.
    Membership {
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
}

numbers! {
    /// Whether an endpoint takes connections.
    Health {
        /// It takes connections.
        Ready = 0,
        /// It is terminating and still takes connections.
        Draining = 1,
        /// It does not take connections.
        Unready = 2,
    }
}

numbers! {
    /// Kind of the object of a service.
    ServiceKind {
        /// A Service of Kubernetes.
        Kubernetes = 0,
        /// A ServiceEntry.
        Entry = 1,
    }
}

numbers! {
    /// How a service is addressed.
    Addressing {
        /// By the given addresses.
        Given = 0,
        /// It has no address.
        Headless = 1,
        /// It has addresses that are not known.
        Unknown = 2,
        /// It is an alias of a host.
        Alias = 3,
    }
}

numbers! {
    /// The preference of a client among endpoints.
    Distribution {
        /// No preference.
        Any = 0,
        /// The nearest endpoints first.
        Prefer = 1,
        /// Only near endpoints.
        Require = 2,
    }
}

numbers! {
    /// The effect of a policy on a connection that it matches.
    Action {
        /// The connection is allowed.
        Allow = 0,
        /// The connection is denied.
        Deny = 1,
        /// The connection is reported.
        Audit = 2,
        /// An external service would decide, which is not possible at layer 4.
        Custom = 3,
    }
}

numbers! {
    /// A part of a rule.
    Part {
        /// `from`.
        From = 0,
        /// `to`.
        To = 1,
        /// `when`.
        When = 2,
    }
}

numbers! {
    /// Whether clients must have an identity.
    Mode {
        /// The mode of the next larger scope applies.
        Unset = 0,
        /// Clients need no identity.
        Permissive = 1,
        /// Clients must have an identity.
        Strict = 2,
        /// Clients need no identity.
        Disable = 3,
    }
}
