//! What an explanation says: the same for people and for programs. Keys are stable; new ones may come.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a connection would go, whether it may, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether it may: there is a way, and whoever may be at its end lets it in.
    pub verdict: Verdict,
    /// Why, in one line.
    pub reason: String,
    /// Who connects.
    pub from: Source,
    /// Where to.
    pub to: Destination,
    /// How it gets there.
    pub route: Route,
    /// Who may be at its end; empty when there is no way.
    pub endpoints: Vec<Endpoint>,
    /// What would turn the verdict, or a part of it, around.
    pub would_change: Vec<String>,
    /// What else is good to know of this connection.
    pub notes: Vec<String>,
    /// What may make this explanation, or the mesh, other than meant.
    pub warnings: Vec<String>,
    /// The version of the mesh that was asked.
    pub mesh_version: u64,
}

impl Explanation {
    /// Whether the connection may be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }
}

/// The answer to the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The connection is carried.
    Allowed,
    /// A policy denies the connection, or the destination refuses it.
    Denied,
    /// The connection has no route: no policy has to do with that.
    Failed,
}

impl Verdict {
    /// As it is shouted at people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Denied => "DENIED",
            Self::Failed => "FAILS",
        }
    }
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// As it was asked.
    pub asked: String,
    /// The pod, as `namespace/name`.
    pub pod: Option<String>,
    /// Who it is, whether or not it can prove it on this way.
    pub identity: Option<String>,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    pub node: Option<String>,
    /// Whether this connection is captured where it begins.
    pub captured: bool,
    /// In words: what the mesh makes of it.
    pub state: String,
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// As it was asked.
    pub asked: String,
    /// The pod that was meant, as `namespace/name`.
    pub pod: Option<String>,
    /// The service that was meant, as `namespace/name`.
    pub service: Option<String>,
    /// The address that the client connects to; none for a service without one.
    pub address: Option<IpAddr>,
    /// The port that the client connects to.
    pub port: u16,
}

/// How a connection gets to where it is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// In words.
    pub text: String,
    /// The service whose endpoints are taken, as `namespace/name`.
    pub service: Option<String>,
    /// Why there is no way.
    pub refusal: Option<ExplainedRefusal>,
}

/// Why a connection gets nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRefusal {
    /// As logs and metrics have it, such as `no_healthy_upstream`.
    pub reason: String,
    /// In words.
    pub text: String,
}

/// An address at which a connection may end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The address; its port is 0 if it does not serve the one that was asked for.
    pub address: SocketAddr,
    /// Whose it is, as `namespace/name`.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Whether it takes connections.
    pub health: Health,
    /// When it is taken.
    pub turn: Preference,
    /// Why it is never taken.
    pub why_never: Option<String>,
    /// Whether it is in the mesh.
    pub in_mesh: bool,
    /// How it is got to; none if it is not.
    pub way: Option<Way>,
    /// Whether it lets the connection in; none if it is never taken.
    pub judgement: Option<Judgement>,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// It does.
    Ready,
    /// It is ending.
    Draining,
    /// It does not.
    Unready,
    /// The mesh does not know it.
    Unknown,
}

impl Health {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unready => "not ready",
            Self::Unknown => "health unknown",
        }
    }
}

/// When an endpoint is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Preference {
    /// At once; by chance, if there are several.
    First,
    /// When those fail.
    Later,
    /// Never, as things are.
    Never,
}

/// How an endpoint is got to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Way {
    /// Inside mutual TLS.
    Tunnel {
        /// Where the tunnel ends.
        to: SocketAddr,
        /// Whom it may find there.
        expected: Vec<String>,
    },
    /// In plaintext.
    Plaintext {
        /// Why.
        because: String,
    },
}

/// Whether an endpoint lets a connection in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Whether it does.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// Why no policy is enforced there; none: policies are.
    pub unenforced: Option<String>,
    /// Policies would deny it, and it is let in as a probe of the kubelet's.
    pub as_probe: bool,
    /// What PeerAuthentication says; none where nothing is enforced.
    pub authentication: Option<Authentication>,
    /// The AuthorizationPolicies that were considered: those that apply first. Empty where nothing is enforced.
    pub policies: Vec<Policy>,
    /// How many more do not apply, and are not listed.
    pub more_policies: usize,
}

/// What PeerAuthentication says of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// The mode in force: STRICT, PERMISSIVE or DISABLE.
    pub mode: String,
    /// The PeerAuthentication that says so, as `namespace/name`; none: there is none.
    pub policy: Option<String>,
    /// Its entry for this port, if that decided.
    pub port: Option<u16>,
    /// The identity that the client proves; none: plaintext.
    pub identity: Option<String>,
    /// Whether it keeps the connection out.
    pub refuses: bool,
    /// Every PeerAuthentication that may be meant for the pod, the largest scope first, and whether it counts.
    pub considered: Vec<String>,
}

/// What one AuthorizationPolicy has to say of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// Where it stands: `file:line`.
    pub place: String,
    /// ALLOW, DENY, AUDIT or CUSTOM.
    pub action: String,
    /// It only tells what it would do.
    pub dry_run: bool,
    /// Whether it protects this pod and port.
    pub applies: bool,
    /// Whom it protects; where it does not apply, why not.
    pub scope: String,
    /// Whether one of its rules matches.
    pub matched: bool,
    /// What follows from that.
    pub effect: String,
    /// Its rules; empty where it does not apply.
    pub rules: Vec<Rule>,
}

/// Whether a rule matches a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its place in `spec.rules`.
    pub index: usize,
    /// Whether it matches.
    pub matched: bool,
    /// What of it matched, or the first that did not.
    pub detail: String,
}
