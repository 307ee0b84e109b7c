//! The table of metrics. It is generated from an exposition in which every metric has a series.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ebpf_common::Verdict;
use prometheus_client::registry::Registry;

use super::markdown::{code, table};
use crate::{
    app::{
        control_plane::exposition as control_plane,
        exposition::{self, Sources},
    },
    metrics::{
        facts::{Facts, Protocol},
        fetches::Fetches,
        traffic::Traffic,
    },
    model::{
        close::CloseReason,
        flow::Direction,
        identity::{SpiffeId, TrustDomain},
        workload::NamespacedName,
    },
    net::memory::Budget,
    plane::{catalogue::Kind, metrics::PlaneMetrics},
    pods::{
        describe::{MapInfo, PodState},
        status::{PodStatus, Status},
    },
    policy::{Cause, Denial},
    store::snapshot::Snapshot,
};

/// A table names a label set with more labels than this, instead of listing it.
const MANY: usize = 8;

/// One metric.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    help: String,
    kind: String,
    labels: Vec<String>,
}

/// The table of an exposition, and the label set that is too long for the table.
pub(super) fn of(text: &str) -> String {
    let metrics = read(text);
    let long = metrics.values().map(|metric| &metric.labels).find(|labels| labels.len() > MANY);
    let rows = metrics.iter().map(|(name, metric)| {
        let labels = match metric.labels.len() {
            count if count > MANY => "Istio's".to_owned(),
            _ => listed(&metric.labels),
        };
        [code(name), metric.kind.clone(), unit(name).to_owned(), labels, sentence(&metric.help)]
    });
    let mut text = table(["metric", "type", "unit", "labels", "meaning"], rows);
    if let Some(labels) = long {
        text.push_str(&format!("\nIstio's labels: {}.\n", listed(labels)));
    }
    text
}

/// The table of the control plane of this version.
pub(super) fn of_control_plane() -> Result<String, fmt::Error> {
    Ok(of(&every_metric_of_control_plane()?))
}

/// The table of this version.
pub(super) fn all() -> Result<String, fmt::Error> {
    Ok(of(&every_metric()?))
}

fn listed(labels: &[String]) -> String {
    labels.iter().map(|label| code(label)).collect::<Vec<_>>().join(", ")
}

fn sentence(help: &str) -> String {
    let help = help.trim_end_matches('.');
    if help.is_empty() { String::new() } else { format!("{help}.") }
}

fn unit(name: &str) -> &'static str {
    match name {
        name if name.contains("_seconds") => "seconds",
        name if name.contains("_bytes") => "bytes",
        _ => "",
    }
}

/// The metrics of an exposition by their names in queries.
fn read(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut metrics.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().kind);
        } else if !line.starts_with('#')
            && let Some(metric) = metrics.get_mut(family(line))
        {
            for label in labels(line) {
                if label != "le" && !metric.labels.iter().any(|known| known == label) {
                    metric.labels.push(label.to_owned());
                }
            }
        }
    }
    let queried = |(name, metric): (String, Metric)| {
        let name = if metric.kind == "counter" && !name.ends_with("_total") { name + "_total" } else { name };
        (name, metric)
    };
    metrics.into_iter().map(queried).collect()
}

/// The name of the metric to which a sample belongs.
fn family(line: &str) -> &str {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    ["_total", "_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// The label names of a sample. The label values must not contain quotes.
fn labels(line: &str) -> impl Iterator<Item = &str> {
    let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    // Split at the quotes, names and values alternate.
    inside.split('"').step_by(2).filter_map(|part| part.trim_start_matches(',').strip_suffix('='))
}

/// An exposition of the control plane after one event of each kind.
pub(in crate::app) fn every_metric_of_control_plane() -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let counters = PlaneMetrics::register(&mut registry);
    counters.refuse("");
    counters.cut("");
    counters.reported("", 1);
    counters.event("");
    let values = control_plane::Values {
        resources: Kind::ALL.map(|kind| (kind, 0, 0)),
        version: 0,
        streams: 0,
        tokens: 0,
        problems: 0,
        ready: false,
        ca_until: UNIX_EPOCH,
        serving_until: UNIX_EPOCH,
        lost: 0,
        followed: vec![control_plane::FollowedValues {
            resource: String::new(),
            objects: 0,
            is_synced: false,
            failures: [("", 1)].into(),
        }],
    };
    control_plane::text(&registry, &values)
}

/// An exposition after one event of each kind.
pub(in crate::app) fn every_metric() -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    Fetches::register(&mut registry);
    let traffic = Traffic::register(&mut registry, Duration::from_secs(60), "".into());
    let namespace: Arc<str> = "".into();
    traffic.handshake(Direction::Inbound, Duration::ZERO);
    traffic.connected(Direction::Inbound, Protocol::Tcp, Duration::ZERO);
    let cause = Cause::NotAllowed { policies: Vec::new(), more: 0 };
    traffic.decisions().denied(&Denial { cause, at_probe: false }, &namespace);
    let addr = (Ipv4Addr::LOCALHOST, 0).into();
    let facts = Facts {
        direction: Direction::Inbound,
        src_addr: addr,
        source: None,
        source_identity: None,
        dst_addr: addr,
        hbone_addr: None,
        service: None,
        destination: None,
        destination_identity: None,
    };
    traffic.meter().open(&facts).close(CloseReason::Denied);
    let pod = PodStatus {
        name: NamespacedName::new("", ""),
        state: PodState::Enrolled,
        reason: None,
        connections_before_enrolment: 0,
        verdicts: vec![(Verdict::Captured, 1)],
    };
    let maps = vec![MapInfo { name: "", used: 0, capacity: 0 }];
    exposition::text(&Sources {
        traffic: &registry,
        lost: 0,
        budget: &Budget::new(0),
        tasks: 0,
        mesh: &Snapshot::default(),
        ready: false,
        start_window: false,
        control_plane_lost: Some(false),
        node_unknown: false,
        local_stale: false,
        status: &Status { pods: vec![pod], maps, ..Status::unknown() },
        certificates: vec![(SpiffeId::new(TrustDomain::default(), "", ""), UNIX_EPOCH)],
    })
}
