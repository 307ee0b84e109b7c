//! A workload: one pod, where it runs, which addresses are its own, and whether the mesh carries its traffic.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::identity::SpiffeId;
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

/// One pod, as its manifest tells it.
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
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Absolute path of its network namespace on its node, where the manifest tells it.
    pub netns: Option<PathBuf>,
    /// Its named TCP ports, in the manifest's order.
    pub ports: Vec<NamedPort>,
    /// TCP ports at which the kubelet asks whether it is alive, ready or started; ascending, without duplicates.
    pub probe_ports: Vec<u16>,
    /// Addresses of its node, canonical (`status.hostIPs`).
    pub node_addresses: Vec<IpAddr>,
    /// It takes connections. A manifest without the `Ready` condition counts as ready.
    pub ready: bool,
    /// It has ended (succeeded, failed, or being deleted without an address): it owns nothing any more.
    pub finished: bool,
    /// Whether the mesh carries its traffic, and why not.
    pub membership: Membership,
    /// What of its traffic stays outside the mesh all the same.
    pub exclusions: Exclusions,
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
            labels: Arc::default(),
            netns: None,
            ports: Vec::new(),
            probe_ports: Vec::new(),
            node_addresses: Vec::new(),
            ready: true,
            finished: false,
            membership: Membership::NotLabelled,
            exclusions: Exclusions::default(),
            name,
        }
    }

    /// Whether the operator wants it in the mesh, possible or not.
    pub fn is_labelled(&self) -> bool {
        matches!(self.membership, Membership::InMesh | Membership::Refused(_))
    }

    /// The number of the TCP port with this name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| *port.name == *name).map(|port| port.number)
    }

    /// The addresses nobody else may have: none for a finished pod or one on its node's network.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.finished || self.host_network { &[] } else { &self.addresses }
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

/// Whether the mesh carries a workload's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Yes.
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
    /// The manifest doesn't tell the pod's network namespace. Matters only on the pod's own node.
    NoNetns,
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "the pod has finished, there is nothing left to capture",
            Self::HostNetwork => {
                "hostNetwork pods share the node's network and can't be captured: run the pod without hostNetwork, \
                 or label it istio.io/dataplane-mode: none"
            }
            Self::NoAddress => {
                "the pod has no usable address in status.podIPs: it is enrolled as soon as one is reported"
            }
            Self::NoNetns => {
                "the pod's network namespace is not known: set the annotation ambient.mesh/netns to its absolute \
                 path, for example /run/netns/NAME"
            }
        })
    }
}

/// Traffic of a pod in the mesh that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exclusions {
    /// Destination ports of connections that the pod opens.
    pub outbound_ports: PortSet,
    /// Destinations of connections that the pod opens. Canonical: an IPv4 range is never written v4-mapped.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of the pod that others connect to.
    pub inbound_ports: PortSet,
}

/// A set of TCP ports, none of them 0. Parsed from `80, 443`; an empty text is the empty set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet(Vec<u16>);

impl PortSet {
    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.binary_search(&port).is_ok()
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// How many ports.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for PortSet {
    type Err = ExclusionError;

    fn from_str(text: &str) -> Result<Self, ExclusionError> {
        let mut ports = list(text)?
            .map(|entry| match entry.parse() {
                Ok(0) | Err(_) => Err(ExclusionError::Port { entry: entry.to_owned() }),
                Ok(port) => Ok(port),
            })
            .collect::<Result<Vec<u16>, _>>()?;
        ports.sort_unstable();
        ports.dedup();
        Ok(Self(ports))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, port) in self.0.iter().enumerate() {
            write!(f, "{}{port}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Why a text is not a list of ports or of address ranges.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExclusionError {
    /// Two commas in a row, or one at an end.
    #[error("an entry between the commas is empty")]
    EmptyEntry,
    /// Not a port.
    #[error("{entry:?} is not a port, write numbers from 1 to 65535 separated by commas")]
    Port {
        /// What stands there.
        entry: String,
    },
    /// Not an address range.
    #[error("{entry:?} is not an address range, write ADDRESS/PREFIX such as 10.0.0.0/8 or fd00::/8")]
    Cidr {
        /// What stands there.
        entry: String,
    },
    /// Bits are set behind the prefix: one address or the whole range may be meant, and guessing wrong opens the mesh.
    #[error("{entry:?} has bits set behind its prefix, write {range} for the range or {address} for the one address")]
    HostBits {
        /// What stands there.
        entry: String,
        /// The range around it.
        range: IpNet,
        /// The address in it.
        address: IpNet,
    },
}

/// Parses `10.0.0.0/8, fd00::/8`; an empty text is the empty list. A v4-mapped range becomes the IPv4 one.
pub fn parse_cidrs(text: &str) -> Result<Vec<IpNet>, ExclusionError> {
    list(text)?.map(parse_cidr).collect()
}

fn parse_cidr(entry: &str) -> Result<IpNet, ExclusionError> {
    let bad = || ExclusionError::Cidr { entry: entry.to_owned() };
    let mut net: IpNet = entry.parse().map_err(|_| bad())?;
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
    {
        net = IpNet::V4(Ipv4Net::new(v4, prefix).map_err(|_| bad())?);
    }
    if net.addr() != net.network() {
        let (entry, range, address) = (entry.to_owned(), net.trunc(), IpNet::from(net.addr()));
        return Err(ExclusionError::HostBits { entry, range, address });
    }
    Ok(net)
}

/// The trimmed entries between commas.
fn list(text: &str) -> Result<impl Iterator<Item = &str>, ExclusionError> {
    let text = text.trim();
    let entries = || text.split(',').map(str::trim);
    if !text.is_empty() && entries().any(str::is_empty) {
        return Err(ExclusionError::EmptyEntry);
    }
    Ok(entries().filter(|entry| !entry.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each text means as a list of ports and as a list of ranges; errors begin with `!`.
    fn check(text: &str, ports: &str, cidrs: &str) {
        let shown_ports = text.parse::<PortSet>().map_or_else(|error| format!("!{error}"), |set| set.to_string());
        let shown_cidrs = parse_cidrs(text).map_or_else(
            |error| format!("!{error}"),
            |nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        );
        assert!(shown_ports.starts_with(ports), "{text:?} as ports: {shown_ports}");
        assert!(shown_cidrs.starts_with(cidrs), "{text:?} as ranges: {shown_cidrs}");
        assert_eq!(shown_ports.is_empty(), ports.is_empty(), "{text:?} as ports: {shown_ports}");
        assert_eq!(shown_cidrs.is_empty(), cidrs.is_empty(), "{text:?} as ranges: {shown_cidrs}");
    }

    #[test]
    fn exclusion_texts() {
        check("", "", "");
        check(" ", "", "");
        check("443, 80,80", "80,443", "!\"443\" is not an address range");
        check("65535", "65535", "!");
        check("65536", "!\"65536\" is not a port", "!");
        check("0", "!\"0\" is not a port", "!");
        check("80,,443", "!an entry between the commas is empty", "!an entry");
        check("80,", "!an entry between the commas is empty", "!an entry");
        check("80-90", "!\"80-90\" is not a port", "!");
        check("10.0.0.0/8, fd00::/8", "!", "10.0.0.0/8,fd00::/8");
        check("::ffff:10.0.0.0/104", "!", "10.0.0.0/8");
        check("::/0", "!", "::/0");
        check("10.0.0.1", "!", "!\"10.0.0.1\" is not an address range");
        check("10.1.2.3/8", "!", "!\"10.1.2.3/8\" has bits set behind its prefix, write 10.0.0.0/8 for");
        check("10.0.0.0/33", "!", "!");
    }

    #[test]
    fn port_sets_answer_membership() {
        let set: PortSet = "443,80".parse().unwrap();
        assert!(set.contains(80) && set.contains(443) && !set.contains(81));
        assert_eq!(set.iter().collect::<Vec<_>>(), [80, 443]);
        assert_eq!((set.len(), set.is_empty()), (2, false));
    }
}
