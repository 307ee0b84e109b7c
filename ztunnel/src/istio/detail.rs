//! `ambient.mesh.v1`: what this project's control plane says beside Istio's messages, so that a daemon of this project has the
//! same mesh as with a folder of manifests: labels, named ports, policies as they were written, AUDIT policies, where a policy
//! stands.
//!
//! Workloads and services have it in an [`Extension`], which Istio's ztunnel skips. Objects for which Istio has no message are
//! resources of a type of their own, [`OBJECT`](super::discovery::OBJECT).
//! [`Settings::detail`](super::settings::Settings::detail) announces all of it. A daemon that does not know that format uses
//! Istio's messages alone: they decide the same, and their reasons say less.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::security;
use super::standard::{Any, Empty};
use super::workload::{BalancingScope, Extension, Locality, Service as ServiceMessage};

/// The format of all messages of this file. It is counted up when a message means something else, or forbids something more, than
/// an older daemon reads in it.
pub const FORMAT: u32 = 1;

/// A message that goes into an [`Extension`].
pub trait Extending: Message + Default {
    /// The name of the extension, which is the name of the message as well.
    const NAME: &'static str;

    /// The extension.
    fn extension(&self) -> Extension {
        let type_url = format!("type.googleapis.com/{}", Self::NAME);
        let config = Any { type_url, value: self.encode_to_vec().into() };
        Extension { name: Self::NAME.to_owned(), config: Some(config) }
    }

    /// The message, if one of the extensions is it.
    ///
    /// # Errors
    /// It cannot be decoded.
    fn find(extensions: &[Extension]) -> Result<Option<Self>, prost::DecodeError> {
        let found = extensions.iter().find(|extension| extension.name == Self::NAME);
        let config = found.and_then(|extension| extension.config.as_ref());
        config.map(|config| Self::decode(Bytes::clone(&config.value))).transpose()
    }
}

/// What Istio's message of a workload does not say.
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
    /// Whether the workload is in the mesh, and why not.
    #[prost(enumeration = "Membership", tag = "5")]
    pub membership: i32,
    /// A WorkloadEntry describes it.
    #[prost(bool, tag = "6")]
    pub is_entry: bool,
    /// It is being deleted, or its node does not report any more.
    #[prost(bool, tag = "7")]
    pub leaving: bool,
    /// It takes connections. The status in Istio's message is that of its endpoints.
    #[prost(bool, tag = "8")]
    pub ready: bool,
    /// It is no workload: it stands for an endpoint of a service.
    #[prost(bool, tag = "9")]
    pub is_endpoint: bool,
    /// Of several endpoints of a service at one address, the place of this one.
    #[prost(uint32, tag = "10")]
    pub place: u32,
    /// Endpoints that are otherwise than Istio's message says, by service.
    #[prost(message, repeated, tag = "11")]
    pub endpoints: Vec<Endpoints>,
}

/// What Istio's message of a service does not say.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceDetail {
    /// Kind of the object.
    #[prost(enumeration = "ServiceKind", tag = "1")]
    pub kind: i32,
    /// What is known of its own addresses.
    #[prost(enumeration = "Addressing", tag = "2")]
    pub addressing: i32,
    /// The host of which it is another name.
    #[prost(string, tag = "3")]
    pub alias: String,
    /// Other addresses that lead to it.
    #[prost(message, repeated, tag = "4")]
    pub external: Vec<ExternalAddress>,
    /// Ports, with their names.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<ServicePort>,
    /// The labels of a pod that stands behind it.
    #[prost(btree_map = "string, string", tag = "6")]
    pub selector: BTreeMap<String, String>,
    /// Its endpoints may have addresses of IPv4.
    #[prost(bool, tag = "7")]
    pub v4: bool,
    /// Its endpoints may have addresses of IPv6.
    #[prost(bool, tag = "8")]
    pub v6: bool,
    /// A client stays at one endpoint.
    #[prost(bool, tag = "9")]
    pub is_sticky: bool,
    /// The namespaces that know it; absent: all.
    #[prost(message, optional, tag = "10")]
    pub visible_to: Option<Namespaces>,
    /// How near endpoints are preferred.
    #[prost(enumeration = "Distribution", tag = "11")]
    pub distribution: i32,
    /// The respects in which endpoints are near.
    #[prost(enumeration = "BalancingScope", repeated, tag = "12")]
    pub scopes: Vec<i32>,
    /// Connections go to the address that the client asked for.
    #[prost(bool, tag = "13")]
    pub passthrough: bool,
    /// Endpoints for which there is no message of a workload.
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

/// The endpoints of a service that are one workload.
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
    /// From the service's ports to its own.
    #[prost(btree_map = "uint32, uint32", tag = "2")]
    pub ports: BTreeMap<u32, u32>,
    /// Whether it takes connections.
    #[prost(enumeration = "Health", tag = "3")]
    pub health: i32,
    /// Its share.
    #[prost(uint32, tag = "4")]
    pub weight: u32,
    /// The node it runs on.
    #[prost(string, tag = "5")]
    pub node: String,
    /// Where that is.
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

/// An address beside a service's own.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExternalAddress {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// It leads pods of all namespaces.
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
    /// Number of the workload's port; 0: it has a name.
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

/// A resource of the type [`OBJECT`](super::discovery::OBJECT). Its name is `KIND/NAMESPACE/NAME`, and `Service/NAMESPACE/HOSTNAME`
/// for a service.
#[derive(Clone, PartialEq, Message)]
pub struct Object {
    /// What it is.
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

/// The name of the resource of a service that clients do not find.
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
    /// A service that clients do not find. It counts for the policies that name it.
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
    /// Where it stands.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
    /// The workloads that it protects.
    #[prost(message, optional, tag = "4")]
    pub scope: Option<Scope>,
    /// What it does with a connection that it matches.
    #[prost(enumeration = "Action", tag = "5")]
    pub action: i32,
    /// It is not enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// Its rules, with their places.
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
    /// Where it stands.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
    /// When it was made, as Unix seconds.
    #[prost(int64, optional, tag = "4")]
    pub created: Option<i64>,
    /// The workloads that it is for.
    #[prost(message, optional, tag = "5")]
    pub scope: Option<Scope>,
    /// Whether clients must have an identity.
    #[prost(enumeration = "Mode", tag = "6")]
    pub mode: i32,
    /// The same by port of the workload.
    #[prost(btree_map = "uint32, enumeration(Mode)", tag = "7")]
    pub ports: BTreeMap<u32, i32>,
}

/// One rule of a policy.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// All of them must match.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
    /// Fields that cannot be judged at this layer.
    #[prost(string, repeated, tag = "2")]
    pub unjudged: Vec<String>,
}

/// One clause of a rule.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// The part of the rule.
    #[prost(enumeration = "Part", tag = "1")]
    pub part: i32,
    /// Which condition of `when`.
    #[prost(uint32, tag = "2")]
    pub condition: u32,
    /// Any of them must match.
    #[prost(message, repeated, tag = "3")]
    pub matches: Vec<Match>,
}

/// What a connection is compared with.
#[derive(Clone, PartialEq, Message)]
pub struct Match {
    /// The fields that Istio's message has.
    #[prost(message, optional, tag = "1")]
    pub fields: Option<security::Match>,
    /// Trust domain of the client.
    #[prost(message, repeated, tag = "2")]
    pub trust_domains: Vec<security::StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "3")]
    pub not_trust_domains: Vec<security::StringMatch>,
}

/// Where an object stands in the source of the control plane.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Origin {
    /// The place.
    #[prost(oneof = "OriginPlace", tags = "1, 2, 3")]
    pub place: Option<OriginPlace>,
}

/// The kinds of places.
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

/// The workloads that a policy is for.
#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    /// Which.
    #[prost(oneof = "ScopeKind", tags = "1, 2, 3, 4")]
    pub kind: Option<ScopeKind>,
}

/// The kinds of scopes.
#[derive(Clone, PartialEq, Oneof)]
pub enum ScopeKind {
    /// All.
    #[prost(message, tag = "1")]
    Mesh(Empty),
    /// Those of a namespace.
    #[prost(string, tag = "2")]
    Namespace(String),
    /// Those with these labels.
    #[prost(message, tag = "3")]
    Selector(Selector),
    /// Those that stand behind one of these services.
    #[prost(message, tag = "4")]
    Services(Services),
}

/// Workloads by their labels.
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
    /// Whether the mesh carries a workload's traffic, and why not.
    Membership {
        /// Yes.
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
        /// It does.
        Ready = 0,
        /// It is ending, and still does.
        Draining = 1,
        /// It does not.
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
    /// What is known of a service's own addresses.
    Addressing {
        /// It has those that are given.
        Given = 0,
        /// It has none.
        Headless = 1,
        /// It has some, which are not known.
        Unknown = 2,
        /// It is another name of a host.
        Alias = 3,
    }
}

numbers! {
    /// Which endpoints a client prefers.
    Distribution {
        /// All are the same.
        Any = 0,
        /// The nearest.
        Prefer = 1,
        /// Near ones only.
        Require = 2,
    }
}

numbers! {
    /// What a policy does with a connection that it matches.
    Action {
        /// Allows it.
        Allow = 0,
        /// Denies it.
        Deny = 1,
        /// Reports it.
        Audit = 2,
        /// Asks a service, which is not possible at this layer.
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
        /// As the larger scope says.
        Unset = 0,
        /// They need not.
        Permissive = 1,
        /// They must.
        Strict = 2,
        /// They need not.
        Disable = 3,
    }
}
