use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::super::script::{Answer, Asked, Script, status};
use super::NodeWatch;
use crate::lifecycle::tasks::{TaskCount, TaskSet};
use crate::model::node_pods::NodePods;
use crate::model::workload::{Membership, NamespacedName, RefuseReason};

fn namespace(name: &str, is_labelled: bool) -> Value {
    let labels = if is_labelled { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
    json!({"metadata": {"name": name, "uid": name, "resourceVersion": is_labelled.to_string(), "labels": labels}})
}

fn pod(name: &str, spec: &Value) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2", "resourceVersion": "1",
            "annotations": {"ambient.mesh/netns": "/run/netns/of-another", "traffic.ambient.mesh/exclude-outbound-ports": "9"},
        },
        "spec": spec,
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

/// The open watches, by the type of their objects.
type Streams = Mutex<HashMap<&'static str, UnboundedSender<Value>>>;

/// A type of objects, and its objects.
type List = (&'static str, fn() -> Vec<Value>);

struct World {
    streams: std::sync::Arc<Streams>,
    news: tokio::sync::watch::Receiver<NodePods>,
    _script: Script,
    _task: TaskSet,
}

impl World {
    /// A cluster with these objects; a type without a list is forbidden.
    async fn new(lists: &'static [List]) -> Self {
        let streams = std::sync::Arc::<Streams>::default();
        let open = std::sync::Arc::clone(&streams);
        let script = Script::start(move |asked: &Asked| {
            let kind =
                ["namespaces", "pods", "nodes"].into_iter().find(|kind| asked.line.contains(&format!("/{kind}?")));
            let kind = kind.unwrap_or_else(|| panic!("{}", asked.line));
            match kind {
                "pods" => assert!(asked.line.contains("fieldSelector=spec.nodeName%3Dhere"), "{}", asked.line),
                "nodes" => assert!(asked.line.contains("fieldSelector=metadata.name%3Dhere"), "{}", asked.line),
                _ => {}
            }
            let Some((_, list)) = lists.iter().find(|(listed, _)| *listed == kind) else {
                return Answer::Whole(403, status(403, "Forbidden", &format!("{kind} is forbidden")));
            };
            if asked.line.contains("watch=true") {
                let (sender, events) = unbounded_channel();
                open.lock().unwrap().insert(kind, sender);
                return Answer::Stream(events);
            }
            Answer::Whole(200, json!({"metadata": {"resourceVersion": "1"}, "items": list()}))
        })
        .await;
        let (watch, news) = NodeWatch::new(&script.cluster, "here");
        let mut task = TaskSet::new(TaskCount::default());
        task.spawn(tracing::Span::none(), watch.run());
        Self { streams, news, _script: script, _task: task }
    }

    fn event(&self, kind: &str, event: &str, object: &Value) {
        self.streams.lock().unwrap()[kind].send(json!({"type": event, "object": object})).unwrap();
    }

    async fn until(&mut self, is_so: impl FnMut(&NodePods) -> bool) -> NodePods {
        let patience = std::time::Duration::from_secs(30);
        timeout(patience, self.news.wait_for(is_so)).await.expect("in time").unwrap().clone()
    }

    async fn until_web_is(&mut self, membership: Membership) -> NodePods {
        self.until(|news| membership_of(news) == Some(membership)).await
    }
}

fn web() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

fn membership_of(news: &NodePods) -> Option<Membership> {
    Some(news.pods.as_ref()?.get(&web())?.workload.membership)
}

fn shop() -> Vec<Value> {
    vec![namespace("shop", false)]
}

fn one_pod() -> Vec<Value> {
    let probe = json!({"httpGet": {"port": 8080}});
    vec![pod(
        "web",
        &json!({"nodeName": "here", "serviceAccountName": "seller", "runtimeClassName": "runc", "containers": [{"name": "c", "livenessProbe": probe}]}),
    )]
}

#[tokio::test]
async fn a_label_of_the_namespace_decides_and_the_annotation_of_a_network_namespace_does_not_count() {
    let mut world = World::new(&[("namespaces", shop), ("pods", one_pod), ("nodes", Vec::new)]).await;
    let news = world.until_web_is(Membership::NotLabelled).await;
    assert_eq!(news.problem, None);
    let web = &news.pods.unwrap()[&web()];
    assert_eq!((&*web.workload.identity.service_account, web.workload.uid.len()), ("seller", 36));
    assert_eq!((&web.local.netns, &web.local.probe_ports[..]), (&None, &[8080][..]));
    assert!(web.local.exclusions.outbound_ports.contains(9));
    assert_eq!((web.local.runtime_class.as_deref(), web.local.own_network_stack()), (Some("runc"), None));

    world.event("namespaces", "MODIFIED", &namespace("shop", true));
    world.until_web_is(Membership::InMesh).await;
    let on_host = json!({"nodeName": "here", "hostNetwork": true, "containers": []});
    world.event("pods", "MODIFIED", &pod("web", &on_host));
    world.until_web_is(Membership::Refused(RefuseReason::HostNetwork)).await;
    world.event("namespaces", "MODIFIED", &namespace("shop", false));
    world.until_web_is(Membership::NotLabelled).await;
    world.event("pods", "DELETED", &pod("web", &json!({})));
    world.until(|news| news.pods.as_ref().is_some_and(BTreeMap::is_empty)).await;
}

#[tokio::test]
async fn the_uid_of_a_static_pod_counts_only_where_a_node_owns_the_object() {
    let mut world = World::new(&[("namespaces", shop), ("pods", one_pod)]).await;
    world.until_web_is(Membership::NotLabelled).await;
    let uid_of = |news: &NodePods| Some(news.pods.as_ref()?.get(&web())?.local.cgroup_uid.as_deref()?.to_owned());
    let spec = json!({"nodeName": "here", "containers": [], "hostname": "changed"});
    let mut mirror = pod("web", &spec);
    mirror["metadata"]["resourceVersion"] = "2".into();
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "0123".into();
    let owner = |kind: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "here", "uid": "1"}]);
    mirror["metadata"]["ownerReferences"] = owner("Node");
    world.event("pods", "MODIFIED", &mirror);
    world.until(|news| uid_of(news).as_deref() == Some("0123")).await;
    mirror["metadata"]["resourceVersion"] = "3".into();
    mirror["metadata"]["ownerReferences"] = owner("Job");
    world.event("pods", "MODIFIED", &mirror);
    world.until(|news| uid_of(news).is_none()).await;
}

#[tokio::test]
async fn a_right_that_is_missing_is_told_and_nothing_is_known_until_then() {
    let mut world = World::new(&[("pods", one_pod)]).await;
    let news = world.until(|news| news.problem.is_some()).await;
    let problem = news.problem.unwrap();
    assert!(
        problem.contains("cannot list namespaces") && problem.contains("verbs: [\"list\", \"watch\"]"),
        "{problem}"
    );
    assert!(problem.ends_with("until then no pod of this node is known"), "{problem}");
    assert_eq!(news.pods, None);
}

#[tokio::test]
async fn a_node_that_the_cluster_does_not_have_is_told() {
    let mut world = World::new(&[("namespaces", shop), ("pods", Vec::new), ("nodes", Vec::new)]).await;
    let news = world.until(|news| news.problem.is_some() && news.pods.is_some()).await;
    let problem = news.problem.unwrap();
    assert!(problem.contains("has no Node \"here\"") && problem.contains("--node"), "{problem}");
    world.event("nodes", "ADDED", &json!({"metadata": {"name": "here", "uid": "1", "resourceVersion": "2"}}));
    world.until(|news| news.problem.is_none()).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_leaves_its_last_version() {
    let mut world = World::new(&[("namespaces", shop), ("pods", one_pod)]).await;
    world.until_web_is(Membership::NotLabelled).await;
    let mut odd = pod("web", &json!({"nodeName": "here", "hostNetwork": "perhaps", "containers": []}));
    odd["metadata"]["resourceVersion"] = "7".into();
    world.event("pods", "MODIFIED", &odd);
    world.event("namespaces", "MODIFIED", &namespace("shop", true));
    world.until_web_is(Membership::InMesh).await;
}

#[tokio::test]
async fn namespaces_are_told_with_their_labels() {
    let mut world = World::new(&[("namespaces", shop), ("pods", one_pod), ("nodes", Vec::new)]).await;
    let is = |news: &NodePods, labelled: Option<bool>| news.namespaces.get("shop").copied() == labelled;
    world.until(|news| is(news, Some(false))).await;
    world.event("namespaces", "MODIFIED", &namespace("shop", true));
    world.until(|news| is(news, Some(true))).await;
    world.event("namespaces", "DELETED", &namespace("shop", true));
    world.until(|news| is(news, None)).await;
}
