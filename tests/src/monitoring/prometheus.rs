//! A real Prometheus in the network namespace of a node.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{list, rules, text};
use crate::admin;
use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::topology::Topology;
use crate::wait;

/// Where it listens, in the network namespace of the node.
const ADDRESS: &str = "127.0.0.1:9090";

/// It reads its own database before it answers.
const START: Duration = Duration::from_secs(30);

/// A scraped process.
#[derive(Debug)]
pub struct Target {
    /// The job.
    pub job: &'static str,
    /// The label `node`.
    pub node: String,
    /// The address of the metrics.
    pub address: SocketAddr,
}

/// A running Prometheus with the rules of the project. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    netns: Netns,
    process: Process,
    log: PathBuf,
}

impl Prometheus {
    /// Starts it on a node, with these targets, each of which is scraped every second.
    ///
    /// # Errors
    /// When it is not installed or does not become ready; the message has its log.
    pub fn start(topology: &Topology, node: &str, targets: &[Target]) -> Result<Self> {
        let folder = topology.folder.join("prometheus");
        fs::create_dir_all(&folder)?;
        let netns = Netns::existing(topology.node(node)?.netns.name());
        let (config, log) = (folder.join("prometheus.yaml"), folder.join("log"));
        fs::write(&config, configuration(targets, &rules::file()))?;
        let process = Launch::new("prometheus")
            .args([
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", folder.join("data").display()),
                format!("--web.listen-address={ADDRESS}"),
            ])
            .inside(&netns)
            .log_to(&log)
            .start()?;
        let mut started = Self { netns, process, log };
        wait::until_true("Prometheus to be ready", START, || {
            if let Some(status) = started.process.ended()? {
                bail!("Prometheus ended with {status}\n{}", started.tail());
            }
            Ok(admin::get_from(&started.netns, ADDRESS, "/-/ready").is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| started.tail())?;
        Ok(started)
    }

    /// The series that an expression has now.
    ///
    /// # Errors
    /// When Prometheus does not accept it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.get(&format!("/api/v1/query?query={}", encoded(expression)))?;
        ensure!(text(&data, "resultType") == "vector", "{expression}: {data}");
        Ok(list(&data, "result").cloned().collect())
    }

    /// The rules, as Prometheus evaluates them.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let data = self.get("/api/v1/rules")?;
        Ok(list(&data, "groups").flat_map(|group| list(group, "rules")).cloned().collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = admin::get_from(&self.netns, ADDRESS, path).with_context(|| self.tail())?;
        let value: Value = serde_json::from_str(&answer.body).with_context(|| format!("{path}: {answer:?}"))?;
        ensure!(answer.status == 200 && text(&value, "status") == "success", "{path}: {value}");
        Ok(value.get("data").cloned().unwrap_or_default())
    }

    fn tail(&self) -> String {
        let log = fs::read_to_string(self.log.with_added_extension("err")).unwrap_or_default();
        let mut last: Vec<&str> = log.lines().rev().take(20).collect();
        last.reverse();
        format!("--- the end of the log of Prometheus ---\n{}", last.join("\n"))
    }
}

fn configuration(targets: &[Target], rules: &Path) -> String {
    let mut text = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n",
        rules.display()
    );
    let jobs: BTreeSet<&str> = targets.iter().map(|target| target.job).collect();
    for job in jobs {
        let _ = writeln!(text, "- job_name: {job}\n  static_configs:");
        for Target { node, address, .. } in targets.iter().filter(|target| target.job == job) {
            let _ = writeln!(text, "  - {{targets: ['{address}'], labels: {{node: {node}}}}}");
        }
    }
    text
}

/// Percent-encodes everything but letters and digits.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
