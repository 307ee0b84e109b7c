//! The route of a connection: the addresses at which it may end, and how each is reached.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ebpf_common::HBONE_PORT;

use super::client::{Client, NO_NETNS, outside_why};
use super::explanation::{Destination, ExplainedRefusal, Health, Preference, Route};
use super::query::{Meant, Query, QueryError, To};
use super::sources::Sources;
use super::state::PodState;
use crate::model::addr::OrigDst;
use crate::model::close::CloseReason;
use crate::model::identity::SpiffeId;
use crate::model::service::{self, Endpoint, Resolution, Service, ServiceKind};
use crate::model::workload::{Membership, NamespacedName, Workload};
use crate::route::decide::{self, Hop, Unfit};
use crate::route::survey::{self, RouteEnd, Survey};
use crate::store::snapshot::Owner;

/// The possible ends of a connection, and the routes to them.
#[derive(Debug)]
pub(super) struct Journey {
    pub(super) destination: Destination,
    pub(super) route: Route,
    /// Whether the client's node captures it, or why not.
    pub(super) captured: Result<(), String>,
    pub(super) segments: Vec<RouteSegment>,
    pub(super) notes: Vec<String>,
    /// The changes that would give it a route.
    pub(super) remedies: Vec<String>,
}

/// One address at which the connection may end.
#[derive(Debug)]
pub(super) struct RouteSegment {
    pub(super) address: SocketAddr,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) node: Option<String>,
    pub(super) health: Health,
    pub(super) turn: Preference,
    /// Why it is never used.
    pub(super) why_never: Option<String>,
    pub(super) hop: Option<Hop>,
    /// The service that the client requested.
    pub(super) service: Option<Arc<Service>>,
}

/// A mesh, and a client in it.
#[derive(Debug)]
pub(super) struct Traveller<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) client: &'a Client<'a>,
    pub(super) port: u16,
}

/// The possible routes of a connection to one address.
#[derive(Debug, Default)]
struct Passage {
    service: Option<Arc<Service>>,
    refusal: Option<decide::RouteRefusal>,
    segments: Vec<RouteSegment>,
}

impl Traveller<'_> {
    /// The routes to the destination of a question.
    pub(super) fn travel(&self, query: &Query, meant: Meant<'_>) -> Result<Journey, QueryError> {
        let mut notes = Vec::new();
        let address = self.address(&meant, &mut notes)?;
        let (passage, captured) = match address {
            Some(address) => (self.towards(address), self.client.capture(address, self.port)),
            None => self.headless(&meant, &mut notes),
        };
        let Passage { service, refusal, mut segments } = passage;
        let (pod, named) = match meant {
            Meant::Pod(pod) => (Some(pod), None),
            Meant::Service(service) => (None, Some(service)),
            Meant::Address(address) => (self.sources.snapshot.workload_at(address), None),
        };
        if let Some(pod) = pod {
            // The mesh does not know which pod has an address that is shared with a node, but the question names the pod.
            for segment in segments
                .iter_mut()
                .filter(|segment| pod.addresses.contains(&segment.address.ip()) && segment.workload.is_none())
            {
                let (target, workload) = (segment.address, Some(Arc::clone(pod)));
                let standing = Ok((survey::Preference::First, Hop::Plain));
                *segment = RouteSegment::of(RouteEnd { target, workload, endpoint: None, standing });
            }
        }
        let closed = self.client.closed();
        let remedies = match (&closed, &refusal) {
            (Some(_), _) => {
                segments.clear();
                vec![format!(
                    "repair the fault that closes {}, or remove it from the mesh by its label",
                    self.client.title()
                )]
            }
            (None, Some(refusal)) => self.remedies(refusal, service.as_ref(), address),
            (None, None) => Vec::new(),
        };
        let balanced = service.as_deref().filter(|_| refusal.is_none());
        let route = Route {
            text: self.route_text(&captured, balanced, &segments),
            service: service.as_ref().map(|service| service.name.to_string()),
            refusal: closed.or_else(|| refusal.map(|refusal| told(&refusal))),
        };
        let destination = Destination {
            asked: asked(&query.to),
            pod: pod.map(|pod| pod.name.to_string()),
            service: named.or(service.as_ref()).map(|service| service.name.to_string()),
            address,
            port: self.port,
        };
        Ok(Journey { destination, route, captured, segments, notes, remedies })
    }

    /// The address to which the client connects. `None`: the service has no address of its own.
    fn address(&self, meant: &Meant<'_>, notes: &mut Vec<String>) -> Result<Option<IpAddr>, QueryError> {
        let (title, addresses) = match meant {
            Meant::Address(address) => return Ok(Some(*address)),
            Meant::Pod(pod) => (pod.title(), &pod.addresses),
            Meant::Service(service) => (format!("{} {}", service.kind.name(), service.name), &service.vips),
        };
        let no_address = |why: &str| QueryError::NoAddress { side: "to", what: format!("{title} {why}") };
        let taken = match meant {
            Meant::Pod(pod) if pod.finished => return Err(no_address("has finished")),
            Meant::Service(service) if service.vips.is_empty() && service.kind == ServiceKind::Entry => {
                return Err(no_address("has no single address: name an address of one of its IP blocks or endpoints"));
            }
            Meant::Service(service) if service.vips.is_empty() => return Ok(None),
            Meant::Pod(_) | Meant::Service(_) | Meant::Address(_) => self.client.preferred(addresses),
        };
        let taken = taken.ok_or_else(|| no_address("has no address (yet)"))?;
        let others: Vec<String> = addresses.iter().filter(|other| **other != taken).map(ToString::to_string).collect();
        if !others.is_empty() {
            notes.push(format!(
                "{title} has other addresses, for which rules may decide differently: --to {}",
                others.join(", ")
            ));
        }
        Ok(Some(taken))
    }

    /// A service without an address: its name resolves to the addresses of its ready pods, and the client connects to one of
    /// them.
    fn headless(&self, meant: &Meant<'_>, notes: &mut Vec<String>) -> (Passage, Result<(), String>) {
        let Meant::Service(service) = meant else { return (Passage::default(), Ok(())) };
        let mut captured = Ok(());
        let mut passage = Passage { service: Some(Arc::clone(service)), ..Passage::default() };
        let snapshot = self.sources.snapshot;
        for endpoint in service.endpoints.iter().filter(|endpoint| service.families.include(endpoint.address)) {
            let never = |why: String| {
                let end = RouteEnd {
                    target: SocketAddr::new(endpoint.address, self.port),
                    ..RouteEnd::at(snapshot, endpoint, self.port, Err(Unfit::Unready))
                };
                RouteSegment { why_never: Some(why), ..RouteSegment::of(end) }
            };
            if endpoint.health != service::Health::Ready {
                passage
                    .segments
                    .push(never("it is not ready, so the name of the service does not resolve to it".to_owned()));
                continue;
            }
            let direct = self.towards(endpoint.address);
            captured = captured.and_then(|()| self.client.capture(endpoint.address, self.port));
            if let Some(refusal) = direct.refusal {
                passage.segments.push(never(told(&refusal).text));
            }
            passage.segments.extend(direct.segments);
        }
        notes.push(format!(
            "Service {} is headless: its name resolves to the addresses of the pods, and the client connects to port \
             {} of a pod itself; targetPort has no effect",
            service.name, self.port
        ));
        if passage.segments.iter().all(|segment| segment.turn == Preference::Never) {
            let detail = format!("{} is headless, and none of its endpoints can be reached", service.name);
            passage.refusal =
                Some(decide::RouteRefusal { reason: CloseReason::NoHealthyUpstream, detail: Some(detail) });
        }
        (passage, captured)
    }

    /// The possible routes of a connection to an address.
    fn towards(&self, address: IpAddr) -> Passage {
        let (snapshot, dst) = (self.sources.snapshot, OrigDst::new(SocketAddr::new(address, self.port)));
        let captured = self.client.capture(address, self.port).is_ok();
        let Survey { service, refusal, ends } = match (self.client.pod, &self.client.principal) {
            (Some(pod), _) if captured => survey::of_pod(snapshot, pod, dst),
            (None, Some(principal)) if captured => survey::of_identity(snapshot, principal.identity(), dst),
            _ => survey::uncaptured(snapshot, dst),
        };
        let segments = ends.into_iter().map(|end| self.segment(end, service.as_ref(), dst.ip())).collect();
        Passage { service, refusal, segments }
    }

    fn segment(&self, end: RouteEnd<'_>, service: Option<&Arc<Service>>, dst: IpAddr) -> RouteSegment {
        let why_never = match (&end.standing, end.endpoint) {
            (Err(unfit), Some(endpoint)) => {
                Some(self.unfit_text(*unfit, service.map(|service| &service.name), endpoint))
            }
            (Ok((survey::Preference::Never, _)), Some(endpoint)) => Some(worse(endpoint, service, dst).to_owned()),
            _ => None,
        };
        RouteSegment { why_never, service: service.cloned(), ..RouteSegment::of(end) }
    }

    fn unfit_text(&self, unfit: Unfit, service: Option<&NamespacedName>, endpoint: &Endpoint) -> String {
        match unfit {
            Unfit::NoPort => format!("it does not serve port {} of the service", self.port),
            Unfit::Elsewhere => {
                let service = service.map(ToString::to_string).unwrap_or_default();
                format!("it is not on the client's node, and {service} stays there (internalTrafficPolicy: Local)")
            }
            Unfit::Unready => "it is not ready".to_owned(),
            Unfit::Family => "it has an address of a family that the service does not have (ipFamilies)".to_owned(),
            Unfit::Unclear => match self.sources.snapshot.contested(endpoint.address) {
                Some(_) => {
                    "its address is claimed by several pods, so it is not known which one would answer".to_owned()
                }
                None if self.sources.snapshot.may_hide(endpoint.address) => {
                    "it may be a pod of the mesh in a file that has never been readable".to_owned()
                }
                None => "connections to its address cannot be carried, or it is the address of a service".to_owned(),
            },
            Unfit::Weightless => "its weight is 0".to_owned(),
            Unfit::Reserved => format!("port {HBONE_PORT} of a pod of the mesh is reserved for HBONE"),
        }
    }

    fn route_text(
        &self,
        captured: &Result<(), String>,
        service: Option<&Service>,
        segments: &[RouteSegment],
    ) -> String {
        let begins = match (captured, self.client.pod) {
            (Ok(()), Some(pod)) => match &pod.node {
                Some(node) => format!("captured by the daemon of node {node}"),
                None => "captured by the daemon of its node".to_owned(),
            },
            (Ok(()), None) => "captured by the daemon of the client's node".to_owned(),
            (Err(why), _) => {
                format!("NOT CAPTURED on the client's node, so it is in plaintext and without identity: {why}")
            }
        };
        let taken = segments.iter().filter(|segment| segment.turn != Preference::Never).count();
        let chooser = if captured.is_ok() { "it" } else { "the node's own load balancer" };
        match service {
            Some(service) if !service.vips.is_empty() && service.resolution == Resolution::Endpoints => {
                let name = format!("{} {}", service.kind.name(), service.name);
                let of = format!("{taken} of {} can be selected", segments.len());
                match (captured.is_ok() && service.is_sticky, self.client.pod) {
                    (true, Some(_)) => format!(
                        "{begins}; {chooser} always selects the same endpoint of {name}, by the client's address \
                         (sessionAffinity: ClientIP)"
                    ),
                    (true, None) => format!(
                        "{begins}; {chooser} selects an endpoint of {name}, for each client always the same one \
                         (sessionAffinity: ClientIP): {of}"
                    ),
                    (false, _) => format!("{begins}; {chooser} selects an endpoint of {name}: {of}"),
                }
            }
            _ => begins,
        }
    }

    /// The changes that would give the connection a route.
    fn remedies(
        &self,
        refusal: &decide::RouteRefusal,
        service: Option<&Arc<Service>>,
        address: Option<IpAddr>,
    ) -> Vec<String> {
        let snapshot = self.sources.snapshot;
        let may_be_unread = service.is_none() && address.is_some_and(|address| snapshot.may_hide(address));
        if snapshot.is_blind() || may_be_unread {
            return vec!["repair the file that has never been readable (see the warnings)".to_owned()];
        }
        if let Some(service) = service {
            return vec![self.service_remedy(service)];
        }
        match (refusal.reason, address) {
            (CloseReason::UnknownDestination, Some(address)) => vec![format!(
                "add a ServiceEntry for {address} with port {}, or set outboundTrafficPolicy.mode: ALLOW_ANY in the mesh \
                 config",
                self.port
            )],
            (CloseReason::NoHealthyUpstream, Some(address)) => {
                let namespace = self.client.pod.map(|pod| &*pod.name.namespace).unwrap_or_default();
                if let Owner::Unclear(_) = self.sources.snapshot.owner(address, self.port, namespace) {
                    return vec![format!(
                        "give {address} to one Service only: remove it from the others, or correct them"
                    )];
                }
                match (self.sources.snapshot.contested(address), self.sources.snapshot.cluster_ip(address)) {
                    (Some(_), _) => vec![format!("remove the claims to {address} of all pods except one")],
                    (None, Some(service)) => vec![format!(
                        "export Service {} to namespace {namespace}: add it to the annotation networking.istio.io/exportTo, \
                         or remove that",
                        service.name
                    )],
                    (None, None) => Vec::new(),
                }
            }
            (CloseReason::Recursive, Some(_)) => {
                vec![format!("connect to another port: {HBONE_PORT} is reserved for HBONE")]
            }
            _ => Vec::new(),
        }
    }

    fn service_remedy(&self, service: &Service) -> String {
        let title = format!("{} {}", service.kind.name(), service.name);
        if service.port(self.port).is_none() && !service.vips.is_empty() {
            let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
            return format!(
                "connect to a port that {title} has ({}), or add port {} to it",
                ports.join(", "),
                self.port
            );
        }
        if service.endpoints.is_empty() {
            return match service.selector.is_empty() {
                true => format!("give {title} endpoints: it has no selector, and no EndpointSlice names it"),
                false => {
                    let labels = &service.selector;
                    format!("give {title} endpoints: no pod of its namespace has the labels {labels}")
                }
            };
        }
        format!("make one of the endpoints of {title} usable: each is listed with the reason why it is not")
    }
}

impl From<survey::Preference> for Preference {
    fn from(turn: survey::Preference) -> Self {
        match turn {
            survey::Preference::First => Self::First,
            survey::Preference::Later => Self::Later,
            survey::Preference::Never => Self::Never,
        }
    }
}

/// Whether a pod is in the mesh, so that captured clients use HBONE to reach it; or why not.
pub(super) fn is_in_mesh(workload: &Workload) -> Result<(), String> {
    match workload.membership {
        Membership::InMesh => Ok(()),
        _ => Err(format!("{} is not in the mesh ({})", workload.title(), outside_why(workload))),
    }
}

/// Whether the node's daemon enforces policy at this port of a pod, according to the facts known here; or why not.
pub(super) fn is_enforced(sources: Sources<'_>, workload: &Workload, port: u16, is_tunnel: bool) -> Result<(), String> {
    is_in_mesh(workload)?;
    let name = &workload.name;
    let open = sources.state(workload).as_ref().and_then(PodState::why_open);
    if let Some(why) = open {
        return Err(format!("Pod {name} is not captured: {why}"));
    }
    let Some(local) = sources.local(name) else { return Ok(()) };
    match () {
        () if local.netns.is_none() => Err(format!("Pod {name} is not captured: {NO_NETNS}")),
        // HBONE connections end at the daemon, whatever is excluded.
        () if port == HBONE_PORT => Ok(()),
        () if local.exclusions.inbound_ports.contains(port) => Err(format!(
            "Pod {name} excludes inbound port {port} (annotation traffic.ambient.mesh/exclude-inbound-ports)"
        )),
        () if local.exclusions.all_inbound && !is_tunnel => Err(format!(
            "Pod {name} excludes all inbound plaintext from capture (annotation \
                 ambient.istio.io/bypass-inbound-capture)"
        )),
        () => Ok(()),
    }
}

/// Why an endpoint that takes connections is not used.
fn worse(endpoint: &Endpoint, service: Option<&Arc<Service>>, dst: IpAddr) -> &'static str {
    if endpoint.address.is_ipv4() != dst.is_ipv4() {
        return "it is of the other address family";
    }
    match endpoint.health {
        service::Health::Draining => "it is terminating, and others are ready",
        service::Health::Ready | service::Health::Unready if service.is_some_and(|service| service.is_sticky) => {
            "enough others are nearer, or come first for this client (sessionAffinity: ClientIP)"
        }
        service::Health::Ready | service::Health::Unready => "enough others are nearer",
    }
}

pub(super) fn asked(to: &To) -> String {
    match to {
        To::Pod(name) => format!("pod:{name}"),
        To::Service(name) => format!("service:{name}"),
        To::Either(name) => name.to_string(),
        To::Address(address) => address.to_string(),
        To::Host(host) => host.clone(),
    }
}

pub(super) fn told(refusal: &decide::RouteRefusal) -> ExplainedRefusal {
    let text = refusal.detail.clone().unwrap_or_else(|| refusal.reason.to_string());
    ExplainedRefusal { reason: refusal.reason.label().to_owned(), text }
}

impl RouteSegment {
    fn of(end: RouteEnd<'_>) -> Self {
        let RouteEnd { target, workload, endpoint, standing } = end;
        let health = match (endpoint, &workload) {
            (Some(endpoint), _) => match endpoint.health {
                service::Health::Ready => Health::Ready,
                service::Health::Draining => Health::Draining,
                service::Health::Unready => Health::Unready,
            },
            (None, None) => Health::Unknown,
            (None, Some(workload)) if workload.ready => Health::Ready,
            (None, Some(_)) => Health::Unready,
        };
        let node = workload.as_ref().and_then(|workload| workload.node.as_deref());
        let node = node.or_else(|| endpoint?.node.as_deref()).map(str::to_owned);
        let (turn, hop) = match standing {
            Ok((turn, hop)) => (turn.into(), Some(hop)),
            Err(_) => (Preference::Never, None),
        };
        Self { address: target, workload, node, health, turn, why_never: None, hop, service: None }
    }

    /// The identities that the peer of an HBONE connection may have.
    pub(super) fn expected(&self) -> Option<&[SpiffeId]> {
        match self.hop.as_ref()? {
            Hop::Tunnel { expected, .. } => Some(expected),
            Hop::Plain => None,
        }
    }
}
