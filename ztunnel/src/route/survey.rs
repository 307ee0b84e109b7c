//! All possible routes of a connection, where the data path chooses one at random. It is for people who ask where a connection
//! can go. The decisions are those of [`decide`](super::decide).

use std::{net::SocketAddr, sync::Arc};

use super::{
    balance::MOST,
    decide::{Candidate, Client, Hop, Rank, RouteRefusal, Unfit, behind, title},
};
use crate::{
    model::{
        addr::OrigDst,
        close::CloseReason,
        identity::SpiffeId,
        service::{Endpoint, Health, Resolution, Service},
        workload::Workload,
    },
    store::snapshot::{Owner, Snapshot},
};

/// The possible routes of a connection to one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey<'a> {
    /// The service that has the address.
    pub service: Option<Arc<Service>>,
    /// Why the connection is refused.
    pub refusal: Option<RouteRefusal>,
    /// The possible ends: all endpoints of the service in their order, or the one address.
    pub ends: Vec<RouteEnd<'a>>,
}

/// An address at which a connection may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEnd<'a> {
    /// The address. The port is 0 if an endpoint does not serve the requested port.
    pub target: SocketAddr,
    /// The workload that has the address.
    pub workload: Option<Arc<Workload>>,
    /// The endpoint of the service.
    pub endpoint: Option<&'a Endpoint>,
    /// When this end is chosen, and how it is reached; or why it can't be used.
    pub standing: Result<(Preference, Hop), Unfit>,
}

/// When an end is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preference {
    /// It may be the first choice: at random among equal ends, or always with session affinity.
    First,
    /// It is tried when better ends fail.
    Later,
    /// It is never chosen while the better ends are there, because there are enough of them.
    Never,
}

/// The routes of connections that the pod's daemon has captured; see [`outbound`](super::decide::outbound).
#[must_use]
pub fn of_pod<'a>(snapshot: &'a Snapshot, pod: &Arc<Workload>, dst: OrigDst) -> Survey<'a> {
    captured(snapshot, &Client::pod(snapshot, pod), dst)
}

/// The same for a client of which only the identity is known. It may be on any node, so all endpoints are equally near.
#[must_use]
pub fn of_identity<'a>(snapshot: &'a Snapshot, identity: &SpiffeId, dst: OrigDst) -> Survey<'a> {
    captured(snapshot, &Client::anywhere(snapshot, &identity.namespace), dst)
}

fn captured<'a>(snapshot: &'a Snapshot, client: &Client<'_>, dst: OrigDst) -> Survey<'a> {
    let decided = client.decide(dst, 0);
    if let Owner::Service(service) = snapshot.owner(dst.ip(), dst.port(), client.namespace)
        && service.resolution == Resolution::Endpoints
    {
        let mut ends = endpoints(client, service, dst);
        if let (true, Ok(outbound)) = (client.sticks(service, dst), &decided) {
            stick(&mut ends, &outbound.candidates);
        }
        return Survey { service: Some(Arc::clone(service)), refusal: decided.err(), ends };
    }
    match decided {
        Err(refusal) => Survey { refusal: Some(refusal), ..Survey::default() },
        Ok(outbound) => {
            let end = |candidate: Candidate| RouteEnd {
                target: candidate.target,
                workload: candidate.workload,
                endpoint: None,
                standing: Ok((Preference::First, candidate.hop)),
            };
            Survey {
                service: outbound.service,
                refusal: None,
                ends: outbound.candidates.into_iter().map(end).collect(),
            }
        }
    }
}

fn endpoints<'a>(client: &Client<'_>, service: &'a Service, dst: OrigDst) -> Vec<RouteEnd<'a>> {
    let ranked: Vec<Ranked<'_>> =
        service.endpoints.iter().map(|endpoint| (endpoint, rank(client, service, endpoint, dst))).collect();
    let mut fit: Vec<Rank> = ranked.iter().filter_map(|(_, ranked)| Some(ranked.as_ref().ok()?.0)).collect();
    fit.sort_unstable();
    let turn_of = |rank: &Rank| match fit.partition_point(|other| other < rank) {
        0 => Preference::First,
        // An end of a worse tier is never chosen, even if there are few better ends.
        better if better < MOST && fit.first().is_some_and(|best| best.tier == rank.tier) => Preference::Later,
        _ => Preference::Never,
    };
    let standing = |endpoint, ranked: Result<(Rank, u16), Unfit>| {
        let (rank, target) = ranked?;
        let candidate = client.to_endpoint(service, endpoint, target).ok_or(Unfit::Reserved)?;
        Ok((turn_of(&rank), candidate.hop))
    };
    let end = |(endpoint, ranked)| RouteEnd::at(client.snapshot, endpoint, dst.port(), standing(endpoint, ranked));
    ranked.into_iter().map(end).collect()
}

/// With session affinity the choice is not random: every connection of the client has the same candidates.
fn stick(ends: &mut [RouteEnd<'_>], candidates: &[Candidate]) {
    for end in ends {
        if let Ok((turn, _)) = &mut end.standing {
            *turn = match candidates.iter().position(|candidate| candidate.target == end.target) {
                Some(0) => Preference::First,
                Some(_) => Preference::Later,
                None => Preference::Never,
            };
        }
    }
}

/// An endpoint with its rank and port.
type Ranked<'a> = (&'a Endpoint, Result<(Rank, u16), Unfit>);

fn rank(client: &Client<'_>, service: &Service, endpoint: &Endpoint, dst: OrigDst) -> Result<(Rank, u16), Unfit> {
    let ranked = client.rank(service, endpoint, dst)?;
    if endpoint.weight == 0 { Err(Unfit::Weightless) } else { Ok(ranked) }
}

/// The routes of connections that no daemon captures. They are made in plaintext to the requested address. If that is an
/// address of a Kubernetes service, the load balancer of the client's node chooses a ready endpoint of the address's family, or
/// else a terminating endpoint.
#[must_use]
pub fn uncaptured(snapshot: &Snapshot, dst: OrigDst) -> Survey<'_> {
    let Some(service) = snapshot.cluster_ip(dst.ip()) else {
        let workload = snapshot.workload_at(dst.ip()).cloned();
        let end =
            RouteEnd { target: dst.socket(), workload, endpoint: None, standing: Ok((Preference::First, Hop::Plain)) };
        return Survey { ends: vec![end], ..Survey::default() };
    };
    let port = dst.port();
    let survey = |ends, why: Option<String>| Survey {
        service: Some(Arc::clone(service)),
        refusal: why.map(|why| RouteRefusal::because(CloseReason::NoHealthyUpstream, why)),
        ends,
    };
    if service.port(port).is_none() {
        return survey(Vec::new(), Some(format!("{} has no TCP port {port}", title(service))));
    }
    let fits = |endpoint: &Endpoint| match () {
        () if !endpoint.ports.serves(port) => Err(Unfit::NoPort),
        () if endpoint.health == Health::Unready => Err(Unfit::Unready),
        () => Ok(endpoint.address.is_ipv4() == dst.ip().is_ipv4()),
    };
    let serving = service.endpoints.iter().filter(|endpoint| fits(endpoint) == Ok(true));
    let best = serving.map(|endpoint| endpoint.health).min();
    let ends = service.endpoints.iter().map(|endpoint| {
        let standing = fits(endpoint).map(|same_family| {
            let is_best = same_family && Some(endpoint.health) == best;
            (if is_best { Preference::First } else { Preference::Never }, Hop::Plain)
        });
        RouteEnd::at(snapshot, endpoint, port, standing)
    });
    survey(ends.collect(), best.is_none().then(|| format!("{}:{port}: no endpoint is ready", service.name)))
}

impl<'a> RouteEnd<'a> {
    /// An endpoint of a service.
    #[must_use]
    pub fn at(
        snapshot: &Snapshot,
        endpoint: &'a Endpoint,
        port: u16,
        standing: Result<(Preference, Hop), Unfit>,
    ) -> Self {
        Self {
            target: SocketAddr::new(endpoint.address, endpoint.ports.get(port).unwrap_or_default()),
            workload: behind(snapshot, endpoint).cloned(),
            endpoint: Some(endpoint),
            standing,
        }
    }
}
