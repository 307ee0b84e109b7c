//! Invalid policies: they are ignored, and reported with line, column and field.

use super::{check, policy};
use crate::control::manifests::tests::show;

#[test]
fn broken_policies_are_told_with_place_and_field() {
    let rule = |rule: &str| format!("rules:\n- {}", rule.replace('\n', "\n  "));
    let table = [
        ("acton: DENY".to_owned(), "5:3: spec.acton: unknown field..."),
        ("action: DENNY".to_owned(), "5:11: spec.action: unknown value..."),
        ("action: deny".to_owned(), "5:11: spec.action: unknown value..."),
        ("selector: {matchLabel: {a: b}}".to_owned(), "5:14: spec.selector.matchLabel: unknown field..."),
        (
            "selector: {matchLabels: {a: 'b*'}}".to_owned(),
            "5:31: spec.selector.matchLabels.a: \"a\": \"b*\" has a wildcard, ...",
        ),
        (
            "selector: {matchLabels: {'': b}}".to_owned(),
            "5:32: spec.selector.matchLabels[\"\"]: a label's name is empty",
        ),
        (
            "selector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: a}]".to_owned(),
            "6:16: spec.targetRefs[0]: is given together with selector: ...",
        ),
        (
            "targetRef: {kind: Service, name: a}\ntargetRefs: [{kind: Service, name: a}]".to_owned(),
            "5:14: spec.targetRef: is given together with targetRefs: ...",
        ),
        (
            "targetRefs:\n- {kind: Service, name: a, sectionName: b}".to_owned(),
            "6:30: spec.targetRefs[0].sectionName: unknown field...",
        ),
        (
            "targetRefs:\n- {kind: Service}".to_owned(),
            "6:5: spec.targetRefs[0].name: \"\" is not a Kubernetes name: ...",
        ),
        (
            "targetRefs:\n- {kind: service, name: a}".to_owned(),
            "6:12: spec.targetRefs[0].kind: \"service\" cannot be the target of a policy: write Service",
        ),
        (
            "targetRefs:\n- {kind: Service, name: a, namespace: other}".to_owned(),
            "6:41: spec.targetRefs[0].namespace: \"other\" is another namespace: ...",
        ),
        ("rules: {}".to_owned(), "5:10: spec.rules: ..."),
        (rule("null"), "6:5: spec.rules[0]: is null: write {} for a rule that matches everything"),
        (rule("fro: []"), "6:5: spec.rules[0].fro: unknown field..."),
        (rule("from: []"), "6:11: spec.rules[0].from: is an empty list: ..."),
        (rule("to: []"), "6:9: spec.rules[0].to: is an empty list: ..."),
        (rule("from: [{}]"), "6:12: spec.rules[0].from[0].source: is missing"),
        (rule("from:\n- source:"), "7:7: spec.rules[0].from[0].source: is missing"),
        (rule("from:\n- source:\n  principals: [a]"), "8:7: spec.rules[0].from[0].principals: unknown field..."),
        (rule("from:\n- source: {}"), "7:15: spec.rules[0].from[0].source: is empty: ..."),
        (rule("from:\n- source: {principals: []}"), "7:15: spec.rules[0].from[0].source: is empty: ..."),
        (rule("from:\n- source: {principal: [a]}"), "7:16: spec.rules[0].from[0].source.principal: unknown field..."),
        (rule("from:\n- source: {principals: [a, '']}"), "7:32: spec.rules[0].from[0].source.principals[1]: is empty"),
        (rule("from:\n- source: {principals: [null]}"), "7:29: spec.rules[0].from[0].source.principals[0]: ..."),
        (rule("from:\n- source: {principals: a}"), "7:28: spec.rules[0].from[0].source.principals: ..."),
        (rule("from:\n- source: {principals: [{a: b}]}"), "7:29: spec.rules[0].from[0].source.principals[0]: ..."),
        (
            rule("from:\n- source: {notNamespaces: [\"a\\nb\"]}"),
            "7:32: spec.rules[0].from[0].source.notNamespaces[0]: \"a\\nb\" has a control character",
        ),
        (
            rule("from:\n- source: {requestPrincipals: ['']}"),
            "7:36: spec.rules[0].from[0].source.requestPrincipals[0]: is empty",
        ),
        (
            rule("from:\n- source: {ipBlocks: [10.0.0.0/33]}"),
            "7:27: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is neither an IP address nor ...",
        ),
        (
            rule("from:\n- source: {notIpBlocks: [web]}"),
            "7:30: spec.rules[0].from[0].source.notIpBlocks[0]: \"web\" is neither ...",
        ),
        (
            rule("from:\n- source: {serviceAccounts: [a/b/c]}"),
            "7:34: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/b/c\" is not NAMESPACE/NAME or NAME: ...",
        ),
        (
            rule("from:\n- source: {serviceAccounts: ['a/*']}"),
            "7:34: spec.rules[0].from[0].source.serviceAccounts[0]: \"a/*\" has a wildcard: ...",
        ),
        (
            rule("from:\n- source: {serviceAccounts: [/a]}"),
            "7:34: spec.rules[0].from[0].source.serviceAccounts[0]: \"/a\" is not NAMESPACE/NAME ...",
        ),
        (
            rule("from:\n- source: {serviceAccounts: [a], principals: [b]}"),
            "7:15: spec.rules[0].from[0].source: has serviceAccounts together with principals or namespaces: ...",
        ),
        (
            rule("from:\n- source: {notServiceAccounts: [a], notNamespaces: [b]}"),
            "7:15: spec.rules[0].from[0].source: has serviceAccounts together with ...",
        ),
        (
            rule("from:\n- source: {trustDomains: ['spiffe://a']}"),
            "7:31: spec.rules[0].from[0].source.trustDomains[0]: \"spiffe://a\" contains a slash: ...",
        ),
        (rule("to: [{}]"), "6:10: spec.rules[0].to[0].operation: is missing"),
        (rule("to:\n- operation: {}"), "7:18: spec.rules[0].to[0].operation: is empty: ..."),
        (rule("to:\n- operation: {port: ['80']}"), "7:19: spec.rules[0].to[0].operation.port: unknown field..."),
        (
            rule("to:\n- operation: {ports: ['0']}"),
            "7:27: spec.rules[0].to[0].operation.ports[0]: \"0\" is not a port from 1 to 65535",
        ),
        (
            rule("to:\n- operation: {ports: ['80', '65536']}"),
            "7:33: spec.rules[0].to[0].operation.ports[1]: \"65536\" is not a port ...",
        ),
        (
            rule("to:\n- operation: {notPorts: ['+80']}"),
            "7:30: spec.rules[0].to[0].operation.notPorts[0]: \"+80\" is not a port ...",
        ),
        (
            rule("to:\n- operation: {notPorts: [http]}"),
            "7:30: spec.rules[0].to[0].operation.notPorts[0]: \"http\" is not a port ...",
        ),
        (rule("to:\n- operation: {hosts: ['']}"), "7:27: spec.rules[0].to[0].operation.hosts[0]: is empty"),
        (rule("when:\n- values: [a]"), "7:7: spec.rules[0].when[0].key: is missing"),
        (rule("when:\n- {key: '', values: [a]}"), "7:13: spec.rules[0].when[0].key: is empty"),
        (
            rule("when:\n- {key: source.ips, values: [a]}"),
            "7:13: spec.rules[0].when[0].key: \"source.ips\" is not known: ...",
        ),
        (rule("when:\n- {key: source.ip}"), "7:7: spec.rules[0].when[0]: has neither values nor notValues"),
        (rule("when:\n- {key: source.ip, values: [], notValues: null}"), "7:7: spec.rules[0].when[0]: has neither ..."),
        (rule("when:\n- {key: request.host}"), "7:7: spec.rules[0].when[0]: has neither ..."),
        (rule("when:\n- {key: request.host, values: ['']}"), "7:36: spec.rules[0].when[0].values[0]: is empty"),
        (rule("when:\n- {key: source.ip, value: [a]}"), "7:24: spec.rules[0].when[0].value: unknown field..."),
        (rule("when:\n- {key: source.ip, values: [a]}"), "7:33: spec.rules[0].when[0].values[0]: \"a\" is neither ..."),
        (
            rule("when:\n- {key: destination.port, notValues: [a]}"),
            "7:43: spec.rules[0].when[0].notValues[0]: \"a\" is not a port ...",
        ),
        (
            rule("when:\n- {key: source.serviceAccount, notValues: ['*']}"),
            "7:48: spec.rules[0].when[0].notValues[0]: \"*\" has a wildcard: ...",
        ),
    ];
    for (spec, expected) in table {
        check(&policy(&spec), &format!("broken p.yaml:{expected}"));
    }
}

#[test]
fn broken_peer_authentications_are_told_with_place_and_field() {
    let table = [
        ("mtls: {mode: STRIKT}", "5:16: spec.mtls.mode: unknown value..."),
        ("mtls: {mode: strict}", "5:16: spec.mtls.mode: unknown value..."),
        ("mtls: STRICT", "5:9: spec.mtls: ..."),
        ("mtl: {}", "5:3: spec.mtl: unknown field..."),
        ("mtls: {mod: STRICT}", "5:10: spec.mtls.mod: unknown field..."),
        ("targetRefs: []", "5:3: spec.targetRefs: unknown field..."),
        ("selector: {matchLabels: {a: '*'}}", "5:31: spec.selector.matchLabels.a: \"a\": \"*\" has a wildcard, ..."),
        ("portLevelMtls:\n  0: {mode: STRICT}", "6:8: spec.portLevelMtls.0: \"0\" is not a port from 1 to 65535"),
        ("portLevelMtls:\n  http: {mode: STRICT}", "6:11: spec.portLevelMtls.http: \"http\" is not a port ..."),
        (
            "portLevelMtls:\n  80: {mode: STRICT}\n  080: {mode: STRICT}",
            "6:9: spec.portLevelMtls.80: port 80 is there twice: ...",
        ),
        ("portLevelMtls:\n  80: {mode: NONE}", "6:16: spec.portLevelMtls.80.mode: unknown value..."),
        ("portLevelMtls: []", "5:18: spec.portLevelMtls: ..."),
    ];
    for (spec, expected) in table {
        let file = policy(spec).replace("AuthorizationPolicy", "PeerAuthentication");
        check(&file, &format!("broken p.yaml:{expected}"));
    }
}

/// One message with the place of the first field names all of them, and no fault that only follows from another one.
#[test]
fn all_invalid_fields_of_a_policy_are_told() {
    let spec = "
selector: {matchLabels: {a: 'b*', c: d, e: '*'}}
rules:
- from:
  - source: {ipBlocks: [10.0.0.0/33]}
  - source: {principals: [a], serviceAccounts: [b/c/d]}
- null
- to:
  - operation: {ports: ['0', '80', http]}
  when:
  - {key: source.ips, values: [a]}
  - {key: destination.port}";
    let text = show(&policy(spec.trim_start()));
    let faults = [
        "broken p.yaml:5:31: spec.selector.matchLabels.a: ",
        "; also spec.selector.matchLabels.e: ",
        "; also spec.rules[0].from[0].source.ipBlocks[0]: ",
        "; also spec.rules[0].from[1].source.serviceAccounts[0]: ",
        "; also spec.rules[1]: is null",
        "; also spec.rules[2].to[0].operation.ports[0]: ",
        "; also spec.rules[2].to[0].operation.ports[2]: ",
        "; also spec.rules[2].when[0].key: ",
        "; also spec.rules[2].when[1]: has neither",
    ];
    for fault in faults {
        assert!(text.contains(fault), "{fault} is not in {text}");
    }
    assert_eq!(text.matches("; also ").count(), faults.len() - 1, "{text}");

    let blocks: Vec<String> = (0..40).map(|number| format!("no-block-{number}")).collect();
    let text = show(&policy(&format!("rules:\n- from:\n  - source: {{ipBlocks: [{}]}}", blocks.join(", "))));
    assert!(text.contains("no-block-15") && !text.contains("no-block-16"), "{text}");
    assert!(text.contains("; and 24 more fields are invalid"), "{text}");

    let targets = "targetRefs:\n- {kind: Pod, name: A}\n- {kind: Service, name: b, namespace: other}";
    let text = show(&policy(targets));
    for field in ["targetRefs[0].name: ", "; also spec.targetRefs[0].kind: ", "; also spec.targetRefs[1].namespace: "] {
        assert!(text.contains(field), "{field} is not in {text}");
    }

    let spec = "selector: {matchLabels: {a: '*'}}\nportLevelMtls:\n  0: {mode: STRICT}\n  http: {mode: STRICT}";
    let text = show(&policy(spec).replace("AuthorizationPolicy", "PeerAuthentication"));
    for field in ["matchLabels.a: ", "; also spec.portLevelMtls.0: ", "; also spec.portLevelMtls.http: "] {
        assert!(text.contains(field), "{field} is not in {text}");
    }
}

#[test]
fn what_stands_beside_the_spec_is_checked_as_well() {
    let whole = |kind: &str, version: &str, more: &str| {
        format!(
            "# file: p.yaml\n# first\n---\napiVersion: security.istio.io/{version}\nkind: {kind}\nmetadata: {{name: p}}\n{more}\n"
        )
    };
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        check(&whole(kind, "v1", "rules: []"), "broken p.yaml:6:1: rules: unknown field...");
        check(&whole(kind, "v2", ""), "broken p.yaml:3:13: apiVersion: unknown value...");
        check(
            &whole(kind, "v1", "").replace("name: p", "name: P"),
            "broken p.yaml:5:18: metadata.name: \"P\" is not ...",
        );
        check(&whole(kind, "v1", "spec: 7"), "broken p.yaml:6:7: spec: ...");
        check(&format!("# file: p.yaml\napiVersion: security.istio.io/v1\nkind: {kind}List\nitems: []"), "");
    }
}

#[test]
fn a_broken_item_of_a_list_is_told_with_its_number() {
    check(
        "# file: l.yaml
        # first
        ---
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: v1, kind: Namespace, metadata: {name: demo}}
        - apiVersion: security.istio.io/v1
          kind: AuthorizationPolicy
          metadata: {name: p}
          spec:
            rules:
            - to:
              - operation: {ports: [http]}",
        "broken l.yaml:13:29: items[1].spec.rules[0].to[0].operation.ports[0]: \"http\" is not a port from 1 to 65535",
    );
    check(
        "# file: l.yaml
        apiVersion: v1
        kind: List
        items:
        - apiVersion: security.istio.io/v1
          kind: PeerAuthentication
          metadata: {name: p}
          spec: {mtls: {mode: NO}}",
        "broken l.yaml:7:23: items[0].spec.mtls.mode: unknown value...",
    );
}

#[test]
fn lists_are_bounded() {
    let list = |count: usize, entry: &str| vec![entry; count].join(", ");
    let most = |spec: &str, field: &str, most: usize| {
        let told = show(&policy(spec));
        assert!(
            told.contains(&format!(": {field}: the list has more than {most} entries, the most that is read")),
            "{told}"
        );
    };
    let rules = |count| format!("rules: [{}]", list(count, "{}"));
    assert!(show(&policy(&rules(512))).starts_with("ALLOW demo/p for namespace demo: anything; anything"));
    most(&rules(513), "spec.rules", 512);
    let values = |count| format!("rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]", list(count, "10.0.0.1"));
    assert!(show(&policy(&values(4096))).starts_with("ALLOW demo/p"));
    most(&values(4097), "spec.rules[0].from[0].source.ipBlocks", 4096);
    let entries = |count| format!("rules: [{{to: [{}]}}]", list(count, "{operation: {ports: ['80']}}"));
    most(&entries(513), "spec.rules[0].to", 512);
    let targets = format!("targetRefs: [{}]", list(17, "{kind: Service, name: a}"));
    most(&targets, "spec.targetRefs", 16);
    let long = format!("rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]", "a".repeat(2049));
    check(&policy(&long), "broken p.yaml:5:42: spec.rules[0].from[0].source.principals[0]: is longer than 2048 bytes");
}
