//! What manifests declare beside the mesh itself: templates of pods, and fields that route nothing and are worth a finding.
//!
//! The data path needs none of it, so it is no part of a snapshot. Whoever reads manifests to have them analyzed fills it in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::model::labels::Labels;
use crate::model::local::LocalPod;
use crate::model::origin::Origin;
use crate::model::problem::Problem;
use crate::model::workload::{NamespacedName, Workload};

/// What a set of manifests declares.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Kubernetes objects of any kind.
    pub objects: usize,
    /// Templates of pods.
    pub templates: Vec<Template>,
    /// Namespaces, by name.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Kubernetes Services.
    pub services: Vec<ServiceFields>,
    /// Kubernetes NetworkPolicies.
    pub network_policies: Vec<NetworkPolicy>,
    /// Service accounts that exist, or will: of ServiceAccounts, and of the proxies of Gateways.
    pub accounts: BTreeSet<NamespacedName>,
    /// Pods, and templates of pods, with ports of their nodes.
    pub host_ports: Vec<HostPorts>,
    /// Annotations that suppress findings.
    pub ignored: Vec<Ignored>,
    /// What is wrong with templates.
    pub problems: Vec<Problem>,
}

/// The ports of its node that a pod has.
#[derive(Debug, Clone)]
pub struct HostPorts {
    /// The kind of the object that describes the pod.
    pub kind: Arc<str>,
    /// Namespace and name.
    pub name: NamespacedName,
    /// Where it stands.
    pub origin: Origin,
    /// The ports.
    pub ports: Vec<u16>,
}

/// The pods that one object will make.
#[derive(Debug, Clone)]
pub struct Template {
    /// The object's kind, such as `Deployment`.
    pub kind: Arc<str>,
    /// Where the object stands.
    pub origin: Origin,
    /// A pod of the template under the object's name: it has neither a node nor an address.
    pub workload: Workload,
    /// What the template says for the pod's own node.
    pub local: LocalPod,
}

/// A Namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Where it stands.
    pub origin: Origin,
    /// Its labels, with the one of its name that Kubernetes adds.
    pub labels: Labels,
}

/// The fields of a Service that route nothing here.
#[derive(Debug, Clone)]
pub struct ServiceFields {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Where it stands.
    pub origin: Origin,
    /// What is said of its cluster address.
    pub address: ClusterAddress,
    /// `spec.type`.
    pub type_: Arc<str>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<Arc<str>>,
    /// Addresses and host names of `status.loadBalancer.ingress`.
    pub load_balancer: Vec<Arc<str>>,
    /// `nodePort` of its TCP ports, as far as they are given.
    pub node_ports: Vec<u16>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
}

/// What a Service says of its cluster address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterAddress {
    /// An address.
    Given,
    /// Nothing: the cluster chooses one.
    Absent,
    /// `None`.
    Headless,
    /// It is a name of this host (`ExternalName`).
    Alias(Arc<str>),
}

/// A Kubernetes NetworkPolicy.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Where it stands.
    pub origin: Origin,
    /// The pods of its namespace for which it is.
    pub pods: LabelSelector,
    /// `spec.ingress`; `None`: it says nothing of incoming connections.
    pub ingress: Option<Vec<TrafficRule>>,
    /// `spec.egress`; likewise.
    pub egress: Option<Vec<TrafficRule>>,
}

/// An entry of `ingress` or `egress`.
#[derive(Debug, Clone)]
pub struct TrafficRule {
    /// TCP ports, as ranges of which both ends count; `None`: all.
    pub ports: Option<Vec<PortRange>>,
    /// `from` or `to`; none: everyone.
    pub peers: Vec<Peer>,
    /// The same as written: equal texts mean equal peers.
    pub text: Value,
}

/// TCP ports that a rule of a NetworkPolicy names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRange {
    /// From the first to the last.
    Numbers(u16, u16),
    /// Those with this name in each pod.
    Named(Arc<str>),
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Pods by their labels, in the policy's own namespace or in those with some labels.
    Pods {
        /// `namespaceSelector`; `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; an empty one means all.
        pods: LabelSelector,
    },
    /// Addresses.
    Block,
}

/// A Kubernetes label selector.
#[derive(Debug, Clone, Default)]
pub struct LabelSelector {
    /// Labels that must be there.
    pub labels: Labels,
    /// What else must hold.
    pub expressions: Vec<Expression>,
}

/// An entry of `matchExpressions`.
#[derive(Debug, Clone)]
pub struct Expression {
    /// The label.
    pub key: Arc<str>,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: Arc<str>,
    /// The values of `In` and `NotIn`.
    pub values: Vec<Arc<str>>,
}

/// An object whose annotation suppresses findings about it.
#[derive(Debug, Clone)]
pub struct Ignored {
    /// `Kind namespace/name`.
    pub object: String,
    /// Where it stands.
    pub origin: Origin,
    /// Codes, or `*` for all of them, as they are written.
    pub codes: Vec<String>,
}

impl LabelSelector {
    /// Whether an object with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let holds = |one: &Expression| {
            let value = labels.get(&one.key);
            match &*one.operator {
                "In" => value.is_some_and(|value| one.values.contains(value)),
                "NotIn" => value.is_none_or(|value| !one.values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        };
        labels.include(&self.labels) && self.expressions.iter().all(holds)
    }
}

impl PortRange {
    /// Whether it has a port for sure.
    #[must_use]
    pub fn includes(&self, port: u16) -> bool {
        matches!(self, Self::Numbers(first, last) if (*first..=*last).contains(&port))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(first, last) if first == last => write!(f, "{first}"),
            Self::Numbers(first, last) => write!(f, "{first}-{last}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}
