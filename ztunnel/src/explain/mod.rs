//! Explains where a connection would go and whether it is allowed, with the functions of the data path.
//!
//! [`explain`] resolves the objects in a [`Query`], uses [`route`](crate::route) for the route and [`policy`](crate::policy)
//! for the verdict at each endpoint, and returns an [`Explanation`]. It makes no decision of its own.

mod addressing;
mod arrival;
mod client;
mod explanation;
mod hints;
mod journey;
mod judgement;
mod outside;
mod page;
mod query;
mod remarks;
mod sources;
mod state;
mod text;

pub use self::explanation::{
    Authentication, Destination, Endpoint, ExplainedRefusal, Explanation, Health, Judgement, Policy, Preference, Route,
    Rule, Source, Verdict, Way,
};
pub use self::page::{Page, printable, printable_json};
pub use self::query::{Query, QueryError};
pub use self::state::{NodeState, PodState};
pub use self::text::{text, wrapped};

use self::arrival::Arrival;
use self::client::Client;
use self::journey::{Journey, RouteSegment, Traveller};
use self::query::Meant;
use self::sources::Sources;
use crate::model::local::LocalPods;
use crate::model::workload::Membership;
use crate::route::decide::Hop;
use crate::store::snapshot::Snapshot;

/// The maximum number of endpoints for which every policy is listed. For further endpoints only the verdict is given.
const TRACED: usize = 32;
/// The maximum number of policy evaluations over all endpoints; some hundred of them take a millisecond.
const LOOKS: usize = 20_000;

/// Explains a connection in a mesh. `local`: the known local facts of pods. A running daemon knows them for the pods of its own
/// node.
///
/// # Errors
/// If the mesh has no such client or destination, or two of them.
pub fn explain(snapshot: &Snapshot, local: &LocalPods, query: &Query) -> Result<Explanation, QueryError> {
    explain_at(snapshot, local, None, query)
}

/// The same, with the state of the pods of the node whose daemon is asked.
///
/// # Errors
/// As [`explain`].
pub fn explain_at(
    snapshot: &Snapshot,
    local: &LocalPods,
    node: Option<&NodeState>,
    query: &Query,
) -> Result<Explanation, QueryError> {
    explain_from(Sources { snapshot, local, node }, query)
}

fn explain_from(sources: Sources<'_>, query: &Query) -> Result<Explanation, QueryError> {
    let snapshot = sources.snapshot;
    if snapshot.version() == 0 {
        return Err(QueryError::NoMesh);
    }
    let client = Client::of(sources, query)?;
    let meant = query.meant(snapshot, client.namespace())?;
    let port = query.port_number(&meant)?;
    if let Meant::Service(service) = &meant
        && let Some(explanation) = addressing::explain(sources, query, &client, service, port, explain_from)
    {
        return explanation;
    }
    let traveller = Traveller { sources, client: &client, port };
    let Journey { destination, route, captured, segments, notes, remedies } = traveller.travel(query, meant)?;
    let (mut endpoints, mut would_change, mut traced) = (Vec::new(), remedies, 0usize);
    let most = (LOOKS / snapshot.policies().authorization().len().max(1)).clamp(1, TRACED);
    for segment in &segments {
        let judgement = (segment.turn != Preference::Never && route.refusal.is_none()).then(|| {
            traced = traced.saturating_add(1);
            let arrival = Arrival { sources, client: &client, captured: &captured, segment };
            let (judgement, hints) = arrival.judge(traced <= most);
            would_change.extend(hints.into_iter().filter(|hint| !would_change.contains(hint)).collect::<Vec<_>>());
            judgement
        });
        endpoints.push(endpoint(segment, &client, &captured, judgement));
    }
    let (verdict, reason) = overall(&route, &endpoints);
    let mut explanation = Explanation {
        verdict,
        reason,
        from: client.told(query, &captured),
        to: destination,
        route,
        endpoints,
        would_change,
        notes: client.notes.iter().cloned().chain(notes).collect(),
        warnings: Vec::new(),
        mesh_version: snapshot.version(),
    };
    explanation.notes.extend(client.connect(&captured));
    explanation.notes.extend(remarks::not_known_here(sources, &client, &segments, port));
    explanation.warnings = remarks::warnings(sources, &explanation);
    explanation.notes.extend(remarks::notes(sources, &explanation));
    Ok(explanation)
}

fn endpoint(
    segment: &RouteSegment,
    client: &Client<'_>,
    captured: &Result<(), String>,
    judgement: Option<Judgement>,
) -> Endpoint {
    let in_mesh = segment.workload.as_ref().is_some_and(|workload| workload.membership == Membership::InMesh);
    let way = segment.hop.as_ref().map(|hop| match hop {
        Hop::Tunnel { to, expected } => {
            Way::Tunnel { to: *to, expected: expected.iter().map(ToString::to_string).collect() }
        }
        Hop::Plain => Way::Plaintext { because: arrival::why_plaintext(segment, client, captured) },
    });
    Endpoint {
        address: segment.address,
        pod: segment.workload.as_ref().map(|workload| workload.name.to_string()),
        node: segment.node.clone(),
        health: segment.health,
        turn: segment.turn,
        why_never: segment.why_never.clone(),
        in_mesh,
        way,
        judgement,
    }
}

/// The overall verdict: a connection is allowed if it has a route, and every possible endpoint allows it.
fn overall(route: &Route, endpoints: &[Endpoint]) -> (Verdict, String) {
    if let Some(refusal) = &route.refusal {
        return (Verdict::Failed, refusal.text.clone());
    }
    let judged = || endpoints.iter().filter_map(|endpoint| Some((endpoint, endpoint.judgement.as_ref()?)));
    let mut denied = judged().filter(|(_, judgement)| judgement.verdict == Verdict::Denied);
    if let Some((first, judgement)) = denied.next() {
        let (all, refusing) = (judged().count(), denied.count().saturating_add(1));
        let reason = match all {
            1 => judgement.reason.clone(),
            _ if refusing == all => format!("all of {all} endpoints refuse it: {}", judgement.reason),
            _ => {
                let what = if refusing == 1 { "refuses" } else { "refuse" };
                let one = titled(first);
                format!("{refusing} of {all} endpoints {what} it; {one}, because: {}", judgement.reason)
            }
        };
        return (Verdict::Denied, reason);
    }
    let unenforced = judged().find(|(_, judgement)| judgement.unenforced.is_some());
    match unenforced.or_else(|| judged().next()) {
        Some((_, judgement)) => (Verdict::Allowed, judgement.reason.clone()),
        None => (Verdict::Failed, "there is no endpoint".to_owned()),
    }
}

fn titled(endpoint: &Endpoint) -> String {
    match &endpoint.pod {
        Some(pod) => format!("Pod {pod}"),
        None => endpoint.address.to_string(),
    }
}
