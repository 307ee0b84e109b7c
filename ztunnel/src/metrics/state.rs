//! State that is read at a scrape: each function registers metrics with the current values.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::model::workload::NamespacedName;

/// No metric has a label `namespace`, `pod`, `container`, `node`, `job` or `instance`: Prometheus sets these labels for the
/// target, which is the daemon, and would rename ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    pod_namespace: String,
    pod_name: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabel {
    map: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    identity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

/// The version of the daemon.
pub fn build(registry: &mut Registry, tag: &'static str) {
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { component: "ztunnel", tag }).set(1);
    registry.register("istio_build", "Version of the daemon in the label tag; always 1", build);
}

/// Identities, and the expiry of their certificates as Unix time.
pub fn certificates(registry: &mut Registry, certificates: impl IntoIterator<Item = (String, f64)>) {
    let expiry = Family::<IdentityLabel, Gauge<f64, AtomicU64>>::default();
    for (identity, time) in certificates {
        expiry.get_or_create(&IdentityLabel { identity }).set(time);
    }
    registry.register(
        "ztunnel_certificate_expiry_timestamp_seconds",
        "Expiry of the certificate of an identity, as Unix time",
        expiry,
    );
}

/// The mesh: the version of the current snapshot, and the number of problems in its sources.
pub fn mesh(registry: &mut Registry, version: u64, problems: usize, node_unknown: bool) {
    gauge(
        registry,
        "ztunnel_snapshot_version",
        "Version of the mesh snapshot in force; 0 until the mesh was read",
        version,
    );
    gauge(
        registry,
        "ztunnel_mesh_problems",
        "Problems in the objects of the mesh: manifests, objects of the Kubernetes API, resources of a control plane",
        problems as u64,
    );
    gauge(
        registry,
        "ztunnel_node_unknown",
        "1 while no Node and no Pod of the mesh names this node (--node), so that no pod is captured",
        u64::from(node_unknown),
    );
}

/// Whether the daemon or the control plane is ready, as its readiness endpoint says.
pub fn readiness(registry: &mut Registry, is_ready: bool) {
    gauge(
        registry,
        "ztunnel_ready",
        "1 while the readiness endpoint answers that the process is ready, otherwise 0",
        u64::from(is_ready),
    );
}

/// Whether new pods of the mesh may start before they are enrolled.
pub fn start_window(registry: &mut Registry, is_open: bool) {
    gauge(
        registry,
        "ztunnel_start_window",
        "1 while the first container of a new pod of the mesh may start before the pod is enrolled",
        u64::from(is_open),
    );
}

/// Whether the control plane cannot be used. `None`: the mesh does not come from a control plane.
pub fn control_plane(registry: &mut Registry, is_lost: Option<bool>) {
    let Some(is_lost) = is_lost else { return };
    gauge(
        registry,
        "ztunnel_control_plane_lost",
        "1 while the control plane cannot be used, so that the last mesh stays in force",
        u64::from(is_lost),
    );
}

/// Whether the local facts about this node's pods may be out of date.
pub fn local_facts(registry: &mut Registry, stale: bool) {
    gauge(
        registry,
        "ztunnel_local_facts_stale",
        "1 while the source of this node's pods does not answer, so that its last state stays in force",
        u64::from(stale),
    );
}

/// The labelled pods of this node: the number of pods in each state, the verdicts of the BPF programs for each pod, and the
/// number of connections that are older than the enrolment of their pods. `age`: seconds since the manager last reported these
/// values.
pub fn pods<'a>(
    registry: &mut Registry,
    states: impl IntoIterator<Item = (&'static str, usize)>,
    verdicts: impl IntoIterator<Item = (&'a NamespacedName, &'static str, u64)>,
    before_enrolment: usize,
    age: f64,
) {
    let by_state = Family::<StateLabel, Gauge>::default();
    for (state, count) in states {
        by_state.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("ztunnel_pods", "Labelled pods of this node, by state: enrolled, refused", by_state);
    let by_verdict = Family::<VerdictLabels, Counter>::default();
    for (pod, verdict, count) in verdicts {
        let (pod_namespace, pod_name) = (pod.namespace.to_string(), pod.name.to_string());
        by_verdict.get_or_create(&VerdictLabels { pod_namespace, pod_name, verdict }).inc_by(count);
    }
    registry.register(
        "ztunnel_bpf_verdicts",
        "Decisions of the BPF programs about connects and packets, by pod",
        by_verdict,
    );
    gauge(
        registry,
        "ztunnel_connections_before_enrolment",
        "Connections from before the enrolment of their pods, which the mesh does not carry",
        before_enrolment as u64,
    );
    gauge_of_seconds(
        registry,
        "ztunnel_pods_report_age_seconds",
        "Age of the values about pods and BPF maps; beyond a few seconds the manager of the pods is busy or blocked",
        age,
    );
}

/// BPF maps by name, with entries and capacity, and how often a BPF link, map or pin was restored.
pub fn bpf(registry: &mut Registry, maps: impl IntoIterator<Item = (&'static str, usize, u32)>, restored: u64) {
    let entries = Family::<MapLabel, Gauge>::default();
    let capacity = Family::<MapLabel, Gauge>::default();
    for (map, used, size) in maps {
        entries.get_or_create(&MapLabel { map }).set(i64::try_from(used).unwrap_or(i64::MAX));
        capacity.get_or_create(&MapLabel { map }).set(i64::from(size));
    }
    registry.register("ztunnel_bpf_map_entries", "Entries in a BPF map", entries);
    registry.register("ztunnel_bpf_map_capacity", "Capacity of a BPF map, in entries", capacity);
    counter(
        registry,
        "ztunnel_bpf_links_restored",
        "BPF links, maps and pins that another process had removed and that the daemon restored",
        restored,
    );
}

/// The memory budget for copy buffers and windows: its size, the used bytes, and how often a request for memory was refused.
pub fn memory(registry: &mut Registry, budget: usize, used: usize, refused: u64) {
    gauge(
        registry,
        "ztunnel_memory_budget_bytes",
        "Memory that copy buffers and HTTP/2 windows may use (--memory-budget)",
        budget as u64,
    );
    gauge(
        registry,
        "ztunnel_memory_used_bytes",
        "Memory that copy buffers hold and that peers may still send within their windows",
        used as u64,
    );
    counter(
        registry,
        "ztunnel_memory_refused",
        "HBONE connections and streams that were refused because the memory budget was used up",
        refused,
    );
}

/// Running tasks of the daemon, and lost log lines.
pub fn daemon(registry: &mut Registry, tasks: usize, lost_lines: u64) {
    gauge(registry, "ztunnel_tasks", "Running tasks of the daemon", tasks as u64);
    counter(
        registry,
        "ztunnel_log_lines_lost",
        "Log lines that were dropped because standard output was not read",
        lost_lines,
    );
}

/// A gauge without labels.
pub fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<u64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

pub(super) fn gauge_of_seconds(registry: &mut Registry, name: &str, help: &str, seconds: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(seconds);
    registry.register(name, help, gauge);
}

pub(super) fn counter_of_seconds(registry: &mut Registry, name: &str, help: &str, seconds: f64) {
    let counter = Counter::<f64, AtomicU64>::default();
    counter.inc_by(seconds);
    registry.register(name, help, counter);
}

fn counter(registry: &mut Registry, name: &str, help: &str, count: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(count);
    registry.register(name, help, counter);
}
