//! Further remarks for people: about the connection, and about the files of the mesh.

use super::client::Client;
use super::explanation::{Explanation, Judgement, Policy, Preference};
use super::journey::RouteSegment;
use super::outside::Outside;
use super::sources::Sources;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::{Membership, Workload};

/// The maximum number of listed problems; the others are counted.
const PROBLEMS: usize = 100;

/// Reasons for which the explanation, or the mesh, may not be as intended.
pub(super) fn warnings(sources: Sources<'_>, explanation: &Explanation) -> Vec<String> {
    let snapshot = sources.snapshot;
    let mut warnings = Vec::new();
    if snapshot.is_partial() {
        warnings.push(
            "the mesh is PARTIAL: a file of it has never been readable, and its objects are missing here".to_owned(),
        );
    }
    if snapshot.hides_addresses() {
        warnings.push(
            "until that file is repaired, connections to addresses that may be in it, and to pods that its policies \
             may select, are refused"
                .to_owned(),
        );
    }
    let concerned = concerned(explanation);
    let outside = Outside::of(sources, explanation);
    let told = |problem: &&Problem| {
        let named = problem.object.as_deref().and_then(|object| object.split_once(' '));
        problem.severity == Severity::Error
            || named.is_some_and(|(_, name)| concerned.contains(&name))
            || outside.is_some_and(|outside| outside.is_told_by(problem))
    };
    let problems = snapshot.problems();
    warnings.extend(problems.iter().filter(told).take(PROBLEMS).map(ToString::to_string));
    let silent = problems.len().saturating_sub(problems.iter().filter(told).count().min(PROBLEMS));
    if silent > 0 {
        warnings
            .push(format!("problems of the mesh that do not concern this connection: {silent}; see ztunnel analyze"));
    }
    warnings
}

/// The names of the objects in the explanation, and their namespaces.
fn concerned(explanation: &Explanation) -> Vec<&str> {
    let Explanation { from, to, route, endpoints, .. } = explanation;
    let mut names: Vec<&str> =
        [&from.pod, &to.pod, &to.service, &route.service].into_iter().flatten().map(String::as_str).collect();
    for endpoint in endpoints {
        names.extend(endpoint.pod.as_deref());
        let Some(judgement) = &endpoint.judgement else { continue };
        names.extend(judgement.policies.iter().filter(|policy| policy.applies).map(|policy| policy.name.as_str()));
        names.extend(judgement.authentication.as_ref().and_then(|found| found.policy.as_deref()));
    }
    let namespaces: Vec<&str> = names.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
    names.extend(namespaces);
    names.sort_unstable();
    names.dedup();
    names
}

fn judged(explanation: &Explanation) -> impl Iterator<Item = &Judgement> {
    explanation.endpoints.iter().filter_map(|endpoint| endpoint.judgement.as_ref())
}

/// Facts about pods of other nodes that only those nodes know.
pub(super) fn not_known_here(
    sources: Sources<'_>,
    client: &Client<'_>,
    segments: &[RouteSegment],
    port: u16,
) -> Vec<String> {
    let is_unknown =
        |pod: &Workload| pod.membership == Membership::InMesh && !pod.is_entry && sources.local(&pod.name).is_none();
    let node = |pod: &Workload| pod.node.as_deref().unwrap_or("(unnamed)").to_owned();
    let mut notes = Vec::new();
    if let Some(pod) = client.pod.filter(|pod| is_unknown(pod)) {
        notes.push(format!(
            "whether Pod {} excludes this connection from capture is known on node {} only: this answer assumes that \
             it is captured",
            pod.name,
            node(pod)
        ));
    }
    let reached = segments
        .iter()
        .filter(|segment| segment.turn != Preference::Never)
        .filter_map(|segment| segment.workload.as_deref());
    let mut others = reached.filter(|pod| is_unknown(pod) && client.pod.is_none_or(|client| client.name != pod.name));
    if let Some(first) = others.next() {
        let more = match others.count() {
            0 => String::new(),
            more => format!(" (and of {more} more pods)"),
        };
        notes.push(format!(
            "whether Pod {} excludes port {port} from capture, or is probed at it, is known on node {} only{more}: \
             this answer assumes that policy is enforced",
            first.name,
            node(first)
        ));
    }
    notes
}

/// Notes about the connection.
pub(super) fn notes(sources: Sources<'_>, explanation: &Explanation) -> Vec<String> {
    let mut notes = Outside::of(sources, explanation).map(|outside| outside.notes(sources)).unwrap_or_default();
    let balanced = !explanation.from.captured && explanation.route.service.is_some();
    if balanced && explanation.from.pod.is_none() {
        notes.push(
            "a load balancer on the way may replace the client's address by its own: rules on addresses are then \
             compared with the address of the load balancer"
                .to_owned(),
        );
    }
    let mut unenforced: Vec<String> = Vec::new();
    for policy in judged(explanation).flat_map(|judgement| &judgement.policies) {
        let speaks = policy.matched || policy.effect.starts_with("would");
        if policy.applies && speaks && (policy.dry_run || policy.action == "AUDIT") {
            let Policy { name, action, effect, .. } = policy;
            let dry_run = if policy.dry_run { " in dry-run" } else { "" };
            unenforced.push(format!("without effect on this connection: {action} {name}{dry_run} {effect}"));
        }
    }
    unenforced.sort();
    unenforced.dedup();
    notes.extend(unenforced);
    if judged(explanation).any(|judgement| judgement.as_probe) {
        notes.push(
            "only a process of the pod's own node is accepted as a probe; another client with that address is not"
                .to_owned(),
        );
    }
    notes
}
