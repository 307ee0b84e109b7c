//! `/metrics`: the counters of the data path, and values that are read at the time of a scrape. No function here waits.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    registry::Registry,
};

use crate::{
    metrics::{process, state},
    model::{identity::SpiffeId, problem::Severity},
    net::memory::Budget,
    pods::{describe::PodState, status::Status},
    store::snapshot::Snapshot,
};

mod merge;

pub use self::merge::{Other, merged};

/// The values that a scrape reads.
pub struct Sources<'a> {
    /// The counters of the data path.
    pub traffic: &'a Registry,
    /// Log lines that were dropped.
    pub lost: u64,
    /// The memory of buffers and windows.
    pub budget: &'a Budget,
    /// The number of running tasks.
    pub tasks: usize,
    /// The mesh in force.
    pub mesh: &'a Snapshot,
    /// The readiness endpoint answers that the daemon is ready.
    pub ready: bool,
    /// New pods of the mesh may start before they are enrolled.
    pub start_window: bool,
    /// The control plane cannot be used; `None`: there is none.
    pub control_plane_lost: Option<bool>,
    /// The mesh does not know this node.
    pub node_unknown: bool,
    /// The local facts of this node's pods may be out of date.
    pub local_stale: bool,
    /// The last report of the manager.
    pub status: &'a Status,
    /// Identities, and the expiry of their certificates.
    pub certificates: Vec<(SpiffeId, SystemTime)>,
}

/// The whole text, in OpenMetrics.
///
/// # Errors
/// If a series can't be encoded.
pub fn text(sources: &Sources<'_>) -> Result<String, fmt::Error> {
    let Sources { traffic, lost, budget, tasks, mesh, node_unknown, local_stale, status, certificates, .. } = sources;
    let mut registry = Registry::default();
    state::build(&mut registry, env!("CARGO_PKG_VERSION"));
    let expiry = |(identity, time): &(SpiffeId, SystemTime)| {
        Some((identity.to_string(), time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64()))
    };
    state::certificates(&mut registry, certificates.iter().filter_map(expiry));
    let problems = mesh.problems().iter().filter(|problem| problem.severity != Severity::Info).count();
    state::mesh(&mut registry, mesh.version(), problems, *node_unknown);
    state::local_facts(&mut registry, *local_stale);
    state::readiness(&mut registry, sources.ready);
    state::start_window(&mut registry, sources.start_window);
    state::control_plane(&mut registry, sources.control_plane_lost);
    let count = |state| (PodState::name(state), status.pods.iter().filter(|pod| pod.state == state).count());
    let verdicts = status
        .pods
        .iter()
        .flat_map(|pod| pod.verdicts.iter().map(|(verdict, count)| (&pod.name, verdict.name(), *count)));
    let before = status.pods.iter().map(|pod| pod.connections_before_enrolment).sum();
    let age = status.at.elapsed().as_secs_f64();
    state::pods(&mut registry, PodState::ALL.map(count), verdicts, before, age);
    let maps = status.maps.iter().map(|map| (map.name, map.used, map.capacity));
    state::bpf(&mut registry, maps, status.links_restored);
    state::memory(&mut registry, budget.limit(), budget.used(), budget.refused());
    state::daemon(&mut registry, *tasks, *lost);
    process::register(&mut registry);
    let mut text = String::new();
    encode_registry(&mut text, traffic)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// The counters of the data path alone, without the last line.
///
/// # Errors
/// When a series can't be encoded.
pub fn of_traffic(traffic: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, traffic)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
