//! The policies that an object may be if it can't be read.

use std::collections::BTreeSet;

use crate::control::manifests::{PoliciesIn, read};

fn check(text: &str, expected: &str) {
    let mut namespaces = BTreeSet::new();
    for fault in read(&"f.yaml".into(), text).faults {
        match fault.hides.policies {
            PoliciesIn::Anywhere => drop(namespaces.insert("anywhere".into())),
            PoliciesIn::Namespaces(found) => namespaces.extend(found),
        }
    }
    assert_eq!(namespaces.into_iter().collect::<Vec<_>>().join(" "), expected, "{text}");
}

#[test]
fn headers_tell_the_namespaces() {
    let object = |kind: &str, namespace: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{namespace: {namespace}}}, spec: {{brokn: 1}}}}\n"
        )
    };
    let authorization = object("AuthorizationPolicy", "a");
    let authentication = object("PeerAuthentication", "b");
    check("", "");
    check(&authorization, "a");
    check(&authentication, "b");
    check(&format!("{authorization}---\n{authentication}---\n{authorization}"), "a b");
    check(&object("AuthorizationPolicy", "''"), "default");
    check(&object("AuthorizationPolicy", "null"), "default");
    check("apiVersion: security.istio.io/v9\nkind: PeerAuthentication\n", "default");
    check(&object("RequestAuthentication", "a"), "");
    check("apiVersion: v1\nkind: Pod\nmetadata: {name: AuthorizationPolicy}\nspec: 7\n", "");
    check(&format!("kind: List\napiVersion: v1\nitems:\n- {authorization}- {authentication}"), "a b");
    // There can be no workload in such a namespace: the author must have meant another one.
    check(&object("AuthorizationPolicy", "A"), "anywhere");
}

#[test]
fn words_tell_where_headers_cannot_be_read() {
    for broken in ["kind: [", "kind: List\napiVersion: v1\nitems: [{}]", "- [", "apiVersion: v1\nmetadata: {name: p}"] {
        check(broken, "");
        for word in ["AuthorizationPolicy", "PeerAuthentication", "rootNamespace"] {
            check(&format!("# {word}\n{broken}\n"), "anywhere");
            // A word in another document does not count.
            check(&format!("# {word}\na: b\n---\n{broken}\n"), "");
        }
    }
    // Words may be spelled with escapes.
    for spelt in ["\"Authorization\\x50olicy\"", "\"\\u0041uthorizationPolicy\"", "\"Authori\\\n  zationPolicy\""] {
        check(&format!("kind: {spelt}\nspec: ["), "anywhere");
        check(&format!("kind: {spelt}\n"), "default");
    }
    check("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: []\n", "");
    check(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: [{metadata: {namespace: a}, spec: 7}]\n",
        "a",
    );
    check("apiVersion: security.istio.io/v1\nkind: Policy\nmetadata: {namespace: a}\n", "a");
}

#[test]
fn settings_that_name_the_root_namespace_may_make_a_policy_everyones() {
    let settings = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{text}'}}\n"
        )
    };
    check(&settings("{rootNamespace: A}"), "anywhere");
    check(&settings("{trustDomain: A}"), "");
}
