//! The metrics that there are, from `docs/metrics.md`, which `cargo xtask docs` writes from the code.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::promql::Uses;
use super::{document, read};

/// Labels that Prometheus gives to a target.
const OF_TARGETS: [&str; 6] = ["job", "instance", "node", "pod", "namespace", "container"];

/// Metrics that Prometheus makes, with their labels.
const OF_PROMETHEUS: [(&str, &[&str]); 2] = [("up", &[]), ("ALERTS", &["alertname", "alertstate", "severity"])];

/// The label of the traffic metrics of a daemon that has handed over.
const LEAVING: &str = "leaving";

/// Metrics by their names in queries, with their labels.
#[derive(Debug)]
pub struct Reference(BTreeMap<String, BTreeSet<String>>);

impl Reference {
    /// Reads the document.
    ///
    /// # Errors
    /// When it has no table of metrics.
    pub fn load() -> Result<Self> {
        Self::parse(&read(&document("metrics.md"))?)
    }

    fn parse(text: &str) -> Result<Self> {
        let istios = text.lines().find_map(|line| line.strip_prefix("Istio's labels: "));
        let istios: BTreeSet<String> = codes(istios.context("the document does not list Istio's labels")?).collect();
        let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut add = |name: String, labels: &BTreeSet<String>| {
            metrics.entry(name).or_default().extend(labels.iter().cloned());
        };
        for line in text.lines() {
            let Some(row) = line.strip_prefix('|') else { continue };
            let cells: Vec<&str> = row.splitn(5, '|').map(str::trim).collect();
            let [name, kind, _, labels, _] = cells.as_slice() else { continue };
            let Some(name) = codes(name).next().filter(|name| !name.contains(' ')) else { continue };
            let mut labels =
                if *labels == "Istio's" { istios.clone() } else { codes(labels).collect::<BTreeSet<String>>() };
            match *kind {
                "histogram" => {
                    add(format!("{name}_sum"), &labels);
                    add(format!("{name}_count"), &labels);
                    labels.insert("le".to_owned());
                    add(format!("{name}_bucket"), &labels);
                }
                "counter" | "gauge" => add(name, &labels),
                _ => {}
            }
        }
        ensure!(metrics.len() > 50, "the document has {} metrics only: {metrics:?}", metrics.len());
        for (name, labels) in OF_PROMETHEUS {
            metrics.insert(name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect());
        }
        Ok(Self(metrics))
    }

    /// Adds a metric that a recording rule makes.
    pub fn record(&mut self, name: &str, labels: impl IntoIterator<Item = String>) {
        self.0.entry(name.to_owned()).or_default().extend(labels);
    }

    /// Checks that there is everything that an expression uses.
    ///
    /// # Errors
    /// Names the metric or the label that there is not.
    pub fn check(&self, uses: &Uses) -> Result<()> {
        ensure!(!uses.metrics.is_empty(), "it uses no metric");
        let of_target = |label: &String| OF_TARGETS.contains(&label.as_str()) || label == LEAVING;
        let mut all = BTreeSet::new();
        for (name, selected) in &uses.metrics {
            let Some(labels) = self.0.get(name) else { bail!("there is no metric {name}") };
            for label in selected.iter().filter(|label| !of_target(label)) {
                ensure!(labels.contains(label), "the metric {name} has no label {label}");
            }
            all.extend(labels);
        }
        for label in uses.labels.iter().filter(|label| !of_target(label) && !uses.made.contains(*label)) {
            ensure!(all.contains(label), "none of the metrics has the label {label}");
        }
        Ok(())
    }

    /// Checks that the results of an expression can have a label.
    ///
    /// # Errors
    /// When they cannot.
    pub fn check_result(&self, uses: &Uses, label: &str) -> Result<()> {
        if !uses.by.is_empty() {
            ensure!(uses.by.contains(label), "the results are grouped by {:?}, not by {label}", uses.by);
            return Ok(());
        }
        let of_metrics = uses.metrics.keys().filter_map(|name| self.0.get(name)).any(|labels| labels.contains(label));
        ensure!(of_metrics || OF_TARGETS.contains(&label), "no metric of the expression has the label {label}");
        Ok(())
    }
}

/// The texts between backquotes.
fn codes(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitoring::promql::uses;

    #[test]
    fn a_name_that_does_not_exist_is_named() -> Result<()> {
        let reference = Reference::load()?;
        let fault = |text: &str| Ok::<_, anyhow::Error>(reference.check(&uses(text)?).err().map(|e| e.to_string()));
        for good in [
            "sum by (node, map) (ztunnel_bpf_map_entries{job=\"ztunnel\"})",
            "rate(ztunnel_connect_duration_seconds_bucket{le=\"1\", protocol=\"tcp\"}[5m])",
            "istio_tcp_sent_bytes_total{source_principal!=\"\", leaving=\"\"}",
            "count(ALERTS{alertname=\"A\"}) or up",
        ] {
            assert_eq!(fault(good)?, None, "{good}");
        }
        for (bad, named) in [
            ("ztunnel_bpf_map_entry", "ztunnel_bpf_map_entry"),
            ("rate(ztunnel_connect_duration_seconds[5m])", "ztunnel_connect_duration_seconds"),
            ("istio_tcp_sent_bytes_total{source_principle=\"\"}", "source_principle"),
            ("sum by (mapp) (ztunnel_bpf_map_entries)", "mapp"),
            ("vector(1)", "no metric"),
        ] {
            assert!(fault(bad)?.is_some_and(|why| why.contains(named)), "{bad}");
        }
        Ok(())
    }
}
