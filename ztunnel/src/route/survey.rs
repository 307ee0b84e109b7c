//! All endpoints of a service as a pod's connections may meet them, where [`outbound`](super::decide::outbound) draws a few:
//! for people who ask where a connection can go.

use super::{
    balance::MOST,
    decide::{Candidate, Client, Rank, Unfit},
};
use crate::{
    model::{
        addr::OrigDst,
        service::{Endpoint, Service},
        workload::NamespacedName,
    },
    store::snapshot::Snapshot,
};

/// An endpoint, and what it is to the pod.
#[derive(Clone, Debug)]
pub struct Surveyed<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// When it is taken, and how it is got to.
    pub standing: Result<(Turn, Candidate), Unfit>,
}

/// When an endpoint is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// At once, by chance among its equals.
    First,
    /// When those before it fail.
    Later,
    /// Never as long as the others are there: they are better, and enough.
    Never,
}

/// What the endpoints of a service are to connections of a pod to this address of it; in the service's order. Empty if the
/// mesh does not know the pod.
#[must_use]
pub fn endpoints<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
    dst: OrigDst,
    pod: &NamespacedName,
) -> Vec<Surveyed<'a>> {
    let Some(own) = snapshot.workload(pod) else { return Vec::new() };
    let client = Client { snapshot, own };
    let ranked: Vec<Ranked<'_>> =
        service.endpoints.iter().map(|endpoint| (endpoint, rank(&client, service, endpoint, dst))).collect();
    let mut fit: Vec<Rank> = ranked.iter().filter_map(|(_, ranked)| Some(ranked.as_ref().ok()?.0)).collect();
    fit.sort_unstable();
    let turn_of = |rank: &Rank| match fit.partition_point(|other| other < rank) {
        0 => Turn::First,
        // Of a worse tier none is taken, however few are better.
        better if better < MOST && fit.first().is_some_and(|best| best.tier == rank.tier) => Turn::Later,
        _ => Turn::Never,
    };
    let standing = |endpoint, ranked: Result<(Rank, u16), Unfit>| {
        let (rank, target) = ranked?;
        let candidate = client.to_endpoint(service, endpoint, target).ok_or(Unfit::Reserved)?;
        Ok((turn_of(&rank), candidate))
    };
    ranked.into_iter().map(|(endpoint, ranked)| Surveyed { endpoint, standing: standing(endpoint, ranked) }).collect()
}

/// An endpoint with how good it is, and its port.
type Ranked<'a> = (&'a Endpoint, Result<(Rank, u16), Unfit>);

fn rank(client: &Client<'_>, service: &Service, endpoint: &Endpoint, dst: OrigDst) -> Result<(Rank, u16), Unfit> {
    let ranked = client.rank(service, endpoint, dst)?;
    if endpoint.weight == 0 { Err(Unfit::Weightless) } else { Ok(ranked) }
}
