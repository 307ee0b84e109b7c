//! Whole explanations as texts: each file of `fixtures` has a question, a mesh, and the expected explanation. The tests are in
//! this folder because the layer of `explain` is below `control`, which reads meshes.

use std::collections::BTreeSet;
use std::path::Path;

use crate::control::manifests::tests::routing::mesh_and_local as mesh;
use crate::explain::{Explanation, Preference, Query, QueryError, Verdict, explain, text, wrapped};
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::flow::{Direction, Flow};
use crate::model::local::{Exclusions, LocalPod, LocalPods};
use crate::model::workload::NamespacedName;
use crate::route::decide;
use crate::store::snapshot::Snapshot;

/// A mesh with the local facts of its pods.
type Mesh = (Snapshot, LocalPods);

fn ask((snapshot, local): &Mesh, from: &str, to: &str, port: u16) -> Result<Explanation, QueryError> {
    explain(snapshot, local, &Query::parse(from, to, &port.to_string())?)
}

/// The fixture's text with the actual explanation instead of the expected one.
fn answered(fixture: &str) -> String {
    let (question, rest) = fixture.split_once("--- mesh\n").expect("a question and a mesh");
    let (manifests, _) = rest.split_once("--- explanation\n").expect("a mesh and an explanation");
    let words: Vec<&str> = question.split_whitespace().collect();
    let [from, to, port] = words[..] else { panic!("{question:?} is not FROM TO PORT") };
    let said = match ask(&mesh(manifests), from, to, port.parse().unwrap()) {
        Ok(explanation) => {
            let json = serde_json::to_string(&explanation).unwrap();
            assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation, "JSON loses something");
            let said = wrapped(&explanation, Some(120), str::to_owned);
            assert_eq!(explanation.is_allowed(), said.starts_with("ALLOWED: "), "{said}");
            said
        }
        Err(error) => format!("error: {error}\n"),
    };
    format!("{question}--- mesh\n{manifests}--- explanation\n{said}")
}

#[test]
fn every_fixture_is_explained_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/app/cli/explain/tests/fixtures");
    let mut failed = String::new();
    let (mut count, mut verdicts) = (0, BTreeSet::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let fixture = std::fs::read_to_string(&path).unwrap();
        let answered = answered(&fixture);
        count += 1;
        verdicts.insert(
            answered.split("--- explanation\n").nth(1).and_then(|said| said.split(':').next()).map(str::to_owned),
        );
        if answered != fixture {
            failed += &format!("=== {}\n{answered}", path.file_name().unwrap().display());
        }
    }
    assert!(failed.is_empty(), "other than expected:\n{failed}=== end");
    assert!(count >= 15 && verdicts.len() == 4, "{count} fixtures, of {verdicts:?}");
}

/// Checks that the proposed change of a rule works: the policy is changed in this way, and the question is asked again.
fn check_hint(before: &str, change: (&str, &str), from: &str, port: u16, hint: &str) {
    const PODS: &str = "
        Namespace demo labels: {istio.io/dataplane-mode: ambient}
        Pod demo/client | spec: {serviceAccountName: client, containers: []}, status: {podIP: 10.0.0.1}
        Pod demo/web labels: {app: web} | spec: {serviceAccountName: web, containers: []}, status: {podIP: 10.0.0.2}\n";
    let denied = ask(&mesh(&format!("{PODS}{before}")), from, "demo/web", port).unwrap();
    assert_eq!(denied.verdict, Verdict::Denied, "{}", text(&denied));
    assert!(denied.would_change.iter().any(|known| known.starts_with(hint)), "{:#?}", denied.would_change);
    let after = before.replace(change.0, change.1);
    assert_ne!(before, after);
    let allowed = ask(&mesh(&format!("{PODS}{after}")), from, "demo/web", port).unwrap();
    assert_eq!(allowed.verdict, Verdict::Allowed, "{}", text(&allowed));
}

#[test]
fn what_is_proposed_lets_in() {
    let allow = "AuthorizationPolicy demo/allow | spec: {rules: [{from: [{source: {principals: [x]}}], to: [{operation: {ports: ['80']}}]}]}";
    let principal = "{source: {principals: [\"cluster.local/ns/demo/sa/client\"]}}";
    check_hint(
        allow,
        ("[{source: {principals: [x]}}]", &format!("[{{source: {{principals: [x]}}}}, {principal}]")),
        "demo/client",
        80,
        &format!("add {principal} to rules[0].from of AuthorizationPolicy demo/allow"),
    );
    check_hint(
        &allow.replace("[x]", "['*']"),
        ("{operation: {ports: ['80']}}", "{operation: {ports: ['80']}}, {operation: {ports: [\"81\"]}}"),
        "demo/client",
        81,
        "add {operation: {ports: [\"81\"]}} to rules[0].to of AuthorizationPolicy demo/allow",
    );
    let rule = format!("{{from: [{principal}], to: [{{operation: {{ports: [\"81\"]}}}}]}}");
    check_hint(
        allow,
        ("rules: [", &format!("rules: [{rule}, ")),
        "demo/client",
        81,
        &format!("add {rule} to the rules of AuthorizationPolicy demo/allow"),
    );
    let spec = format!("spec: {{selector: {{matchLabels: {{app: web}}}}, action: ALLOW, rules: [{rule}]}}");
    check_hint(
        "AuthorizationPolicy demo/deny-all | spec: {}",
        ("| spec: {}", &format!("| spec: {{}}\nAuthorizationPolicy demo/new | {spec}")),
        "demo/client",
        81,
        &format!("add an AuthorizationPolicy to namespace demo with {spec}"),
    );
}

#[test]
fn what_is_proposed_helps_against_denials() {
    let deny =
        "AuthorizationPolicy demo/deny | spec: {action: DENY, rules: [{from: [{source: {namespaces: [demo]}}]}]}";
    check_hint(
        deny,
        ("namespaces: [demo]", "namespaces: [demo], notPrincipals: [\"cluster.local/ns/demo/sa/client\"]"),
        "demo/client",
        80,
        "narrow rules[0] of DENY AuthorizationPolicy demo/deny (mesh.yaml:8), which matches by: from[0].source.namespaces demo; for \
         example add notPrincipals: [\"cluster.local/ns/demo/sa/client\"] to its from[0].source",
    );
    let port = "AuthorizationPolicy demo/deny | spec: {action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}";
    check_hint(
        port,
        ("rules: [{", "rules: [{from: [{source: {notIpBlocks: [\"10.9.9.9\"]}}], "),
        "10.9.9.9",
        80,
        "narrow rules[0] of DENY AuthorizationPolicy demo/deny (mesh.yaml:8), which matches by: to[0].operation.ports 80; for example \
         add from: [{source: {notIpBlocks: [\"10.9.9.9\"]}}] to it",
    );
    let strict = "PeerAuthentication demo/strict | spec: {mtls: {mode: STRICT}}";
    let spec = "spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: PERMISSIVE}}}";
    check_hint(
        strict,
        ("STRICT}}", &format!("STRICT}}}}\nPeerAuthentication demo/new | {spec}")),
        "10.9.9.9",
        80,
        &format!("or accept plaintext at port 80: a PeerAuthentication in namespace demo with {spec}"),
    );
    let own = "PeerAuthentication demo/own | spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
    check_hint(
        own,
        ("STRICT}", "STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}}"),
        "10.9.9.9",
        80,
        "or accept plaintext at port 80: portLevelMtls: {80: {mode: PERMISSIVE}} in PeerAuthentication demo/own",
    );
}

/// A service with endpoints of every kind; a connection uses only some of them.
const ENDPOINTS: &str = "
    Namespace demo labels: {istio.io/dataplane-mode: ambient}
    Node a labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: a}
    Node b labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: b}
    Pod demo/client | spec: {nodeName: a, containers: []}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
    Pod demo/web-1 labels: {app: web} | spec: {nodeName: a, containers: []}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
    Pod demo/web-2 labels: {app: web} | spec: {nodeName: b, containers: []}, status: {podIP: 10.0.0.3}
    Pod demo/web-3 labels: {app: web} | spec: {nodeName: b, containers: []}, status: {podIP: 10.0.0.4}
    Pod demo/web-4 labels: {app: web} | spec: {nodeName: b, containers: []}, status: {podIP: 10.0.0.5, conditions: [{type: Ready, status: 'False'}]}
    Pod plain/web-5 labels: {app: web} | spec: {nodeName: b, containers: []}, status: {podIP: 10.0.0.6}
    Service demo/web SPREAD | spec: {selector: {app: web}, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]}
";

/// Checks that the endpoints which the data path selects in many random draws are the explained ones, each in the explained
/// role: first choice, or fallback.
fn check_draws(spread: &str) {
    check_draws_of(&ENDPOINTS.replace("SPREAD", spread));
}

fn check_draws_of(lines: &str) {
    let mesh = mesh(lines);
    let told = ask(&mesh, "demo/client", "demo/web", 80).unwrap();
    let of = |turns: &[Preference]| -> BTreeSet<_> {
        told.endpoints.iter().filter(|one| turns.contains(&one.turn)).map(|one| one.address).collect()
    };
    let flow = Flow {
        direction: Direction::Outbound,
        peer: PeerAddr::new("10.0.0.1:40000".parse().unwrap()),
        dst: OrigDst::new("10.96.0.1:80".parse().unwrap()),
    };
    let (mut first, mut any) = (BTreeSet::new(), BTreeSet::new());
    for draw in 0..200 {
        let drawn = decide::outbound(&mesh.0, &flow, &NamespacedName::new("demo", "client"), draw).unwrap();
        first.extend(drawn.candidates.first().map(|candidate| candidate.target));
        any.extend(drawn.candidates.iter().map(|candidate| candidate.target));
    }
    assert_eq!(first, of(&[Preference::First]), "{}", text(&told));
    assert_eq!(any, of(&[Preference::First, Preference::Later]), "{}", text(&told));
    assert!(!of(&[Preference::Never]).is_empty());
}

#[test]
fn the_endpoints_that_are_told_are_those_that_are_drawn() {
    check_draws("");
    check_draws("annotations: {networking.istio.io/traffic-distribution: PreferClose}");
}

/// With session affinity the endpoint of the client is known.
#[test]
fn the_endpoint_that_a_client_stays_with_is_told() {
    let sticky = ENDPOINTS.replace("SPREAD", "").replace("{selector", "{sessionAffinity: ClientIP, selector");
    let mesh = mesh(&sticky);
    let told = ask(&mesh, "demo/client", "demo/web", 80).unwrap();
    let first: Vec<_> = told.endpoints.iter().filter(|one| one.turn == Preference::First).collect();
    assert_eq!(first.len(), 1, "{}", text(&told));
    assert!(
        text(&told).contains("it always selects the same endpoint of Service demo/web, by the client's address"),
        "{}",
        text(&told)
    );
    check_draws_of(&sticky);
}

#[test]
fn a_question_that_makes_no_sense_is_answered_by_what_does() {
    let check = |from: &str, to: &str, expected: &str| {
        let snapshot = mesh(&ENDPOINTS.replace("SPREAD", ""));
        let error = ask(&snapshot, from, to, 80).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("demo/klient", "demo/web", "from: the mesh has no Pod demo/klient; namespace demo has client, web-1, web-2");
    check("nowhere/a", "demo/web", "from: the mesh has no Pod nowhere/a, nor anything in namespace nowhere");
    check("demo/client", "pod:demo/web", "to: the mesh has no Pod demo/web; namespace demo has client, web-1");
    check("demo/client", "service:demo/web-1", "to: the mesh has no Service demo/web-1; namespace demo has web");
    check("demo/client", "demo/x", "to: the mesh has no Pod or Service demo/x; namespace demo has client, web, web-1");
    assert_eq!(ask(&Mesh::default(), "demo/a", "demo/b", 80), Err(QueryError::NoMesh));
    let without = mesh("Pod demo/client | spec: {containers: []}, status: {podIP: 10.0.0.1}");
    assert_eq!(
        ask(&without, "demo/client", "service:demo/web", 80).unwrap_err().to_string(),
        "to: the mesh has no Service demo/web; pods of namespace demo: 1, services: none: is that the right namespace, and the right \
         mesh folder or node?"
    );
    let both = mesh(&format!(
        "{}\nPod demo/web | spec: {{containers: []}}, status: {{podIP: 10.0.0.9}}",
        ENDPOINTS.replace("SPREAD", "")
    ));
    let error = ask(&both, "demo/client", "demo/web", 80).unwrap_err();
    assert_eq!(error.to_string(), "to: demo/web is a Pod and a Service: write pod:demo/web or service:demo/web");
    assert_eq!(ask(&both, "demo/client", "pod:demo/web", 80).unwrap().to.pod.as_deref(), Some("demo/web"));
    assert_eq!(ask(&both, "demo/client", "service:demo/web", 80).unwrap().to.service.as_deref(), Some("demo/web"));
}

#[test]
fn of_many_policies_few_endpoints_are_told_in_full_and_all_verdicts() {
    let mut lines = "Namespace demo labels: {istio.io/dataplane-mode: ambient}
        Pod demo/client | status: {podIP: 10.0.1.1}
        Service demo/web | spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"
        .to_owned();
    for pod in 1..=20 {
        lines += &format!(
            "Pod demo/web-{pod} labels: {{app: web}} | status: {{podIP: 10.0.2.{pod}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        );
    }
    for policy in 0..2_000 {
        lines += &format!(
            "AuthorizationPolicy demo/p{policy} | spec: {{rules: [{{to: [{{operation: {{ports: [81]}}}}]}}]}}\n"
        );
    }
    let explanation = ask(&mesh(&lines), "demo/client", "demo/web", 80).unwrap();
    let judged: Vec<_> = explanation.endpoints.iter().filter_map(|one| one.judgement.as_ref()).collect();
    let in_full = judged.iter().filter(|judgement| !judgement.policies.is_empty()).count();
    let reason = &judged[0].reason;
    assert!(judged.iter().all(|judgement| judgement.verdict == Verdict::Denied && judgement.reason == *reason));
    assert!(judged.iter().all(|judgement| judgement.policies.len() + judgement.more_policies == 2_000));
    assert_eq!((judged.len(), in_full), (20, 10), "{reason}");
}

/// A daemon knows the local facts of its own node's pods only.
#[test]
fn what_only_another_node_knows_is_told_as_not_known() {
    const MESH: &str = "
        Namespace demo labels: {istio.io/dataplane-mode: ambient}
        Pod demo/client annotations: {traffic.ambient.mesh/exclude-outbound-ports: '80'} | spec: {nodeName: a, containers: []}, status: {podIP: 10.0.0.1}
        Pod demo/web annotations: {traffic.ambient.mesh/exclude-inbound-ports: '80'} | spec: {nodeName: b, containers: []}, status: {podIP: 10.0.0.2}
        AuthorizationPolicy demo/deny-all | spec: {}\n";
    let pod = |excluded: &str| LocalPod {
        netns: Some("/n".into()),
        exclusions: Exclusions { inbound_ports: excluded.parse().unwrap(), ..Exclusions::default() },
        ..LocalPod::default()
    };
    let ask_with = |known: &[(&str, LocalPod)]| {
        let local = known.iter().map(|(name, pod)| (NamespacedName::new("demo", *name), pod.clone())).collect();
        ask(&(mesh(MESH).0, local), "demo/client", "demo/web", 80).unwrap()
    };
    let nothing = ask_with(&[]);
    assert_eq!(nothing.verdict, Verdict::Denied, "{}", text(&nothing));
    assert!(nothing.from.captured);
    let [client, web] = &nothing.notes[..] else { panic!("{:#?}", nothing.notes) };
    assert!(
        client.starts_with("whether Pod demo/client excludes this connection from capture is known on node a only")
    );
    assert!(web.starts_with(
        "whether Pod demo/web excludes port 80 from capture, or is probed at it, is known on node b only"
    ));

    let of_client = ask_with(&[("client", pod(""))]);
    assert_eq!((of_client.verdict, of_client.notes.len()), (Verdict::Denied, 1), "{}", text(&of_client));
    let of_both = ask_with(&[("client", pod("")), ("web", pod("80"))]);
    assert_eq!((of_both.verdict, of_both.notes.len()), (Verdict::Allowed, 0), "{}", text(&of_both));
    assert!(of_both.reason.starts_with("NO POLICY IS ENFORCED: Pod demo/web excludes inbound port 80"));
    let closed = ask_with(&[("client", pod("")), ("web", LocalPod::default())]);
    assert_eq!(closed.verdict, Verdict::Denied);
    assert!(
        closed.reason.starts_with("no HBONE connection to Pod demo/web can be opened: its node can't enrol it"),
        "{}",
        closed.reason
    );
}
