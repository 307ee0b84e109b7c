//! Rules for connections: the parts of AuthorizationPolicy and PeerAuthentication that can be evaluated for a connection, in
//! the shape in which Istio's control plane sends them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::labels::Labels;
use super::origin::Origin;
use super::workload::NamespacedName;

/// The workloads that a policy protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every workload.
    Mesh,
    /// The workloads of a namespace.
    Namespace(Arc<str>),
    /// The workloads with all of these labels, in one namespace or (`None`) in any namespace.
    Selector {
        /// The namespace.
        namespace: Option<Arc<str>>,
        /// The labels, at least one.
        labels: Labels,
    },
    /// The workloads behind one of these services, at the ports to which the service leads.
    Services(Vec<NamespacedName>),
}

/// The effect of a policy on a connection that matches one of its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allows the connection. If an ALLOW policy applies to a workload, connections without a match are denied.
    Allow,
    /// Denies the connection.
    Deny,
    /// Writes the match to the log.
    Audit,
    /// Asks an external authorizer. That is not possible at this layer, so the connection is denied.
    Custom,
}

impl Action {
    /// As manifests write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// An AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Where it comes from.
    pub origin: Origin,
    /// The workloads that it protects.
    pub scope: Scope,
    /// Its action.
    pub action: Action,
    /// The policy is not enforced; its effect is only reported.
    pub dry_run: bool,
    /// The policy matches if any rule matches. Without rules it never matches.
    pub rules: Vec<Rule>,
}

/// One rule of `spec.rules`; its index is its position in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The rule matches if all clauses match. Without clauses it always matches.
    pub clauses: Vec<Clause>,
    /// Fields that can't be evaluated at this layer, such as `to[0].operation.methods`. An ALLOW rule with such a field never
    /// matches. The clauses of other rules leave these fields out.
    pub unjudged: Vec<String>,
}

/// `from`, `to`, or one condition of `when`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The part of the rule.
    pub part: Part,
    /// The clause matches if any alternative matches. Without alternatives it always matches. For `from` and `to` the index is
    /// the position in that list.
    pub matches: Vec<Match>,
}

/// A part of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// `from`.
    From,
    /// `to`.
    To,
    /// `when`, with the index of the condition.
    When(usize),
}

/// An alternative of a clause. It matches if all fields match: a field needs a match with any of its values, a `not_` field
/// with none of its values. If all fields are empty it never matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` of the client.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// The client's namespace. A client without an identity has an empty namespace.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// The client's service account, of any trust domain.
    pub service_accounts: Vec<NamespacedName>,
    /// None of these.
    pub not_service_accounts: Vec<NamespacedName>,
    /// The trust domain of the client's identity; a client without an identity has none.
    pub trust_domains: Vec<StringMatch>,
    /// None of these.
    pub not_trust_domains: Vec<StringMatch>,
    /// The client's address. Canonical, without host bits.
    pub source_ips: Vec<IpNet>,
    /// None of these.
    pub not_source_ips: Vec<IpNet>,
    /// The workload's address.
    pub destination_ips: Vec<IpNet>,
    /// None of these.
    pub not_destination_ips: Vec<IpNet>,
    /// The workload's port.
    pub destination_ports: Vec<u16>,
    /// None of these.
    pub not_destination_ports: Vec<u16>,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// The text is equal.
    Exact(Arc<str>),
    /// The text begins with this: `abc*`.
    Prefix(Arc<str>),
    /// The text ends with this: `*abc`.
    Suffix(Arc<str>),
    /// The text is not empty: `*`.
    Presence,
}

impl StringMatch {
    /// Parses the form of manifests.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Presence,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (None, None) => Self::Exact(text.into()),
        }
    }

    /// Whether a text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

/// A PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Where it comes from.
    pub origin: Origin,
    /// Creation time in Unix seconds. Of several policies for the same workloads the oldest takes precedence, then the first by
    /// name. `None` is older than all.
    pub created: Option<i64>,
    /// The workloads that it protects; never [`Scope::Services`].
    pub scope: Scope,
    /// `None`: the next larger scope decides (UNSET).
    pub mode: Option<MtlsMode>,
    /// The mode by port of the workload. `None`: the same as at the workload's other ports. Only if the scope is a selector.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// Whether clients must have an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext is allowed as well.
    Permissive,
    /// Clients must have an identity.
    Strict,
    /// Plaintext is allowed. HBONE connections are allowed as well, and always use TLS.
    Disable,
}

impl MtlsMode {
    /// As manifests write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
            Self::Disable => "DISABLE",
        }
    }
}

/// Policies that may exist but are unknown, because their source, such as a file, could never be read. The texts name the
/// source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnreadPolicies {
    /// The source, if the policies may protect any workload.
    pub anywhere: Option<Arc<str>>,
    /// The source by namespace, if the policies protect workloads of that namespace.
    pub namespaces: BTreeMap<Arc<str>, Arc<str>>,
}

/// All policies of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySet {
    /// Sorted by namespace and name.
    pub authorization: Vec<AuthorizationPolicy>,
    /// Sorted by namespace and name.
    pub authentication: Vec<PeerAuthentication>,
    /// Policies that could not be read.
    pub unread: UnreadPolicies,
}
