//! The metrics of the control plane, as text.

use std::{
    collections::BTreeMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    metrics::{
        process,
        state::{gauge, readiness},
    },
    plane::{catalogue::Kind, metrics::TypeLabel},
};

/// The values that are read at the time of a scrape.
pub(in crate::app) struct Values {
    /// The number of resources of each type, and their size in bytes.
    pub(in crate::app) resources: [(Kind, usize, usize); Kind::ALL.len()],
    /// The version of the resources.
    pub(in crate::app) version: u64,
    /// The number of open streams of nodes.
    pub(in crate::app) streams: usize,
    /// The number of nodes with a token.
    pub(in crate::app) tokens: usize,
    /// The number of problems in the manifests.
    pub(in crate::app) problems: usize,
    /// The readiness endpoint answers that the control plane is ready.
    pub(in crate::app) ready: bool,
    /// The expiry of the CA.
    pub(in crate::app) ca_until: SystemTime,
    /// The expiry of the serving certificate.
    pub(in crate::app) serving_until: SystemTime,
    /// The number of dropped log lines.
    pub(in crate::app) lost: u64,
    /// The types of objects of the Kubernetes API from which the mesh is made.
    pub(in crate::app) followed: Vec<FollowedValues>,
}

/// How a type of objects is followed.
pub(in crate::app) struct FollowedValues {
    /// The type.
    pub(in crate::app) resource: String,
    /// The number of objects.
    pub(in crate::app) objects: usize,
    /// Whether the objects are up to date.
    pub(in crate::app) is_synced: bool,
    /// The number of failures to follow the objects, by reason.
    pub(in crate::app) failures: BTreeMap<&'static str, u64>,
}

/// A type of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: String,
}

/// A type of objects, and the reason of a failure to follow it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    resource: String,
    reason: &'static str,
}

fn register_followed(registry: &mut Registry, followed: &[FollowedValues]) {
    let objects = Family::<ResourceLabel, Gauge>::default();
    let synced = Family::<ResourceLabel, Gauge>::default();
    let failures = Family::<FailureLabel, Counter>::default();
    for known in followed {
        let label = ResourceLabel { resource: known.resource.clone() };
        objects.get_or_create(&label).set(i64::try_from(known.objects).unwrap_or(i64::MAX));
        synced.get_or_create(&label).set(i64::from(known.is_synced));
        for (reason, count) in &known.failures {
            let label = FailureLabel { resource: known.resource.clone(), reason };
            failures.get_or_create(&label).inc_by(*count);
        }
    }
    registry.register("ztunnel_kubernetes_objects", "Objects of the Kubernetes API in the mesh, by type", objects);
    let help = "Whether the objects of a type are up to date (1), or cannot be followed (0)";
    registry.register("ztunnel_kubernetes_synced", help, synced);
    let help = "Failures to list or watch objects of a type, by reason";
    registry.register("ztunnel_kubernetes_failures", help, failures);
}

/// The counters and the values as OpenMetrics text.
pub(in crate::app) fn text(counters: &Registry, values: &Values) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let resources = Family::<TypeLabel, Gauge>::default();
    let bytes = Family::<TypeLabel, Gauge>::default();
    for (kind, count, size) in values.resources {
        let label = TypeLabel { r#type: kind.name() };
        resources.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        bytes.get_or_create(&label).set(i64::try_from(size).unwrap_or(i64::MAX));
    }
    registry.register("ztunnel_xds_resources", "Resources that are served, by type", resources);
    registry.register("ztunnel_xds_resource_bytes", "Bytes of the resources that are served, by type", bytes);
    let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let gauges = [
        (
            "ztunnel_xds_version",
            "Version of the resources; a stream has everything when it has this one",
            values.version,
        ),
        ("ztunnel_xds_streams", "Open streams of nodes", values.streams as u64),
        ("ztunnel_node_tokens", "Nodes that have a token", values.tokens as u64),
        ("ztunnel_mesh_problems", "Problems in the manifests or objects of the mesh", values.problems as u64),
        ("ztunnel_ca_expiry_timestamp_seconds", "Expiry of the CA certificate, as Unix time", unix(values.ca_until)),
        (
            "ztunnel_serving_certificate_expiry_timestamp_seconds",
            "Expiry of the serving certificate, as Unix time",
            unix(values.serving_until),
        ),
    ];
    for (name, help, value) in gauges {
        gauge(&mut registry, name, help, value);
    }
    let lost = Counter::<u64>::default();
    lost.inc_by(values.lost);
    let help = "Log lines that were dropped because standard output was not read";
    registry.register("ztunnel_log_lines_lost", help, lost);
    readiness(&mut registry, values.ready);
    if !values.followed.is_empty() {
        register_followed(&mut registry, &values.followed);
    }
    process::register(&mut registry);
    let mut text = String::new();
    encode_registry(&mut text, counters)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}
