//! Objects of an API server come as JSON, without a file: they have the same content as those of a file.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use serde::de::DeserializeSeed;
use serde_json::{Value, json};

use super::broken::SAMPLE;
use crate::control::manifests::parse;
use crate::control::objects::{self, Body, Interner, Kind};
use crate::model::workload::NamespacedName;

/// Reads an object as a source that knows the kind: its name, its content, and its problems.
fn read(object: &Value) -> Result<(NamespacedName, Option<Body>, Vec<String>), String> {
    let kind = match object["kind"].as_str().unwrap() {
        "Namespace" => Kind::Namespace,
        "Node" => Kind::Node,
        "Pod" => Kind::Pod,
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "ServiceEntry" => Kind::Entry,
        "ConfigMap" => Kind::Mesh,
        "AuthorizationPolicy" => Kind::Authorization,
        "PeerAuthentication" => Kind::PeerAuthentication,
        "RequestAuthentication" => Kind::RequestAuthentication,
        other => panic!("{other}"),
    };
    // From a text, as it comes from the server: in a tree a key could not occur twice.
    let text = object.to_string();
    let resource =
        kind.deserialize(&mut serde_json::Deserializer::from_str(&text)).map_err(|error| error.to_string())?;
    let said = objects::read(resource, &mut Interner::default()).map_err(|error| error.to_string())?;
    Ok((said.name, said.body, said.remarks.into_iter().map(|remark| remark.message).collect()))
}

/// Reads the objects of a file, and each of them as JSON. Both results have to be the same.
fn check(text: &str) -> BTreeSet<String> {
    let file: Arc<str> = "f.yaml".into();
    let content = parse(&file, text).unwrap();
    let documents: Vec<Value> = text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let objects = documents.into_iter().flat_map(|document| match document {
        Value::Object(mut list) if list["kind"] == "List" => match list.remove("items") {
            Some(Value::Array(items)) => items,
            other => panic!("{other:?}"),
        },
        one => vec![one],
    });
    let (mut bodies, mut problems) = (content.objects.iter(), content.problems.iter());
    let mut kinds = BTreeSet::new();
    for object in objects {
        let (name, body, remarks) = read(&object).unwrap_or_else(|error| panic!("{error}: {object}"));
        if let Some(body) = body {
            let of_file = bodies.next().unwrap();
            assert_eq!((&of_file.name, &of_file.body), (&name, &body));
        }
        for remark in remarks {
            assert_eq!(problems.next().unwrap().message, remark);
        }
        kinds.insert(object["kind"].as_str().unwrap().to_owned());
    }
    assert_eq!((bodies.next(), problems.next()), (None, None));
    kinds
}

#[test]
fn fixtures_say_the_same_as_json() {
    // Keys and values of other types than text exist in YAML only.
    let mut kinds = check(&SAMPLE.replace("{80: {mode", "{'80': {mode"));
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    for folder in [demo.join("policies"), demo] {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for file in paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
            kinds.extend(check(&std::fs::read_to_string(file).unwrap()));
        }
    }
    kinds.extend(check(
        "apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: z}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec: {jwtRules: [{issuer: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {ambient.mesh/netns: not-absolute}, labels: {app: '?'}}
spec: {nodeName: N_1, containers: []}
status: {podIPs: [{ip: 127.0.0.1}]}
",
    ));
    assert_eq!(kinds.len(), 10, "{kinds:?}");
}

/// A list of some values under a key, or an empty object.
fn field(key: &'static str, values: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let some = prop::collection::vec(prop::sample::select(values), 0..3);
    prop_oneof![Just(json!({})), some.prop_map(move |values| json!({ key: values }))]
}

/// One object with the keys of several objects.
fn merged(objects: Vec<Value>) -> Value {
    let fields = objects.into_iter().flat_map(|object| match object {
        Value::Object(fields) => fields,
        other => panic!("{other}"),
    });
    Value::Object(fields.collect())
}

fn rule() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 4] = ["a", "b*", "*", ""];
    const BLOCKS: [&str; 4] = ["10.0.0.1", "10.0.0.0/8", "fd00::/8", "no"];
    const PORTS: [&str; 4] = ["80", "65535", "0", "http"];
    let source = (
        field("principals", &NAMES),
        field("notNamespaces", &NAMES),
        field("ipBlocks", &BLOCKS),
        field("remoteIpBlocks", &BLOCKS),
    )
        .prop_map(|(a, b, c, d)| json!({"from": [{"source": merged(vec![a, b, c, d])}]}));
    let operation = (field("ports", &PORTS), field("paths", &["/"]))
        .prop_map(|(a, b)| json!({"to": [{"operation": merged(vec![a, b])}]}));
    let key = prop::sample::select(&["source.ip", "source.namespace", "destination.port", "request.host", "other"][..]);
    let condition = (key, field("values", &NAMES), field("notValues", &PORTS))
        .prop_map(|(key, a, b)| json!({"when": [merged(vec![json!({ "key": key }), a, b])]}));
    let none = || Just(json!({}));
    (prop_oneof![none(), source], prop_oneof![none(), operation], prop_oneof![none(), condition])
        .prop_map(|(a, b, c)| merged(vec![a, b, c]))
}

fn policy() -> impl Strategy<Value = Value> {
    let rules =
        prop::collection::vec(prop_oneof![1 => Just(Value::Null), 8 => rule(), 1 => Just(json!({"unknown": 1}))], 0..3);
    let action = prop::sample::select(&["ALLOW", "DENY", "AUDIT", "CUSTOM", "other"][..]);
    let target = prop_oneof![
        3 => Just(json!({})),
        1 => Just(json!({"selector": {"matchLabels": {"app": "web"}}})),
        1 => Just(json!({"selector": {"matchLabels": {"app": "*"}}})),
        1 => Just(json!({"targetRefs": [{"kind": "Service", "name": "web"}]})),
        1 => Just(json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "w"}]})),
    ];
    (rules, action, target, any::<bool>()).prop_map(|(rules, action, target, dry_run)| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "annotations": {"istio.io/dry-run": if dry_run { "true" } else { "maybe" }}},
            "spec": merged(vec![json!({"rules": rules, "action": action}), target]),
        })
    })
}

proptest! {
    /// JSON is YAML: a text means the same in both formats, and is refused because of the same field.
    #[test]
    fn policies_say_the_same_as_json(policy in policy()) {
        let file: Arc<str> = "f.json".into();
        let text = policy.to_string();
        match (parse(&file, &text), read(&policy)) {
            (Ok(content), Ok((_, body, remarks))) => {
                assert_eq!(content.objects.first().map(|object| &object.body), body.as_ref());
                let problems: Vec<_> = content.problems.iter().map(|problem| problem.message.clone()).collect();
                assert_eq!(problems, remarks);
            }
            (Err(of_file), Err(of_json)) => {
                // An error of a type has the words of the format. An error about the meaning of a value has not.
                let of_file = format!("{}: {}", of_file.field.unwrap_or_default(), of_file.message);
                assert!(of_file == of_json || of_json.contains(" at line "), "{of_file}\n{of_json}");
            }
            (of_file, of_json) => panic!("{of_file:?}\n{of_json:?}"),
        }
    }
}
