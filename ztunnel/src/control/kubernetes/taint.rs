//! The startup taint of this node: no pod is placed on a new node until the daemon has taken the taint off.
//!
//! Whoever makes the node puts the taint there: the kubelet (`--register-with-taints`), or the node group of a cloud. The daemon never adds
//! it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

use super::client::Cluster;
use super::failure::Failure;
use super::resource::NODES;

/// How often the daemon looks whether it is ready.
const LOOK: Duration = Duration::from_millis(200);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// The taint that a daemon takes off its node.
#[derive(Debug, Clone)]
pub struct StartupTaint {
    cluster: Cluster,
    node: Arc<str>,
    key: String,
}

/// The fields of a Node that are read.
#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Value>,
}

/// An operation of a JSON patch.
#[derive(Serialize)]
struct Operation<'a> {
    op: &'static str,
    path: &'static str,
    value: &'a [Value],
}

impl StartupTaint {
    /// The taint with a key, of a node.
    #[must_use]
    pub fn new(cluster: &Cluster, node: &str, key: &str) -> Self {
        Self { cluster: cluster.clone(), node: node.into(), key: key.to_owned() }
    }

    /// Takes the taint off as soon as the daemon is ready. Ends when the node does not have the taint.
    pub async fn run(self, is_ready: impl Fn() -> bool + Send) {
        while !is_ready() {
            sleep(LOOK).await;
        }
        let mut is_told = false;
        loop {
            match self.take_off().await {
                Ok(true) => {
                    return info!(
                        taint = self.key,
                        "the startup taint is taken off the node: pods may be placed on it"
                    );
                }
                Ok(false) => return,
                Err(failure) => {
                    if !is_told {
                        warn!(
                            taint = self.key, node = %self.node,
                            "cannot take the startup taint off the node, so no pod is placed on it: {failure}; the daemon tries again"
                        );
                        is_told = true;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether the node had the taint.
    async fn take_off(&self) -> Result<bool, Failure> {
        let path = format!("{}/{}", NODES.path("v1", None), self.node);
        let node: Wire = self.cluster.send("get", NODES, http::Request::get(&path), "application/json", &()).await?;
        let before = node.spec.taints;
        let after: Vec<Value> =
            before.iter().filter(|taint| taint.get("key") != Some(&json!(self.key))).cloned().collect();
        if after.len() == before.len() {
            return Ok(false);
        }
        // Other controllers change the taints of nodes as well: the patch is refused when they are others by now.
        let patch = [
            Operation { op: "test", path: "/spec/taints", value: &before },
            Operation { op: "replace", path: "/spec/taints", value: &after },
        ];
        let request = http::Request::patch(&path);
        self.cluster.send::<Value>("patch", NODES, request, "application/json-patch+json", &patch).await.map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::super::script::{Answer, Asked, Script, status};
    use super::*;

    const KEY: &str = "ambient.mesh/not-ready";

    fn node() -> Value {
        let other = json!({"key": "other", "effect": "NoSchedule"});
        json!({"metadata": {"name": "n"}, "spec": {"taints": [other, {"key": KEY, "effect": "NoSchedule"}]}})
    }

    #[tokio::test]
    async fn only_this_taint_is_taken_off_and_not_before_the_daemon_is_ready() {
        let is_ready = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_ready);
        let script = Script::start(move |asked: &Asked| {
            assert!(seen.load(Ordering::Relaxed), "asked before the daemon is ready: {}", asked.line);
            assert!(asked.line.ends_with(" /api/v1/nodes/n"), "{}", asked.line);
            Answer::Whole(200, node())
        })
        .await;
        let taint = StartupTaint::new(&script.cluster, "n", KEY);
        let looks = AtomicUsize::new(0);
        taint
            .run(move || {
                let ready = looks.fetch_add(1, Ordering::Relaxed) > 1;
                is_ready.store(ready, Ordering::Relaxed);
                ready
            })
            .await;
        let asked = script.asked();
        let [_, patch] = asked.as_slice() else { panic!("{asked:?}") };
        let operations: Value = serde_json::from_str(&patch.body).unwrap();
        assert_eq!(operations[0]["op"], "test");
        assert_eq!(operations[0]["value"], node()["spec"]["taints"]);
        assert_eq!(operations[1]["value"], json!([{"key": "other", "effect": "NoSchedule"}]));
    }

    #[tokio::test]
    async fn a_node_without_the_taint_is_left_as_it_is() {
        let script = Script::start(|_: &Asked| Answer::Whole(200, json!({"metadata": {"name": "n"}}))).await;
        StartupTaint::new(&script.cluster, "n", KEY).run(|| true).await;
        assert_eq!(script.asked().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_tried_again() {
        let refusals = AtomicUsize::new(0);
        let script = Script::start(move |asked: &Asked| {
            if asked.line.starts_with("PATCH") && refusals.fetch_add(1, Ordering::Relaxed) < 2 {
                return Answer::Whole(403, status(403, "Forbidden", "no"));
            }
            Answer::Whole(200, node())
        })
        .await;
        StartupTaint::new(&script.cluster, "n", KEY).run(|| true).await;
        assert_eq!(script.asked().iter().filter(|asked| asked.line.starts_with("PATCH")).count(), 3);
    }
}
