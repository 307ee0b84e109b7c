//! Declarations in manifests that are not part of the mesh: templates of pods, and fields that do not affect routing
//! but may cause findings.
//!
//! The data path does not need them, so they are not part of a snapshot. The reader of manifests fills them in for the
//! analysis.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::model::labels::Labels;
use crate::model::local::LocalPod;
use crate::model::origin::Origin;
use crate::model::problem::Problem;
use crate::model::workload::{NamespacedName, Workload};

/// The declarations in a set of manifests.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Number of Kubernetes objects of any kind.
    pub objects: usize,
    /// Templates of pods.
    pub templates: Vec<Template>,
    /// Namespaces, by name.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Kubernetes Services.
    pub services: Vec<ServiceFields>,
    /// Kubernetes NetworkPolicies.
    pub network_policies: Vec<NetworkPolicy>,
    /// Service accounts that exist or will exist: from ServiceAccounts, and those of the proxies of Gateways.
    pub accounts: BTreeSet<NamespacedName>,
    /// Pods, and templates of pods, that use ports of their node.
    pub host_ports: Vec<HostPorts>,
    /// Annotations that suppress findings.
    pub ignored: Vec<Ignored>,
    /// Problems in templates.
    pub problems: Vec<Problem>,
}

/// The ports of its node that a pod uses.
#[derive(Debug, Clone)]
pub struct HostPorts {
    /// The kind of the object that describes the pod.
    pub kind: Arc<str>,
    /// Namespace and name.
    pub name: NamespacedName,
    /// File and line of the object.
    pub origin: Origin,
    /// The ports.
    pub ports: Vec<u16>,
}

/// The pods that one object will make.
#[derive(Debug, Clone)]
pub struct Template {
    /// The object's kind, such as `Deployment`.
    pub kind: Arc<str>,
    /// File and line of the object.
    pub origin: Origin,
    /// A pod of the template under the object's name: it has neither a node nor an address.
    pub workload: Workload,
    /// The facts in the template that only the pod's own node needs.
    pub local: LocalPod,
}

/// A Namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// File and line of the object.
    pub origin: Origin,
    /// Its labels, including the label with its name that Kubernetes adds.
    pub labels: Labels,
}

/// The fields of a Service that do not affect routing here.
#[derive(Debug, Clone)]
pub struct ServiceFields {
    /// Namespace and name.
    pub name: NamespacedName,
    /// File and line of the object.
    pub origin: Origin,
    /// The cluster address as the manifest gives it.
    pub address: ClusterAddress,
    /// `spec.type`.
    pub type_: Arc<str>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<Arc<str>>,
    /// The entries of `status.loadBalancer.ingress`.
    pub load_balancer: Vec<Ingress>,
    /// `spec.loadBalancerSourceRanges` excludes clients.
    pub has_source_ranges: bool,
    /// `nodePort` of its TCP ports, if given.
    pub node_ports: Vec<u16>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
}

/// An address of a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The address or the host name.
    pub address: Arc<str>,
    /// `ipMode: Proxy`: also connections from the cluster go to the load balancer.
    pub is_proxy: bool,
}

/// The cluster address in the manifest of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterAddress {
    /// An address.
    Given,
    /// The manifest gives no address: the cluster chooses one.
    Absent,
    /// `None`.
    Headless,
    /// The Service is an alias of this host name (`ExternalName`).
    Alias(Arc<str>),
}

/// A Kubernetes NetworkPolicy.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// File and line of the object.
    pub origin: Origin,
    /// Selects the pods of its namespace to which the policy applies.
    pub pods: LabelSelector,
    /// `spec.ingress`; `None`: the policy does not restrict incoming connections.
    pub ingress: Option<Vec<TrafficRule>>,
    /// `spec.egress`; `None`: the policy does not restrict outgoing connections.
    pub egress: Option<Vec<TrafficRule>>,
}

/// An entry of `ingress` or `egress`.
#[derive(Debug, Clone)]
pub struct TrafficRule {
    /// TCP ports, as ranges that include both ends; `None`: all ports.
    pub ports: Option<Vec<PortRange>>,
    /// `from` or `to`; empty: every peer.
    pub peers: Vec<Peer>,
    /// `from` or `to` as written: equal values mean equal peers.
    pub text: Value,
}

/// TCP ports that a rule of a NetworkPolicy names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRange {
    /// From the first to the last.
    Numbers(u16, u16),
    /// The ports with this name in each pod.
    Named(Arc<str>),
}

/// The peer of a rule.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Pods with certain labels, in the policy's own namespace or in namespaces with certain labels.
    Pods {
        /// `namespaceSelector`; `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; an empty selector selects all pods.
        pods: LabelSelector,
    },
    /// An IP block.
    Block,
}

/// A Kubernetes label selector.
#[derive(Debug, Clone, Default)]
pub struct LabelSelector {
    /// Labels that must be present.
    pub labels: Labels,
    /// Further conditions.
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
    /// File and line of the object.
    pub origin: Origin,
    /// The codes as they are written; `*` stands for all codes.
    pub codes: Vec<String>,
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
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
    /// Whether the range certainly includes the port.
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
