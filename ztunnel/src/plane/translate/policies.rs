//! Policies as resources, and policies that are made from other objects.

use std::sync::Arc;

use super::encode;
use crate::{
    istio::{read::attached, write},
    model::{
        origin::Origin,
        policy::{Action, AuthorizationPolicy, Clause, Match, Part, Rule, Scope, UnreadPolicies},
        workload::NamespacedName,
    },
    plane::catalogue::{Change, Kind},
};

/// The namespace of policies that are made for the whole mesh.
pub(super) const ROOT: &str = "istio-system";
/// The policy that stands for policies that could never be read. Kubernetes does not allow this name.
const UNREAD: &str = "ztunnel_unread_policies";

/// The name of a policy's resource.
pub(super) fn name(policy: &NamespacedName) -> Arc<str> {
    policy.to_string().into()
}

/// Whether a policy has an effect. Only such a policy has a message.
pub(super) const fn decides(policy: &AuthorizationPolicy) -> bool {
    !matches!(policy.action, Action::Audit)
}

/// The change of a policy; `None`: the policy does not exist. A policy that names services has no message of its own:
/// workloads get their own forms of it.
pub(super) fn change(name: &NamespacedName, policy: Option<&AuthorizationPolicy>) -> Change {
    let policy = policy.filter(|policy| !matches!(policy.scope, Scope::Services(_)));
    let message = policy.and_then(write::policy);
    let resource = message.map(|message| encode::resource(message, Vec::new(), Vec::new()));
    Change { kind: Kind::Authorization, name: self::name(name), resource }
}

/// Policies that deny all connections where policies may apply that could never be read.
pub(super) fn unread(before: &UnreadPolicies, after: &UnreadPolicies) -> Vec<Change> {
    if before == after {
        return Vec::new();
    }
    let mut changes = Vec::new();
    let mut add = |namespace: &str, scope: Scope, is_there: bool| {
        let name = NamespacedName::new(namespace, UNREAD);
        let policy = made(name.clone(), Action::Deny, vec![Rule::default()]);
        changes.push(change(&name, is_there.then_some(&AuthorizationPolicy { scope, ..policy })));
    };
    add(ROOT, Scope::Mesh, after.anywhere.is_some());
    for namespace in before.namespaces.keys().chain(after.namespaces.keys()) {
        // The policy of the whole mesh has the same name as the one of the root namespace, and applies there, too.
        if after.anywhere.is_none() || **namespace != *ROOT {
            let is_there = after.namespaces.contains_key(namespace);
            add(namespace, Scope::Namespace(Arc::clone(namespace)), is_there);
        }
    }
    changes
}

/// A policy that applies to the workloads that name it.
pub(super) fn made(name: NamespacedName, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let resource = self::name(&name);
    let scope = attached(Arc::clone(&resource), Arc::from(""));
    AuthorizationPolicy { name, origin: Origin::Resource { name: resource }, scope, action, dry_run: false, rules }
}

/// A clause with one match.
pub(super) fn clause(part: Part, wanted: Match) -> Clause {
    Clause { part, matches: vec![wanted] }
}
