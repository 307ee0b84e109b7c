//! Files as people and tools write them: the objects that are read of each, and the reported problems.

use std::sync::Arc;

use super::{check, undent};
use crate::control::manifests::{AddressesIn, Known, read_again};

const DEMO: &str = "pod default/a sa=default not labelled\n         pod default/b sa=default not labelled";

fn both(text: &str) {
    check(&format!("# file: f.yaml\n{text}"), DEMO);
}

const A: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
const B: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n";
const A_JSON: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#;
const B_JSON: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}"#;

#[test]
fn documents_without_content_are_skipped_wherever_they_are() {
    both(&format!("---\n# Source: shop/templates/off.yaml\n# nothing\n---\n# Source: x\n{A}---\n\n---\n---\n{B}---\n"));
    both(&format!("\n\n# head\n---\n---\n{A}---\n# only a comment\n---\n{B}---\n---\n\n"));
    both(&format!("{A}...\n---\n{B}...\n"));
    both(&format!("%YAML 1.1\n---\n{A}...\n%YAML 1.2\n---\n{B}"));
    both(&format!("\u{feff}---\r\n{}---\r\n\r\n---\r\n{}", A.replace('\n', "\r\n"), B.replace('\n', "\r\n")));
    both(&format!("{A}\t\n---\n \t \n---\n{B}\t\n"));
    both(&format!("--- # a\n{A}--- \n# b\n---\t\n{B}"));
    both(&format!("---\nnull\n---\n~\n---\n{A}---\n{B}"));
}

#[test]
fn json_is_read_in_every_arrangement() {
    both(&format!("{A_JSON}\n{B_JSON}\n"));
    both(&format!("{A_JSON}{B_JSON}"));
    both(&format!("{}\n{}", A_JSON.replace(", ", ",\n  "), B_JSON.replace(", ", ",\n  ")));
    both(&format!("[{A_JSON},\n {B_JSON}]"));
    both(&format!("---\n{A_JSON}\n---\n{B}"));
    both(&format!("{A}---\n\n{B_JSON}\n...\n"));
    both(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}}}\n---\n{B_JSON}"));
    both(&format!("{A_JSON}\n# between\n\n{B_JSON} # behind"));
    both(&format!("- {A_JSON}\n- {B_JSON}\n"));
}

#[test]
fn lists_are_read_with_and_without_types() {
    let items = format!("[{A_JSON}, {B_JSON}]");
    both(&format!(r#"{{"apiVersion": "v1", "kind": "List", "items": {items}}}"#));
    both(&format!(
        r#"{{"items": {items}, "apiVersion": "v1", "metadata": {{"resourceVersion": ""}}, "kind": "List"}}"#
    ));
    let bare = r#"[{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]"#;
    both(&format!(
        r#"{{"kind": "PodList", "apiVersion": "v1", "metadata": {{"remainingItemCount": 1}}, "items": {bare}}}"#
    ));
    both(&format!(r#"{{"apiVersion": "v1", "items": {bare}, "kind": "PodList"}}"#));
    both("apiVersion: v1\nitems:\n- metadata:\n    name: a\n- metadata:\n    name: b\nkind: PodList\nmetadata: {}\n");
    both(
        "apiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: Pod\n    metadata: {name: a}\n\n  # next\n  - apiVersion: v1\n    kind: Pod\n    metadata:\n      name: b\n",
    );
    both(&format!("apiVersion: v1\nkind: List\nitems: {items}\n"));
    // An alias refers to another item, and the middle of a text looks like an item.
    both(
        "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n- <<: *a\n  metadata: {name: b}\n",
    );
    both(
        "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a, annotations: {x: \"\n- metadata: {name: c}\n\"}}\n- metadata: {name: b}\n",
    );
    check(
        r#"# file: f.json
{"kind": "AuthorizationPolicyList", "apiVersion": "security.istio.io/v1", "items": [
 {"metadata": {"name": "p"}, "spec": {"action": "DENY", "rules": [{}]}},
 {"metadata": {"name": "q"}, "spec": {"acton": "DENY"}}]}"#,
        "broken f.json:3:39: items[1].spec.acton: unknown field: write selector, targetRef, ...
         DENY default/p for namespace default: anything",
    );
    check("# file: f.yaml\nkind: DeploymentList\napiVersion: apps/v1\nitems: [{spec: 7}]", "");
}

#[test]
fn values_are_those_of_kubectl() {
    check(
        "# file: f.yaml
        apiVersion: v1
        kind: Pod
        metadata:
          name: a
          creationTimestamp: yesterday
          labels: {istio.io/dataplane-mode: ambient, version: 1.0}
        spec:
          hostNetwork: off
          terminationGracePeriodSeconds: soon
          volumes: [{name: s, secret: {secretName: s, defaultMode: 0400}}, {name: t, secret: {defaultMode: '0644'}}]
          containers:
          - name: app
            env: [{name: A, value: 1}, {name: B, value: [b]}]
            resources: {limits: {cpu: {a: b}}}
            ports: [{containerPort: 0x50, name: http}]
            livenessProbe: {httpGet: {port: 8080, path: [a]}, periodSeconds: often}
        status: {podIPs: [{ip: 10.0.0.1}], startTime: 7, conditions: [{type: Ready, status: 'True', lastProbeTime: never}]}",
        "pod default/a sa=default 10.0.0.1 http=80 in mesh probes=[8080]",
    );
    check(
        "# file: f.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: a}
        spec: {containers: [{name: a, ports: [{containerPort: '80'}]}]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: b, labels: [c]}
        ---
        apiVersion: v1
        kind: Pod
        metadata: {name: c, deletionTimestamp: soon}",
        "broken f.yaml:4:55: spec.containers[0].ports[0].containerPort: the text \"80\" is given where a number belongs: remove the \
         quotation marks
         broken f.yaml:8:29: metadata.labels: a list is given where a map belongs
         broken f.yaml:12:40: metadata.deletionTimestamp: this is not a time: write it like 2026-01-31T12:00:00Z",
    );
}

#[test]
fn fields_that_only_the_cluster_uses_may_have_any_type() {
    for text in [
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, generation: x, uid: [7]}\nspec: {hosts: [a.example]}\n",
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a, creationTimestamp: 5}\nspec: {address: 10.0.0.1}\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, creationTimestamp: 5}\nspec: {}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, finalizers: 1}\nspec: {healthCheckNodePort: x, ports: [{port: 80, appProtocol: [h2]}]}\n",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: \
         [{addresses: [10.0.0.1], hints: 7, hostname: [x]}]\n",
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets: [{addresses: [{ip: 10.0.0.1, hostname: 7}]}]\n",
    ] {
        let (content, _) = read_again(&"f.yaml".into(), text, &Known::default());
        assert_eq!((content.objects.len(), &*content.faults), (1, &[][..]), "{text}");
    }
    // The creation time decides which of two PeerAuthentications takes precedence.
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, creationTimestamp: 5}\nspec: {}";
    check(&format!("# file: f.yaml\n{policy}"), "broken f.yaml:3:40: metadata.creationTimestamp: ...");
    let policy =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namepsace: b}\nspec: {}";
    check(&format!("# file: f.yaml\n{policy}"), "broken f.yaml:3:21: metadata.namepsace: ...");
}

#[test]
fn what_is_no_manifest_is_told_once_and_has_no_effect() {
    let told = |line: u64, more: &str| {
        format!(
            "warning f.yaml:{line}: not a Kubernetes object: apiVersion and kind are missing{more}; it is ignored: \
             move it out of the folder, or write both fields"
        )
    };
    for text in [
        "replicaCount: 2\nimage: {repository: nginx}\n",
        "resources:\n- deployment.yaml\n",
        "apiVersion: v2\nname: shop\nversion: 1.0.0\n",
        "apiVersion: v1\nname: shop\nversion: 1.0.0\n",
        "services:\n  web: {image: nginx}\n",
        "openapi: 3.0.0\npaths: {}\n",
        "- hosts: all\n  tasks: []\n- hosts: some\n",
        "{\"name\": \"x\", \"kind\": {\"a\": 1}}",
        "[1, 2, 3]",
        "kind: Whatever\n",
        "just words\n",
    ] {
        check(&format!("# file: f.yaml\n{text}"), &told(1, ""));
    }
    let text = format!("# a\n---\na: b\n---\n{A}---\nc: d\n---\n{B}");
    check(
        &format!("# file: f.yaml\n{text}"),
        &format!("{DEMO}\n         {}", told(3, " (and 1 more documents of this file)")),
    );
    for foreign in [
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: [7]\nspec: no\n",
        "apiVersion: v1\nkind: Secret\ndata: 7\n",
        "apiVersion: v1\nkind: Status\nstatus: Failure\n",
    ] {
        check(&format!("# file: f.yaml\n{foreign}"), "");
    }
}

#[test]
fn templates_are_told_from_broken_manifests() {
    let template = "this is a template, not a manifest: render it first, for example with helm template";
    for text in [
        "{{- if .Values.on }}\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {{ .Values.name }}\nspec: {}\n{{- end }}\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: \"{{ .Release.Name }}-deny\"}\n",
    ] {
        let file: Arc<str> = "f.yaml".into();
        let (content, _) = read_again(&file, text, &Known::default());
        let [fault] = content.faults.as_slice() else { panic!("{content:?}") };
        assert_eq!((fault.error.message.as_str(), fault.is_template), (template, true));
    }
    check("# file: f.yaml\n# {{ x }}\nkind: [\n", "broken f.yaml:...");
}

#[test]
fn a_template_may_enclose_several_documents() {
    let told = |text: &str| {
        let (content, _) = read_again(&"f.yaml".into(), text, &Known::default());
        let shown = |fault: &crate::control::manifests::Fault| {
            (fault.error.line.unwrap(), fault.is_template, fault.hides.addresses != AddressesIn::Nowhere)
        };
        (content.objects.len(), content.faults.iter().map(shown).collect::<Vec<_>>())
    };
    let template = |line| (line, true, false);
    // Actions alone, before, between and behind documents.
    assert_eq!(
        told(&format!(
            "{{{{- if .Values.on }}}}\n---\n{A}---\n{{{{- range .Values.x }}}}\n---\n{B}---\n{{{{- end }}}}\n"
        )),
        (2, vec![template(1), template(7), template(13)])
    );
    assert_eq!(told("{{ include \"mesh.objects\" . }}\n"), (0, vec![template(1)]));
    // An action that reaches over a marker, and a document that cannot be read without its actions either.
    assert_eq!(told("{{- if .on }}\n---\nkind: {{/* a\n---\nb */}}\n"), (0, vec![template(1), template(3)]));
    let list = "args: [{{ range .x }}a: b: {{ . }},{{ end }}]\n";
    assert_eq!(told(&format!("{{{{- if .on }}}}\n---\n{list}")), (0, vec![template(1), template(3)]));
    // Without a template in the file, or without braces outside of comments, nothing is known about the document.
    assert_eq!(told(list), (0, vec![(1, false, true)]));
    assert_eq!(told("{{- if .on }}\n---\nkind: [\n"), (0, vec![template(1), (3, false, true)]));
    assert_eq!(told("{{- if .on }}\n---\n# {{ x }}\nkind: [\n"), (0, vec![template(1), (4, false, true)]));
}

#[test]
fn every_fault_is_told_and_the_rest_counts() {
    check(
        &format!(
            "# file: f.yaml\n{A}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: c}}\nspec: [\n---\nkind: Pod\nmetadata: {{name: d}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: e}}\nspec: {{hostNetwork: sure}}\n---\n{B}metadata: {{name: x}}\n---\n{B}"
        ),
        "broken f.yaml:8:7: the bracket [ is never closed: close it
         broken f.yaml:10: kind is Pod, and apiVersion is missing: write apiVersion: v1
         broken f.yaml:16:21: spec.hostNetwork: \"sure\" is given where true or false belongs
         broken f.yaml:21:1: metadata: the key is there twice, in line 20 and in line 21: remove one of the two
         pod default/a sa=default not labelled
         pod default/b sa=default not labelled",
    );
    check(
        &format!(
            "# file: f.json\n{A_JSON}\n{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\n{B_JSON}\n{{\"kind\": \"Pod\" 2}}\n"
        ),
        "broken f.json:3:1: quotation marks are missing around a key or a text
         broken f.json:4:16: a comma or a closing bracket is missing here
         pod default/a sa=default not labelled
         pod default/b sa=default not labelled",
    );
    check(
        "# file: f.yaml
        apiVersion: v1
        kind: List
        items:
        - apiVersion: v1
          kind: Pod
          metadata: {name: a}
        - apiVersion: v1
          kind: Pod
          metadata: {name: c
        - kind: Pod
          metadata: {name: d}
        - apiVersion: v1
          kind: Pod
          metadata: {name: b}",
        "broken f.yaml:9:13: items[1]: the bracket { is never closed: close it
         broken f.yaml:10: items[2]: kind is Pod, and apiVersion is missing: write apiVersion: v1
         pod default/a sa=default not labelled
         pod default/b sa=default not labelled",
    );
}

#[test]
fn what_is_known_is_not_read_again_and_moves_with_its_lines() {
    let file: Arc<str> = "f.yaml".into();
    let pod = |name: &str, ip: &str| {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n")
    };
    let list = |items: &[String]| {
        let items: String = items
            .iter()
            .map(|item| undent(item).trim_start_matches("---\n").replace('\n', "\n  "))
            .map(|item| format!("- {}\n", item.trim_end()))
            .collect();
        format!("apiVersion: v1\nitems:\n{items}kind: List\n")
    };
    for is_list in [false, true] {
        let text = |pods: &[String]| if is_list { list(pods) } else { pods.concat() };
        let first = text(&[pod("a", "10.0.0.1"), pod("b", "nowhere"), pod("c", "10.0.0.3")]);
        let (content, known) = read_again(&file, &first, &Known::default());
        assert_eq!((content.objects.len(), content.problems.len(), known.len()), (3, 1, 3));
        let second = text(&[pod("new", "10.0.0.9"), pod("a", "10.0.0.1"), pod("b", "nowhere"), pod("c", "10.0.0.4")]);
        let (again, of_second) = read_again(&file, &second, &known);
        assert_eq!((&again, of_second.len()), (&read_again(&file, &second, &Known::default()).0, 4));
        // The values are shared, and not only equal.
        for (before, after) in [(0, 1), (1, 2)] {
            let shared = match (&content.objects[before].body, &again.objects[after].body) {
                (super::Body::Pod(before), super::Body::Pod(after)) => Arc::ptr_eq(before, after),
                other => panic!("{other:?}"),
            };
            assert!(shared);
        }
        let (content, known) = read_again(&file, &first, &of_second);
        assert_eq!((content, known.len()), (read_again(&file, &first, &Known::default()).0, 3));
    }
}
