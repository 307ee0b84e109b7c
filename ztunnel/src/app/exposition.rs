//! `/metrics`: what the data path counts itself, and what is read from elsewhere at the moment of asking.

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

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

/// The whole text. `lost`: log lines that were dropped. `certificates`: identities, and when their certificates end as Unix time.
///
/// # Errors
/// When a series can't be encoded.
pub fn text(
    traffic: &Registry,
    lost: u64,
    budget: &Budget,
    now: &Description,
    certificates: impl IntoIterator<Item = (String, f64)>,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { component: "ztunnel", tag: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("istio_build", "Version of the daemon in the label tag; always 1", build);
    register_expiry(&mut registry, certificates);
    pods(&mut registry, now);
    maps(&mut registry, now);
    gauge(
        &mut registry,
        "ztunnel_snapshot_version",
        "Version of the mesh snapshot in force; 0 until the mesh was read",
        now.snapshot.version,
    );
    gauge(
        &mut registry,
        "ztunnel_mesh_problems",
        "Problems in the manifests of the mesh",
        now.problems.iter().filter(|problem| problem.severity != "info").count() as u64,
    );
    gauge(
        &mut registry,
        "ztunnel_node_unknown",
        "1 while no Node and no Pod of the mesh names this node (--node), so that no pod is captured",
        u64::from(now.unknown_node.is_some()),
    );
    gauge(&mut registry, "ztunnel_tasks", "Running tasks of the daemon", now.tasks as u64);
    let restored = Counter::<u64>::default();
    restored.inc_by(now.links_restored);
    registry.register(
        "ztunnel_bpf_links_restored",
        "BPF links, maps and pins that somebody had removed and that the daemon restored",
        restored,
    );
    let lost_lines = Counter::<u64>::default();
    lost_lines.inc_by(lost);
    registry.register(
        "ztunnel_log_lines_lost",
        "Log lines that were dropped because standard output was not read",
        lost_lines,
    );
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
    gauge(
        registry,
        "ztunnel_memory_budget_bytes",
        "Memory that copy buffers and HTTP/2 windows may use (--memory-budget)",
        limit,
    );
    gauge(
        registry,
        "ztunnel_memory_used_bytes",
        "Memory that copy buffers hold and that peers may still send within their windows",
        used,
    );
    let refused = Counter::<u64>::default();
    refused.inc_by(budget.refused());
    registry.register(
        "ztunnel_memory_refused",
        "HBONE connections and streams that were refused because the memory budget was used up",
        refused,
    );
}

fn pods(registry: &mut Registry, now: &Description) {
    let states = Family::<StateLabel, Gauge>::default();
    for state in PodState::ALL {
        let count = now.pods.iter().filter(|pod| pod.state == state).count();
        states.get_or_create(&StateLabel { state: state.name() }).set(count as i64);
    }
    registry.register("ztunnel_pods", "Labelled pods of this node, by state: enrolled, refused", states);
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
    registry.register(
        "ztunnel_bpf_verdicts",
        "Decisions of the BPF programs about connects and packets, by pod",
        verdicts,
    );
    registry.register(
        "ztunnel_connections_before_enrolment",
        "Connections from before the enrolment of their pods, which the mesh does not carry",
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
    registry.register("ztunnel_bpf_map_capacity", "Capacity of a BPF map, in entries", capacity);
}

pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

pub(super) fn open_files() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // The listing itself has one open.
    Some((entries.count() as u64).saturating_sub(1))
}
