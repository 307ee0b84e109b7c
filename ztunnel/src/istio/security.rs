//! Authorization policies: `istio.security`.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::standard::Empty;
use super::workload::Extension;

/// A resource of the type [`AUTHORIZATION`](super::discovery::AUTHORIZATION): a policy that workloads enforce for connections
/// to them. The resource's name is `NAMESPACE/NAME`.
#[derive(Clone, PartialEq, Message)]
pub struct Authorization {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The workloads that it protects.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// What it does with a connection that it matches.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// Any of them must match; without rules it never matches.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// It is not enforced: what it would do is only reported.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// What a control plane adds that others ignore.
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<Extension>,
}

/// One rule.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// All of them must match; a rule without clauses matches everything.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// One clause: `from`, `to`, or one condition of `when`.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// Any of them must match; a clause without matches matches everything.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// What a connection is compared with. All fields must hold: of the values of a field any, of those of a `not_` field none. A
/// match without values never holds.
#[derive(Clone, PartialEq, Message)]
pub struct Match {
    /// Namespace of the client.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// SPIFFE ID of the client, without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// Address of the client.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Address>,
    /// None of these.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Address>,
    /// Address of the workload.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Address>,
    /// None of these.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Address>,
    /// Port of the workload.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// None of these.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// Service account of the client, of any trust domain.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// What a control plane adds that others ignore.
    #[prost(message, repeated, tag = "13")]
    pub extensions: Vec<Extension>,
}

/// An address, or a range of addresses.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Address {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// Bits of the prefix.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A service account.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// How a text is compared.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StringMatch {
    /// How; absent in a message that is broken.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// The ways to compare a text.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum MatchType {
    /// The text is this.
    #[prost(string, tag = "1")]
    Exact(String),
    /// The text begins with this.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// The text ends with this.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// The text is not empty.
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// The workloads that a policy protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// All.
    Global = 0,
    /// Those of the policy's namespace.
    Namespace = 1,
    /// Those that name it in [`authorization_policies`](super::workload::Workload::authorization_policies).
    WorkloadSelector = 2,
}

/// What a policy does with a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Action {
    /// Allows it; connections that no ALLOW policy of the workload matches are denied.
    Allow = 0,
    /// Denies it.
    Deny = 1,
}
