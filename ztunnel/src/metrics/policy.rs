//! The decisions of policies, by policy.

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
    model::{
        policy::{Action, AuthorizationPolicy},
        workload::NamespacedName,
    },
    policy::{Cause, Denial, PodPolicies, UnenforcedMatch},
    store::snapshot::Snapshot,
};

const AUTHORIZATION: &str = "AuthorizationPolicy";
const AUTHENTICATION: &str = "PeerAuthentication";
/// No single policy decided: ALLOW policies apply, and none matched.
const NONE: &str = "none";
/// A source that may contain policies could never be read.
const UNREAD: &str = "unread";

const DENIED: &str = "denied";
const CUT: &str = "cut";

/// The maximum number of series that are made before their first event. A mesh may have more policies than a scrape should
/// carry.
const MOST_EXPECTED: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    /// The namespace of the policy, or of the destination if no single policy decided. The label is not called `namespace`,
    /// because Prometheus sets that label to the daemon's own namespace.
    policy_namespace: Arc<str>,
    policy: Arc<str>,
    decision: &'static str,
}

/// Counts decisions; clones share the counts.
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

    /// A new connection to a pod of this namespace was denied.
    pub fn denied(&self, denial: &Denial, namespace: &Arc<str>) {
        self.count(because(denial, namespace, DENIED));
    }

    /// A live connection was reset.
    pub fn cut(&self, denial: &Denial, namespace: &Arc<str>) {
        self.count(because(denial, namespace, CUT));
    }

    /// A policy that is not enforced (dry-run or AUDIT) matched.
    pub fn unenforced(&self, found: &UnenforcedMatch<'_>) {
        self.count(labels(AUTHORIZATION, found.policy, would(found)));
    }

    /// A probe of the kubelet was allowed.
    pub fn probe(&self) {
        self.probes.inc();
    }

    /// Creates series at 0 for the policies that apply to pods of this node. Each element of `guards` is the namespace of a pod
    /// and its policies. Without a series at 0, Prometheus would not see the first denial as an increase.
    pub fn expect<'a>(&self, guards: impl IntoIterator<Item = (&'a Arc<str>, &'a PodPolicies)>) {
        let mut groups = HashSet::new();
        for (namespace, guard) in guards {
            for policy in guard.mode().strict() {
                self.begin([DENIED, CUT].map(|decision| labels(AUTHENTICATION, policy, decision)));
            }
            if guard.is_unread() {
                self.begin([DENIED, CUT].map(|decision| without_policy(UNREAD, namespace, decision)));
            }
            for group in guard.groups_at_any_port() {
                if !group.allowing().is_empty() {
                    self.begin([DENIED, CUT].map(|decision| without_policy(NONE, namespace, decision)));
                }
                // The pods of a namespace share most of their groups.
                if groups.insert(Arc::as_ptr(group)) {
                    group.policies().iter().for_each(|policy| self.begin(possible(policy)));
                }
            }
        }
    }

    fn begin(&self, all: impl IntoIterator<Item = Labels>) {
        for labels in all {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() < MOST_EXPECTED && !known.contains(&labels) {
                drop(self.family.get_or_create(&labels));
                known.insert(labels);
            }
        }
    }

    /// Removes the series of policies that do not exist any more.
    pub fn retain(&self, snapshot: &Snapshot) {
        let policies = snapshot.policies();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels| {
            let name = NamespacedName::new(Arc::clone(&labels.policy_namespace), Arc::clone(&labels.policy));
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

/// The effect that a policy without enforcement had, or would have had: the value of the label `decision`.
#[must_use]
pub const fn would(found: &UnenforcedMatch<'_>) -> &'static str {
    would_at(found.action, found.rule.is_some())
}

const fn would_at(action: Action, has_rule: bool) -> &'static str {
    match (action, has_rule) {
        (Action::Audit, _) => "audit",
        (Action::Allow, true) => "dry_run_allow",
        (Action::Allow, false) => "dry_run_no_allow",
        (Action::Deny | Action::Custom, _) => "dry_run_deny",
    }
}

/// The series that a policy can have. An enforced ALLOW policy has none: if none matches, no single policy has decided.
fn possible(policy: &AuthorizationPolicy) -> Vec<Labels> {
    let decisions: &[&'static str] = match (policy.action, policy.dry_run) {
        (Action::Deny | Action::Custom, false) => &[DENIED, CUT],
        (Action::Allow, false) => &[],
        (Action::Allow, true) => &[would_at(Action::Allow, true), would_at(Action::Allow, false)],
        (Action::Audit, _) => &[would_at(Action::Audit, true)],
        (Action::Deny | Action::Custom, true) => &[would_at(Action::Deny, true)],
    };
    decisions.iter().map(|decision| labels(AUTHORIZATION, &policy.name, decision)).collect()
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
        None => without_policy(kind, namespace, decision),
    }
}

fn labels(kind: &'static str, policy: &NamespacedName, decision: &'static str) -> Labels {
    Labels { kind, policy_namespace: Arc::clone(&policy.namespace), policy: Arc::clone(&policy.name), decision }
}

fn without_policy(kind: &'static str, namespace: &Arc<str>, decision: &'static str) -> Labels {
    Labels { kind, policy_namespace: Arc::clone(namespace), policy: "".into(), decision }
}

#[cfg(test)]
mod tests;
