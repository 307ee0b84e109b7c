//! Facts about a pod that only its own node needs: its network namespace, the traffic that is not captured, its probes.
//!
//! No other node has to know them, so they are not part of the [`Workload`](super::workload::Workload). In particular no
//! route depends on them: a pod of the mesh is reached through a tunnel whether or not its node can enrol it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::netns::NetnsFile;
use super::workload::NamespacedName;

/// The local facts of pods, by name. A pod that is not in the map is one of which no facts are known here.
pub type LocalPods = BTreeMap<NamespacedName, LocalPod>;

/// The local facts of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalPod {
    /// Its network namespace. `None`: the source of local facts does not know it.
    pub netns: Option<NetnsFile>,
    /// Traffic of the pod that is not captured.
    pub exclusions: Exclusions,
    /// TCP ports to which the pod's kubelet connects: those of liveness, readiness and startup probes, and of lifecycle hooks;
    /// ascending, without duplicates.
    pub probe_ports: Vec<u16>,
    /// The UID that the cgroup of its processes has, where that is not the UID of the object: for static pods.
    pub cgroup_uid: Option<Arc<str>>,
    /// Its runtime class, if it has one.
    pub runtime_class: Option<Arc<str>>,
    /// Its service account, where the source of local facts knows better than the mesh whose pod it is: both must agree.
    pub service_account: Option<Arc<str>>,
    /// The source of local facts says that the pod has the label of the mesh, and can be in it.
    pub is_labelled: bool,
}

impl LocalPod {
    /// The runtime class, if it is one whose containers have a network stack of their own: that of a virtual machine (Kata), or of
    /// a kernel that runs as a process (gVisor). Connections of such pods pass by the sockets of this machine.
    #[must_use]
    pub fn own_network_stack(&self) -> Option<&Arc<str>> {
        let class = self.runtime_class.as_ref()?;
        ["gvisor", "runsc", "kata"].iter().any(|name| class.contains(name)).then_some(class)
    }
}

/// Traffic of a pod that is not captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exclusions {
    /// Destination ports of connections that the pod opens.
    pub outbound_ports: PortSet,
    /// Destinations of connections that the pod opens. Canonical: an IPv4 range is never written v4-mapped.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of the pod that others connect to.
    pub inbound_ports: PortSet,
    /// No plaintext connection to the pod is captured, at whatever port. Tunnels end at the daemon all the same, and there
    /// policy is enforced.
    pub all_inbound: bool,
}

impl Exclusions {
    /// Whether a plaintext connection to this port of the pod is not captured.
    #[must_use]
    pub fn exclude_inbound(&self, port: u16) -> bool {
        self.all_inbound || self.inbound_ports.contains(port)
    }
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
        assert!(!set.is_empty());
    }
}
