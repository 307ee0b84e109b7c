//! Resources of the type [`OBJECT`](super::discovery::OBJECT): policies as they were written, and services that clients
//! cannot find. Istio has no message for them.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Oneof};

use super::detail::Name;
use super::security;
use super::standard::Empty;
use super::workload::Service as ServiceMessage;

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

/// The effect of a policy on a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Action {
    /// The connection is allowed.
    Allow = 0,
    /// The connection is denied.
    Deny = 1,
    /// The connection is reported.
    Audit = 2,
    /// An external service would decide, which is not possible at layer 4.
    Custom = 3,
}

/// A part of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Part {
    /// `from`.
    From = 0,
    /// `to`.
    To = 1,
    /// `when`.
    When = 2,
}

/// Whether clients must have an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// The mode of the next larger scope applies.
    Unset = 0,
    /// Clients need no identity.
    Permissive = 1,
    /// Clients must have an identity.
    Strict = 2,
    /// Clients need no identity.
    Disable = 3,
}
