//! The decision for both directions: where a connection of a pod goes, and how.
//!
//! The decision fails closed: no connection is made in plaintext to an address that is, or could be, the address of a pod in
//! the mesh. Facts that only the destination's node knows about that pod (its network namespace, its excluded ports) play no
//! part. Plaintext is used for connections of a pod to itself, to pods outside the mesh, and to addresses that the mesh does
//! not know, unless the mesh refuses unknown addresses (`REGISTRY_ONLY`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ebpf_common::HBONE_PORT;

use super::balance::{Choice, MOST, choose, choose_sticky, draw_of};
pub use super::outcome::{Candidate, Hop, Inbound, Outbound, RouteRefusal};
use crate::{
    model::{
        addr::{OrigDst, is_link_local_v6, is_listener},
        close::CloseReason,
        flow::Flow,
        gateway::Gateway,
        identity::SpiffeId,
        locality::{Distribution, TopologyPosition},
        service::{Endpoint, Health, Resolution, Service},
        workload::{Membership, NamespacedName, Workload},
    },
    store::snapshot::{Owner, Snapshot},
};

/// Decides about a connection that `pod` opens. `draw` has to be random: it chooses among endpoints.
///
/// A pod may connect from an address that the mesh does not know, if its network namespace has the address. The code that makes
/// the onward connection from that address finds out whether this is so.
///
/// # Errors
/// Why the connection is refused.
pub fn outbound(snapshot: &Snapshot, flow: &Flow, pod: &NamespacedName, draw: u64) -> Result<Outbound, RouteRefusal> {
    let dst = flow.dst;
    match snapshot.workload(pod) {
        Some(own) => {
            check_source(snapshot, own, flow.peer.ip())?;
            Client::pod(snapshot, own).decide(dst, draw)
        }
        None if !is_carried(dst.ip()) => Err(CloseReason::Recursive.into()),
        None => Err(RouteRefusal::because(CloseReason::LocalFault, format!("the mesh has no Pod {pod} (any more)"))),
    }
}

/// Decides about a connection of a pod that the mesh does not know yet: its own node has enrolled it before its first container
/// runs. It connects with an identity of its own, and all endpoints are equally near to it.
///
/// # Errors
/// Why it is refused.
pub fn outbound_of_new(
    snapshot: &Snapshot,
    flow: &Flow,
    pod: &NamespacedName,
    draw: u64,
) -> Result<Outbound, RouteRefusal> {
    check_owner(snapshot, pod, flow.peer.ip())?;
    Client::anywhere(snapshot, &pod.namespace).decide(flow.dst, draw)
}

/// Decides about a plaintext connection into `pod`.
///
/// # Errors
/// Why the connection is refused.
pub fn inbound(snapshot: &Snapshot, flow: &Flow, pod: &NamespacedName) -> Result<Inbound, RouteRefusal> {
    let (peer, dst) = (flow.peer.ip(), flow.dst.ip());
    if !is_carried(dst) {
        return Err(CloseReason::NotThisPod.into());
    }
    check_peer(peer)?;
    Ok(Inbound {
        to: flow.dst.socket(),
        source: snapshot.workload_at(peer).cloned(),
        destination: snapshot.workload(pod).cloned(),
        service: service_behind(snapshot, pod, flow.dst.port(), None).cloned(),
    })
}

/// Whether a pod may connect from an address: one of its own, or an address that the mesh knows for no other object.
fn check_source(snapshot: &Snapshot, pod: &Workload, source: IpAddr) -> Result<(), RouteRefusal> {
    if pod.addresses.contains(&source) { Ok(()) } else { check_owner(snapshot, &pod.name, source) }
}

/// Whether an address is nobody's, as far as the mesh knows.
fn check_owner(snapshot: &Snapshot, pod: &NamespacedName, source: IpAddr) -> Result<(), RouteRefusal> {
    if is_link_local_v6(source) {
        return Err(CloseReason::LinkLocalSource.into());
    }
    let owner = match snapshot.workload_at(source) {
        Some(other) => other.title(),
        None => match (snapshot.contested(source), snapshot.cluster_ip(source)) {
            (Some(claimants), _) => listed(claimants),
            (None, Some(service)) => title(service),
            (None, None) if is_carried(source) => return Ok(()),
            (None, None) => "no pod".to_owned(),
        },
    };
    let detail = format!("Pod {pod} connects from {source}, which is an address of {owner}");
    Err(RouteRefusal::because(CloseReason::ForeignSource, detail))
}

/// Whether an application can get connections from this address.
pub(super) fn check_peer(peer: IpAddr) -> Result<(), CloseReason> {
    match () {
        () if is_link_local_v6(peer) => Err(CloseReason::LinkLocalSource),
        () if !is_carried(peer) => Err(CloseReason::Recursive),
        () => Ok(()),
    }
}

/// Whether the daemon can carry TCP to or from the address.
pub(super) fn is_carried(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !is_link_local_v6(ip) && !is_listener(ip)
}

/// The service for which a connection to a pod's port is counted: the service that the client named, if the pod is behind it,
/// or else the first service that leads to the port.
pub(super) fn service_behind<'a>(
    snapshot: &'a Snapshot,
    pod: &NamespacedName,
    port: u16,
    hostname: Option<&str>,
) -> Option<&'a Arc<Service>> {
    let mut services = snapshot.services_of(pod);
    let named = hostname.and_then(|hostname| {
        services.clone().find(|service| service.hostname.eq_ignore_ascii_case(without_port(hostname)))
    });
    named.or_else(|| {
        let pod = snapshot.workload(pod)?;
        services.find(|service| {
            own_endpoints(service, pod).flat_map(|endpoint| endpoint.ports.targets()).any(|target| target == port)
        })
    })
}

/// The endpoints of a service that belong to this pod.
pub(super) fn own_endpoints<'a>(service: &'a Service, pod: &'a Workload) -> impl Iterator<Item = &'a Endpoint> {
    let at_its_addresses = pod.addresses.iter().flat_map(|address| service.endpoints_at(*address));
    at_its_addresses.filter(|endpoint| endpoint.workload.as_ref() == Some(&pod.name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A waypoint enforces policies that only it can enforce, for example on HTTP requests. A connection past the waypoint would
/// evade them.
fn past(waypoint: &Gateway, of: &str) -> RouteRefusal {
    let detail = format!(
        "connections to {of} pass through the waypoint {waypoint}, and this version has no tunnels to waypoints: they are refused, \
         so that no policy of the waypoint is evaded; remove the label istio.io/use-waypoint to connect without it"
    );
    RouteRefusal::because(CloseReason::NoHealthyUpstream, detail)
}

fn unknown(dst: OrigDst) -> String {
    format!("{dst} is not in the mesh's registry (outboundTrafficPolicy REGISTRY_ONLY)")
}

/// The text for a fact that may be in a file that could not be read since the start.
fn unread(what: &str) -> String {
    format!(
        "{what} may be in a file of the mesh that has never been readable: repair the file, which /config_dump names"
    )
}

/// The first few claimants; the list can be as long as the mesh has objects.
fn listed(claimants: &[NamespacedName]) -> String {
    const MOST: usize = 4;
    let named: Vec<String> = claimants.iter().take(MOST).map(|name| format!("Pod {name}")).collect();
    let more = match claimants.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

pub(super) fn title(service: &Service) -> String {
    format!("{} {}", service.kind.name(), service.name)
}

/// A client whose connections are captured, with a snapshot of the mesh.
pub(super) struct Client<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Its namespace, which determines the services that it knows.
    pub(super) namespace: &'a str,
    /// The pod that connects. `None`: only the identity is known, so all endpoints are equally near.
    own: Option<&'a Arc<Workload>>,
}

/// The rank of an endpoint; smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Only endpoints with the best tier are used.
    pub(super) tier: (Health, OtherFamily),
    /// Within a tier, the next distance is used when the nearest endpoints fail.
    pub(super) distance: u8,
}

/// Why an endpoint can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It does not serve the port.
    NoPort,
    /// It is on another node, and the service allows only endpoints on the client's node.
    Elsewhere,
    /// It takes no connections.
    Unready,
    /// The service does not have the family of its address.
    Family,
    /// It is not clear which workload has its address.
    Unclear,
    /// Its weight is 0.
    Weightless,
    /// Its port is the HBONE port.
    Reserved,
}

type OtherFamily = bool;

impl<'a> Client<'a> {
    /// A pod as client.
    pub(super) fn pod(snapshot: &'a Snapshot, own: &'a Arc<Workload>) -> Self {
        Self { snapshot, namespace: &own.name.namespace, own: Some(own) }
    }

    /// Any pod of a namespace as client.
    pub(super) fn anywhere(snapshot: &'a Snapshot, namespace: &'a str) -> Self {
        Self { snapshot, namespace, own: None }
    }

    /// Decides about a connection. `draw` has to be random.
    pub(super) fn decide(&self, dst: OrigDst, draw: u64) -> Result<Outbound, RouteRefusal> {
        // Connections to these addresses are never captured. Such a connection was made to reach the listener itself.
        if !is_carried(dst.ip()) {
            return Err(CloseReason::Recursive.into());
        }
        match self.snapshot.owner(dst.ip(), dst.port(), self.namespace) {
            Owner::Service(service) => self.to_service(service, dst, draw),
            Owner::Workload(workload) => self.to_workload(workload, dst),
            Owner::Unknown if self.snapshot.is_registry_only() => {
                Err(RouteRefusal::because(CloseReason::UnknownDestination, unknown(dst)))
            }
            Owner::Unknown => self.through(dst, None),
            Owner::Contested(claimants) => {
                let detail = format!(
                    "{} is claimed by {}: the address belongs to no pod until only one of them claims it",
                    dst.ip(),
                    listed(claimants)
                );
                Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail))
            }
            Owner::Unclear(services) => {
                let mut names: Vec<String> = services.iter().take(4).map(|service| title(service)).collect();
                if services.len() > names.len() {
                    names.push(format!("{} more", services.len() - names.len()));
                }
                let detail = format!(
                    "{} is the address of {}, of different namespaces: pods of namespace {} cannot connect to it until only \
                     one of them has it",
                    dst.ip(),
                    names.join(", "),
                    self.namespace
                );
                Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail))
            }
            Owner::Hidden(service) => {
                let detail = format!("{} is not exported to namespace {}", title(service), self.namespace);
                Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail))
            }
        }
    }

    fn outbound(&self, service: Option<&Arc<Service>>, candidates: Vec<Candidate>) -> Outbound {
        Outbound { source: self.own.cloned(), service: service.cloned(), candidates }
    }

    /// Passes the connection through in plaintext to the requested address, which belongs to no known object.
    fn through(&self, dst: OrigDst, service: Option<&Arc<Service>>) -> Result<Outbound, RouteRefusal> {
        if self.snapshot.may_hide(dst.ip()) {
            return Err(RouteRefusal::because(CloseReason::UnknownDestination, unread(&dst.to_string())));
        }
        if let Some(cluster) = self.snapshot.cluster_ip(dst.ip()) {
            // The node's own load balancer would forward a connection to this address, in plaintext.
            let detail =
                format!("{} is the address of {}: no connection is passed through to it", dst.ip(), title(cluster));
            return Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail));
        }
        let candidate = Candidate { target: dst.socket(), workload: None, hop: Hop::Plain };
        Ok(self.outbound(service, vec![candidate]))
    }

    fn to_workload(&self, workload: &Arc<Workload>, dst: OrigDst) -> Result<Outbound, RouteRefusal> {
        if let Some(waypoint) = &workload.waypoint {
            return Err(past(waypoint, &format!("Pod {}", workload.name)));
        }
        if self.is_unclear(Some(workload), dst.ip()) {
            let what = format!("the label of namespace {}, where Pod {} is,", workload.name.namespace, workload.name);
            return Err(RouteRefusal::because(CloseReason::UnknownDestination, unread(&what)));
        }
        let candidate = self.candidate(dst.socket(), Some(workload), &[]).ok_or_else(|| {
            let detail = format!("port {HBONE_PORT} of {} is reserved for HBONE", workload.title());
            RouteRefusal::because(CloseReason::Recursive, detail)
        })?;
        Ok(self.outbound(None, vec![candidate]))
    }

    fn to_service(&self, service: &Arc<Service>, dst: OrigDst, draw: u64) -> Result<Outbound, RouteRefusal> {
        if let Some(waypoint) = &service.waypoint {
            return Err(past(waypoint, &title(service)));
        }
        if service.resolution == Resolution::Passthrough {
            return self.to_known(service, dst);
        }
        let port = dst.port();
        if service.port(port).is_none() {
            let detail = format!("{} has no TCP port {port}", title(service));
            return Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail));
        }
        let choice = self.endpoints(service, dst, draw);
        let best = choice.first().map(|(rank, _)| rank.tier);
        let mut candidates = Vec::with_capacity(MOST);
        candidates.extend(
            choice
                .iter()
                .filter(|(rank, _)| Some(rank.tier) == best)
                .filter_map(|(_, (endpoint, target))| self.to_endpoint(service, endpoint, *target)),
        );
        if candidates.is_empty() {
            let detail = no_endpoint(service, port, self.snapshot.hides_addresses());
            return Err(RouteRefusal::because(CloseReason::NoHealthyUpstream, detail));
        }
        Ok(self.outbound(Some(service), candidates))
    }

    /// To a service that passes connections through to the requested address.
    fn to_known(&self, service: &Arc<Service>, dst: OrigDst) -> Result<Outbound, RouteRefusal> {
        match service.port(dst.port()) {
            Some(_) => self.through(dst, Some(service)),
            None if self.snapshot.is_registry_only() => {
                let detail = format!("{}, and {} has no TCP port {}", unknown(dst), title(service), dst.port());
                Err(RouteRefusal::because(CloseReason::UnknownDestination, detail))
            }
            None => self.through(dst, None),
        }
    }

    fn endpoints<'s>(&self, service: &'s Service, dst: OrigDst, draw: u64) -> Choice<Rank, (&'s Endpoint, u16)> {
        let usable = service.endpoints.iter().filter_map(|endpoint| {
            let (rank, target) = self.rank(service, endpoint, dst).ok()?;
            Some((rank, endpoint.weight, (endpoint, target)))
        });
        match self.sticky_address(service, dst) {
            None => choose(usable, draw),
            Some(client) => choose_sticky(usable.map(|(rank, weight, (endpoint, target))| {
                (rank, weight, draw_of(client, endpoint.address), (endpoint, target))
            })),
        }
    }

    /// Whether all connections of this client to the service have the same candidates.
    pub(super) fn sticks(&self, service: &Service, dst: OrigDst) -> bool {
        self.sticky_address(service, dst).is_some()
    }

    fn sticky_address(&self, service: &Service, dst: OrigDst) -> Option<IpAddr> {
        self.address(dst.ip()).filter(|_| service.is_sticky)
    }

    /// The address by which services know the pod: an address of the destination's family if it has one.
    fn address(&self, destination: IpAddr) -> Option<IpAddr> {
        let addresses = self.own.map(|own| own.addresses.as_slice()).unwrap_or_default();
        let same_family = addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4());
        same_family.or(addresses.first()).copied()
    }

    /// The rank of an endpoint, and its port for the connection.
    pub(super) fn rank(&self, service: &Service, endpoint: &Endpoint, dst: OrigDst) -> Result<(Rank, u16), Unfit> {
        let target = endpoint.ports.get(dst.port()).ok_or(Unfit::NoPort)?;
        let distance = match self.own {
            Some(own) => {
                let here = TopologyPosition { node: own.node.as_deref(), locality: &own.locality };
                let there = TopologyPosition { node: endpoint.node.as_deref(), locality: &endpoint.locality };
                match service.distribution {
                    // `internalTrafficPolicy` applies to the service's own addresses only.
                    Distribution::Require(_)
                        if service.external.iter().any(|external| external.address == dst.ip()) =>
                    {
                        0
                    }
                    distribution => distribution.distance(here, there).ok_or(Unfit::Elsewhere)?,
                }
            }
            None => 0,
        };
        let other_family = endpoint.address.is_ipv4() != dst.ip().is_ipv4();
        match () {
            () if endpoint.health == Health::Unready => Err(Unfit::Unready),
            () if !service.families.include(endpoint.address) => Err(Unfit::Family),
            () if !self.is_reachable(endpoint) => Err(Unfit::Unclear),
            () => Ok((Rank { tier: (endpoint.health, other_family), distance }, target)),
        }
    }

    /// Whether it is clear which workload has an endpoint's address.
    fn is_reachable(&self, endpoint: &Endpoint) -> bool {
        is_carried(endpoint.address)
            && self.snapshot.contested(endpoint.address).is_none()
            // The node's load balancer would forward a connection to this address, past the mesh.
            && self.snapshot.cluster_ip(endpoint.address).is_none()
            // Checked first because it is nearly always false: it saves a look-up for every endpoint.
            && !(self.snapshot.hides_addresses() && self.is_unclear(behind(self.snapshot, endpoint), endpoint.address))
    }

    /// Whether the workload may be a pod of the mesh without being known as one, because a file could never be read.
    fn is_unclear(&self, workload: Option<&Arc<Workload>>, address: IpAddr) -> bool {
        workload.map_or_else(
            || self.snapshot.may_hide(address),
            |workload| workload.membership != Membership::InMesh && self.snapshot.may_be_in_mesh(workload),
        )
    }

    pub(super) fn to_endpoint(&self, service: &Service, endpoint: &Endpoint, target: u16) -> Option<Candidate> {
        let target = SocketAddr::new(endpoint.address, target);
        self.candidate(target, behind(self.snapshot, endpoint), &service.identities)
    }

    /// The route to an address. `None` for the HBONE port of a pod in the mesh: a direct connection to that port would be an
    /// HBONE connection past this daemon, with an identity that the application chooses.
    fn candidate(&self, target: SocketAddr, workload: Option<&Arc<Workload>>, also: &[SpiffeId]) -> Option<Candidate> {
        let hop = match workload {
            Some(workload) if workload.membership == Membership::InMesh => match target.port() {
                HBONE_PORT => return None,
                _ if self.own.is_some_and(|own| own.name == workload.name) => Hop::Plain,
                _ => Hop::Tunnel {
                    to: SocketAddr::new(target.ip(), HBONE_PORT),
                    expected: [&workload.identity].into_iter().chain(also).cloned().collect(),
                },
            },
            _ => Hop::Plain,
        };
        Some(Candidate { target, workload: workload.cloned(), hop })
    }
}

/// The workload that has an endpoint's address, whatever workload the endpoint names. Only if the address is shared, such as a
/// node's address, the endpoint's own reference is used.
pub(super) fn behind<'a>(snapshot: &'a Snapshot, endpoint: &Endpoint) -> Option<&'a Arc<Workload>> {
    snapshot.workload_at(endpoint.address).or_else(|| {
        let named = snapshot.workload(endpoint.workload.as_ref()?)?;
        named.has_shared_addresses().then_some(named)
    })
}

/// Why a service has no usable endpoint: `demo/web:80: 0 of 3 endpoints ready`.
fn no_endpoint(service: &Service, port: u16, blind: bool) -> String {
    let with_port = service.endpoints.iter().filter(|endpoint| endpoint.ports.serves(port));
    let (mut all, mut ready) = (0u32, 0u32);
    for endpoint in with_port {
        all = all.saturating_add(1);
        ready = ready.saturating_add(u32::from(endpoint.health == Health::Ready));
    }
    let why = match ready {
        0 => "",
        _ if blind => ", and none that this pod may use while a file of the mesh can't be read: /config_dump names it",
        _ => ", and none that this pod may use",
    };
    format!("{}:{port}: {ready} of {all} endpoints ready{why}", service.name)
}

#[cfg(test)]
mod tests;
