//! Whether the DaemonSet of this daemon has been deleted: then the daemon is removed from the cluster, and not replaced.
//!
//! The DaemonSet is followed from the start. When the daemon has to stop, it may have lost its rights: the removal of an
//! installation also deletes the RBAC rules, in any order. If the state of the DaemonSet is unknown, it counts as not deleted.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use super::client::Cluster;
use super::object::Object;
use super::resource::DAEMON_SETS;
use super::watch::{Report, Selection, Watch};
use crate::model::workload::NamespacedName;

/// How long the API server may take to answer when the daemon has to stop.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// How long the daemon waits for the event of a deletion if the API server does not answer.
const NEWS_WITHIN: Duration = Duration::from_secs(1);

/// The known state of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is not known whether the DaemonSet has ever existed.
    Unknown,
    /// The DaemonSet exists.
    Present,
    /// The DaemonSet has existed, and is deleted or being deleted.
    Deleted,
}

/// Follows the DaemonSet: [`InstallationWatch::run`] is its task.
pub struct InstallationWatch {
    name: NamespacedName,
    watch: Watch,
    told: watch::Sender<Standing>,
    surges: Arc<AtomicBool>,
}

/// Answers whether the DaemonSet has been deleted.
#[derive(Debug)]
pub struct Installation {
    name: NamespacedName,
    cluster: Cluster,
    standing: watch::Receiver<Standing>,
    surges: Arc<AtomicBool>,
}

/// The fields of a DaemonSet that are read.
#[derive(Deserialize)]
struct Wire {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    update_strategy: Strategy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Strategy {
    rolling_update: Option<RollingUpdate>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RollingUpdate {
    /// A number of nodes, or a percentage.
    #[serde(default)]
    max_surge: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
}

impl Wire {
    /// Whether a roll-out starts the new pod of a node beside the old one.
    fn surges(&self) -> bool {
        let surge = self.spec.update_strategy.rolling_update.as_ref().map(|update| &update.max_surge);
        surge.is_some_and(|surge| !matches!(surge, Value::Null) && *surge != 0 && *surge != "0" && *surge != "0%")
    }

    fn standing(&self) -> Standing {
        match &self.metadata.deletion_timestamp {
            Some(time) if !time.is_empty() => Standing::Deleted,
            _ => Standing::Present,
        }
    }
}

impl InstallationWatch {
    /// A watch of the DaemonSet with this name, and the handle that answers for it.
    #[must_use]
    pub fn new(cluster: &Cluster, name: NamespacedName) -> (Self, Installation) {
        let selection = Selection {
            namespace: Some(name.namespace.to_string()),
            fields: Some(format!("metadata.name={}", name.name)),
            labels: None,
        };
        let watch = Watch::new(cluster.clone(), DAEMON_SETS, selection);
        let (told, standing) = watch::channel(Standing::Unknown);
        let surges = Arc::<AtomicBool>::default();
        let watch = Self { name: name.clone(), watch, told, surges: Arc::clone(&surges) };
        (watch, Installation { name, cluster: cluster.clone(), standing, surges })
    }

    /// Follows the DaemonSet while the future is polled.
    pub async fn run(mut self) {
        loop {
            match self.watch.next().await {
                Report::Applied(object) => self.apply(&object),
                Report::Gone(_) => self.stand(Standing::Deleted),
                Report::Synced if self.is_unknown() => warn!(
                    daemon_set = %self.name,
                    "the DaemonSet of --daemon-set does not exist, so captured pods stay captured when the \
                     daemon is removed from the cluster; correct --daemon-set"
                ),
                Report::Synced => {}
                Report::Failed(failure) => warn!(
                    daemon_set = %self.name,
                    "{failure}; captured pods stay captured if the daemon is removed from the cluster before \
                     that"
                ),
                Report::Absent => warn!(daemon_set = %self.name, "the API server has no DaemonSets"),
            }
        }
    }

    fn is_unknown(&self) -> bool {
        *self.told.borrow() == Standing::Unknown
    }

    fn apply(&self, object: &Object) {
        match object.read::<Wire>() {
            Ok(found) => {
                self.surges.store(found.surges(), Ordering::Relaxed);
                self.stand(found.standing());
            }
            Err(error) => warn!(daemon_set = %self.name, %error, "the DaemonSet of this daemon cannot be read"),
        }
    }

    fn stand(&self, standing: Standing) {
        if self.told.send_replace(standing) != standing && standing == Standing::Deleted {
            info!(
                daemon_set = %self.name,
                "the DaemonSet of this daemon was deleted; the daemon releases all pods when it gets SIGTERM"
            );
        }
    }
}

impl Installation {
    /// Whether a roll-out starts the new daemon of a node beside the old one (`maxSurge`), as far as is known.
    #[must_use]
    pub fn surges(&self) -> bool {
        self.surges.load(Ordering::Relaxed)
    }

    /// Waits until the DaemonSet has been deleted.
    pub async fn removed(&mut self) {
        if self.standing.wait_for(|standing| *standing == Standing::Deleted).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Whether the deletion of the DaemonSet is known.
    #[must_use]
    pub fn is_known_to_be_removed(&self) -> bool {
        *self.standing.borrow() == Standing::Deleted
    }

    /// Whether the DaemonSet has been deleted, for a daemon that has to stop. `false` if that is unknown.
    pub async fn is_removed(&mut self) -> bool {
        // A daemon that has just started may not have its first answer yet.
        let answer = self.standing.wait_for(|standing| *standing != Standing::Unknown);
        let Ok(Ok(standing)) = timeout(ASK_WITHIN, answer).await.map(|answer| answer.map(|standing| *standing)) else {
            return false;
        };
        match standing {
            Standing::Unknown => return false,
            Standing::Deleted => return true,
            Standing::Present => {}
        }
        match timeout(ASK_WITHIN, self.cluster.object::<Wire>(DAEMON_SETS, &self.name)).await {
            Ok(Ok(found)) => found.is_none_or(|found| found.standing() == Standing::Deleted),
            // The right to read the DaemonSet may have been deleted together with it.
            Ok(Err(_)) | Err(_) => {
                let news = self.standing.wait_for(|standing| *standing == Standing::Deleted);
                matches!(timeout(NEWS_WITHIN, news).await, Ok(Ok(_)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::super::script::{Answer, Asked, Script, status};
    use super::{Installation, InstallationWatch, Standing, Wire};
    use crate::lifecycle::tasks::{TaskCount, TaskSet};
    use crate::model::workload::NamespacedName;

    fn daemon_set(deleted: Option<&str>) -> Value {
        let version = deleted.unwrap_or("1");
        json!({"metadata": {"name": "z", "namespace": "ns", "uid": "u", "resourceVersion": version, "deletionTimestamp": deleted}})
    }

    /// A daemon, with given answers of the API server for the list of DaemonSets and for the DaemonSet by name.
    struct World {
        installation: Installation,
        events: UnboundedSender<Value>,
        _script: Script,
        _task: TaskSet,
    }

    async fn world(listed: Value, named: (u16, Value)) -> World {
        let (events, stream) = unbounded_channel();
        let stream: Mutex<Option<UnboundedReceiver<Value>>> = Mutex::new(Some(stream));
        let script = Script::start(move |asked: &Asked| {
            if asked.line == "GET /apis/apps/v1/namespaces/ns/daemonsets/z" {
                return Answer::Whole(named.0, named.1.clone());
            }
            assert!(asked.line.contains("/namespaces/ns/daemonsets?"), "{}", asked.line);
            assert!(asked.line.contains("fieldSelector=metadata.name%3Dz"), "{}", asked.line);
            if !asked.line.contains("watch=true") {
                return Answer::Whole(200, json!({"metadata": {"resourceVersion": "1"}, "items": listed}));
            }
            match stream.lock().unwrap().take() {
                Some(stream) => Answer::Stream(stream),
                None => Answer::Whole(403, status(403, "Forbidden", "no")),
            }
        })
        .await;
        let (watch, installation) = InstallationWatch::new(&script.cluster, NamespacedName::new("ns", "z"));
        let mut task = TaskSet::new(TaskCount::default());
        task.spawn(tracing::Span::none(), watch.run());
        World { installation, events, _script: script, _task: task }
    }

    impl World {
        async fn stands(&mut self, standing: Standing) {
            self.installation.standing.wait_for(|told| *told == standing).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_daemon_set_that_is_there_is_no_removal() {
        let mut world = world(json!([daemon_set(None)]), (200, daemon_set(None))).await;
        world.stands(Standing::Present).await;
        assert!(!world.installation.is_removed().await);
    }

    #[test]
    fn a_surge_is_a_number_or_a_percentage() {
        let table = [
            (json!({"metadata": {}}), false),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"type": "OnDelete"}}}), false),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}}}), false),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 0}}}}), false),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": "0%"}}}}), false),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}}), true),
            (json!({"metadata": {}, "spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": "10%"}}}}), true),
        ];
        for (object, expected) in table {
            let found: Wire = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(found.surges(), expected, "{object}");
        }
    }

    #[tokio::test]
    async fn a_deletion_is_heard_of_or_asked_for() {
        let no = || status(404, "NotFound", "no");
        let mut world = world(json!([daemon_set(None)]), (404, no())).await;
        world.stands(Standing::Present).await;
        assert!(world.installation.is_removed().await);

        let mut world = self::world(json!([daemon_set(None)]), (200, daemon_set(Some("2026-01-01T00:00:00Z")))).await;
        world.stands(Standing::Present).await;
        assert!(world.installation.is_removed().await);

        // The right to read is deleted as well, so the event of the deletion counts.
        let mut world = self::world(json!([daemon_set(None)]), (403, status(403, "Forbidden", "no"))).await;
        world.stands(Standing::Present).await;
        world.events.send(json!({"type": "DELETED", "object": daemon_set(None)})).unwrap();
        assert!(world.installation.is_removed().await);

        // A new DaemonSet with the same name replaces it.
        world.events.send(json!({"type": "ADDED", "object": daemon_set(None)})).unwrap();
        world.stands(Standing::Present).await;
        assert!(!world.installation.is_removed().await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_there_is_not_removed() {
        let mut world = world(json!([]), (404, status(404, "NotFound", "no"))).await;
        assert!(!world.installation.is_removed().await);
        assert_eq!(*world.installation.standing.borrow(), Standing::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_to_answer_removes_nothing() {
        let mut world = world(json!([daemon_set(None)]), (403, status(403, "Forbidden", "no"))).await;
        world.stands(Standing::Present).await;
        assert!(!world.installation.is_removed().await);
    }
}
