use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::resource::{AUTHORIZATION_POLICIES, PODS};
use super::super::script::{Answer, Asked, Script, status};
use super::{Report, Selection, Watch};

fn pod(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "namespace": "demo", "uid": format!("u-{name}"), "resourceVersion": version.to_string()}})
}

fn list(pods: &[Value], version: u32, next: Option<&str>) -> Answer {
    Answer::Whole(200, json!({"metadata": {"resourceVersion": version.to_string(), "continue": next}, "items": pods}))
}

fn watch() -> (UnboundedSender<Value>, Answer) {
    let (sender, events): (_, UnboundedReceiver<Value>) = unbounded_channel();
    (sender, Answer::Stream(events))
}

fn event(kind: &str, object: Value) -> Value {
    let mut event = json!({"type": kind});
    event["object"] = object;
    event
}

/// Answers all requests in this order.
async fn scripted(answers: impl IntoIterator<Item = Answer>) -> Script {
    let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
    Script::start(move |_: &Asked| answers.lock().unwrap().pop_front().unwrap_or(Answer::Close)).await
}

fn watched(script: &Script) -> Watch {
    let fields = Some("spec.nodeName=n".to_owned());
    Watch::new(script.cluster.clone(), PODS, Selection { fields, ..Selection::default() })
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

/// The next report, in one or two words.
async fn next(watch: &mut Watch) -> String {
    let report = tokio::time::timeout(std::time::Duration::from_secs(30), watch.next()).await.expect("a report");
    match report {
        Report::Applied(object) => format!("+{}", object.name.name),
        Report::Gone(name) => format!("-{}", name.name),
        Report::Synced => "synced".to_owned(),
        Report::Absent => "absent".to_owned(),
        Report::Failed(failure) => format!("failed: {} {}", failure.verb, failure.reason.label()),
    }
}

async fn expect(watch: &mut Watch, reports: &[&str]) {
    for expected in reports {
        assert_eq!(next(watch).await, *expected, "of {reports:?}");
    }
}

#[tokio::test]
async fn a_list_in_pages_and_then_changes() {
    let (events, first) = watch();
    let (again, second) = watch();
    let script =
        scripted([list(&[pod("a", 1), pod("b", 2)], 9, Some("more")), list(&[pod("c", 3)], 9, None), first, second])
            .await;
    let mut watch = watched(&script);
    expect(&mut watch, &["+a", "+b", "+c", "synced"]).await;
    events.send(event("ADDED", pod("d", 10))).unwrap();
    events.send(event("MODIFIED", pod("a", 11))).unwrap();
    events
        .send(event("BOOKMARK", json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "15"}})))
        .unwrap();
    events.send(event("DELETED", pod("b", 12))).unwrap();
    expect(&mut watch, &["+d", "+a", "-b"]).await;
    assert_eq!(watch.len(), 3);
    // The end of a watch is no failure, and no object is reported twice.
    drop(events);
    again.send(event("MODIFIED", pod("c", 16))).unwrap();
    expect(&mut watch, &["+c"]).await;
    let lines: Vec<String> = script.asked().into_iter().map(|asked| asked.line).collect();
    let list = "GET /api/v1/pods?&fieldSelector=spec.nodeName%3Dn&limit=100";
    let watch =
        "GET /api/v1/pods?&watch=true&timeoutSeconds=100&fieldSelector=spec.nodeName%3Dn&allowWatchBookmarks=true";
    let [first, second] = ["9", "12"].map(|version| format!("{watch}&resourceVersion={version}"));
    assert_eq!(lines, [list, &format!("{list}&continue=more"), &first, &second]);
}

#[tokio::test]
async fn what_is_too_old_is_listed_again_and_only_what_differs_is_told() {
    let (events, first) = watch();
    let (_again, second) = watch();
    let script = scripted([
        list(&[pod("a", 1), pod("b", 2), pod("c", 3)], 9, None),
        first,
        list(&[pod("a", 1), pod("c", 8), pod("d", 9)], 20, None),
        second,
    ])
    .await;
    let mut watch = watched(&script);
    expect(&mut watch, &["+a", "+b", "+c", "synced"]).await;
    events.send(event("ERROR", status(410, "Expired", "too old resource version"))).unwrap();
    expect(&mut watch, &["+c", "+d", "-b", "synced"]).await;
}

#[tokio::test]
async fn a_failure_is_told_once_and_what_was_told_stays() {
    let (events, first) = watch();
    let (_again, second) = watch();
    let forbidden = || Answer::Whole(403, status(403, "Forbidden", "pods is forbidden"));
    let script =
        scripted([forbidden(), list(&[pod("a", 1)], 9, None), first, forbidden(), Answer::Close, second]).await;
    let mut watch = watched(&script);
    expect(&mut watch, &["failed: list forbidden", "+a", "synced"]).await;
    drop(events);
    expect(&mut watch, &["failed: watch forbidden", "failed: watch unreachable", "synced"]).await;
    assert_eq!(watch.len(), 1, "it was there all the time");
}

#[tokio::test]
async fn a_connection_that_breaks_once_is_no_failure() {
    let (events, first) = watch();
    let (again, second) = watch();
    let script = scripted([list(&[], 9, None), first, Answer::Close, second]).await;
    let mut watch = watched(&script);
    expect(&mut watch, &["synced"]).await;
    drop(events);
    again.send(event("ADDED", pod("a", 10))).unwrap();
    expect(&mut watch, &["+a"]).await;
}

#[tokio::test]
async fn a_type_is_taken_in_the_version_that_is_there() {
    let (_events, stream) = watch();
    let gone = || Answer::Whole(404, status(404, "NotFound", "the server could not find the requested resource"));
    let script = scripted([gone(), list(&[pod("p", 1)], 1, None), stream]).await;
    let mut watch = Watch::new(script.cluster.clone(), AUTHORIZATION_POLICIES, Selection::default());
    let Report::Applied(object) = watch.next().await else { panic!("an object") };
    let head: Head = object.read().unwrap();
    assert_eq!((&*head.api_version, &*head.kind), ("security.istio.io/v1beta1", "AuthorizationPolicy"));
    expect(&mut watch, &["synced"]).await;

    let script = scripted([gone(), gone()]).await;
    let mut watch = Watch::new(script.cluster.clone(), AUTHORIZATION_POLICIES, Selection::default());
    expect(&mut watch, &["absent"]).await;
    assert_eq!(script.asked().len(), 2);
}

#[tokio::test]
async fn a_type_that_goes_while_there_are_objects_is_no_removal() {
    let (events, first) = watch();
    let gone = || Answer::Whole(404, status(404, "NotFound", "the server could not find the requested resource"));
    let script = scripted([list(&[pod("p", 1)], 1, None), first, gone(), gone(), gone()]).await;
    let mut watch = Watch::new(script.cluster.clone(), AUTHORIZATION_POLICIES, Selection::default());
    expect(&mut watch, &["+p", "synced"]).await;
    drop(events);
    expect(&mut watch, &["failed: watch not_found"]).await;
    assert_eq!(watch.len(), 1);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_a_failure() {
    let script = scripted([Answer::Whole(200, json!("pods")), Answer::Whole(200, json!({"items": 3}))]).await;
    let mut watch = watched(&script);
    expect(&mut watch, &["failed: list invalid_answer", "failed: list invalid_answer"]).await;
}

/// A pod with so many levels of fields that a parser with a limit of levels refuses it.
fn deep(name: &str, version: u32) -> Value {
    let mut spec = json!({});
    for _ in 0..200 {
        spec = json!({"x": spec});
    }
    let mut pod = pod(name, version);
    pod["spec"] = spec;
    pod
}

#[tokio::test]
async fn an_object_that_cannot_be_parsed_is_reported_and_hides_no_other() {
    let (events, first) = watch();
    let script = scripted([list(&[pod("a", 1), deep("b", 2), pod("c", 3)], 9, None), first]).await;
    let mut watch = watched(&script);
    expect(&mut watch, &["+a"]).await;
    let Report::Applied(object) = watch.next().await else { panic!("an object") };
    assert_eq!(&*object.name.name, "b");
    let fault = object.read::<Head>().err().unwrap();
    assert!(fault.message.starts_with("the object cannot be parsed: "), "{fault}");
    expect(&mut watch, &["+c", "synced"]).await;
    events.send(event("MODIFIED", deep("a", 10))).unwrap();
    events.send(event("MODIFIED", pod("c", 11))).unwrap();
    events.send(event("DELETED", deep("b", 12))).unwrap();
    expect(&mut watch, &["+a", "+c", "-b"]).await;
    assert_eq!(script.asked().len(), 2, "the watch goes on");
}

/// One object of a page has no name: the API server makes no sense.
#[tokio::test]
async fn an_object_without_a_name_is_a_failure() {
    let (events, first) = watch();
    let script = scripted([list(&[json!(null)], 9, None), list(&[pod("a", 1)], 9, None), first]).await;
    let mut watch = watched(&script);
    expect(&mut watch, &["failed: list invalid_answer", "+a", "synced"]).await;
    events.send(event("ADDED", json!({"metadata": {}}))).unwrap();
    expect(&mut watch, &["failed: watch invalid_answer"]).await;
}

/// The pages of an API server that has this many objects of this many bytes: the limits that were asked for.
async fn limits(objects: usize, bytes: usize) -> Vec<usize> {
    let asked_limits = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked_limits);
    let script = Script::start(move |asked: &Asked| {
        let value = |key: &str| asked.line.split('&').find_map(|pair| pair.strip_prefix(key)?.parse::<usize>().ok());
        let Some(limit) = value("limit=") else { return watch().1 };
        log.lock().unwrap().push(limit);
        let from = value("continue=").unwrap_or(0);
        let until = objects.min(from + limit);
        let items: Vec<Value> = (from..until)
            .map(|number| {
                let mut pod = pod(&number.to_string(), 1);
                pod["data"] = json!("x".repeat(bytes));
                pod
            })
            .collect();
        list(&items, 9, (until < objects).then(|| until.to_string()).as_deref())
    })
    .await;
    let mut watch = watched(&script);
    for number in 0..objects {
        assert_eq!(next(&mut watch).await, format!("+{number}"));
    }
    asked_limits.lock().unwrap().clone()
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_not_in_objects_alone() {
    assert_eq!(limits(150, 10 << 10).await, [100, 100]);
    // 12 MiB in all: two pages are too long. The pages grow again.
    assert_eq!(limits(12, 1 << 20).await, [100, 10, 1, 2, 4, 8]);
    // Objects of which one alone is longer than a page of several.
    assert_eq!(limits(2, 9 << 20).await, [100, 10, 1, 2, 1]);
}
