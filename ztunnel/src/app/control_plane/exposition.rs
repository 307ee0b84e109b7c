//! The metrics of the control plane, as text.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    metrics::{process, state::gauge},
    plane::{catalogue::Kind, metrics::TypeLabel},
};

/// What is looked at when metrics are read.
pub(in crate::app) struct Values {
    /// How many resources of each type there are, and how many bytes they have.
    pub(in crate::app) resources: [(Kind, usize, usize); Kind::ALL.len()],
    /// The version of the resources.
    pub(in crate::app) version: u64,
    /// Open streams of nodes.
    pub(in crate::app) streams: usize,
    /// Nodes with a token.
    pub(in crate::app) tokens: usize,
    /// Problems in the manifests.
    pub(in crate::app) problems: usize,
    /// When the CA ends.
    pub(in crate::app) ca_until: SystemTime,
    /// When the serving certificate ends.
    pub(in crate::app) serving_until: SystemTime,
    /// Log lines that were dropped.
    pub(in crate::app) lost: u64,
}

/// OpenMetrics text of the counters and of the values.
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
        ("ztunnel_mesh_problems", "Problems in the manifests of the mesh", values.problems as u64),
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
    process::register(&mut registry);
    let mut text = String::new();
    encode_registry(&mut text, counters)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}
