//! The series of policies, and their counts.

use super::{Decisions, Registry};
use crate::{
    model::{
        origin::Origin,
        policy::{Action, AuthorizationPolicy, PolicySet, Scope},
        workload::NamespacedName,
    },
    policy::{Cause, Denial, UnenforcedMatch},
    store::snapshot::Snapshot,
};

fn mesh(policies: &[&str]) -> Snapshot {
    let policy = |name: &&str| AuthorizationPolicy {
        name: NamespacedName::new("demo", *name),
        origin: Origin::line_of("p.yaml", 1),
        scope: Scope::Namespace("demo".into()),
        action: Action::Deny,
        dry_run: false,
        rules: vec![],
    };
    let authorization = policies.iter().map(policy).collect();
    let policies = PolicySet { authorization, ..PolicySet::default() };
    Snapshot::build(1, vec![], vec![], vec![]).with_policies(policies)
}

fn shown(registry: &Registry) -> Vec<String> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let mut lines: Vec<_> =
        text.lines().filter(|line| line.starts_with("ztunnel_policy")).map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn decisions_count_by_policy_for_as_long_as_there_is_the_policy() {
    let mut registry = Registry::default();
    let decisions = Decisions::register(&mut registry);
    let matched = |name: &str| Denial {
        cause: Cause::Matched {
            policy: NamespacedName::new("demo", name),
            action: Action::Deny,
            rule: 0,
            clauses: String::new(),
        },
        at_probe: false,
    };
    let unmatched = Denial { cause: Cause::NotAllowed { policies: vec![], more: 0 }, at_probe: false };
    decisions.denied(&matched("a"), &"demo".into());
    decisions.denied(&matched("b"), &"demo".into());
    decisions.cut(&unmatched, &"other".into());
    let of_b = NamespacedName::new("demo", "b");
    decisions.unenforced(&UnenforcedMatch { policy: &of_b, action: Action::Allow, dry_run: true, rule: None });
    let line = |kind: &str, namespace: &str, policy: &str, decision: &str| {
        format!(
            "ztunnel_policy_decisions_total{{kind=\"{kind}\",policy_namespace=\"{namespace}\",policy=\"{policy}\",decision=\"{decision}\"}} 1"
        )
    };
    let all = [
        line("AuthorizationPolicy", "demo", "a", "denied"),
        line("AuthorizationPolicy", "demo", "b", "denied"),
        line("AuthorizationPolicy", "demo", "b", "dry_run_no_allow"),
        line("none", "other", "", "cut"),
    ];
    assert_eq!(shown(&registry), all);
    decisions.retain(&mesh(&["a", "b"]));
    assert_eq!(shown(&registry), all);
    decisions.retain(&mesh(&["b"]));
    assert_eq!(shown(&registry), all[1..]);
    decisions.retain(&mesh(&[]));
    assert_eq!(shown(&registry), all[3..]);
}
