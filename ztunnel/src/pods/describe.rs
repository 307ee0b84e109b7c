//! The description of the daemon's pods: the body of `/config_dump`, and the source of the pod metrics.

mod policies;

use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};

pub use self::policies::PoliciesInfo;
use crate::{
    flow::record::Live,
    identity::cache::CertInfo,
    metrics::facts::{Facts, Protocol},
    model::{flow::Direction, origin::Origin, problem::Problem, workload::NamespacedName},
};

/// The state of the daemon at one moment.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// The version of the daemon.
    pub version: &'static str,
    /// This node.
    pub node: String,
    /// The fault of the node's name, if the mesh does not know it.
    pub unknown_node: Option<String>,
    /// Why the local facts of this node's pods may be outdated.
    pub local_problem: Option<String>,
    /// The mesh.
    pub snapshot: SnapshotInfo,
    /// The faults of the mesh's files.
    pub problems: Vec<ProblemInfo>,
    /// The policies in force.
    #[serde(rename = "policyDetails")]
    pub policies: PoliciesInfo,
    /// The labelled pods of this node.
    pub pods: Vec<PodInfo>,
    /// The BPF maps.
    pub maps: Vec<MapInfo>,
    /// Number of BPF links that somebody had removed, and that were restored.
    pub links_restored: u64,
    /// Tasks alive.
    pub tasks: usize,
    /// The certificates of its pods.
    pub certificates: Vec<CertInfo>,
    /// What is missing until the daemon is ready. Empty: the daemon is ready.
    pub pending: Vec<String>,
}

/// The mesh in force.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// 0: none has been read yet.
    pub version: u64,
    /// How often the local facts of this node's pods have changed: annotations change no version of the mesh.
    pub local_facts: u64,
    /// A file has never been readable.
    pub partial: bool,
    /// Pods of the whole mesh.
    pub workloads: usize,
    /// Services of the whole mesh.
    pub services: usize,
}

/// A fault in a source of the mesh.
#[derive(Clone, Debug, Serialize)]
pub struct ProblemInfo {
    /// The place of the fault. In JSON: `file`, the name within the folder, and `line`.
    #[serde(flatten, serialize_with = "origin_keys")]
    pub origin: Origin,
    /// The object with the fault.
    pub object: Option<String>,
    /// `error`, `warning` or `info`.
    pub severity: &'static str,
    /// The description of the fault.
    pub message: String,
}

fn origin_keys<S: Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    Origin::keys(Some(origin)).serialize(serializer)
}

impl From<&Problem> for ProblemInfo {
    fn from(problem: &Problem) -> Self {
        let Problem { origin, object, message, severity } = problem.clone();
        Self { origin, object, severity: severity.name(), message }
    }
}

/// Whether a pod is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Captured in both directions.
    Enrolled,
    /// Not captured, with a reason.
    Refused,
}

impl PodState {
    /// Both states.
    pub const ALL: [PodState; 2] = [PodState::Enrolled, PodState::Refused];

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            PodState::Enrolled => "enrolled",
            PodState::Refused => "refused",
        }
    }
}

/// A labelled pod of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is enrolled.
    pub state: PodState,
    /// Why it is refused.
    pub reason: Option<String>,
    /// Whether it is captured. An earlier daemon may have captured a refused pod: it is closed then.
    pub captured: bool,
    /// Its identity.
    pub identity: Option<String>,
    /// Its network namespace.
    pub netns: Option<String>,
    /// The cookie of its network namespace.
    pub cookie: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// When its connects succeed: `held`, when the destination is reached, or `early`, before. `None`: it is not enrolled.
    pub connect: Option<Cow<'static, str>>,
    /// Connections that it had before it was enrolled, and which the mesh does not carry.
    pub connections_before_enrolment: usize,
    /// The number of decisions of the BPF programs, by verdict.
    pub verdicts: serde_json::Map<String, serde_json::Value>,
    /// HBONE connections that it has made to other pods.
    pub tunnels: usize,
    /// Its live connections.
    pub connections: Vec<ConnectionInfo>,
}

/// A live connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// The direction.
    pub direction: Cow<'static, str>,
    /// The client.
    pub src: String,
    /// The original destination.
    pub dst: String,
    /// The destination that was chosen; `None` until it is chosen.
    pub actual_dst: Option<String>,
    /// `HBONE` or `TCP`.
    pub protocol: Cow<'static, str>,
    /// The service that has the original destination.
    pub service: Option<String>,
    /// The identity that the other side has proved.
    pub peer_identity: Option<String>,
    /// The pod of the other side, as NAMESPACE/NAME, if the mesh knows it.
    pub peer: Option<String>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// Milliseconds since the connection was accepted.
    pub duration_ms: u64,
    /// Why the connection to the pod is allowed: a rule of a policy, or the lack of one. `None` of a connection from the pod.
    pub allowed_by: Option<String>,
}

impl From<&Live> for ConnectionInfo {
    fn from(live: &Live) -> Self {
        let (flow, facts) = (live.flow(), live.facts());
        let facts = facts.as_deref();
        let (identity, peer) = match (flow.direction, facts) {
            (_, None) => (None, None),
            (Direction::Outbound, Some(facts)) => (facts.destination_identity.as_ref(), facts.destination.as_ref()),
            (Direction::Inbound, Some(facts)) => (facts.source_identity.as_ref(), facts.source.as_ref()),
        };
        Self {
            direction: flow.direction.name().into(),
            src: flow.peer.to_string(),
            dst: flow.dst.to_string(),
            actual_dst: facts.map(|facts| facts.hbone_addr.clone().unwrap_or_else(|| facts.dst_addr.to_string())),
            protocol: facts.map_or(Protocol::Tcp, Facts::protocol).name().into(),
            service: facts.and_then(|facts| facts.service.as_ref()).map(|service| service.name.to_string()),
            peer_identity: identity.map(ToString::to_string),
            peer: peer.map(|peer| peer.name.to_string()),
            bytes_received: live.bytes().to_server(),
            bytes_sent: live.bytes().to_client(),
            duration_ms: u64::try_from(live.age().as_millis()).unwrap_or(u64::MAX),
            allowed_by: live.without_policy().map(str::to_owned),
        }
    }
}

/// A BPF map.
#[derive(Clone, Debug, Serialize)]
pub struct MapInfo {
    /// Its name.
    pub name: &'static str,
    /// Entries in it.
    pub used: usize,
    /// Entries for which it has room.
    pub capacity: u32,
}

impl PodInfo {
    /// A pod of which only the name and the state are known.
    #[must_use]
    pub fn new(name: &NamespacedName, state: PodState) -> Self {
        Self {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            state,
            reason: None,
            captured: false,
            identity: None,
            netns: None,
            cookie: None,
            addresses: Vec::new(),
            connect: None,
            connections_before_enrolment: 0,
            verdicts: serde_json::Map::new(),
            tunnels: 0,
            connections: Vec::new(),
        }
    }
}
