use std::{os::unix::net::UnixListener, thread};

use super::*;
use crate::cni::Place;

/// How long the daemon may be away in tests.
const AWAY_HERE: Duration = Duration::from_millis(300);

/// A node whose daemon answers so, one answer for each connection; after the last one nobody listens. `None`: the connection ends.
struct Node {
    dir: tempfile::TempDir,
    daemon: Option<thread::JoinHandle<Vec<Request>>>,
}

impl Node {
    fn new(answers: Vec<Option<Answer>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(dir.path());
        std::fs::create_dir(place.folder()).unwrap();
        std::fs::write(dir.path().join("netns"), "").unwrap();
        let socket = place.socket();
        let listener = (!answers.is_empty()).then(|| UnixListener::bind(&socket).unwrap());
        let daemon = listener.map(|listener| {
            thread::spawn(move || {
                let mut asked = Vec::new();
                for answer in answers {
                    let (stream, _) = listener.accept().unwrap();
                    asked.push(message::receive(&stream).unwrap());
                    if let Some(answer) = answer {
                        message::send(&stream, &answer, None).unwrap();
                    }
                }
                asked
            })
        });
        Self { dir, daemon }
    }

    fn sees(&self, text: &str) {
        std::fs::write(Place::of(self.dir.path()).seen(), text).unwrap();
    }

    fn netns(&self) -> String {
        self.dir.path().join("netns").display().to_string()
    }

    fn call(&self, command: &str, namespace: &str) -> Call {
        Call {
            command: command.to_owned(),
            container: "0123".to_owned(),
            netns: self.netns(),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u-1"),
        }
    }

    fn previous(&self) -> String {
        format!(
            r#"{{"cniVersion":"0.4.0", "interfaces":[{{"name":"cni0"}},{{"name":"veth"}},{{"name":"eth0","sandbox":"{}"}},
            {{"name":"other","sandbox":"/elsewhere"}}], "ips":[{{"version":"4","interface":2,"address":"10.244.1.5/24"}},
            {{"address":"fd00::5/64"}},{{"interface":3,"address":"10.9.9.9/24"}}],  "dns":{{}}, "x": 1.50}}"#,
            self.netns()
        )
    }

    fn config(&self, version: &str, previous: Option<&str>) -> String {
        let place = Place::of(self.dir.path());
        let previous = previous.map(|previous| format!(r#","prevResult":{previous}"#)).unwrap_or_default();
        format!(
            r#"{{"cniVersion":"{version}","name":"pods","type":"ztunnel-cni","socket":{:?},"seen":{:?},"excludeNamespaces":["kube-system"]{previous}}}"#,
            place.socket(),
            place.seen()
        )
    }

    fn run(&self, command: &str, namespace: &str) -> (String, bool) {
        let config = self.config("0.4.0", Some(&self.previous()));
        run_within(AWAY_HERE, &self.call(command, namespace), config.as_bytes())
    }

    fn asked(mut self) -> Vec<Request> {
        self.daemon.take().unwrap().join().unwrap()
    }
}

fn code((answer, is_success): &(String, bool)) -> (u32, String) {
    assert!(!is_success, "{answer}");
    let value: serde_json::Value = serde_json::from_str(answer).unwrap();
    (value["code"].as_u64().unwrap().try_into().unwrap(), value["msg"].as_str().unwrap().to_owned())
}

#[test]
fn the_result_of_the_plugins_before_is_handed_on_as_it_is() {
    let outside = Answer::Outside { reason: "no label".to_owned() };
    let node = Node::new(vec![Some(Answer::Enrolled), Some(outside), Some(Answer::Enrolled)]);
    for _ in 0..2 {
        assert_eq!(node.run("ADD", "shop"), (node.previous(), true));
    }
    assert_eq!(node.run("CHECK", "shop"), (String::new(), true));
    let netns = node.netns();
    let asked = node.asked();
    let expected = Request {
        version: message::VERSION,
        action: Action::Add,
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "u-1".to_owned(),
        sandbox: "0123".to_owned(),
        netns,
        addresses: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
    };
    assert_eq!((&asked[0], asked[2].action), (&expected, Action::Check));
}

#[test]
fn a_refusal_is_told_to_the_container_runtime() {
    let node = Node::new(vec![Some(Answer::Refused { reason: "no room".to_owned() })]);
    let (number, text) = code(&node.run("ADD", "shop"));
    assert_eq!(number, 11, "try again later");
    assert!(text.contains("pod shop/web") && text.contains("no room"), "{text}");
}

#[test]
fn a_daemon_that_is_replaced_meanwhile_is_asked_again() {
    let node = Node::new(vec![None, None, Some(Answer::Enrolled)]);
    assert!(node.run("ADD", "shop").1);
    assert_eq!(node.asked().len(), 3);
}

#[test]
fn without_a_daemon_only_pods_outside_of_the_mesh_start() {
    let node = Node::new(Vec::new());
    node.sees(r#"{"namespaces":{"outside":"outside","shop":"mesh","mixed":"mixed"}}"#);
    for starts in ["outside", "kube-system"] {
        assert_eq!(node.run("ADD", starts), (node.previous(), true), "{starts}");
    }
    let began = Instant::now();
    thread::scope(|scope| {
        for waits in ["shop", "mixed", "unknown"] {
            let node = &node;
            scope.spawn(move || {
                let (number, text) = code(&node.run("ADD", waits));
                assert_eq!(number, 11);
                assert!(text.contains("no daemon answers") && text.contains(waits), "{text}");
            });
        }
    });
    assert!(began.elapsed() >= AWAY_HERE && began.elapsed() < AWAY, "{:?}", began.elapsed());
}

#[test]
fn what_the_container_runtime_says_wrongly_is_refused_with_the_code_of_the_specification() {
    let node = Node::new(Vec::new());
    let call = node.call("ADD", "outside");
    let previous = node.previous();
    let of = |call: &Call, config: &str| code(&run(call, config.as_bytes())).0;
    assert_eq!(of(&call, "{"), NOT_DECODED);
    assert_eq!(of(&call, &node.config("0.2.0", Some(&previous))), INCOMPATIBLE_VERSION);
    assert_eq!(of(&call, &node.config("0.4.0", None)), INVALID_CONFIG);
    assert_eq!(of(&call, &node.config("0.4.0", Some(r#"{"ips":[{"address":"x"}]}"#))), NOT_DECODED);
    let config = node.config("1.0.0", Some(&previous));
    assert_eq!(of(&Call { netns: "/nothing".to_owned(), ..call.clone() }, &config), IO_FAILURE);
    assert_eq!(of(&Call { command: "JUMP".to_owned(), ..call.clone() }, &config), INVALID_VARIABLES);
    let endless = io::repeat(b' ');
    assert_eq!(code(&run(&call, endless)).0, NOT_DECODED);
}

#[test]
fn nothing_keeps_a_pod_from_being_removed() {
    let node = Node::new(Vec::new());
    for config in ["", "{", &node.config("0.4.0", None), &node.config("1.1.0", None)] {
        assert_eq!(run(&node.call("DEL", "shop"), config.as_bytes()), (String::new(), true), "{config}");
    }
    for command in ["GC", "STATUS"] {
        assert!(run(&node.call(command, "shop"), node.config("1.1.0", None).as_bytes()).1);
    }
    // No pod of Kubernetes.
    let other = Call { args: String::new(), ..node.call("ADD", "shop") };
    assert!(run(&other, node.config("1.0.0", Some(&node.previous())).as_bytes()).1);
}

#[test]
fn versions_are_told_in_the_version_of_the_question() {
    let call = Call { command: "VERSION".to_owned(), ..Call::default() };
    for (asked, expected) in [(r#"{"cniVersion":"1.0.0"}"#, "1.0.0"), ("", "1.1.0")] {
        let (answer, is_success) = run(&call, asked.as_bytes());
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(is_success && value["cniVersion"] == expected, "{answer}");
        assert_eq!(value["supportedVersions"], serde_json::json!(VERSIONS));
    }
}
