//! The rules and dashboards for Prometheus and Grafana: what they use, what there is, and a Prometheus that scrapes a testbed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

pub mod dashboards;
pub mod prometheus;
pub mod promql;
pub mod reference;
pub mod rules;
pub mod scrapes;

/// The folder with the rules and the dashboards. The chart has them, because Helm reads files of the chart only.
#[must_use]
pub fn folder() -> PathBuf {
    crate::cluster::chart::folder().join("files/monitoring")
}

/// The file of a document of the project.
#[must_use]
pub fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs").join(name)
}

/// The text of a file.
///
/// # Errors
/// When it can't be read; the message names it.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A text of an object; empty if it has none under this key.
#[must_use]
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of a list of an object.
pub fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}
