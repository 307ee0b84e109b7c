//! Problems from the reader of manifests.

use super::*;
use crate::model::local::LocalPods;
use crate::model::origin::Origin;
use crate::model::policy::{PolicySet, UnreadPolicies};
use crate::model::problem::{self, Problem};

#[test]
fn problems_are_findings() {
    check(
        &[pod("demo", "twin", "", "", 1)],
        &[
            "error[duplicate-address] Pod demo/web: 10.0.0.1 is also claimed by Pod demo/twin: ...",
            "error[duplicate-address] Pod demo/twin: 10.0.0.1 is also claimed by Pod demo/web: ...",
        ],
    );
    check(
        &[policy("p", "targetRefs: [{kind: Service, name: nowhere}]")],
        &["error[manifest] AuthorizationPolicy demo/p: spec.targetRefs: there is no Service demo/nowhere: ..."],
    );
}

#[test]
fn fields_that_can_t_be_judged_are_told_once() {
    let to = "to: [{operation: {methods: [GET], paths: [/x]}}]";
    let told = |consequence: &str| {
        format!(
            "warning[l7-without-waypoint] AuthorizationPolicy demo/p: rules[0].to[0].operation.methods, \
             rules[0].to[0].operation.paths cannot be evaluated at layer 4: {consequence} | remove these fields, or \
             have a waypoint enforce the policy"
        )
    };
    let table = [
        (format!("rules: [{{{to}}}]"), "none of its rules matches, so the policy allows no connection"),
        (
            format!("rules: [{{{to}}}, {{to: [{{operation: {{ports: ['8080']}}}}]}}]"),
            "a rule with such a field never matches",
        ),
        (
            format!("action: DENY, rules: [{{{to}}}]"),
            "the rule is enforced without the field, so it refuses more connections",
        ),
        (
            format!("action: AUDIT, rules: [{{{to}}}]"),
            "the rule is applied without the field, so it reports more connections",
        ),
    ];
    for (spec, consequence) in table {
        check(&[policy("p", &spec)], &[&told(consequence)]);
    }
    check(&[policy("p", "rules: [{to: [{operation: {ports: ['8080']}}]}]")], &[]);
}

#[test]
fn policies_without_effect() {
    check(
        &[policy("p", "action: DENY")],
        &["warning[no-rules] AuthorizationPolicy demo/p: DENY without rules matches no connection, so it has no \
             effect | write `rules: [{}]` to match every connection, or remove the policy"],
    );
    check(
        &[policy("p", "action: CUSTOM, provider: {name: x}, rules: [{}]")],
        &["error[custom-action] AuthorizationPolicy demo/p: spec.action CUSTOM needs an external authorizer, which \
             cannot be asked at layer 4: connections that match its rules are refused | write ALLOW or DENY rules \
             instead"],
    );
    check(&[policy("p", "")], &[]);
}

#[test]
fn what_could_not_be_read_makes_names_uncertain() {
    let unread = UnreadPolicies { anywhere: Some("broken.yaml".into()), ..UnreadPolicies::default() };
    let problem = Problem {
        origin: Origin::line_of("broken.yaml", 3),
        object: None,
        message: "is not YAML".to_owned(),
        severity: problem::Severity::Error,
    };
    let PolicySet { authorization, .. } = {
        let policies = snapshot(&policy("p", "selector: {matchLabels: {app: nowhere}}"));
        let authorization = policies.policies().authorization().iter().map(|policy| (**policy).clone()).collect();
        PolicySet { authorization, ..PolicySet::default() }
    };
    let set = PolicySet { authorization, unread, ..PolicySet::default() };
    let snapshot = Snapshot::build(1, Vec::new(), Vec::new(), vec![problem]).with_partial(true).with_policies(set);
    let expected = [
        "error[unread-policies] it may hold policies, and cannot be read: a daemon that starts with it refuses every \
         connection to pods of the mesh | repair the file",
        "error[manifest] is not YAML",
        "info[incomplete] a part of the mesh could not be read, so names and selectors of policies and services were \
         not checked | repair the files that cannot be read, and run the command again",
    ];
    assert_eq!(shown(&analyze(&snapshot, &LocalPods::new(), &Declared::default())), expected);
}
