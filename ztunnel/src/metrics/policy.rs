//! What policies decided, by policy.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::{
    model::{policy::Action, workload::NamespacedName},
    policy::{Beside, Cause, Denial},
    store::snapshot::Snapshot,
};

const AUTHORIZATION: &str = "AuthorizationPolicy";
const AUTHENTICATION: &str = "PeerAuthentication";
/// No single policy decided: there are ALLOW policies, and none matched.
const NONE: &str = "none";
/// What may hold policies could never be read.
const UNREAD: &str = "unread";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    /// That of the policy, or of the destination where no single one decided.
    namespace: Arc<str>,
    policy: Arc<str>,
    decision: &'static str,
}

/// Counts decisions; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    family: Family<Labels, Counter>,
    /// The label sets that are in the family.
    known: Arc<Mutex<HashSet<Labels>>>,
    probes: Counter,
}

impl Decisions {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let decisions = Self::default();
        registry.register(
            "ztunnel_policy_decisions",
            "Connections that policy denied or cut, and decisions of policies in dry-run and of AUDIT policies",
            decisions.family.clone(),
        );
        registry.register(
            "ztunnel_probe_connections",
            "Probes of the kubelet that were let through and that policy would have denied",
            decisions.probes.clone(),
        );
        decisions
    }

    /// A new connection to a pod of this namespace was refused.
    pub fn denied(&self, denial: &Denial, namespace: &Arc<str>) {
        self.count(because(denial, namespace, "denied"));
    }

    /// A live one was cut.
    pub fn cut(&self, denial: &Denial, namespace: &Arc<str>) {
        self.count(because(denial, namespace, "cut"));
    }

    /// A policy without effect had something to say.
    pub fn beside(&self, found: &Beside<'_>) {
        self.count(labels(AUTHORIZATION, found.policy, would(found)));
    }

    /// A kubelet was let in.
    pub fn probe(&self) {
        self.probes.inc();
    }

    /// Forgets policies that are no longer there.
    pub fn retain(&self, snapshot: &Snapshot) {
        let policies = snapshot.policies();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels| {
            let name = NamespacedName::new(Arc::clone(&labels.namespace), Arc::clone(&labels.policy));
            let stays = match labels.kind {
                AUTHORIZATION => policies.authorization_named(&name).is_some(),
                AUTHENTICATION => policies.authentication_named(&name).is_some(),
                _ => true,
            };
            if !stays {
                self.family.remove(labels);
            }
            stays
        });
    }

    fn count(&self, labels: Labels) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.family.get_or_create(&labels).inc();
        known.insert(labels);
    }
}

/// What a policy without effect did, or would have done: the value of the label `decision`.
#[must_use]
pub const fn would(found: &Beside<'_>) -> &'static str {
    match (found.action, found.rule) {
        (Action::Audit, _) => "audit",
        (Action::Allow, Some(_)) => "dry_run_allow",
        (Action::Allow, None) => "dry_run_no_allow",
        (Action::Deny | Action::Custom, _) => "dry_run_deny",
    }
}

fn because(denial: &Denial, namespace: &Arc<str>, decision: &'static str) -> Labels {
    let (kind, policy) = match &denial.cause {
        Cause::Matched { policy, .. } => (AUTHORIZATION, Some(policy)),
        Cause::Strict { policy, .. } => (AUTHENTICATION, Some(policy)),
        Cause::NotAllowed { .. } => (NONE, None),
        Cause::Unread { .. } => (UNREAD, None),
    };
    match policy {
        Some(policy) => labels(kind, policy, decision),
        None => Labels { kind, namespace: Arc::clone(namespace), policy: "".into(), decision },
    }
}

fn labels(kind: &'static str, policy: &NamespacedName, decision: &'static str) -> Labels {
    Labels { kind, namespace: Arc::clone(&policy.namespace), policy: Arc::clone(&policy.name), decision }
}

#[cfg(test)]
mod tests {
    use super::{Decisions, Registry};
    use crate::{
        model::{
            origin::Origin,
            policy::{Action, AuthorizationPolicy, PolicySet, Scope},
            workload::NamespacedName,
        },
        policy::{Beside, Cause, Denial},
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
        decisions.beside(&Beside { policy: &of_b, action: Action::Allow, dry_run: true, rule: None });
        let line = |kind: &str, namespace: &str, policy: &str, decision: &str| {
            format!(
                "ztunnel_policy_decisions_total{{kind=\"{kind}\",namespace=\"{namespace}\",policy=\"{policy}\",decision=\"{decision}\"}} 1"
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
}
