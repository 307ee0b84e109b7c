//! A Pod: the content of the object itself. The namespace's part is added when objects are joined.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

use super::address::usable_address;
use super::annotations::Annotations;
use super::intern::Interner;
use super::name::check_name;
use super::port::{is_tcp, port_number};
use super::report::Report;
use super::{controller, node, probe};
use crate::control::field::FieldPath;
use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::local::{Exclusions, LocalPod, PortSet, parse_cidrs};
use crate::model::locality::Locality;
use crate::model::netns::NetnsFile;
use crate::model::workload::{Membership, NamedPort, NamespacedName, RefuseReason, Sidecar, Workload};

/// Label of a Namespace (`ambient`) or a Pod (`ambient` or `none`; the Pod's takes precedence): whether pods are in the
/// mesh.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Annotation with the absolute path of the pod's network namespace on its node.
pub const NETNS: &str = "ambient.mesh/netns";
/// Annotation with destination ports that are not captured.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.ambient.mesh/exclude-outbound-ports";
/// Annotation with destination IP blocks that are not captured.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "traffic.ambient.mesh/exclude-outbound-cidrs";
/// Annotation with ports of the pod that are not captured.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.ambient.mesh/exclude-inbound-ports";

/// Annotation that says when connects of the pod's applications succeed: `early` or `held`.
pub(super) const CONNECT: &str = "traffic.ambient.mesh/connect";

/// Istio's annotation of a pod: plaintext inbound connections are not captured.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Annotation on the mirror object that a kubelet creates for a static pod: the UID of the static pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation that Istio's injection adds to each pod that gets a sidecar.
pub(super) const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// A pod with the mode in its own label; `workload`'s membership, trust domain and locality are not decided yet.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct PodManifest {
    /// `Some(true)`: in the mesh, `Some(false)`: not in the mesh, `None`: as the namespace says.
    pub(in crate::control) own_mode: Option<bool>,
    /// The locality in its own labels.
    own_locality: Option<Box<Locality>>,
    /// The pod is being deleted and still takes connections.
    pub(in crate::control) draining: bool,
    /// The sidecar proxy that the pod has.
    sidecar: Option<Sidecar>,
    /// Its weight as an endpoint.
    pub(in crate::control) weight: u32,
    pub(in crate::control) workload: Arc<Workload>,
    /// Facts for the pod's own node.
    pub(in crate::control) local: Arc<LocalPod>,
}

impl PodManifest {
    /// The manifest of a WorkloadEntry. It is in the mesh if it takes HBONE connections, whatever the label of its
    /// namespace.
    pub(super) fn of_entry(workload: Workload, locality: Option<Locality>, takes_tunnels: bool, weight: u32) -> Self {
        Self {
            own_mode: takes_tunnels.then_some(true),
            own_locality: locality.map(Box::new),
            draining: false,
            sidecar: None,
            weight,
            workload: Arc::new(workload),
            local: Arc::default(),
        }
    }

    /// The workload. The pod's own labels decide on membership and locality; without them, its namespace and its node
    /// decide.
    pub(in crate::control) fn workload(
        &self,
        namespace_labelled: bool,
        node: Option<&Locality>,
        trust_domain: &TrustDomain,
    ) -> Arc<Workload> {
        let workload = &self.workload;
        let membership = match self.own_mode {
            Some(false) => Membership::OptedOut,
            None if !namespace_labelled || workload.is_entry => Membership::NotLabelled,
            _ if workload.finished => Membership::Refused(RefuseReason::Finished),
            _ if workload.host_network => Membership::Refused(RefuseReason::HostNetwork),
            _ => match self.sidecar {
                Some(sidecar) => Membership::Refused(RefuseReason::Sidecar(sidecar)),
                None if workload.addresses.is_empty() => Membership::Refused(RefuseReason::NoAddress),
                None => Membership::InMesh,
            },
        };
        let locality = self.own_locality.as_deref().or(node).cloned().unwrap_or_default();
        if (workload.membership, &workload.locality, &workload.identity.trust_domain)
            == (membership, &locality, trust_domain)
        {
            return Arc::clone(workload);
        }
        let identity = SpiffeId { trust_domain: trust_domain.clone(), ..workload.identity.clone() };
        Arc::new(Workload { membership, locality, identity, ..Workload::clone(workload) })
    }
}

pub(super) fn read(name: &NamespacedName, pod: Pod, texts: &mut Interner, report: &mut Report) -> PodManifest {
    let Pod { metadata, spec, status } = pod;
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
    let labels = metadata.labels.unwrap_or_default();
    let own_mode = match labels.get(MODE_LABEL).map(String::as_str) {
        Some("ambient") => Some(true),
        Some("none") => Some(false),
        _ => None,
    };
    let annotations = metadata.annotations.unwrap_or_default();
    let sidecar = sidecar(&spec, annotations.contains_key(SIDECAR_STATUS));
    let mirrored = annotations.get(MIRROR).map(|uid| Arc::from(uid.as_str()));
    let mut annotations = Annotations { values: &annotations, report };
    let netns = annotations.read(NETNS, "the pod can't be captured", |path| {
        Some(PathBuf::from(path)).filter(|path| path.is_absolute()).ok_or("the path is not absolute")
    });
    let exclusions = exclusions(&mut annotations);
    let connect = annotations.read(CONNECT, "the setting of the pod's node counts", str::parse);

    let addresses = addresses(&status, report);
    let node_addresses = node_addresses(&status, report);
    let terminating = metadata.deletion_timestamp.is_some();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let lost = status.phase.as_deref() == Some("Unknown") || status.reason.as_deref() == Some("NodeLost");
    let without_network = is_condition(&status, "PodReadyToStartContainers", "False");
    let finished = ended || (terminating && addresses.is_empty());
    let owners = metadata.owner_references.unwrap_or_default();
    // The API server accepts this annotation from a kubelet only on an object whose owner is the kubelet's Node.
    let cgroup_uid = mirrored.filter(|_| owners.iter().any(|owner| owner.kind == "Node"));
    let controller = controller::controller(&name.name, &owners, &labels, texts);
    let (canonical_name, canonical_revision) = controller::canonical(&controller, &labels, texts, report);
    let own_locality = node::of_pod(&labels).map(Box::new);
    let node = valid(spec.node_name.as_deref(), "spec.nodeName", "the pod is on no node", report);
    let workload = Workload {
        name: name.clone(),
        uid: metadata.uid.unwrap_or_default().into(),
        identity: SpiffeId::new(
            TrustDomain::default(),
            Arc::clone(&name.namespace),
            texts.text(service_account(&spec, report)),
        ),
        controller,
        canonical_name,
        canonical_revision,
        locality: Locality::default(),
        node: node.map(|node| texts.text(node)),
        addresses,
        host_network: spec.host_network.unwrap_or(false),
        is_entry: false,
        labels: texts.labels(&labels),
        ports: ports(&spec, texts),
        node_addresses,
        ready: !terminating && !finished && condition_ready(&status),
        finished,
        waypoint: None,
        native_tunnel: false,
        leaving: !finished && (terminating || lost || without_network),
        membership: Membership::NotLabelled,
    };
    let draining = terminating && !finished && condition_ready(&status);
    let local = LocalPod {
        netns: netns.map(NetnsFile::Named),
        exclusions,
        connect,
        probe_ports: probe::ports(&spec, &workload.addresses),
        host_ports: host_ports(&spec),
        cgroup_uid,
        runtime_class: spec.runtime_class_name.as_deref().map(|class| texts.text(class)),
        ..LocalPod::default()
    };
    PodManifest {
        own_mode,
        own_locality,
        draining,
        sidecar,
        weight: 1,
        workload: Arc::new(workload),
        local: Arc::new(local),
    }
}

/// The TCP ports of its node that lead to the pod, ascending.
fn host_ports(spec: &PodSpec) -> Vec<u16> {
    let all = probe::running(spec).flat_map(|container| container.ports.iter().flatten());
    let tcp = all.filter(|port| is_tcp(port.protocol.as_deref()));
    let ports: BTreeSet<u16> = tcp.filter_map(|port| port_number(port.host_port?)).collect();
    ports.into_iter().collect()
}

fn exclusions(annotations: &mut Annotations<'_>) -> Exclusions {
    const CAPTURED: &str = "the annotation is ignored, and the traffic is captured";
    let port_set = |text: &str| text.parse::<PortSet>();
    Exclusions {
        outbound_ports: annotations.read(EXCLUDE_OUTBOUND_PORTS, CAPTURED, port_set).unwrap_or_default(),
        outbound_cidrs: annotations.read(EXCLUDE_OUTBOUND_CIDRS, CAPTURED, parse_cidrs).unwrap_or_default(),
        inbound_ports: annotations.read(EXCLUDE_INBOUND_PORTS, CAPTURED, port_set).unwrap_or_default(),
        all_inbound: annotations.read(BYPASS_INBOUND, CAPTURED, boolean).unwrap_or(false),
    }
}

/// Parses a boolean as Istio does.
fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("is neither \"true\" nor \"false\""),
    }
}

/// The sidecar proxy that the pod has: injected by Istio, or a container with the name of such a proxy.
fn sidecar(spec: &PodSpec, is_injected: bool) -> Option<Sidecar> {
    let named = |container: &Container| Sidecar::ALL.into_iter().find(|sidecar| container.name == sidecar.container());
    probe::running(spec).find_map(named).or(is_injected.then_some(Sidecar::Istio))
}

fn addresses(status: &PodStatus, report: &mut Report) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    usable(all, status.pod_ip.as_deref(), |index, error| {
        let field = field_of(index, "status.podIPs", "status.podIP");
        report.error_at(field, format!("status.podIPs: {error}; the address is ignored"));
    })
}

/// The addresses from which the pod's kubelet may send probes.
fn node_addresses(status: &PodStatus, report: &mut Report) -> Vec<IpAddr> {
    let all = status.host_ips.iter().flatten().map(|entry| entry.ip.as_str());
    usable(all, status.host_ip.as_deref(), |index, error| {
        let field = field_of(index, "status.hostIPs", "status.hostIP");
        report.error_at(field, format!("status.hostIPs: {error}; the address is ignored"));
    })
}

/// The path of an entry of a list, or of the single field that accompanies the list.
fn field_of(index: Option<usize>, list: &str, one: &str) -> FieldPath {
    index.map_or_else(|| FieldPath::of(one), |index| FieldPath::of(list).index(index))
}

/// The addresses of a list, or else the address of the single field that accompanies it, without invalid ones and
/// duplicates. `wrong` gets the index of each invalid address in the list, or `None` for the single field.
fn usable<'a>(
    all: impl Iterator<Item = &'a str>,
    one: Option<&'a str>,
    mut wrong: impl FnMut(Option<usize>, String),
) -> Vec<IpAddr> {
    let given = |(_, text): &(Option<usize>, &str)| !text.is_empty();
    let mut texts: Vec<_> = all.enumerate().map(|(index, text)| (Some(index), text)).filter(given).collect();
    if texts.is_empty() {
        texts.extend(one.map(|text| (None, text)).filter(given));
    }
    let (mut addresses, mut seen) = (Vec::new(), HashSet::new());
    for (index, text) in texts {
        match usable_address(text) {
            Ok(address) => addresses.extend(seen.insert(address).then_some(address)),
            Err(error) => wrong(index, error),
        }
    }
    addresses.shrink_to_fit();
    addresses
}

fn service_account<'a>(spec: &'a PodSpec, report: &mut Report) -> &'a str {
    // `serviceAccount` is the older spelling of `serviceAccountName`; the API server fills both.
    let named = spec.service_account_name.as_deref().or(spec.service_account.as_deref());
    let consequence = "the pod has the service account default";
    valid(named, "spec.serviceAccountName", consequence, report).unwrap_or("default")
}

/// The name in a field, if it is valid.
fn valid<'a>(name: Option<&'a str>, field: &str, consequence: &str, report: &mut Report) -> Option<&'a str> {
    let name = name.filter(|name| !name.is_empty())?;
    match check_name(name) {
        Ok(()) => Some(name),
        Err(error) => {
            report.error_at(FieldPath::of(field), format!("{field}: {error}; {consequence}"));
            None
        }
    }
}

fn ports(spec: &PodSpec, texts: &mut Interner) -> Vec<NamedPort> {
    let containers = probe::running(spec);
    let (mut ports, mut seen) = (Vec::new(), HashSet::new());
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let (Some(name), Ok(number), true) = (&port.name, u16::try_from(port.container_port), is_tcp) else { continue };
        if number != 0 && seen.insert(name) {
            ports.push(NamedPort { name: texts.text(name), number });
        }
    }
    ports.shrink_to_fit();
    ports
}

/// A pod without the condition counts as ready.
fn condition_ready(status: &PodStatus) -> bool {
    !status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status != "True")
}

fn is_condition(status: &PodStatus, kind: &str, value: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == value)
}
