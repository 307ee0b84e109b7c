//! `/metrics`: what the data path counts itself, and what is read from elsewhere at the moment of asking.

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::log::LostLines;
use crate::{
    metrics::certificates::register_expiry,
    net::memory::Budget,
    pods::describe::{Description, PodState},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    namespace: String,
    pod: String,
    verdict: String,
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
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

/// The whole text. `certificates`: identities, and when their certificates end as Unix time.
///
/// # Errors
/// When a series can't be encoded.
pub fn text(
    traffic: &Registry,
    lost: &LostLines,
    budget: &Budget,
    now: &Description,
    certificates: impl IntoIterator<Item = (String, f64)>,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { component: "ztunnel", tag: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("istio_build", "The version that runs, always 1", build);
    register_expiry(&mut registry, certificates);
    pods(&mut registry, now);
    maps(&mut registry, now);
    gauge(
        &mut registry,
        "ztunnel_snapshot_version",
        "Version of the mesh in force; 0: none was read yet",
        now.snapshot.version,
    );
    gauge(
        &mut registry,
        "ztunnel_mesh_problems",
        "What is wrong with the files of the mesh",
        now.problems.len() as u64,
    );
    gauge(
        &mut registry,
        "ztunnel_node_unknown",
        "1 while no Node and no Pod of the mesh has the name of this node (--node), so that nothing is captured",
        u64::from(now.unknown_node.is_some()),
    );
    gauge(&mut registry, "ztunnel_tasks", "Tasks alive", now.tasks as u64);
    let restored = Counter::<u64>::default();
    restored.inc_by(now.links_restored);
    registry.register(
        "ztunnel_bpf_links_restored",
        "BPF links that somebody had removed, and that were put back",
        restored,
    );
    let lost_lines = Counter::<u64>::default();
    lost_lines.inc_by(lost.count());
    registry.register("ztunnel_log_lines_lost", "Log lines that standard output did not take in time", lost_lines);
    memory(&mut registry, budget);
    if let Some(open) = open_files() {
        gauge(&mut registry, "process_open_fds", "Open file descriptors", open);
    }
    let mut text = String::new();
    encode_registry(&mut text, traffic)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

fn memory(registry: &mut Registry, budget: &Budget) {
    let (limit, used) = (budget.limit() as u64, budget.used() as u64);
    gauge(registry, "ztunnel_memory_budget_bytes", "Memory that buffers and the windows of tunnels may take", limit);
    gauge(registry, "ztunnel_memory_used_bytes", "Memory that they have, or were promised", used);
    let refused = Counter::<u64>::default();
    refused.inc_by(budget.refused());
    registry.register("ztunnel_memory_refused", "Tunnels and streams for which no memory was left", refused);
}

fn pods(registry: &mut Registry, now: &Description) {
    let states = Family::<StateLabel, Gauge>::default();
    for state in PodState::ALL {
        let count = now.pods.iter().filter(|pod| pod.state == state).count();
        states.get_or_create(&StateLabel { state: state.name() }).set(count as i64);
    }
    registry.register("ztunnel_pods", "Labelled pods of this node, by state", states);
    let verdicts = Family::<VerdictLabels, Counter>::default();
    let before = Gauge::<i64>::default();
    for pod in &now.pods {
        before.inc_by(pod.connections_before_enrolment as i64);
        for (verdict, count) in &pod.verdicts {
            let labels =
                VerdictLabels { namespace: pod.namespace.clone(), pod: pod.name.clone(), verdict: verdict.clone() };
            verdicts.get_or_create(&labels).inc_by(count.as_u64().unwrap_or(0));
        }
    }
    registry.register("ztunnel_bpf_verdicts", "What the BPF programs decided, by pod", verdicts);
    registry.register(
        "ztunnel_connections_before_enrolment",
        "Connections that pods had when they were enrolled, and which the mesh does not carry",
        before,
    );
}

fn maps(registry: &mut Registry, now: &Description) {
    let entries = Family::<MapLabel, Gauge>::default();
    let capacity = Family::<MapLabel, Gauge>::default();
    for map in &now.maps {
        entries.get_or_create(&MapLabel { map: map.name }).set(map.used as i64);
        capacity.get_or_create(&MapLabel { map: map.name }).set(i64::from(map.capacity));
    }
    registry.register("ztunnel_bpf_map_entries", "Entries in a BPF map", entries);
    registry.register("ztunnel_bpf_map_capacity", "Entries that a BPF map has room for", capacity);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn open_files() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // The listing itself has one open.
    Some((entries.count() as u64).saturating_sub(1))
}
