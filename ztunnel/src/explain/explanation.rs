//! The content of an explanation, the same for people and for programs. Keys are stable; new keys may be added.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a connection would go, whether it is allowed, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether it is allowed: there is a route, and each possible endpoint allows it.
    pub verdict: Verdict,
    /// The reason, in one line.
    pub reason: String,
    /// The client.
    pub from: Source,
    /// The destination.
    pub to: Destination,
    /// The route to the destination.
    pub route: Route,
    /// The possible endpoints; empty if there is no route.
    pub endpoints: Vec<Endpoint>,
    /// The changes that would reverse the verdict, or a part of it.
    pub would_change: Vec<String>,
    /// Further notes about this connection.
    pub notes: Vec<String>,
    /// Reasons for which this explanation, or the mesh, may not be as intended.
    pub warnings: Vec<String>,
    /// The version of the mesh that was used.
    pub mesh_version: u64,
}

impl Explanation {
    /// Whether the connection is allowed.
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
    /// The connection has no route. Policies are not involved.
    Failed,
}

impl Verdict {
    /// The name in capitals, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Denied => "DENIED",
            Self::Failed => "FAILS",
        }
    }
}

/// The client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The text of the question.
    pub asked: String,
    /// The pod, as `namespace/name`.
    pub pod: Option<String>,
    /// Its identity, whether or not it can prove it for this connection.
    pub identity: Option<String>,
    /// Its addresses, if known.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    pub node: Option<String>,
    /// Whether its node captures this connection.
    pub captured: bool,
    /// Its state in the mesh, as text.
    pub state: String,
}

/// The destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The text of the question.
    pub asked: String,
    /// The pod in the question, as `namespace/name`.
    pub pod: Option<String>,
    /// The service in the question, as `namespace/name`.
    pub service: Option<String>,
    /// The address to which the client connects; none for a service without an address.
    pub address: Option<IpAddr>,
    /// The port to which the client connects.
    pub port: u16,
}

/// The route of a connection to the place where it is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The route, as text.
    pub text: String,
    /// The service whose endpoints are used, as `namespace/name`.
    pub service: Option<String>,
    /// Why there is no route.
    pub refusal: Option<ExplainedRefusal>,
}

/// Why a connection fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRefusal {
    /// The close reason in logs and metrics, such as `no_healthy_upstream`.
    pub reason: String,
    /// The reason, as text.
    pub text: String,
}

/// An address at which a connection may end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The address. Its port is 0 if the endpoint does not serve the requested port.
    pub address: SocketAddr,
    /// The pod that has the address, as `namespace/name`.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Whether it takes connections.
    pub health: Health,
    /// When it is used.
    pub turn: Preference,
    /// Why it is never used.
    pub why_never: Option<String>,
    /// Whether it is in the mesh.
    pub in_mesh: bool,
    /// How it is reached; none if it is not reached.
    pub way: Option<Way>,
    /// Whether it allows the connection; none if it is never used.
    pub judgement: Option<Judgement>,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// It takes connections.
    Ready,
    /// It is terminating.
    Draining,
    /// It does not take connections.
    Unready,
    /// The mesh does not know its health.
    Unknown,
}

impl Health {
    /// The state, as text.
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

/// When an endpoint is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Preference {
    /// It may be the first choice; at random if there are several.
    First,
    /// It is tried when the first ones fail.
    Later,
    /// It is not used in the current state.
    Never,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Way {
    /// Through an HBONE connection with mutual TLS.
    Tunnel {
        /// The address of the HBONE connection.
        to: SocketAddr,
        /// The identities that the peer may have.
        expected: Vec<String>,
    },
    /// In plaintext.
    Plaintext {
        /// The reason.
        because: String,
    },
}

/// Whether an endpoint allows a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason.
    pub reason: String,
    /// Why no policy is enforced there. None: policies are enforced.
    pub unenforced: Option<String>,
    /// Policies deny it, but it is allowed as a probe of the kubelet.
    pub as_probe: bool,
    /// The result of PeerAuthentication; none if no policy is enforced.
    pub authentication: Option<Authentication>,
    /// The AuthorizationPolicies that were considered, those that apply first. Empty if no policy is enforced.
    pub policies: Vec<Policy>,
    /// The number of further policies that do not apply and are not listed.
    pub more_policies: usize,
}

/// The result of PeerAuthentication for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// The current mode: STRICT, PERMISSIVE or DISABLE.
    pub mode: String,
    /// The PeerAuthentication that sets the mode, as `namespace/name`; none if no PeerAuthentication does.
    pub policy: Option<String>,
    /// The port, if the entry for this port sets the mode.
    pub port: Option<u16>,
    /// The identity that the client proves; none in plaintext.
    pub identity: Option<String>,
    /// Whether it denies the connection.
    pub refuses: bool,
    /// All PeerAuthentications that may apply to the pod, the largest scope first, and how each contributes.
    pub considered: Vec<String>,
}

/// The evaluation of one AuthorizationPolicy for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// Its origin: `file:line`.
    pub place: String,
    /// ALLOW, DENY, AUDIT or CUSTOM.
    pub action: String,
    /// It is not enforced; its effect is only reported.
    pub dry_run: bool,
    /// Whether it protects this pod and port.
    pub applies: bool,
    /// The workloads that it protects. If it does not apply, why not.
    pub scope: String,
    /// Whether one of its rules matches.
    pub matched: bool,
    /// Its effect on the connection.
    pub effect: String,
    /// Its rules; empty if it does not apply.
    pub rules: Vec<Rule>,
}

/// Whether a rule matches a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its index in `spec.rules`.
    pub index: usize,
    /// Whether it matches.
    pub matched: bool,
    /// The fields that matched, or the first field that did not.
    pub detail: String,
}
