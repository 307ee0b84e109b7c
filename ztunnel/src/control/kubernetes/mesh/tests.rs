use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::super::script::{Answer, Asked, Script, status};
use super::{KubernetesMesh, State, TYPES};
use crate::control::manifests::{assemble, parse};
use crate::control::source::MeshSource as _;
use crate::model::identity::TrustDomain;
use crate::store::change::{Batch, Change, Gaps};
use crate::store::snapshot::Snapshot;

/// An API server with objects that a test may change.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    objects: Vec<Value>,
    /// Types that the caller may not read.
    forbidden: Vec<&'static str>,
    /// Types that are not installed.
    missing: Vec<&'static str>,
    watches: Vec<(String, UnboundedSender<Value>)>,
}

impl Api {
    fn of(objects: &[Value]) -> Self {
        let api = Self::default();
        api.0.lock().unwrap().objects = objects.to_vec();
        api
    }

    async fn start(&self) -> (Script, KubernetesMesh) {
        let api = self.clone();
        let script = Script::start(move |asked| api.answer(asked)).await;
        let mesh = KubernetesMesh::new(&script.cluster, TrustDomain::default(), "istio-system");
        (script, mesh)
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let mut inner = self.0.lock().unwrap();
        let path = asked.line.split(['?', ' ']).nth(1).unwrap();
        let plural = path.rsplit('/').next().unwrap().to_owned();
        if inner.forbidden.contains(&&*plural) {
            return Answer::Whole(403, status(403, "Forbidden", &format!("{plural} is forbidden")));
        }
        if inner.missing.contains(&&*plural) {
            return Answer::Whole(404, status(404, "NotFound", "the server could not find the requested resource"));
        }
        if asked.line.contains("watch=true") {
            let (sender, events) = unbounded_channel();
            inner.watches.push((plural, sender));
            return Answer::Stream(events);
        }
        let kind = TYPES.iter().find(|(resource, _)| resource.plural == plural).unwrap().0.kind;
        // As in the answer of an API server: items of its own types have neither `kind` nor `apiVersion`.
        let items: Vec<Value> = inner
            .objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .cloned()
            .map(|mut object| {
                if !object["apiVersion"].as_str().unwrap().contains("istio.io") {
                    object.as_object_mut().unwrap().retain(|key, _| key != "kind" && key != "apiVersion");
                }
                object
            })
            .collect();
        Answer::Whole(200, json!({"metadata": {"resourceVersion": "100"}, "items": items}))
    }

    /// Sends an event to the watch of a type.
    async fn send(&self, plural: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        loop {
            let sent = {
                let inner = self.0.lock().unwrap();
                inner.watches.iter().rev().any(|(of, sender)| of == plural && sender.send(event.clone()).is_ok())
            };
            if sent {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends the watches of a type.
    fn cut(&self, plural: &str) {
        self.0.lock().unwrap().watches.retain(|(of, _)| of != plural);
    }
}

async fn next(mesh: &mut KubernetesMesh) -> Batch {
    tokio::time::timeout(Duration::from_secs(30), mesh.next()).await.expect("a batch").unwrap()
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "demo", "uid": format!("u-{name}"), "resourceVersion": "1",
            "labels": {"app": name}, "annotations": {"ambient.mesh/netns": "/var/run/netns/another"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
        },
        "spec": {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

fn policy(name: &str, principal: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "demo", "resourceVersion": "2", "uid": name},
        "spec": {"rules": [{"from": [{"source": {"ipBlocks": principal}}]}]}
    })
}

fn world() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"}}}),
        pod("web", "10.0.0.1"),
        pod("client", "10.0.0.2"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "demo"},
            "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": "demo", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web", "namespace": "demo"}}]}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "out", "namespace": "demo"},
            "spec": {"hosts": ["out.example.com"], "addresses": ["192.0.2.1"], "resolution": "STATIC", "exportTo": ["."],
                "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "endpoints": [{"address": "192.0.2.9"}]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "vm", "namespace": "demo"},
            "spec": {"address": "192.0.2.7", "labels": {"app": "web"}, "serviceAccount": "vm"}}),
        policy("let-in", &json!(["10.0.0.0/8"])),
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "strict", "namespace": "demo"},
            "spec": {"mtls": {"mode": "STRICT"}}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n"}}),
    ]
}

#[tokio::test]
async fn the_mesh_of_objects_is_the_mesh_of_the_same_objects_in_a_file() {
    let objects = world();
    let (_script, mut mesh) = Api::of(&objects).start().await;
    let batch = next(&mut mesh).await;
    assert!(batch.is_read && batch.gaps == Some(Gaps::default()));
    let file = "mesh.json".into();
    let content = parse(&file, &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let expected = assemble([(&file, &content)], &TrustDomain::default());
    let (mut pods, mut services, mut policies, mut authentication) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for change in &batch.changes {
        match change {
            Change::Workload(workload) => pods.push((**workload).clone()),
            Change::Service(service) => services.push((**service).clone()),
            Change::Authorization(policy) => policies.push((**policy).clone()),
            Change::Authentication(policy) => authentication.push((**policy).clone()),
            _ => {}
        }
    }
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    services.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    assert_eq!(pods, expected.workloads);
    assert_eq!(pods.len(), 3);
    assert_eq!(services, expected.services);
    assert_eq!(services.len(), 2);
    // The policies differ only in their origin.
    let mut of_file = expected.policies;
    for (policy, same) in of_file.authorization.iter_mut().zip(&policies) {
        policy.origin = same.origin.clone();
    }
    for (policy, same) in of_file.authentication.iter_mut().zip(&authentication) {
        policy.origin = same.origin.clone();
    }
    assert_eq!((policies, authentication), (of_file.authorization, of_file.authentication));
    let snapshot = Snapshot::default().apply(batch);
    assert!(snapshot.is_registry_only() && expected.registry_only);
    // The problems are the same.
    let messages = |problems: &[crate::model::problem::Problem]| {
        let mut all: Vec<_> =
            problems.iter().map(|problem| (problem.object.clone(), problem.message.clone())).collect();
        all.sort();
        all
    };
    assert_eq!(messages(snapshot.problems()), messages(&expected.problems));
    assert!(mesh.followed().shown().iter().all(|known| known.state == State::Synced));
}

/// Then nothing is known of the mesh, as if the API could not be read.
#[tokio::test]
async fn be_ready_on_a_cluster_of_which_every_object_is_rejected() {
    let api = Api::of(&[policy("x", &json!(["10.0.0.0/40"])), policy("y", &json!(["nonsense"]))]);
    let (_script, mut mesh) = api.start().await;
    let batch = next(&mut mesh).await;
    assert!(!batch.is_read && batch.changes.is_empty(), "{batch:?}");
    let problems = batch.problems.unwrap();
    assert!(problems.len() == 2 && problems[1].to_string().contains("demo/y"), "{problems:?}");
    // With one valid object the cluster counts as read, and the others close what they may protect.
    api.send("pods", "ADDED", &pod("web", "10.0.0.1")).await;
    let batch = next(&mut mesh).await;
    assert!(batch.is_read && batch.changes.iter().any(|change| matches!(change, Change::Workload(_))), "{batch:?}");
    assert!(batch.gaps.unwrap().unread.namespaces.contains_key("demo"));
    api.send("pods", "DELETED", &pod("web", "10.0.0.1")).await;
    assert!(next(&mut mesh).await.is_read, "what was read once counts as read");
}

#[tokio::test]
async fn nothing_is_told_before_all_types_are_listed_and_a_missing_right_is_named() {
    let api = Api::of(&world());
    api.0.lock().unwrap().forbidden.push("authorizationpolicies");
    let (_script, mut mesh) = api.start().await;
    let batch = next(&mut mesh).await;
    assert!(!batch.is_read && batch.changes.is_empty(), "{batch:?}");
    let problems = batch.problems.unwrap();
    let [problem] = &*problems else { panic!("{problems:?}") };
    assert!(
        problem.message.contains("apiGroups: [\"security.istio.io\"], resources: [\"authorizationpolicies\"]"),
        "{problem}"
    );
    api.0.lock().unwrap().forbidden.clear();
    let batch = next(&mut mesh).await;
    assert!(batch.is_read && batch.problems.is_some_and(|problems| problems.is_empty()));
    assert_eq!(batch.changes.iter().filter(|change| matches!(change, Change::Authorization(_))).count(), 1);
}

#[tokio::test]
async fn types_of_istio_may_be_missing_and_those_of_kubernetes_may_not() {
    let api = Api::of(&world());
    api.0.lock().unwrap().missing.extend(["serviceentries", "workloadentries", "peerauthentications"]);
    let (_script, mut mesh) = api.start().await;
    assert!(next(&mut mesh).await.is_read);
    let absent = mesh.followed().shown().into_iter().filter(|known| known.state == State::Absent).count();
    assert_eq!(absent, 3);

    let api = Api::of(&world());
    api.0.lock().unwrap().missing.push("pods");
    let (_script, mut mesh) = api.start().await;
    let batch = next(&mut mesh).await;
    assert!(!batch.is_read);
    assert!(batch.problems.unwrap()[0].message.contains("it is not a Kubernetes API server"));
}

#[tokio::test]
async fn changes_come_as_they_happen_and_a_failure_keeps_the_last_state() {
    let api = Api::of(&world());
    let (_script, mut mesh) = api.start().await;
    let mut snapshot = Snapshot::default().apply(next(&mut mesh).await);
    let mut moved = pod("web", "10.0.0.3");
    moved["metadata"]["resourceVersion"] = json!("101");
    // A user who may create a pod must not name a network namespace. The annotation is not read, so it is no problem either.
    moved["metadata"]["annotations"]["ambient.mesh/netns"] = json!("not/absolute");
    api.send("pods", "MODIFIED", &moved).await;
    api.send("pods", "DELETED", &pod("client", "10.0.0.2")).await;
    let names = |snapshot: &Snapshot| snapshot.workloads().map(|pod| pod.name.name.to_string()).collect::<Vec<_>>();
    while names(&snapshot) != ["vm", "web"] {
        snapshot = snapshot.apply(next(&mut mesh).await);
    }
    assert_eq!(snapshot.problems(), []);
    assert!(snapshot.workloads().any(|pod| pod.addresses == ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]));

    api.0.lock().unwrap().forbidden.push("pods");
    api.cut("pods");
    snapshot = snapshot.apply(next(&mut mesh).await);
    assert_eq!(names(&snapshot), ["vm", "web"]);
    let problems: Vec<String> = snapshot.problems().iter().map(ToString::to_string).collect();
    assert!(
        problems[0].contains("cannot watch pods at") && problems[0].ends_with("the last good state stays in force"),
        "{problems:?}"
    );
    let failing = mesh.followed().shown().into_iter().find(|known| matches!(known.state, State::Failing(_))).unwrap();
    assert_eq!((failing.resource.plural, failing.failures.get("forbidden")), ("pods", Some(&1)));

    api.0.lock().unwrap().forbidden.clear();
    while !snapshot.problems().is_empty() {
        snapshot = snapshot.apply(next(&mut mesh).await);
    }
    assert_eq!(names(&snapshot), ["vm", "web"]);
}

#[tokio::test]
async fn an_unreadable_policy_keeps_its_last_version_and_a_new_one_closes_its_namespace_only() {
    let api = Api::of(&world());
    let (_script, mut mesh) = api.start().await;
    let mut snapshot = Snapshot::default().apply(next(&mut mesh).await);
    let before = format!("{:?}", snapshot.policies());
    let broken = policy("let-in", &json!(["10.0.0.0/99"]));
    api.send("authorizationpolicies", "MODIFIED", &broken).await;
    let batch = next(&mut mesh).await;
    assert!(batch.changes.is_empty() && batch.gaps.is_none(), "{batch:?}");
    snapshot = snapshot.apply(batch);
    assert_eq!(format!("{:?}", snapshot.policies()), before);
    let problems: Vec<String> = snapshot.problems().iter().map(ToString::to_string).collect();
    assert!(
        problems[0].starts_with("AuthorizationPolicy demo/let-in: spec.rules[0].from[0].source.ipBlocks[0]")
            && problems[0].ends_with("the last valid version of the object stays in force"),
        "{problems:?}"
    );
    // The policy is deleted, although its last version was unreadable.
    api.send("authorizationpolicies", "DELETED", &broken).await;
    let batch = next(&mut mesh).await;
    assert!(matches!(&*batch.changes, [Change::AuthorizationGone(name)] if &*name.name == "let-in"), "{batch:?}");

    api.send("authorizationpolicies", "ADDED", &policy("new", &json!("10.0.0.0/8"))).await;
    let gaps = next(&mut mesh).await.gaps.unwrap();
    assert!(!gaps.blind && !gaps.partial && gaps.unread.anywhere.is_none());
    assert_eq!(gaps.unread.namespaces.keys().map(|name| &**name).collect::<Vec<_>>(), ["demo"]);
    api.send("authorizationpolicies", "MODIFIED", &policy("new", &json!(["10.0.0.0/8"]))).await;
    let batch = next(&mut mesh).await;
    assert!(batch.gaps.is_some_and(|gaps| gaps.unread.namespaces.is_empty()) && batch.changes.len() == 1);
}

/// Another user's policy cannot be parsed: at the start, and in a change.
#[tokio::test]
async fn a_policy_that_is_nested_too_deeply_closes_its_own_namespace_and_stops_no_other() {
    let mut spec = json!({});
    for _ in 0..200 {
        spec = json!({"x": spec});
    }
    let mut deep = policy("deep", &json!([]));
    deep["spec"] = spec;
    deep["metadata"]["namespace"] = json!("evil");
    let mut objects = world();
    objects.push(deep.clone());
    let api = Api::of(&objects);
    let (_script, mut mesh) = api.start().await;
    let batch = next(&mut mesh).await;
    assert!(batch.is_read, "{:?}", batch.problems);
    let gaps = batch.gaps.clone().unwrap();
    assert!(!gaps.blind && !gaps.partial && gaps.unread.anywhere.is_none());
    assert_eq!(gaps.unread.namespaces.keys().map(|name| &**name).collect::<Vec<_>>(), ["evil"]);
    let snapshot = Snapshot::default().apply(batch);
    let problem =
        snapshot.problems().iter().find(|problem| problem.object.as_deref().is_some_and(|it| it.contains("deep")));
    let problem = problem.unwrap().to_string();
    assert!(problem.contains("cannot be parsed") && problem.contains("namespace evil"), "{problem}");
    // Policies of others go on changing, while one more version of this one is unreadable.
    deep["metadata"]["resourceVersion"] = json!("101");
    api.send("authorizationpolicies", "MODIFIED", &deep).await;
    api.send("authorizationpolicies", "MODIFIED", &policy("let-in", &json!(["192.0.2.0/24"]))).await;
    let batch = next(&mut mesh).await;
    assert!(matches!(&*batch.changes, [Change::Authorization(policy)] if &*policy.name.name == "let-in"), "{batch:?}");
    // The last valid version of a policy stays in force.
    let mut broken = policy("let-in", &json!([]));
    broken["spec"] = deep["spec"].clone();
    api.send("authorizationpolicies", "MODIFIED", &broken).await;
    let batch = next(&mut mesh).await;
    assert!(batch.changes.is_empty() && batch.gaps.is_none(), "{batch:?}");
    assert!(mesh.followed().shown().iter().all(|known| known.state == State::Synced));
    api.send("authorizationpolicies", "DELETED", &deep).await;
    assert!(next(&mut mesh).await.gaps.is_some_and(|gaps| gaps.unread.namespaces.is_empty()));
}
