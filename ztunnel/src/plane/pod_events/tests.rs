use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tracing::Span;

use super::{PodEvents, ReportRefusal};
use crate::{
    control::{
        join::Joiner,
        kubernetes::script::{Answer, Asked, Script, status},
        manifests::tests::changes::say,
    },
    istio::{
        read::{MOST_PODS, ReportFlaw},
        report::{PodReport, PodReportResponse, ReportedPod, ReportedState},
    },
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::TrustDomain,
    plane::{
        caller::{Caller, sha256},
        metrics::PlaneMetrics,
    },
    store::{
        change::{Batch, Gaps},
        publish::{Publisher, Reader, channel},
    },
};

/// An API server with Events. The test controls the time: Events from before the last [`Api::later`] are old.
#[derive(Default)]
struct Api {
    events: BTreeMap<String, Value>,
    creations: usize,
    /// The answer to writes, if they are refused.
    refusal: Option<(u16, &'static str, &'static str)>,
}

impl Api {
    fn answer(&mut self, asked: &Asked) -> Answer {
        let (verb, path) = asked.line.split_once(' ').unwrap();
        let path = path.trim_end_matches("?fieldManager=ztunnel-control-plane");
        let name = path.strip_prefix("/apis/events.k8s.io/v1/namespaces/demo/events").unwrap().trim_start_matches('/');
        if let Some((code, reason, text)) = self.refusal {
            self.creations += 1;
            return Answer::Whole(code, status(code, reason, text));
        }
        match verb {
            "POST" => {
                let mut event: Value = serde_json::from_str(&asked.body).unwrap();
                let name = event["metadata"]["name"].as_str().unwrap().to_owned();
                self.creations += 1;
                if self.events.contains_key(&name) {
                    return Answer::Whole(409, status(409, "AlreadyExists", "there is one"));
                }
                event["metadata"]["resourceVersion"] = json!("1");
                self.events.insert(name, event.clone());
                Answer::Whole(201, event)
            }
            "GET" => Answer::Whole(200, self.events[name].clone()),
            "PATCH" => {
                let patch: Value = serde_json::from_str(&asked.body).unwrap();
                let event = self.events.get_mut(name).unwrap();
                if event["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"] {
                    return Answer::Whole(409, status(409, "Conflict", "it is another by now"));
                }
                event["series"] = patch["series"].clone();
                let version: u64 = event["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                event["metadata"]["resourceVersion"] = json!((version + 1).to_string());
                Answer::Whole(200, event.clone())
            }
            other => panic!("{other}"),
        }
    }

    /// Makes all Events old enough to be written again.
    fn later(&mut self) {
        let old = json!("2020-01-01T00:00:00.000000Z");
        for event in self.events.values_mut() {
            event["eventTime"] = old.clone();
            if !event["series"].is_null() {
                event["series"]["lastObservedTime"] = old.clone();
            }
        }
    }
}

/// The part of a control plane that is tested, and its mesh.
struct World {
    script: Script,
    api: Arc<Mutex<Api>>,
    joiner: Joiner,
    publisher: Publisher,
    mesh: Reader,
}

impl World {
    async fn start() -> Self {
        let api = Arc::new(Mutex::new(Api::default()));
        let script = Script::start({
            let api = Arc::clone(&api);
            move |asked| api.lock().unwrap().answer(asked)
        })
        .await;
        let (publisher, mesh) = channel();
        Self { script, api, joiner: Joiner::new(TrustDomain::default(), None), publisher, mesh }
    }

    /// The API server has these pods: name, UID, node, and further fields of the status.
    fn pods(&mut self, pods: &[(&str, &str, &str, &str)]) {
        let text: String = pods
            .iter()
            .map(|(name, uid, node, status)| {
                format!(
                    "---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: demo, name: {name}, uid: {uid}, labels: \
                     {{istio.io/dataplane-mode: ambient}}}}, spec: {{nodeName: {node}}}, status: {{{status}}}}}\n"
                )
            })
            .collect();
        say(&mut self.joiner, "pods.yaml", &text);
        let batch = Batch { gaps: Some(Gaps::default()), ..Batch::of(self.joiner.take().changes) };
        self.publisher.apply(batch);
    }

    fn replica(&self) -> Replica {
        let mut registry = Registry::default();
        let metrics = PlaneMetrics::register(&mut registry);
        let events = PodEvents::new(self.script.cluster.clone(), self.mesh.clone(), metrics);
        let mut tasks = TaskSet::new(TaskCount::default());
        tasks.spawn(Span::none(), events.clone().write());
        Replica { events, registry, _tasks: tasks }
    }

    /// The Events: reason, pod, count.
    fn events(&self) -> Vec<String> {
        let api = self.api.lock().unwrap();
        let shown = api.events.values().map(|event| {
            let text = |path: &str| event.pointer(path).unwrap().as_str().unwrap().to_owned();
            let count = event["series"]["count"].as_u64().unwrap_or(1);
            format!("{} {} x{count}", text("/reason"), text("/regarding/name"))
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort();
        shown
    }
}

struct Replica {
    events: PodEvents,
    registry: Registry,
    _tasks: TaskSet,
}

impl Replica {
    fn report(&self, node: &str, pods: Vec<ReportedPod>) -> Result<PodReportResponse, ReportRefusal> {
        let caller = Caller { node: node.into(), token: sha256(b"token") };
        self.events.take(&caller, &PodReport { pods })
    }

    fn count(&self, result: &str) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let series = format!("ztunnel_pod_events_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
    }

    /// Waits until this number of Events has had this result.
    async fn until(&self, result: &str, count: u64) {
        let met = async {
            while self.count(result) < count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), met).await.unwrap_or_else(|_| panic!("{count} {result}"));
        assert_eq!(self.count(result), count);
    }
}

fn refused(name: &str, reason: &str) -> ReportedPod {
    ReportedPod {
        namespace: "demo".to_owned(),
        name: name.to_owned(),
        uid: String::new(),
        state: ReportedState::Refused.into(),
        reason: reason.to_owned(),
    }
}

fn enrolled(name: &str) -> ReportedPod {
    ReportedPod { state: ReportedState::Enrolled.into(), ..refused(name, "") }
}

fn answered(taken: u32, ignored: u32) -> PodReportResponse {
    PodReportResponse { taken, ignored }
}

const RUNNING: &str = "podIPs: [{ip: 10.0.0.1}]";

#[tokio::test]
async fn the_same_refusal_is_one_event_with_a_count_whichever_replica_hears_of_it() {
    let mut world = World::start().await;
    world.pods(&[("a", "u-a", "node-1", RUNNING)]);
    let replicas = [world.replica(), world.replica()];
    assert_eq!(replicas[0].report("node-1", vec![refused("a", "no netns\u{1b}[2J")]).unwrap(), answered(1, 0));
    replicas[0].until("created", 1).await;
    let event = world.api.lock().unwrap().events.values().next().unwrap().clone();
    assert_eq!(event["regarding"]["uid"], "u-a");
    assert_eq!((&event["type"], &event["reportingInstance"]), (&json!("Warning"), &json!("node-1")));
    assert_eq!(event["note"], "The pod is not enrolled in the mesh: no netns [2J");
    // The other replica gets the report shortly after and finds the Event of the first.
    replicas[1].report("node-1", vec![refused("a", "no netns\u{1b}[2J")]).unwrap();
    replicas[1].until("recent", 1).await;
    assert_eq!(world.events(), ["MeshRefused a x1"]);
    for (round, replica) in [(2, &replicas[1]), (3, &replicas[0])] {
        world.api.lock().unwrap().later();
        replica.report("node-1", vec![refused("a", "no netns\u{1b}[2J")]).unwrap();
        replica.until("counted", 1).await;
        assert_eq!(world.events(), [format!("MeshRefused a x{round}")]);
    }
    // The pod is enrolled now.
    replicas[0].report("node-1", vec![enrolled("a")]).unwrap();
    replicas[0].until("created", 2).await;
    assert_eq!(world.events(), ["MeshEnrolled a x1", "MeshRefused a x3"]);
}

#[tokio::test]
async fn a_node_has_events_written_about_its_own_pods_that_have_not_ended_and_no_others() {
    let mut world = World::start().await;
    let replica = world.replica();
    assert!(matches!(replica.report("node-1", vec![refused("a", "r")]), Err(ReportRefusal::NoMesh(_))));
    world.pods(&[
        ("a", "u-a", "node-1", RUNNING),
        ("other", "u-o", "node-2", RUNNING),
        ("ended", "u-e", "node-1", "phase: Succeeded"),
    ]);
    let report = vec![
        refused("a", "r"),
        refused("other", "r"),
        refused("ended", "r"),
        refused("nobody", "r"),
        ReportedPod { uid: "u-predecessor".to_owned(), ..refused("a", "r") },
        ReportedPod { namespace: "kube-system".to_owned(), ..refused("a", "r") },
    ];
    assert_eq!(replica.report("node-1", report).unwrap(), answered(1, 5));
    replica.until("created", 1).await;
    assert_eq!(world.events(), ["MeshRefused a x1"]);
    for odd in [
        refused("../a", "r"),
        refused("", "r"),
        ReportedPod { namespace: "Demo".to_owned(), ..refused("a", "r") },
        ReportedPod { state: 7, ..refused("a", "r") },
        ReportedPod { state: 0, ..refused("a", "r") },
    ] {
        assert!(matches!(replica.report("node-2", vec![odd]), Err(ReportRefusal::Flaw(ReportFlaw::Invalid(_)))));
    }
    let many = vec![refused("a", "r"); MOST_PODS + 1];
    assert!(matches!(replica.report("node-1", many), Err(ReportRefusal::Flaw(ReportFlaw::TooMany(257)))));
}

#[tokio::test]
async fn a_pod_that_goes_while_its_event_waits_has_none() {
    let mut world = World::start().await;
    world.pods(&[("a", "u-a", "node-1", RUNNING), ("b", "u-b", "node-1", RUNNING)]);
    let replica = world.replica();
    replica.report("node-1", vec![refused("a", "r"), refused("b", "r")]).unwrap();
    replica.until("created", 1).await;
    // A successor of the same name.
    world.pods(&[("a", "u-a", "node-1", RUNNING), ("b", "u-successor", "node-1", RUNNING)]);
    replica.until("gone", 1).await;
    assert_eq!(world.events(), ["MeshRefused a x1"]);
}

/// One node reports without end, each time with other texts. Another node has one report.
#[tokio::test]
async fn a_node_that_reports_without_end_is_held_back_and_no_other() {
    let mut world = World::start().await;
    let names: Vec<String> = (0..200).map(|number| format!("p{number}")).collect();
    let mut pods: Vec<(&str, &str, &str, &str)> =
        names.iter().map(|name| (name.as_str(), name.as_str(), "hostile", RUNNING)).collect();
    pods.push(("good", "u-good", "good", RUNNING));
    world.pods(&pods);
    let replica = world.replica();
    let refusals = AtomicUsize::new(0);
    for round in 0..10_000 {
        let report = names.iter().map(|name| refused(name, &format!("round {round}"))).collect();
        match replica.report("hostile", report) {
            Ok(response) => assert_eq!(response, answered(200, 0)),
            Err(ReportRefusal::Quota { .. }) => drop(refusals.fetch_add(1, Ordering::Relaxed)),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refusals.load(Ordering::Relaxed) >= 9_990, "{refusals:?}");
    // At most one Event waits for each of its pods, whatever it reported.
    assert_eq!(replica.events.0.queue().nodes["hostile"].pods.len().div_ceil(200), 1);
    let begin = Instant::now();
    replica.report("good", vec![refused("good", "r")]).unwrap();
    let written = async {
        while !world.events().contains(&"MeshRefused good x1".to_owned()) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(2), written).await.unwrap_or_else(|_| panic!("{:?}", world.events()));
    assert!(begin.elapsed() < Duration::from_secs(2));
    // The hostile node has its burst, and then nothing for a while.
    replica.until("created", 65).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(replica.count("created"), 65);
    let texts: BTreeSet<String> = {
        let api = world.api.lock().unwrap();
        api.events.values().map(|event| event["note"].as_str().unwrap().to_owned()).collect()
    };
    assert!(texts.iter().all(|text| !text.contains("round") || text.ends_with("round 5")), "the latest: {texts:?}");
}

#[tokio::test]
async fn a_missing_right_stops_the_writer_and_not_the_reports() {
    let mut world = World::start().await;
    world.pods(&[("a", "u-a", "node-1", RUNNING), ("b", "u-b", "node-1", RUNNING)]);
    let replica = world.replica();
    world.api.lock().unwrap().refusal = Some((403, "Forbidden", "events is forbidden"));
    replica.report("node-1", vec![refused("a", "r"), refused("b", "r")]).unwrap();
    replica.until("failed", 1).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.api.lock().unwrap().creations, 1, "all wait for the right");
    assert_eq!(replica.events.0.queue().nodes["node-1"].pods.len(), 2, "nothing is lost");
    replica.report("node-1", vec![refused("a", "newer")]).unwrap();
    assert_eq!(replica.events.0.queue().nodes["node-1"].pods.len(), 2);
}

/// A tenant deletes its namespace. Events in other namespaces are still written.
#[tokio::test]
async fn a_namespace_that_is_being_deleted_stops_nobody() {
    let mut world = World::start().await;
    world.pods(&[("a", "u-a", "node-1", RUNNING), ("b", "u-b", "node-1", RUNNING)]);
    let replica = world.replica();
    let text =
        "events \"a\" is forbidden: unable to create new content in namespace demo because it is being terminated";
    world.api.lock().unwrap().refusal = Some((403, "Forbidden", text));
    replica.report("node-1", vec![refused("a", "r"), refused("b", "r")]).unwrap();
    replica.until("gone", 2).await;
    assert!(replica.events.0.queue().nodes.is_empty());
}
