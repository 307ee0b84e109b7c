//! Keys that are there twice: `kubectl` takes the last one. Only an object that uses the field cannot be read, and only
//! what it names is closed.

use super::{check, undent};
use crate::control::manifests::{AddressesIn, Fault, FileContent, Hides, PoliciesIn, Subject, read};
use crate::model::workload::NamespacedName;

fn content(text: &str) -> FileContent {
    read(&"f.yaml".into(), &undent(text))
}

/// The only fault of a text, as text, its subject, and what may be missing because of it.
fn fault(text: &str) -> (String, Subject, Hides) {
    let content = content(text);
    assert_eq!(content.objects.len(), 0, "{text}");
    let [Fault { error, subject, hides, .. }] = &content.faults[..] else { panic!("{text}\n{:?}", content.faults) };
    (error.to_string(), subject.clone(), hides.clone())
}

fn policies_in(namespace: &str) -> Hides {
    Hides { addresses: AddressesIn::Nowhere, policies: PoliciesIn::Namespaces([namespace.into()].into()) }
}

#[test]
fn files_that_are_no_manifests_close_nothing() {
    check(
        "# file: compose.yaml
        x-common: &common {restart: always}
        services:
          web: {<<: *common, image: a, image: b}
        # file: values.yaml
        image: {tag: 1, tag: 2}
        replicas: 1
        replicas: 2",
        "warning compose.yaml:1: not a Kubernetes object: apiVersion and kind are missing; ...
         warning values.yaml:1: not a Kubernetes object: apiVersion and kind are missing; ...",
    );
}

#[test]
fn objects_of_other_kinds_close_nothing() {
    check(
        "# file: f.yaml
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: settings, namespace: shop}
        data:
          a: b
          a: c
        ---
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: web, name: shop}
        spec: {}
        ---
        {\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"\\ud83d\\ude00\"}, \"type\": \"a\", \"type\": \"b\"}",
        "warning f.yaml:6: ConfigMap shop/settings: data.a: the key is there twice, in line 5 and in line 6: remove \
         one of the two; the last one counts
         warning f.yaml:10: Deployment shop: metadata.name: the key is there twice, in line 10 and in line 10: remove \
         one of the two; the last one counts
         warning f.yaml:13: type: the key is there twice, in line 13 and in line 13: remove one of the two; the last one counts",
    );
    // Two objects without a marker between them: none of them is of interest.
    let content = content(
        "
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: a}
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: b}",
    );
    assert_eq!((content.faults.len(), content.problems.len()), (0, 3));
    assert!(content.problems[0].message.ends_with("write --- between two objects; the last one counts"));
}

#[test]
fn the_last_of_fields_that_are_not_used_counts() {
    check(
        "# file: f.yaml
        apiVersion: v1
        kind: Pod
        metadata: {name: p, namespace: demo, labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.mesh/netns: /n}}
        spec:
          containers:
          - name: c
            image: a
            image: b
            resources:
              limits: {cpu: 1}
              limits: {cpu: 2}
        status: {podIP: 10.0.0.1}
        ---
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: n, namespace: demo}
        spec: {a: 1, a: 2}",
        "pod demo/p sa=default 10.0.0.1 netns=/n in mesh
         warning f.yaml:8: Pod demo/p: spec.containers[0].image: the key is there twice, in line 7 and in line 8: \
         remove one of the two; the last one counts
         warning f.yaml:11: Pod demo/p: spec.containers[0].resources.limits: the key is there twice, in line 10 and in \
         line 11: remove one of the two; the last one counts
         note f.yaml:14: NetworkPolicy of namespace demo: has no effect ...
         warning f.yaml:17: NetworkPolicy demo/n: spec.a: the key is there twice, ...",
    );
}

#[test]
fn many_repeated_keys_are_told_in_a_few_lines() {
    let data: String = (0..40).map(|number| format!("  k{number}: a\n  k{number}: b\n")).collect();
    let content = content(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata:\n{data}"));
    assert_eq!((content.faults.len(), content.problems.len()), (0, 8));
    assert!(content.problems[7].message.ends_with("(and 32 more keys of this object); the last one counts"));
}

#[test]
fn a_policy_closes_its_own_namespace() {
    let policy = |metadata: &str, spec: &str| {
        format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec: {spec}\n")
    };
    let object = || Subject::Object("AuthorizationPolicy", NamespacedName::new("shop", "p"));
    let (error, subject, hides) = fault(&policy("{name: p, namespace: shop}", "{action: DENY, action: ALLOW}"));
    assert_eq!(
        error,
        "f.yaml:4:22: spec.action: the key is there twice, in line 4 and in line 4: remove one of the two"
    );
    assert_eq!((subject, hides), (object(), policies_in("shop")));
    // In a list, and in JSON.
    let list = "apiVersion: v1\nkind: List\nitems: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: \
                {name: p, namespace: shop}, spec: {rules: [], rules: [{}]}}]\n";
    let (error, subject, hides) = fault(list);
    assert!(error.contains(": items[0].spec.rules: the key is there twice"), "{error}");
    assert_eq!((subject, hides), (object(), policies_in("shop")));
    let json = "{\"apiVersion\": \"security.istio.io/v1\", \"kind\": \"AuthorizationPolicy\",\n\t\"metadata\": {\"name\": \
                \"p\", \"namespace\": \"shop\"},\n\t\"spec\": {\"rules\": [], \"rules\": [{}]}}";
    assert_eq!(fault(json).1, object());
    // The name is not sure, but the namespace is.
    let (_, subject, hides) = fault(&policy("{name: p, name: q, namespace: shop}", "{}"));
    assert_eq!((subject, hides), (Subject::Kind("AuthorizationPolicy"), policies_in("shop")));
    // The namespace is not sure.
    for metadata in ["{name: p, namespace: shop, namespace: prod}", "{name: p, namespace: shop}\nmetadata: {name: p}"] {
        let (_, _, hides) = fault(&policy(metadata, "{}"));
        assert_eq!(hides, Hides { addresses: AddressesIn::Nowhere, policies: PoliciesIn::Anywhere }, "{metadata}");
    }
    // An object before it without a marker between them.
    let before = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n";
    let (_, subject, hides) = fault(&format!("{before}{}", policy("{name: p, namespace: shop}", "{}")));
    assert_eq!((subject, hides.policies), (Subject::Unknown, policies_in("shop").policies));
}

#[test]
fn what_a_key_hides_is_not_overlooked() {
    let pod = |more: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: demo}}\n{more}\n");
    let by_words = Hides { addresses: AddressesIn::Anywhere, policies: PoliciesIn::nowhere() };
    for more in [
        "spec: {nodeName: a}\nspec: {nodeName: b}",
        "spec: {<<: 7, nodeName: b}",
        "status: {podIP: 10.0.0.1, podIP: 10.0.0.2}",
        "metadata: {name: q, namespace: demo}",
        "kind: Pod",
    ] {
        let (_, subject, hides) = fault(&pod(more));
        assert!(matches!(subject, Subject::Object("Pod", _) | Subject::Kind("Pod")), "{more}: {subject:?}");
        assert_eq!(hides, by_words, "{more}");
    }
    // The items of a list are there twice, and a value with such a key is repeated by an alias.
    for text in [
        "apiVersion: v1\nkind: List\nitems: []\nitems: []\n".to_owned(),
        pod("x: &x {a: 1, a: 2}\nspec: *x"),
        "<<: 7\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n".to_owned(),
    ] {
        assert_eq!((fault(&text).1, fault(&text).2), (Subject::Unknown, by_words.clone()), "{text}");
    }
}
