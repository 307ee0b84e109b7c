//! `/explain?from=…&to=…&port=…`: the destination of a connection in the mesh in force, and whether the connection is allowed.

use std::{sync::Arc, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use crate::{
    explain::{Explanation, NodeState, PodState as State, Query, QueryError, explain_at},
    model::workload::NamespacedName,
    pods::{
        describe::{Description, PodInfo, PodState},
        manager::ManagerHandle,
    },
    store::{demand::Unresolved, publish::Reader},
};

/// The largest length of a value in bytes; names are shorter.
const LONGEST: usize = 2048;
/// The ASCII characters that are encoded in a parameter. Characters outside of ASCII are always encoded.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');
/// The number of explanations that are made at once. An explanation may use a CPU for a while that the data path needs.
const AT_ONCE: usize = 1;
/// How long an explanation waits for the manager, which may be busy with a pod.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no explanation.
#[derive(Debug, Error)]
pub(super) enum ExplainError {
    /// A parameter is missing, given twice, unknown, or invalid.
    #[error("{0}; write /explain?from=NAMESPACE/POD&to=NAMESPACE/SERVICE&port=80")]
    Parameter(String),
    /// The mesh has no answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The control plane did not resolve the address.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// Other explanations are being made.
    #[error("the daemon is busy with other explanations: try again")]
    Busy,
    /// The explanation can't be encoded.
    #[error("the explanation can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The task panicked, or the daemon is stopping.
    #[error("the explanation was cancelled: the daemon is stopping, or this is a bug")]
    GivenUp,
}

/// Answers a query string with an explanation as JSON, when one of the [`places`] is free.
pub(super) async fn answer(
    mesh: &Reader,
    manager: &ManagerHandle,
    places: &Arc<Semaphore>,
    parameters: Option<&str>,
) -> Result<Vec<u8>, ExplainError> {
    let query = query(parameters.unwrap_or_default())?;
    let place = timeout(TIMEOUT, Arc::clone(places).acquire_owned()).await;
    let place = place.map_err(|_elapsed| ExplainError::Busy)?.map_err(|_closed| ExplainError::GivenUp)?;
    let snapshot = match query.address() {
        Some(address) => mesh.resolve(address, Instant::now()).await?,
        None => mesh.load(),
    };
    let (local, is_on_demand) = (manager.local_pods(), mesh.is_on_demand());
    let now = timeout(TIMEOUT, manager.describe()).await.ok().flatten();
    // A mesh can be large, and the current thread also runs the manager of the pods.
    let explained = spawn_blocking(move || {
        let node = now.as_ref().map(node_state);
        let mut explanation = explain_at(&snapshot, &local, node.as_ref(), &query)?;
        explanation.warnings.extend(match &now {
            Some(now) => of_this_node(&explanation, now),
            None => vec!["the daemon is busy or stopping: whether it serves these pods is not known".to_owned()],
        });
        if is_on_demand {
            let warning = "the mesh is asked for on demand (--control-plane-mode): pods and services that no connection has used are not \
                           known here";
            explanation.warnings.push(warning.to_owned());
        }
        let json = serde_json::to_vec_pretty(&explanation);
        // This task continues if its client has gone. The place is freed only now, so the next explanation waits until then.
        drop(place);
        Ok(json?)
    });
    explained.await.map_err(|_| ExplainError::GivenUp)?
}

/// The places for explanations.
pub(in crate::app) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(AT_ONCE))
}

/// The state of the node's pods, as an explanation needs it.
fn node_state(now: &Description) -> NodeState {
    let state = |pod: &PodInfo| {
        let why = || pod.reason.clone().unwrap_or_else(|| "no reason is known".to_owned());
        match (pod.state, pod.captured) {
            (PodState::Enrolled, _) => State::Enrolled,
            (PodState::Refused, true) => State::Closed(why()),
            (PodState::Refused, false) => State::Refused(why()),
        }
    };
    let name = |pod: &PodInfo| NamespacedName::new(pod.namespace.as_str(), pod.name.as_str());
    NodeState { node: now.node.clone(), pods: now.pods.iter().map(|pod| (name(pod), state(pod))).collect() }
}

/// Facts that the manifests don't contain: the pods of the explanation that this node's daemon can't serve.
fn of_this_node(explanation: &Explanation, now: &Description) -> Vec<String> {
    let mut names: Vec<&str> = explanation.from.pod.iter().map(String::as_str).collect();
    names.extend(explanation.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_deref()));
    names.sort_unstable();
    names.dedup();
    let refused = now.pods.iter().filter(|pod| pod.state == PodState::Refused);
    refused
        .filter(|pod| names.contains(&format!("{}/{}", pod.namespace, pod.name).as_str()))
        .map(|pod| {
            let what = if pod.captured { "CLOSED: its connections fail" } else { "not captured" };
            let why = pod.reason.as_deref().unwrap_or("no reason is known");
            format!("node {}: Pod {}/{} is {what}, since {why}", now.node, pod.namespace, pod.name)
        })
        .collect()
}

/// Reads a query string. Each parameter has to be given once, and there must be no others.
fn query(parameters: &str) -> Result<Query, ExplainError> {
    let [mut from, mut to, mut port] = [None, None, None];
    for pair in parameters.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match name {
            "from" => &mut from,
            "to" => &mut to,
            "port" => &mut port,
            _ => return Err(ExplainError::Parameter("there is a parameter other than from, to and port".to_owned())),
        };
        let value = decode(value).ok_or_else(|| {
            ExplainError::Parameter(format!("{name}: not percent-encoded UTF-8 of at most {LONGEST} bytes"))
        })?;
        if place.replace(value).is_some() {
            return Err(ExplainError::Parameter(format!("the parameter {name} is given twice")));
        }
    }
    let there = |name, value: Option<String>| {
        value.ok_or_else(|| ExplainError::Parameter(format!("the parameter {name} is missing")))
    };
    let (from, to, port) = (there("from", from)?, there("to", to)?, there("port", port)?);
    Ok(Query::parse(&from, &to, &port)?)
}

/// Decodes percent-encoding. `None`: the text is invalid, too long, or not UTF-8.
fn decode(text: &str) -> Option<String> {
    // The library does not report an incomplete escape, so it is checked here.
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    (decoded.len() <= LONGEST).then(|| decoded.into_owned())
}

/// A value for a query string.
pub(in crate::app) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The query string for [`answer`].
pub(in crate::app) fn encode(from: &str, to: &str, port: &str) -> String {
    let [from, to, port] = [from, to, port].map(encoded);
    format!("from={from}&to={to}&port={port}")
}

#[cfg(test)]
mod tests;
