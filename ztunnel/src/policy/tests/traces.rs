//! The trace of every policy that was considered.

use super::fixture::{connection, snapshot, web};
use crate::policy::trace;

fn traced(mesh: &str, text: &str, expected: &str) {
    let snapshot = snapshot(mesh);
    let mut lines = Vec::new();
    for one in trace(&snapshot, &web(), &connection(text)) {
        let matched = one.matched.map_or_else(String::new, |rule| format!(", rules[{rule}] matches"));
        lines.push(format!("{}: {}{matched}", one.policy.name, one.applies));
        for rule in one.rules {
            let sign = if rule.matched { '+' } else { '-' };
            lines.push(format!("  {sign} {}{}", rule.why.join(" & "), rule.unjudged.join("")));
        }
    }
    let expected: Vec<&str> = expected.lines().map(|line| line.strip_prefix("        ").unwrap_or(line)).collect();
    assert_eq!(lines, expected, "\n{mesh}");
}

#[test]
fn every_clause_says_why() {
    let mesh = "ALLOW demo/a: from namespaces=prod | principals=x, ipBlocks=10.0.0.0/8 & to ports=80 || *
        DENY demo/b: from notIpBlocks=10.0.1.0/24 || to notPorts=80 || from - & !to[0].operation.hosts
        DENY prod/c: *";
    traced(mesh, "cluster.local/ns/demo/sa/client 10.0.1.1 80", "demo/a: applies, rules[1] matches
          - from[0].source.namespaces does not list demo; from[1].source.principals does not list cluster.local/ns/demo/sa/client & to[0].operation.ports 80
          + every connection
        demo/b: applies
          - from[0].source.notIpBlocks 10.0.1.0/24 matches 10.0.1.1
          - to[0].operation.notPorts lists 80
          - from[0].source is empty, which matches nothingto[0].operation.hosts");
}

#[test]
fn every_policy_says_why_it_does_not_apply() {
    let mesh = "DENY demo/a @app=api: *
        DENY demo/b @service/web: *
        DENY demo/c @service/api: *
        DENY istio-system/d @tier=back: *
        DENY prod/e @app=api: *
        SERVICE demo/web 80:8080 selector:app=web
        SERVICE demo/api 80:8080 selector:app=api";
    traced(
        mesh,
        "- 10.0.1.1 80",
        "demo/a: does not apply: the pod has no label app=api
          + every connection
        demo/b: does not apply: Service demo/web does not lead to port 80 of the pod
          + every connection
        demo/c: does not apply: the pod is not an endpoint of Service demo/api
          + every connection
        istio-system/d: does not apply: the pod has no label tier=back
          + every connection",
    );
}

#[test]
fn an_allow_rule_with_what_cant_be_judged_does_not_match() {
    traced(
        "ALLOW demo/a: to ports=80 & !to[0].operation.methods",
        "- 10.0.1.1 80",
        "demo/a: applies
          - to[0].operation.ports 80to[0].operation.methods",
    );
}
