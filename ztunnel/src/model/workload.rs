//! A workload: one pod, or one host outside of the cluster, as every node of the mesh sees it: its identity, its addresses, its node, its membership.
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

/// One pod, as its manifest tells it, or what a WorkloadEntry describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.uid`, empty when the manifest has none.
    pub uid: Arc<str>,
    /// Who it is: its service account, `default` when the manifest names none.
    pub identity: SpiffeId,
    /// What made it: the Deployment of a ReplicaSet's pod, the CronJob of a Job's, or the pod itself.
    pub controller: Controller,
    /// What telemetry calls its service: `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the
    /// controller's name.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Where it runs, from its node's labels.
    pub locality: Locality,
    /// The node it is bound to, if any yet.
    pub node: Option<Arc<str>>,
    /// Its addresses: canonical (never v4-mapped), without duplicates, in the manifest's order. Never loopback,
    /// unspecified, multicast or broadcast. A `host_network` pod lists its node's addresses, which are not its own.
    pub addresses: Vec<IpAddr>,
    /// It shares the node's network namespace.
    pub host_network: bool,
    /// A WorkloadEntry describes it. Whoever may write one may write any address, so that it takes none from others: it is reached
    /// by what selects it.
    pub is_entry: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its named TCP ports, in the manifest's order.
    pub ports: Vec<NamedPort>,
    /// Addresses of its node, canonical (`status.hostIPs`).
    pub node_addresses: Vec<IpAddr>,
    /// It takes connections. A manifest without the `Ready` condition counts as ready.
    pub ready: bool,
    /// It has ended (succeeded, failed, or being deleted without an address): it owns nothing any more.
    pub finished: bool,
    /// The waypoint that connections to its own addresses pass through, where they are captured.
    pub waypoint: Option<Arc<Gateway>>,
    /// It speaks HBONE itself: others reach it through tunnels, and its own node does not capture it.
    pub native_tunnel: bool,
    /// It is being deleted, or its node does not report any more, and it still has an address: its address may belong to
    /// another pod already. A pod that has `finished` is not leaving any more.
    pub leaving: bool,
    /// Whether the mesh carries its traffic, and why not.
    pub membership: Membership,
}

impl Workload {
    /// A pod of which nothing is known but its name and who it is: it is outside of the mesh, and has no address.
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

    /// The addresses that the pod claims for itself: none for a finished pod, one on its node's network, or a WorkloadEntry. Whose an address is
    /// that several pods claim: [`Holders`](crate::store::holders::Holders).
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.finished || self.has_shared_addresses() { &[] } else { &self.addresses }
    }

    /// Whether its addresses are not its alone, so that only what names the workload can tell that it is meant.
    #[must_use]
    pub fn has_shared_addresses(&self) -> bool {
        self.host_network || self.is_entry
    }

    /// How messages call it.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", if self.is_entry { "WorkloadEntry" } else { "Pod" }, self.name)
    }
}

/// What made a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Its kind.
    pub kind: ControllerKind,
    /// Its name.
    pub name: Arc<str>,
}

/// Kinds of controllers that telemetry tells apart; pods of all others count as pods of their own, as istiod tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControllerKind {
    /// Deployment.
    Deployment,
    /// CronJob.
    CronJob,
    /// Job.
    Job,
    /// A pod of its own.
    Pod,
}

impl ControllerKind {
    /// As it stands in the key of a baggage entry: `k8s.<name>.name`.
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

/// A TCP port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// The name a Service's `targetPort` refers to.
    pub name: Arc<str>,
    /// The port's number.
    pub number: u16,
}

/// Whether the mesh carries a workload's traffic: a fact of the mesh, the same on every node. Whether the workload's own node
/// can enrol it is another fact, which only that node knows: see [`LocalPod`](super::local::LocalPod).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Yes: every node reaches it through a tunnel only.
    InMesh,
    /// No: neither the pod nor its namespace has the label.
    NotLabelled,
    /// No: the pod's own label says `none`.
    OptedOut,
    /// The labels say yes, and it can't be done.
    Refused(RefuseReason),
}

/// Why a labelled pod can't be in the mesh; `Display` says what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseReason {
    /// The pod has ended.
    Finished,
    /// The pod uses its node's network namespace.
    HostNetwork,
    /// The pod has no usable address (yet).
    NoAddress,
    /// The pod brings a proxy of its own, which carries its traffic: the pod is left alone, as in Istio.
    Sidecar(Sidecar),
}

impl RefuseReason {
    /// Whether a pod that was captured before is released for this reason, and not closed.
    #[must_use]
    pub const fn leaves_alone(self) -> bool {
        matches!(self, Self::Sidecar(_))
    }
}

/// A proxy that a pod brings itself.
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
