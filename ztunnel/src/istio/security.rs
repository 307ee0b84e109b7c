//! Authorization policies: `istio.security`.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::standard::Empty;
use super::workload::Extension;

/// A resource of the type [`AUTHORIZATION`](super::discovery::AUTHORIZATION): a policy that workloads enforce for their
/// incoming connections. The resource's name is `NAMESPACE/NAME`.
#[derive(Clone, PartialEq, Message)]
pub struct Authorization {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The workloads that the policy selects.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// The effect on a connection that the policy matches.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// The rules; any must match. A policy without rules never matches.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// The policy is not enforced: only the decisions that it would make are reported.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// Additions of a control plane, which other clients ignore.
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<Extension>,
}

/// One rule.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// The clauses; all must match. A rule without clauses matches everything.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// One clause: `from`, `to`, or one condition of `when`.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// The matches; any must match. A clause without matches matches everything.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// The values with which a connection is compared. All fields must hold: at least one value of each field, and none of
/// the values of each `not_` field. A match without values never holds.
#[derive(Clone, PartialEq, Message)]
pub struct Match {
    /// Namespaces of the client.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// Namespaces that the client must not have.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// SPIFFE IDs of the client, without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// SPIFFE IDs that the client must not have.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// Addresses of the client.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Address>,
    /// Addresses that the client must not have.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Address>,
    /// Addresses of the workload.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Address>,
    /// Addresses that the workload must not have.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Address>,
    /// Ports of the workload.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// Ports of the workload that must not match.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// Service accounts of the client, in any trust domain.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Service accounts that the client must not have.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Additions of a control plane, which other clients ignore.
    #[prost(message, repeated, tag = "13")]
    pub extensions: Vec<Extension>,
}

/// An address, or an IP block.
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

/// A comparison of a text.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StringMatch {
    /// The kind of comparison; absent in an invalid message.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// The kinds of comparison.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum MatchType {
    /// The text equals this value.
    #[prost(string, tag = "1")]
    Exact(String),
    /// The text begins with this value.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// The text ends with this value.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// The text is not empty.
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// The workloads that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// All workloads.
    Global = 0,
    /// The workloads of the policy's namespace.
    Namespace = 1,
    /// The workloads that name the policy in
    /// [`authorization_policies`](super::workload::Workload::authorization_policies).
    WorkloadSelector = 2,
}

/// The effect of a policy on a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Action {
    /// The connection is allowed. Connections that no ALLOW policy of the workload matches are denied.
    Allow = 0,
    /// The connection is denied.
    Deny = 1,
}
