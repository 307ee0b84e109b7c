//! Who may connect to whom, as rules: AuthorizationPolicy and PeerAuthentication as far as a connection can be judged by
//! them, in the shape in which Istio's control plane hands them out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::labels::Labels;
use super::origin::Origin;
use super::workload::NamespacedName;

/// Whom a policy protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every workload.
    Mesh,
    /// Those of a namespace.
    Namespace(Arc<str>),
    /// Those with all of these labels, in one namespace or (`None`) in any.
    Selector {
        /// The namespace.
        namespace: Option<Arc<str>>,
        /// The labels, at least one.
        labels: Labels,
    },
    /// Those that stand behind one of these services, at the ports to which it leads.
    Services(Vec<NamespacedName>),
}

/// What a policy does with a connection that one of its rules matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it in. As soon as one such policy applies to a workload, what none matches is kept out.
    Allow,
    /// Keeps it out.
    Deny,
    /// Tells of it.
    Audit,
    /// Asks someone who can't be asked at this layer; so it keeps it out.
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
    /// Whom it protects.
    pub scope: Scope,
    /// What it does.
    pub action: Action,
    /// It only tells what it would do.
    pub dry_run: bool,
    /// Any of them matches; none: nothing does.
    pub rules: Vec<Rule>,
}

/// One of `spec.rules`; its index is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// All of them must match; none: everything does.
    pub clauses: Vec<Clause>,
    /// Fields that can't be judged at this layer, such as `to[0].operation.methods`. With one of them an ALLOW rule never
    /// matches; what stands in the clauses of other rules goes without them.
    pub unjudged: Vec<String>,
}

/// `from`, `to`, or one condition of `when`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Which of them.
    pub part: Part,
    /// Any of them must match; none: everything does. For `from` and `to` its index is the place in that list.
    pub matches: Vec<Match>,
}

/// A part of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// `from`.
    From,
    /// `to`.
    To,
    /// `when`, and which condition of it.
    When(usize),
}

/// What a connection is compared with: all fields must hold, of a field's values any, of a `not_` field's values none. With
/// nothing in any field it never matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` of the client.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// The client's namespace; that of a client without an identity is empty.
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
    /// It is this.
    Exact(Arc<str>),
    /// It begins so: `abc*`.
    Prefix(Arc<str>),
    /// It ends so: `*abc`.
    Suffix(Arc<str>),
    /// It is not empty: `*`.
    Presence,
}

impl StringMatch {
    /// Reads it as manifests write it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Presence,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (None, None) => Self::Exact(text.into()),
        }
    }

    /// Whether a text is meant.
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
    /// When it was made, as Unix seconds; the oldest of several for the same workloads counts, then the first by name.
    /// `None` is older than all.
    pub created: Option<i64>,
    /// Whom it protects; never services.
    pub scope: Scope,
    /// `None`: as the next larger scope says (UNSET).
    pub mode: Option<MtlsMode>,
    /// By port of the workload; `None`: as the workload's other ports. Only where the scope is a selector.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// Whether clients must have an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext is let in, too.
    Permissive,
    /// They must.
    Strict,
    /// Plaintext is let in; tunnels are, too, and are never without TLS.
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

/// Policies of which nothing is known but that there may be some: the source that holds them, such as a file, could never be
/// read. The texts name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnreadPolicies {
    /// They may protect any workload: the source.
    pub anywhere: Option<Arc<str>>,
    /// They protect workloads of a namespace: the source, by namespace.
    pub namespaces: BTreeMap<Arc<str>, Arc<str>>,
}

/// All policies of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySet {
    /// By namespace and name.
    pub authorization: Vec<AuthorizationPolicy>,
    /// By namespace and name.
    pub authentication: Vec<PeerAuthentication>,
    /// What is missing.
    pub unread: UnreadPolicies,
}
