//! Where the policies of a text may be that makes no sense.

use crate::control::manifests::{PoliciesIn, policies_in};

fn check(text: &str, expected: &str) {
    let shown = match policies_in(text) {
        PoliciesIn::Anywhere => "anywhere".to_owned(),
        PoliciesIn::Namespaces(namespaces) => namespaces.into_iter().collect::<Vec<_>>().join(" "),
    };
    assert_eq!(shown, expected, "{text}");
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
    // No workload can be there: whoever wrote it meant something else.
    check(&object("AuthorizationPolicy", "A"), "anywhere");
}

#[test]
fn words_tell_where_headers_cannot_be_read() {
    for (broken, rest) in
        [("kind: [", ""), ("kind: Pod", ""), ("kind: List\napiVersion: v1\nitems: [{}]", ""), ("a: b\n---\n- ", "")]
    {
        check(&format!("{broken}\n{rest}"), "");
        for word in ["AuthorizationPolicy", "PeerAuthentication", "rootNamespace"] {
            check(&format!("# {word}\n{broken}\n"), "anywhere");
        }
    }
    // Words may be spelt otherwise.
    for spelt in [
        "kind: \"Authorization\\x50olicy\"",
        "{\"kind\": \"\\u0041uthorizationPolicy\"}",
        "kind: \"Authori\\\n  zationPolicy\"",
    ] {
        check(&format!("{spelt}\n---\nkind: ["), "anywhere");
    }
    check("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nitems: []\n", "anywhere");
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
