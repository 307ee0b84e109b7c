//! The evaluation of policies for a connection, from [`policy`](crate::policy), in the form of an explanation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::explanation::{Authentication, Policy, Rule};
use super::sources::Sources;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, PolicySet, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::policy::{self, Applies, Connection, RuleTrace};
use crate::store::snapshot::Snapshot;

/// All policies that were considered for a workload.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) authentication: Authentication,
    pub(super) considered: Vec<Considered>,
    /// The number of policies of other namespaces.
    pub(super) elsewhere: usize,
}

/// A policy and its evaluation.
#[derive(Debug)]
pub(super) struct Considered {
    pub(super) policy: Arc<AuthorizationPolicy>,
    /// Whether it is sure that it protects this port, or that it does not.
    pub(super) is_sure: bool,
    /// The first rule that matches.
    pub(super) matched: Option<usize>,
    pub(super) told: Policy,
}

impl Considered {
    /// Whether it applies and is enforced.
    pub(super) fn counts(&self) -> bool {
        self.told.applies && !self.policy.dry_run && self.policy.action != Action::Audit
    }

    /// Whether it is an enforced ALLOW policy that applies.
    pub(super) fn allows(&self) -> bool {
        self.counts() && self.policy.action == Action::Allow
    }

    /// Whether it is enforced, applies, and denies the connection.
    pub(super) fn denies(&self) -> bool {
        self.counts() && self.policy.action != Action::Allow && self.matched.is_some()
    }

    /// The name and origin of the policy, for people.
    pub(super) fn title(&self) -> String {
        format!("AuthorizationPolicy {} ({})", self.policy.name, self.policy.origin)
    }
}

/// Evaluates all policies that may protect a workload from a connection.
pub(super) fn look(sources: Sources<'_>, workload: &Workload, connection: &Connection) -> Sight {
    let Sources { snapshot, .. } = sources;
    let mut would = BTreeMap::new();
    sources.guard(workload).unenforced(connection, |found| {
        would.insert(found.policy.clone(), found.rule);
    });
    let traced = policy::trace(snapshot, workload, connection);
    let elsewhere = snapshot.policies().authorization().len().saturating_sub(traced.len());
    let considered = traced.into_iter().map(|one| considered(one, &would)).collect();
    Sight { authentication: authentication(snapshot, workload, connection), considered, elsewhere }
}

fn authentication(snapshot: &Snapshot, workload: &Workload, connection: &Connection) -> Authentication {
    let found = policy::authentication(snapshot, workload, connection.destination.port());
    let identity = connection.source.as_ref().map(|source| source.identity().to_string());
    Authentication {
        refuses: found.mode == crate::model::policy::MtlsMode::Strict && identity.is_none(),
        mode: found.mode.name().to_owned(),
        policy: found.from.map(|name| name.to_string()),
        port: found.port,
        identity,
        considered: found
            .considered
            .into_iter()
            .map(|one| format!("{} ({}, {}): {}", one.policy.name, one.level, one.policy.origin, one.counts))
            .collect(),
    }
}

fn considered(one: policy::Considered, would: &BTreeMap<NamespacedName, Option<usize>>) -> Considered {
    let policy::Considered { policy, applies, is_sure, matched, rules } = one;
    let does = applies == Applies::Yes;
    let effect = if does { effect(&policy, matched, would.get(&policy.name)) } else { "none".to_owned() };
    let told = Policy {
        name: policy.name.to_string(),
        place: policy.origin.to_string(),
        action: policy.action.name().to_owned(),
        dry_run: policy.dry_run,
        applies: does,
        scope: if does { scope(&policy) } else { applies.to_string() },
        matched: matched.is_some(),
        effect,
        rules: if does { rules.into_iter().map(|trace| rule(&policy, trace)).collect() } else { Vec::new() },
    };
    Considered { policy, is_sure, matched, told }
}

/// The effect of a policy that applies. `would`: its match in `PodPolicies::beside`, if any.
fn effect(policy: &AuthorizationPolicy, matched: Option<usize>, would: Option<&Option<usize>>) -> String {
    let by = |what: &str, rule: usize| format!("{what} (rules[{rule}])");
    match (policy.action, policy.dry_run, matched) {
        (Action::Audit, _, Some(rule)) => by("matches, and is only reported in log and metrics", rule),
        (Action::Allow, false, Some(rule)) => by("ALLOWS", rule),
        (Action::Deny, false, Some(rule)) => by("DENIES", rule),
        (Action::Custom, false, Some(rule)) => by("DENIES, since no authorizer can be asked at layer 4", rule),
        (Action::Allow, true, Some(rule)) => by("would allow it", rule),
        (Action::Deny | Action::Custom, true, Some(rule)) => by("would deny it", rule),
        (Action::Allow, true, None) if would.is_some() => "would deny it, since no ALLOW policy matches".to_owned(),
        (Action::Allow, false, None) if policy.rules.is_empty() => {
            "has no rules, so it allows no connection".to_owned()
        }
        (_, _, None) if policy.rules.is_empty() => "has no rules, so it never matches".to_owned(),
        (_, _, None) => "does not match".to_owned(),
    }
}

fn scope(policy: &AuthorizationPolicy) -> String {
    match &policy.scope {
        Scope::Mesh => "every pod of the mesh".to_owned(),
        Scope::Namespace(namespace) => format!("every pod of namespace {namespace}"),
        // A control plane has compared the labels, and sends the names of the workloads instead.
        Scope::Selector { .. } if matches!(policy.origin, Origin::Resource { .. }) => {
            "pods to which the control plane attaches it".to_owned()
        }
        Scope::Selector { namespace, labels } => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let of = namespace.as_ref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
            format!("pods{of} with {}", labels.join(", "))
        }
        Scope::Services(services) => {
            let names: Vec<String> = services.iter().map(|name| format!("Service {name}")).collect();
            format!("pods behind {}", names.join(", "))
        }
    }
}

fn rule(policy: &AuthorizationPolicy, trace: RuleTrace) -> Rule {
    let RuleTrace { index, matched, mut why, unjudged } = trace;
    if !unjudged.is_empty() {
        let fields = unjudged.join(", ");
        why.push(match policy.action {
            Action::Allow => format!("{fields} cannot be evaluated at layer 4, so this ALLOW rule never matches"),
            _ => format!("{fields} cannot be evaluated at layer 4, and has no effect"),
        });
    }
    Rule { index, matched, detail: why.join("; ") }
}

impl Sight {
    /// Why a connection that no policy denies is allowed.
    pub(super) fn what_allows(&self) -> String {
        let mut allows = self.considered.iter().filter(|one| one.allows()).peekable();
        if allows.peek().is_none() {
            return "no DENY policy matches, and no ALLOW policy applies: every other connection is allowed".to_owned();
        }
        match allows.find_map(|one| Some((one, one.matched?))) {
            Some((one, rule)) => format!("AuthorizationPolicy {} (ALLOW), rules[{rule}] allows it", one.policy.name),
            None => "policy allows it".to_owned(),
        }
    }
}

/// Whether a policy that is not in the mesh would match a connection. It is evaluated as if it protected the whole mesh.
pub(super) fn would_match(policy: AuthorizationPolicy, workload: &Workload, connection: &Connection) -> bool {
    let policies =
        PolicySet { authorization: vec![AuthorizationPolicy { scope: Scope::Mesh, ..policy }], ..PolicySet::default() };
    let mesh = Snapshot::build(1, vec![workload.clone()], Vec::new(), Vec::new()).with_policies(policies);
    policy::trace(&mesh, workload, connection).iter().any(|one| one.matched.is_some())
}
