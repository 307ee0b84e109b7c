use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, timeout},
};
use tracing::Span;

use super::{FIRST_PAUSE, LONGEST_PAUSE, PolicyStatus};
use crate::{
    control::kubernetes::script::{Answer, Asked, Script, status},
    lifecycle::tasks::{TaskCount, TaskSet},
};

const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

/// An API server with policies. Their status can be written.
struct Api {
    objects: BTreeMap<String, Value>,
    version: u64,
    watches: Vec<UnboundedSender<Value>>,
    writes: UnboundedSender<Value>,
    /// The answer to writes, if they are refused.
    refusal: Option<(u16, &'static str)>,
}

impl Api {
    fn put(&mut self, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.objects.insert(name, object.clone());
        self.watches.retain(|watch| watch.send(json!({"type": "MODIFIED", "object": object})).is_ok());
    }

    fn answer(&mut self, asked: &Asked) -> Answer {
        let (verb, path) = asked.line.split_once(' ').unwrap();
        if verb == "PATCH" {
            let (path, query) = path.split_once('?').unwrap();
            assert_eq!(query, "fieldManager=ztunnel-control-plane&force=true");
            let name = path.strip_prefix("/apis/security.istio.io/v1/namespaces/demo/authorizationpolicies/");
            let name = name.and_then(|rest| rest.strip_suffix("/status")).unwrap();
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            if let Some((code, reason)) = self.refusal {
                self.writes.send(body).unwrap();
                return Answer::Whole(code, status(code, reason, "authorizationpolicies/status is forbidden"));
            }
            let mut object = self.objects[name].clone();
            if object["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                return Answer::Whole(409, status(409, "Conflict", "it is another by now"));
            }
            object["status"] = body["status"].clone();
            self.writes.send(body).unwrap();
            self.put(object.clone());
            return Answer::Whole(200, object);
        }
        if !path.starts_with(POLICIES) {
            return Answer::Whole(404, status(404, "NotFound", "there is no such type"));
        }
        if path.contains("watch=true") {
            let (sender, events) = unbounded_channel();
            self.watches.push(sender);
            return Answer::Stream(events);
        }
        let metadata = json!({"resourceVersion": self.version.to_string()});
        Answer::Whole(200, json!({"metadata": metadata, "items": self.objects.values().collect::<Vec<_>>()}))
    }
}

fn policy(name: &str, generation: u64, method: Option<&str>) -> Value {
    let operation = method.map_or(json!({"ports": ["80"]}), |method| json!({"methods": [method]}));
    json!({
        "metadata": {"namespace": "demo", "name": name, "uid": name, "generation": generation},
        "spec": {"rules": [{"to": [{"operation": operation}]}]},
    })
}

async fn start() -> (Script, Arc<Mutex<Api>>, UnboundedReceiver<Value>) {
    let (writes, written) = unbounded_channel();
    let api = Api { objects: BTreeMap::new(), version: 1, watches: Vec::new(), writes, refusal: None };
    let api = Arc::new(Mutex::new(api));
    let script = Script::start({
        let api = Arc::clone(&api);
        move |asked| api.lock().unwrap().answer(asked)
    })
    .await;
    (script, api, written)
}

fn replica(script: &Script) -> TaskSet {
    let mut tasks = TaskSet::new(TaskCount::default());
    tasks.spawn(Span::none(), PolicyStatus::new(script.cluster.clone()).write());
    tasks
}

async fn next(written: &mut UnboundedReceiver<Value>) -> (String, String) {
    let body = timeout(Duration::from_secs(60), written.recv()).await.unwrap().unwrap();
    let own = body["status"]["conditions"].as_array().unwrap().last().unwrap().clone();
    let name = body["metadata"]["name"].as_str().unwrap().to_owned();
    (
        name,
        format!(
            "{} {} {}",
            own["status"].as_str().unwrap(),
            own["reason"].as_str().unwrap(),
            own["observedGeneration"]
        ),
    )
}

#[tokio::test]
async fn two_replicas_write_each_status_once() {
    let (script, api, mut written) = start().await;
    for number in 0..20 {
        api.lock().unwrap().put(policy(&format!("p{number}"), 1, (number == 7).then_some("GET")));
    }
    let _replicas = [replica(&script), replica(&script)];
    let mut all = BTreeMap::new();
    for _ in 0..20 {
        let (name, said) = next(&mut written).await;
        assert_eq!(all.insert(name.clone(), said), None, "{name} is written once");
    }
    assert_eq!(all["p7"], "False UnsupportedValue 1");
    assert_eq!(all["p8"], "True Accepted 1");
    // The policy changes: one of the replicas writes the new status.
    let mut changed = api.lock().unwrap().objects["p7"].clone();
    changed["spec"] = policy("p7", 2, None)["spec"].clone();
    changed["metadata"]["generation"] = json!(2);
    api.lock().unwrap().put(changed);
    assert_eq!(next(&mut written).await, ("p7".to_owned(), "True Accepted 2".to_owned()));
    // No replica writes because of the writes of the others.
    api.lock().unwrap().put(policy("last", 1, None));
    assert_eq!(next(&mut written).await.0, "last");
    assert!(written.try_recv().is_err());
}

#[tokio::test]
async fn a_missing_right_is_asked_for_once_and_not_for_each_policy() {
    let (script, api, mut written) = start().await;
    api.lock().unwrap().refusal = Some((403, "Forbidden"));
    for number in 0..20 {
        api.lock().unwrap().put(policy(&format!("p{number}"), 1, None));
    }
    let _replica = replica(&script);
    next(&mut written).await;
    assert!(timeout(Duration::from_secs(3), written.recv()).await.is_err(), "all wait for the right");
}

/// Another program writes the same field again and again. The pauses before the answers grow.
#[tokio::test(start_paused = true)]
async fn a_fight_over_a_status_becomes_slow() {
    let script = Script::start(|_| Answer::Close).await;
    let mut writer = PolicyStatus::new(script.cluster.clone());
    let key = (0, crate::model::workload::NamespacedName::new("demo", "p"));
    let (begin, mut writes) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(24 * 3600) {
        let at = writer.earliest(&key, Instant::now());
        tokio::time::advance(at - Instant::now()).await;
        writer.note(key.clone(), Instant::now());
        writes += 1;
    }
    assert!(writes < 160, "{writes} in a day");
    assert_eq!(writer.past[&key].pause, LONGEST_PAUSE);
    // A policy that rarely changes is written soon.
    tokio::time::advance(LONGEST_PAUSE * 5).await;
    writer.note(key.clone(), Instant::now());
    assert_eq!(writer.past[&key].pause, FIRST_PAUSE);
}
