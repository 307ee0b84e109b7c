//! The pods of one node, and whether they are members of the mesh by their labels or those of their Namespaces: for the local
//! source.
//!
//! The API server selects the pods (`spec.nodeName`), so a node gets only its own pods. If a type can't be followed for a
//! while, its objects stay as they were, and the failure is reported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll, unfold};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::client::Cluster;
use super::object::Object;
use super::resource::{NAMESPACES, NODES, PODS, ResourceType};
use super::watch::{Report, Selection, Watch};
use crate::control::join::{Joiner, Voice};
use crate::control::objects::{self, Interner, MODE_LABEL, Resource};
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPod;
use crate::model::node_pods::{NodePod, NodePods};
use crate::model::origin::Origin;
use crate::model::workload::{NamespacedName, Workload};
use crate::store::change::Change;

/// Changes are combined until there is no further change for this time: a label of a Namespace concerns all of its pods.
const QUIET: Duration = Duration::from_millis(10);
/// The longest time that a change waits for others.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The followed types. The Node is followed only to check that a Node with the name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Namespaces,
    Pods,
    Node,
}

impl Type {
    const ALL: [Self; 3] = [Self::Namespaces, Self::Pods, Self::Node];

    const fn resource(self) -> ResourceType {
        match self {
            Self::Namespaces => NAMESPACES,
            Self::Pods => PODS,
            Self::Node => NODES,
        }
    }

    fn selection(self, node: &str) -> Selection {
        let fields = match self {
            Self::Namespaces => None,
            Self::Pods => Some(format!("spec.nodeName={node}")),
            Self::Node => Some(format!("metadata.name={node}")),
        };
        Selection { fields, ..Selection::default() }
    }
}

/// The state of a followed type.
#[derive(Debug, Default)]
struct Standing {
    /// All objects have been reported once.
    is_listed: bool,
    /// Why the type can't be followed now.
    failure: Option<String>,
}

/// Follows the pods of a node.
pub struct NodeWatch {
    node: Arc<str>,
    server: Arc<str>,
    reports: SelectAll<BoxStream<'static, (Type, Report)>>,
    joiner: Joiner,
    workloads: BTreeMap<NamespacedName, Arc<Workload>>,
    /// Whether each Namespace has the label.
    labelled: Arc<BTreeMap<Arc<str>, bool>>,
    namespaces: Standing,
    pods: Standing,
    /// Whether a Node with the name exists; `None`: that is not known.
    has_node: Option<bool>,
    told: watch::Sender<NodePods>,
}

impl NodeWatch {
    /// A watch of the pods of a node, and the receiver of the pods.
    #[must_use]
    pub fn new(cluster: &Cluster, node: &str) -> (Self, watch::Receiver<NodePods>) {
        let streams = Type::ALL.map(|kind| {
            let watch = Watch::new(cluster.clone(), kind.resource(), kind.selection(node));
            let reports = unfold(watch, move |mut watch| async move {
                let report = watch.next().await;
                Some(((kind, report), watch))
            });
            reports.boxed()
        });
        let (told, reader) = watch::channel(NodePods::default());
        let node: Arc<str> = node.into();
        let watch = Self {
            server: cluster.server().into(),
            reports: streams.into_iter().collect(),
            joiner: Joiner::new(TrustDomain::default(), Some(Arc::clone(&node))),
            workloads: BTreeMap::new(),
            labelled: Arc::default(),
            namespaces: Standing::default(),
            pods: Standing::default(),
            has_node: None,
            told,
            node,
        };
        (watch, reader)
    }

    /// Follows the pods while the future is polled.
    pub async fn run(mut self) {
        while let Some((kind, report)) = self.reports.next().await {
            self.take(kind, report);
            let deadline = Instant::now() + LONGEST_WAIT;
            loop {
                let quiet = (Instant::now() + QUIET).min(deadline);
                tokio::select! {
                    biased;
                    Some((kind, report)) = self.reports.next() => self.take(kind, report),
                    () = sleep_until(quiet) => break,
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            self.tell();
        }
    }

    fn take(&mut self, kind: Type, report: Report) {
        let failure = match report {
            Report::Applied(object) => return self.apply(kind, &object),
            Report::Gone(name) => return self.gone(kind, &name),
            Report::Synced => None,
            Report::Failed(failure) => Some(failure.to_string()),
            Report::Absent => Some(format!(
                "the server at {} has no {}, so it is not a Kubernetes API server; correct its address",
                self.server,
                kind.resource()
            )),
        };
        let standing = match kind {
            Type::Namespaces => &mut self.namespaces,
            Type::Pods => &mut self.pods,
            Type::Node => {
                // Without the right to read Nodes there is no warning about a missing Node.
                if failure.is_none() {
                    self.has_node.get_or_insert(false);
                } else {
                    self.has_node = None;
                }
                return;
            }
        };
        match &failure {
            Some(why) => warn!(node = &*self.node, "{why}; the last good state of this node's pods stays in force"),
            None if standing.failure.is_some() => {
                info!(resource = %kind.resource(), "the Kubernetes API is followed again");
            }
            None => debug!(resource = %kind.resource(), "listed"),
        }
        standing.is_listed |= failure.is_none();
        standing.failure = failure;
    }

    fn apply(&mut self, kind: Type, object: &Object) {
        let resource = match kind {
            Type::Namespaces => object.read::<Namespace>().map(|namespace| {
                let labels = namespace.metadata.labels.as_ref();
                let is_labelled =
                    labels.and_then(|labels| labels.get(MODE_LABEL)).is_some_and(|mode| mode == "ambient");
                self.label(&object.name.name, Some(is_labelled));
                Resource::Namespace(Box::new(namespace))
            }),
            Type::Pods => object.read::<Pod>().map(|pod| Resource::Pod(Box::new(pod))),
            Type::Node => {
                self.has_node = Some(true);
                return;
            }
        };
        let title = format!("{} {}", kind.resource(), object.name);
        let said = resource.map_err(|error| error.to_string()).and_then(|resource| {
            // Pods change often, so texts that they share are not kept.
            objects::read(resource, &mut Interner::default()).map_err(|error| error.to_string())
        });
        match said {
            Ok(said) => {
                for remark in &said.remarks {
                    debug!(object = said.title, remark = remark.message, "in the Kubernetes API");
                }
                let origin = Origin::Object { kind: kind.resource().kind, name: said.name.clone() };
                let object = said.body.map(|body| objects::Object { name: said.name.clone(), origin, body });
                self.joiner.say(&voice(kind, &said.name), object.into_iter().collect(), Vec::new());
            }
            Err(error) => warn!(
                "{title} in the Kubernetes API cannot be read: {error}; its last valid \
                 version stays in force"
            ),
        }
    }

    fn gone(&mut self, kind: Type, name: &NamespacedName) {
        match kind {
            Type::Namespaces => {
                self.label(&name.name, None);
                self.joiner.silence(&voice(kind, name));
            }
            Type::Pods => self.joiner.silence(&voice(kind, name)),
            Type::Node => self.has_node = Some(false),
        }
    }

    /// Whether a Namespace has the label; `None`: there is no such Namespace.
    fn label(&mut self, namespace: &Arc<str>, is_labelled: Option<bool>) {
        if self.labelled.get(namespace).copied() == is_labelled {
            return;
        }
        let labelled = Arc::make_mut(&mut self.labelled);
        match is_labelled {
            Some(is_labelled) => drop(labelled.insert(Arc::clone(namespace), is_labelled)),
            None => drop(labelled.remove(namespace)),
        }
    }

    fn tell(&mut self) {
        for change in self.joiner.take().changes {
            match change {
                Change::Workload(workload) => drop(self.workloads.insert(workload.name.clone(), workload)),
                Change::WorkloadGone(name) => drop(self.workloads.remove(&name)),
                _ => {}
            }
        }
        let news = NodePods {
            pods: self.listed(),
            namespaces: Arc::clone(&self.labelled),
            problem: self.problem().map(Arc::from),
        };
        self.told.send_if_modified(|told| {
            let is_news = *told != news;
            if is_news {
                *told = news;
            }
            is_news
        });
    }

    /// The pods, if all pods and all Namespaces are known.
    fn listed(&self) -> Option<BTreeMap<NamespacedName, NodePod>> {
        (self.namespaces.is_listed && self.pods.is_listed).then(|| {
            let local = self.joiner.local();
            let pod = |(name, workload): (&NamespacedName, &Arc<Workload>)| {
                // A user who may create a pod could name any network namespace of the node, so the annotation is ignored.
                let local = LocalPod { netns: None, ..local.get(name).cloned().unwrap_or_default() };
                (name.clone(), NodePod { workload: Arc::clone(workload), local: Arc::new(local) })
            };
            self.workloads.iter().map(pod).collect()
        })
    }

    fn problem(&self) -> Option<String> {
        let failures = [&self.namespaces, &self.pods].into_iter().filter_map(|standing| standing.failure.clone());
        let mut failures = failures.peekable();
        if failures.peek().is_some() {
            let state = match self.listed() {
                Some(_) => "the last good state of this node's pods stays in force",
                None => "until then no pod of this node is known",
            };
            return Some(format!("{}; {state}", failures.collect::<Vec<_>>().join("; ")));
        }
        (self.has_node == Some(false) && self.workloads.is_empty()).then(|| {
            format!(
                "the Kubernetes API server at {} has no Node {:?}, and no pod that is bound to it: set --node to the name of this \
                 node as `kubectl get nodes` shows it",
                self.server, self.node
            )
        })
    }
}

fn voice(kind: Type, name: &NamespacedName) -> Voice {
    Voice::of(format!("{} {name}", kind.resource()))
}

impl std::fmt::Debug for NodeWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeWatch").field("node", &self.node).field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
