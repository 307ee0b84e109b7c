//! Addresses and ports outside of the mesh that lead to its pods: addresses of load balancers, ports of nodes. Nodes
//! translate them, so such a connection is plaintext.

use std::net::IpAddr;

use super::explanation::Explanation;
use super::sources::Sources;
use crate::model::problem::Problem;
use crate::model::workload::Membership;

/// The maximum number of notes.
const MOST_NOTES: usize = 8;
/// The text before the ports in the problem of a Service with node ports.
const NODE_PORT: &str = "nodePort ";

/// The address and the port of a connection that no pod and no service of the mesh is known to have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    address: IpAddr,
    port: u16,
}

impl Outside {
    /// `None`: the mesh knows the destination.
    pub(super) fn of(sources: Sources<'_>, explanation: &Explanation) -> Option<Self> {
        let Explanation { to, route, .. } = explanation;
        let address = to.address.filter(|_| to.service.is_none() && route.service.is_none())?;
        // A pod with the address of its node does not own the ports of the node.
        let is_of_node = sources.snapshot.workload_at(address).is_none_or(|pod| pod.host_network);
        is_of_node.then_some(Self { address, port: to.port })
    }

    /// Whether a problem is about this address or port.
    pub(super) fn is_told_by(&self, problem: &Problem) -> bool {
        self.is_address_of(problem) || self.is_port_of(problem)
    }

    fn is_address_of(&self, problem: &Problem) -> bool {
        let is_separator = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | ':'));
        let address = |word: &str| word.trim_end_matches(['.', ':']).parse::<IpAddr>().ok();
        problem.message.split(is_separator).filter_map(address).any(|address| address == self.address)
    }

    fn is_port_of(&self, problem: &Problem) -> bool {
        let ports = problem.message.split_once(NODE_PORT).map_or("", |(_, ports)| ports);
        let ports = ports.split(", ").map_while(|text| {
            let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<u16>().ok()
        });
        ports.into_iter().any(|port| port == self.port)
    }

    /// Notes on the objects of the mesh to which the connection leads.
    pub(super) fn notes(&self, sources: Sources<'_>) -> Vec<String> {
        const CONSEQUENCE: &str = "in plaintext and without identity, and the policies of that pod decide there";
        let Self { address, port } = self;
        let is_of_node = sources.snapshot.workloads().any(|pod| pod.node_addresses.contains(address));
        let service = |problem: &Problem| {
            let name = problem.object.as_deref()?.strip_prefix("Service ")?;
            let leads = match (self.is_address_of(problem), self.is_port_of(problem)) {
                (true, _) => format!("{address} is an external address of Service {name}: the connection"),
                (_, true) if is_of_node => {
                    format!("port {port} of the nodes is a nodePort of Service {name}: the connection")
                }
                (_, true) => format!(
                    "port {port} is a nodePort of Service {name}: if {address} is an address of a node, the connection"
                ),
                (false, false) => return None,
            };
            Some(format!(
                "{leads} reaches a pod of the Service {CONSEQUENCE}. To use the mesh, connect to the Service: --to \
                 service:{name}"
            ))
        };
        let services = sources.snapshot.problems().iter().filter_map(service);
        let with_port = sources.local.iter().filter(|(_, local)| local.host_ports.contains(port));
        let pods = with_port.filter_map(|(name, _)| {
            let pod = sources.snapshot.workload(name).filter(|pod| pod.membership == Membership::InMesh)?;
            let leads = match pod.node_addresses.as_slice() {
                [] => format!("if {address} is an address of its node, the connection"),
                known if known.contains(address) => "the connection".to_owned(),
                _ => return None,
            };
            Some(format!(
                "port {port} is a hostPort of Pod {name}: {leads} reaches the pod {CONSEQUENCE}. To use the mesh, \
                 connect to the pod: --to pod:{name}"
            ))
        });
        let mut notes: Vec<String> = services.chain(pods).collect();
        notes.sort();
        notes.dedup();
        notes.truncate(MOST_NOTES);
        notes
    }
}
