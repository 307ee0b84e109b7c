//! Facts about a pod that only its own node needs: its network namespace, the traffic that is not captured, its probes.
//!
//! No other node needs these facts, so they are not part of the [`Workload`](super::workload::Workload). In particular no route
//! depends on them: a pod of the mesh is reached through HBONE whether or not its node can enrol it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::identity::SpiffeId;
use super::netns::NetnsFile;
use super::workload::NamespacedName;

/// The local facts of pods, by name. No local facts are known about a pod that is not in the map.
pub type LocalPods = BTreeMap<NamespacedName, LocalPod>;

/// The local facts of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalPod {
    /// Its network namespace. `None`: the local source does not know it.
    pub netns: Option<NetnsFile>,
    /// Traffic of the pod that is not captured.
    pub exclusions: Exclusions,
    /// When its connects succeed. `None`: as its node is set.
    pub connect: Option<ConnectMode>,
    /// TCP ports to which the kubelet connects: ports of liveness, readiness and startup probes, and of lifecycle hooks.
    /// Ascending, without duplicates.
    pub probe_ports: Vec<u16>,
    /// TCP ports of its node that lead to the pod (`hostPort`). Ascending, without duplicates.
    pub host_ports: Vec<u16>,
    /// The UID in the name of the pod's cgroup, if it is not the UID of the object: for static pods.
    pub cgroup_uid: Option<Arc<str>>,
    /// Its runtime class, if any.
    pub runtime_class: Option<Arc<str>>,
    /// Its service account, if the local source knows it. It must be the same as in the mesh.
    pub service_account: Option<Arc<str>>,
    /// The local source reports that the pod has the label of the mesh, and can be in it.
    pub is_labelled: bool,
    /// The pod's sandbox, where the CNI plugin has reported it before Kubernetes reports the pod's addresses.
    pub sandbox: Option<Sandbox>,
}

/// The sandbox of a pod as the container runtime has made it, before a container of the pod has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Who the pod is.
    pub identity: SpiffeId,
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The pod's status does not have these addresses yet: it has none, or those of an earlier sandbox.
    pub is_ahead_of_status: bool,
}

impl LocalPod {
    /// The runtime class, if its containers have a network stack of their own: a virtual machine (Kata), or a kernel that runs
    /// as a process (gVisor). Connections of these pods do not use sockets of this machine's kernel.
    #[must_use]
    pub fn own_network_stack(&self) -> Option<&Arc<str>> {
        let class = self.runtime_class.as_ref()?;
        ["gvisor", "runsc", "kata"].iter().any(|name| class.contains(name)).then_some(class)
    }
}

/// When the connect of a pod's application succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectMode {
    /// At once. The connection is reset later if its destination can't be reached.
    Early,
    /// When the destination is reached. Otherwise it fails as it would without the mesh.
    Held,
}

impl ConnectMode {
    /// Both, with the names that users write.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Early, "early"), (Self::Held, "held")];

    /// The name that users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::Held => "held",
        }
    }
}

impl FromStr for ConnectMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found.map(|(mode, _)| mode).ok_or("is neither \"early\" nor \"held\"")
    }
}

/// Traffic of a pod that is not captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exclusions {
    /// Destination ports of connections that the pod opens.
    pub outbound_ports: PortSet,
    /// Destinations of connections that the pod opens. Canonical: an IPv4 block is never written as IPv4-mapped IPv6.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of the pod to which others connect.
    pub inbound_ports: PortSet,
    /// No plaintext connection to the pod is captured, at any port. HBONE connections still end at the daemon, and policy is
    /// enforced there.
    pub all_inbound: bool,
}

impl Exclusions {
    /// Whether a plaintext connection to this port of the pod is not captured.
    #[must_use]
    pub fn exclude_inbound(&self, port: u16) -> bool {
        self.all_inbound || self.inbound_ports.contains(port)
    }
}

/// A set of TCP ports without port 0. It is parsed from `80, 443`; an empty text is the empty set.
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

    /// Whether the set is empty.
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

/// Why a text is not a list of ports or of IP blocks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExclusionError {
    /// Two commas in a row, or a comma at an end.
    #[error("an entry between the commas is empty")]
    EmptyEntry,
    /// The entry is not a port.
    #[error("{entry:?} is not a port, write numbers from 1 to 65535 separated by commas")]
    Port {
        /// The entry.
        entry: String,
    },
    /// The entry is not an IP block.
    #[error("{entry:?} is not an IP block, write ADDRESS/PREFIX such as 10.0.0.0/8 or fd00::/8")]
    Cidr {
        /// The entry.
        entry: String,
    },
    /// Bits are set behind the prefix. The entry may mean one address or the whole block; a wrong guess would exclude too much
    /// from the mesh.
    #[error(
        "{entry:?} has bits set behind its prefix, write {range} for the IP block or {address} for the one address"
    )]
    HostBits {
        /// The entry.
        entry: String,
        /// The block that contains the address.
        range: IpNet,
        /// The one address.
        address: IpNet,
    },
}

/// Parses `10.0.0.0/8, fd00::/8`. An empty text is the empty list. An IPv4-mapped block becomes IPv4.
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

    /// Checks how each text is parsed as a list of ports and as a list of IP blocks; errors begin with `!`.
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
        check("443, 80,80", "80,443", "!\"443\" is not an IP block");
        check("65535", "65535", "!");
        check("65536", "!\"65536\" is not a port", "!");
        check("0", "!\"0\" is not a port", "!");
        check("80,,443", "!an entry between the commas is empty", "!an entry");
        check("80,", "!an entry between the commas is empty", "!an entry");
        check("80-90", "!\"80-90\" is not a port", "!");
        check("10.0.0.0/8, fd00::/8", "!", "10.0.0.0/8,fd00::/8");
        check("::ffff:10.0.0.0/104", "!", "10.0.0.0/8");
        check("::/0", "!", "::/0");
        check("10.0.0.1", "!", "!\"10.0.0.1\" is not an IP block");
        check("10.1.2.3/8", "!", "!\"10.1.2.3/8\" has bits set behind its prefix, write 10.0.0.0/8 for");
        check("10.0.0.0/33", "!", "!");
    }

    #[test]
    fn port_sets_answer_membership() {
        let set: PortSet = "443,80".parse().unwrap();
        assert!(set.contains(80) && set.contains(443) && !set.contains(81));
        assert_eq!(set.iter().collect::<Vec<_>>(), [80, 443]);
        assert!(!set.is_empty());
    }
}
