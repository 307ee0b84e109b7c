//! A workload: one pod, or one host outside of the cluster, as every node of the mesh sees it: its identity, its addresses, its
//! node, its membership.
//!
//! Facts that only the pod's own node needs are in [`local`](super::local).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::gateway::Gateway;
use super::identity::SpiffeId;
use super::labels::Labels;
use super::locality::Locality;

/// The name of an object inside its namespace; shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name, unique for its kind in the namespace.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One pod as in its manifest, or one WorkloadEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.uid`; empty if the manifest has none.
    pub uid: Arc<str>,
    /// Its identity. The service account is `default` if the manifest names none.
    pub identity: SpiffeId,
    /// The object that owns it: the Deployment for a pod of a ReplicaSet, the CronJob for a pod of a Job, or the pod itself.
    pub controller: Controller,
    /// The name of its service in telemetry: `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the
    /// controller's name.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Its locality, from the labels of its node.
    pub locality: Locality,
    /// The node to which it is bound, if any.
    pub node: Option<Arc<str>>,
    /// Its addresses: canonical (never IPv4-mapped), without duplicates, in the manifest's order. Never loopback, unspecified,
    /// multicast or broadcast. A `host_network` pod has its node's addresses here, which are not its own.
    pub addresses: Vec<IpAddr>,
    /// It shares the node's network namespace.
    pub host_network: bool,
    /// It comes from a WorkloadEntry. Anyone who may write a WorkloadEntry may write any address, so the entry takes no address
    /// from other workloads. It is reached through services that select it.
    pub is_entry: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its named TCP ports, in the manifest's order.
    pub ports: Vec<NamedPort>,
    /// Addresses of its node, canonical (`status.hostIPs`).
    pub node_addresses: Vec<IpAddr>,
    /// It takes connections. A manifest without the `Ready` condition counts as ready.
    pub ready: bool,
    /// It has ended (succeeded, failed, or being deleted without an address). It has no addresses of its own any more.
    pub finished: bool,
    /// The waypoint that connections to its own addresses pass through, where they are captured.
    pub waypoint: Option<Arc<Gateway>>,
    /// It speaks HBONE itself: other nodes use HBONE to reach it, and its own node does not capture it.
    pub native_tunnel: bool,
    /// It is being deleted, or its node does not report any more, and it still has an address. The address may already belong
    /// to another pod. Always `false` for a pod that has `finished`.
    pub leaving: bool,
    /// Whether the mesh carries its traffic, and if not, why.
    pub membership: Membership,
}

impl Workload {
    /// A pod with only a name and an identity: it is outside of the mesh, and has no address.
    #[must_use]
    pub fn new(name: NamespacedName, identity: SpiffeId) -> Self {
        Self {
            uid: Arc::from(""),
            identity,
            controller: Controller { kind: ControllerKind::Pod, name: Arc::clone(&name.name) },
            canonical_name: Arc::clone(&name.name),
            canonical_revision: Arc::from("latest"),
            locality: Locality::default(),
            node: None,
            addresses: Vec::new(),
            host_network: false,
            is_entry: false,
            labels: Labels::default(),
            ports: Vec::new(),
            node_addresses: Vec::new(),
            ready: true,
            finished: false,
            waypoint: None,
            native_tunnel: false,
            leaving: false,
            membership: Membership::NotLabelled,
            name,
        }
    }

    /// The number of the TCP port with this name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| *port.name == *name).map(|port| port.number)
    }

    /// The addresses that the pod claims for itself: none for a finished pod, a pod in its node's network namespace, or a
    /// WorkloadEntry. [`Holders`](crate::store::holders::Holders) decides which pod has an address that several pods claim.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.finished || self.has_shared_addresses() { &[] } else { &self.addresses }
    }

    /// Whether other workloads may have the same addresses, so that an address alone does not identify this workload.
    #[must_use]
    pub fn has_shared_addresses(&self) -> bool {
        self.host_network || self.is_entry
    }

    /// Its kind and name in messages.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", if self.is_entry { "WorkloadEntry" } else { "Pod" }, self.name)
    }
}

/// The owner of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Its kind.
    pub kind: ControllerKind,
    /// Its name.
    pub name: Arc<str>,
}

/// Kinds of controllers that telemetry distinguishes. A pod of any other controller counts as its own controller, as in istiod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControllerKind {
    /// Deployment.
    Deployment,
    /// CronJob.
    CronJob,
    /// Job.
    Job,
    /// A pod without one of these controllers.
    Pod,
}

impl ControllerKind {
    /// The name in the key of a baggage entry: `k8s.<name>.name`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Job => "job",
            Self::Pod => "pod",
        }
    }
}

/// A TCP port of a container with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// The name to which a Service's `targetPort` refers.
    pub name: Arc<str>,
    /// The port's number.
    pub number: u16,
}

/// Whether the mesh carries a workload's traffic: a fact of the mesh, the same on every node. Whether the workload's own node
/// can enrol it is another fact, which only that node knows: see [`LocalPod`](super::local::LocalPod).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Yes: every node uses only HBONE to reach it.
    InMesh,
    /// No: neither the pod nor its namespace has the label.
    NotLabelled,
    /// No: the pod's own label says `none`.
    OptedOut,
    /// No: the labels say yes, but it is not possible.
    Refused(RefuseReason),
}

/// Why a labelled pod can't be in the mesh. `Display` names the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseReason {
    /// The pod has ended.
    Finished,
    /// The pod uses its node's network namespace.
    HostNetwork,
    /// The pod has no usable address (yet).
    NoAddress,
    /// The pod has a proxy of its own, which carries its traffic. The pod is not captured, as in Istio.
    Sidecar(Sidecar),
}

impl RefuseReason {
    /// Whether a pod that was captured before is released for this reason, instead of being closed.
    #[must_use]
    pub const fn leaves_alone(self) -> bool {
        matches!(self, Self::Sidecar(_))
    }
}

/// A proxy that is a container of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sidecar {
    /// Istio's.
    Istio,
    /// Linkerd's.
    Linkerd,
    /// Kuma's.
    Kuma,
    /// Consul's.
    Consul,
}

impl Sidecar {
    /// The name of its container.
    #[must_use]
    pub const fn container(self) -> &'static str {
        match self {
            Self::Istio => "istio-proxy",
            Self::Linkerd => "linkerd-proxy",
            Self::Kuma => "kuma-sidecar",
            Self::Consul => "consul-dataplane",
        }
    }

    /// All of them.
    pub const ALL: [Self; 4] = [Self::Istio, Self::Linkerd, Self::Kuma, Self::Consul];
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar(sidecar) => {
                return write!(
                    f,
                    "the pod has its own sidecar proxy ({}), which carries its traffic: the pod is left alone, and peers reach \
                     it in plaintext; to have it in the mesh, turn the injection of the sidecar off and create the pod anew",
                    sidecar.container()
                );
            }
            Self::Finished => "the pod has finished, there is nothing left to capture",
            Self::HostNetwork => {
                "hostNetwork pods share the node's network and can't be captured: run the pod without hostNetwork, \
                 or label it istio.io/dataplane-mode: none"
            }
            Self::NoAddress => {
                "the pod has no usable address in status.podIPs: it is enrolled as soon as one is reported"
            }
        })
    }
}
