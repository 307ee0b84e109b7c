//! The client: the identity that it can prove, its addresses, and whether its node captures it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ebpf_common::capture::{Capture, Exceptions};
use ebpf_common::{Addr, map_addr};
use ipnet::IpNet;

use super::explanation::{ExplainedRefusal, Source};
use super::query::{From, Query, QueryError, behind, client_pod};
use super::sources::Sources;
use super::state::PodState;
use crate::model::close::CloseReason;
use crate::model::identity::SpiffeId;
use crate::model::local::{ConnectMode, Exclusions, LocalPod};
use crate::model::workload::{Membership, Workload};
use crate::policy::Principal;
use crate::store::snapshot::Snapshot;

/// The client of a connection.
#[derive(Debug)]
pub(super) struct Client<'a> {
    /// The pod, if known.
    pub(super) pod: Option<&'a Arc<Workload>>,
    /// The pod's local facts, if known.
    pub(super) local: Option<&'a LocalPod>,
    /// The state of the pod at its node, if known.
    pub(super) state: Option<PodState>,
    /// The identity that it proves in HBONE connections.
    pub(super) principal: Option<Principal>,
    /// Its addresses; empty if not known.
    pub(super) addresses: Vec<IpAddr>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

impl<'a> Client<'a> {
    /// The client of a question.
    pub(super) fn of(sources: Sources<'a>, query: &Query) -> Result<Self, QueryError> {
        let mut client = Self::meant(sources.snapshot, query)?;
        client.local = client.pod.and_then(|pod| sources.local(&pod.name));
        client.state = client.pod.and_then(|pod| sources.state(pod));
        Ok(client)
    }

    fn meant(snapshot: &'a Snapshot, query: &Query) -> Result<Self, QueryError> {
        match &query.from {
            From::Pod(name) => Self::pod(client_pod(snapshot, name)?),
            From::Identity(identity) => Self::identity(snapshot, identity),
            From::Host(host) => {
                let (name, pods) = behind(snapshot, host)?;
                let Some(first) = pods.first() else { return Err(QueryError::From { text: host.clone() }) };
                let mut client = Self::pod(first)?;
                client.notes.push(format!(
                    "{host}: the answer is for Pod {}, one of {} pods behind {name}",
                    first.name,
                    pods.len()
                ));
                Ok(client)
            }
            From::Address(address) => match snapshot.workload_at(*address) {
                Some(pod) => Ok(Self { addresses: vec![*address], ..Self::pod(pod)? }),
                None => Ok(Self::outside(snapshot, *address)),
            },
        }
    }

    fn pod(pod: &'a Arc<Workload>) -> Result<Self, QueryError> {
        let no = |why| QueryError::NoAddress { side: "from", what: format!("{} {why}", pod.title()) };
        match () {
            () if pod.finished => Err(no("has finished")),
            () if pod.addresses.is_empty() => Err(no("has no address (yet)")),
            () => Ok(Self {
                pod: Some(pod),
                local: None,
                state: None,
                principal: Some(Principal::new(pod.identity.clone())),
                addresses: pod.addresses.clone(),
                notes: Vec::new(),
            }),
        }
    }

    /// One of the pods with the identity. All of them have the same service account, so only rules about addresses distinguish
    /// them.
    fn identity(snapshot: &'a Snapshot, identity: &SpiffeId) -> Result<Self, QueryError> {
        let bearers =
            || snapshot.workloads().filter(|pod| pod.identity == *identity && !pod.own_addresses().is_empty());
        let mut in_mesh = bearers().filter(|pod| pod.membership == Membership::InMesh);
        if let Some(first) = in_mesh.next() {
            let mut client = Self::pod(first)?;
            client.notes.push(match in_mesh.count() {
                0 => format!(
                    "{identity}: the answer is for Pod {}, the only pod of the mesh with this identity",
                    first.name
                ),
                more => {
                    format!(
                        "{identity}: the answer is for Pod {}, one of {} pods with this identity",
                        first.name,
                        more.saturating_add(1)
                    )
                }
            });
            return Ok(client);
        }
        let mut notes = vec![format!(
            "no pod of the mesh has {identity}, so its address is not known: rules on the client's address are \
             evaluated as if none of them lists it"
        )];
        if let Some(pod) = bearers().next() {
            notes.push(format!(
                "Pod {} has this service account, but {}: it cannot prove the identity",
                pod.name,
                outside_why(pod)
            ));
        }
        let principal = Some(Principal::new(identity.clone()));
        Ok(Self { pod: None, local: None, state: None, principal, addresses: Vec::new(), notes })
    }

    fn outside(snapshot: &Snapshot, address: IpAddr) -> Self {
        let mut notes = Vec::new();
        if let Some(claimants) = snapshot.contested(address) {
            let claimants: Vec<String> = claimants.iter().take(4).map(|name| format!("Pod {name}")).collect();
            notes.push(format!(
                "{address} is claimed by {}: until only one of them claims it, it belongs to no pod and has no \
                 identity",
                claimants.join(", ")
            ));
        } else if let Some(service) = snapshot.cluster_ip(address) {
            notes.push(format!("{address} is the address of Service {}: no connection comes from it", service.name));
        } else if let Some(pod) = snapshot.workloads().find(|pod| pod.node_addresses.contains(&address)) {
            let node = pod.node.as_deref().unwrap_or("(unnamed)");
            notes.push(format!(
                "{address} is an address of node {node}: its kubelet, its other processes and its hostNetwork pods have it"
            ));
        }
        Self { pod: None, local: None, state: None, principal: None, addresses: vec![address], notes }
    }

    /// Whether its node captures a connection to this address, or why it does not.
    pub(super) fn capture(&self, to: IpAddr, port: u16) -> Result<(), String> {
        let Some(pod) = self.pod else {
            let outside = || "the client is not a known pod".to_owned();
            return if self.principal.is_some() { Ok(()) } else { Err(outside()) };
        };
        let name = &pod.name;
        match () {
            () if pod.is_entry => {
                return Err(format!(
                    "WorkloadEntry {name} is a host that no node of the mesh serves; if a proxy of the host opens HBONE \
                     connections, ask with its identity: --from {}",
                    pod.identity
                ));
            }
            () if pod.membership != Membership::InMesh => {
                return Err(format!("Pod {name} is not captured: {}", outside_why(pod)));
            }
            () if pod.host_network => {
                return Err(format!("Pod {name} uses its node's network (hostNetwork), and is not captured"));
            }
            () if self.local.is_some_and(|local| local.netns.is_none()) => {
                return Err(format!("Pod {name} is not captured: {NO_NETNS}"));
            }
            () => {}
        }
        if let Some(why) = self.state.as_ref().and_then(PodState::why_open) {
            return Err(format!("Pod {name} is not captured: {why}"));
        }
        let known = Known { pod, exclusions: self.local.map(|local| &local.exclusions) };
        match Capture::of(&map_addr(to), port, &known) {
            Capture::Captured => Ok(()),
            Capture::Own => Err(format!("Pod {name} connects to an address of its own, which is not captured")),
            Capture::OnLink => {
                Err("connections to loopback, unspecified and IPv6 link-local addresses are not captured".to_owned())
            }
            Capture::ExcludedPort => Err(format!(
                "Pod {name} excludes outbound port {port} (annotation traffic.ambient.mesh/exclude-outbound-ports)"
            )),
            Capture::ExcludedAddr => Err(format!(
                "Pod {name} excludes outbound {} (annotation traffic.ambient.mesh/exclude-outbound-cidrs)",
                known.excluded_range(to).map_or_else(|| to.to_string(), ToString::to_string)
            )),
        }
    }

    /// When its connects succeed, if the pod says so itself. Otherwise its node decides.
    pub(super) fn connect(&self, captured: &Result<(), String>) -> Option<String> {
        let name = &self.pod.filter(|_| captured.is_ok())?.name;
        let when = match self.local?.connect? {
            ConnectMode::Held => "when its destination is reached, and fails as without the mesh otherwise",
            ConnectMode::Early => {
                "before its destination is reached; the connection is reset if the destination is not"
            }
        };
        Some(format!("the connect of Pod {name} succeeds {when} (annotation traffic.ambient.mesh/connect)"))
    }

    /// The address from which it connects to an address of this family: the kernel uses a pod's first. `None`: it has none.
    pub(super) fn address_towards(&self, to: IpAddr) -> Option<IpAddr> {
        if self.addresses.is_empty() {
            return Some(unknown_address(to));
        }
        self.addresses.iter().copied().find(|own| own.is_ipv4() == to.is_ipv4())
    }

    /// The address of a destination to which it would connect.
    pub(super) fn preferred(&self, of: &[IpAddr]) -> Option<IpAddr> {
        of.iter().copied().find(|to| self.address_towards(*to).is_some()).or_else(|| of.first().copied())
    }

    /// Why all of its connections fail.
    pub(super) fn closed(&self) -> Option<ExplainedRefusal> {
        let why = self.state.as_ref()?.why_closed()?;
        let reason = CloseReason::Unreachable.label().to_owned();
        Some(ExplainedRefusal { reason, text: format!("{}: {why}", self.title()) })
    }

    /// Its namespace, if known.
    pub(super) fn namespace(&self) -> Option<&str> {
        let of_principal = self.principal.as_ref().map(|principal| &*principal.identity().namespace);
        self.pod.map(|pod| &*pod.name.namespace).or(of_principal)
    }

    /// Its name in sentences.
    pub(super) fn title(&self) -> String {
        match (self.pod, &self.principal) {
            (Some(pod), _) => pod.title(),
            (None, Some(principal)) => principal.identity().to_string(),
            (None, None) => self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }
    }

    /// The client in the form of the explanation.
    pub(super) fn told(&self, query: &Query, captured: &Result<(), String>) -> Source {
        let asked = match &query.from {
            From::Pod(name) => name.to_string(),
            From::Identity(identity) => identity.to_string(),
            From::Address(address) => address.to_string(),
            From::Host(host) => host.clone(),
        };
        let state = match (captured, self.pod) {
            (Ok(()), _) => "in the mesh".to_owned(),
            (Err(why), _) => why.clone(),
        };
        Source {
            asked,
            pod: self.pod.map(|pod| pod.name.to_string()),
            identity: self.principal.as_ref().map(|principal| principal.identity().to_string()),
            addresses: self.addresses.clone(),
            node: self.pod.and_then(|pod| pod.node.as_deref()).map(str::to_owned),
            captured: captured.is_ok(),
            state,
        }
    }
}

/// Why the node of a pod of the mesh can't enrol it.
pub(super) const NO_NETNS: &str = "its node can't enrol it, because its network namespace is not known: set the annotation \
                                   ambient.mesh/netns to its absolute path, or run its daemon with --pods kubernetes";

/// A pod's exceptions from capture, if they are known here.
struct Known<'a> {
    pod: &'a Workload,
    exclusions: Option<&'a Exclusions>,
}

impl<'a> Known<'a> {
    fn excluded_range(&self, to: IpAddr) -> Option<&'a IpNet> {
        self.exclusions?.outbound_cidrs.iter().find(|cidr| cidr.contains(&to))
    }
}

impl Exceptions for Known<'_> {
    fn is_own(&self, addr: &Addr) -> bool {
        self.pod.own_addresses().iter().any(|own| map_addr(*own) == *addr)
    }

    fn excludes_port(&self, port: u16) -> bool {
        self.exclusions.is_some_and(|exclusions| exclusions.outbound_ports.contains(port))
    }

    fn excludes_addr(&self, addr: &Addr) -> bool {
        self.excluded_range(Ipv6Addr::from(*addr).to_canonical()).is_some()
    }
}

/// An address that is reserved for documentation (RFC 5737, RFC 3849): only rules for the whole family match it.
fn unknown_address(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    }
}

/// Why a pod is not in the mesh.
pub(super) fn outside_why(pod: &Workload) -> String {
    match pod.membership {
        Membership::InMesh => "it is in the mesh".to_owned(),
        Membership::NotLabelled if pod.is_entry => {
            "it does not have the label networking.istio.io/tunnel: http".to_owned()
        }
        Membership::NotLabelled => format!(
            "neither it nor its namespace {} has the label istio.io/dataplane-mode: ambient",
            pod.name.namespace
        ),
        Membership::OptedOut => "its own label istio.io/dataplane-mode: none keeps it out of the mesh".to_owned(),
        Membership::Refused(reason) => format!("it is labelled, but {reason}"),
    }
}
