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
        &["error[manifest] AuthorizationPolicy demo/p: spec.targetRefs: Service demo/nowhere is in no file: ..."],
    );
}

#[test]
fn fields_that_can_t_be_judged_are_told_once() {
    let to = "to: [{operation: {methods: [GET], paths: [/x]}}]";
    let told = |consequence: &str| {
        format!(
            "warning[l7-without-waypoint] AuthorizationPolicy demo/p: rules[0].to[0].operation.methods, \
             rules[0].to[0].operation.paths can't be judged at this layer: {consequence} | take out what is not L4, or put \
             a waypoint in front that judges it"
        )
    };
    let table = [
        (format!("rules: [{{{to}}}]"), "none of its rules ever matches, and so it lets nobody in"),
        (
            format!("rules: [{{{to}}}, {{to: [{{operation: {{ports: ['8080']}}}}]}}]"),
            "a rule with such a field never matches",
        ),
        (format!("action: DENY, rules: [{{{to}}}]"), "the rule is enforced without the field, and so keeps out more"),
        (format!("action: AUDIT, rules: [{{{to}}}]"), "the rule is applied without the field, and so tells of more"),
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
        &[
            "warning[no-rules] AuthorizationPolicy demo/p: DENY without rules matches nothing, so it has no effect | write \
           `rules: [{}]` to match everything, or remove the policy",
        ],
    );
    check(
        &[policy("p", "action: CUSTOM, provider: {name: x}, rules: [{}]")],
        &[
            "error[custom-action] AuthorizationPolicy demo/p: spec.action CUSTOM needs an external authorizer, which can't \
           be asked at this layer: what its rules match is refused | write ALLOW or DENY rules instead",
        ],
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
        "error[unread-policies] it may hold policies, and can't be read: a daemon that starts with it refuses every \
         connection to pods of the mesh | repair the file",
        "error[manifest] is not YAML",
        "info[incomplete] a part of the mesh could not be read, so it was not checked whether names and selectors of \
         policies and services are right | repair what can't be read, and run this again",
    ];
    assert_eq!(shown(&analyze(&snapshot, &LocalPods::new(), &Declared::default())), expected);
}
