//! Policies as resources, and policies that are made of something else.

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
/// The policy that stands for those that could never be read. Kubernetes has no such names.
const UNREAD: &str = "ztunnel_unread_policies";

/// The name of a policy's resource.
pub(super) fn name(policy: &NamespacedName) -> Arc<str> {
    policy.to_string().into()
}

/// Whether a policy decides anything, so that there is a message of it.
pub(super) const fn decides(policy: &AuthorizationPolicy) -> bool {
    !matches!(policy.action, Action::Audit)
}

/// That a policy is so, or is not there. Of one that names services workloads get their own forms.
pub(super) fn change(name: &NamespacedName, policy: Option<&AuthorizationPolicy>) -> Change {
    let policy = policy.filter(|policy| !matches!(policy.scope, Scope::Services(_)));
    let message = policy.and_then(write::policy);
    let resource = message.map(|message| encode::resource(message, Vec::new(), Vec::new()));
    Change { kind: Kind::Authorization, name: self::name(name), resource }
}

/// Policies that keep everyone out where there may be some that could never be read.
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
        // The mesh's has the same name as the root namespace's, and counts there, too.
        if after.anywhere.is_none() || **namespace != *ROOT {
            let is_there = after.namespaces.contains_key(namespace);
            add(namespace, Scope::Namespace(Arc::clone(namespace)), is_there);
        }
    }
    changes
}

/// A policy for workloads that name it.
pub(super) fn made(name: NamespacedName, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let resource = self::name(&name);
    let scope = attached(Arc::clone(&resource), Arc::from(""));
    AuthorizationPolicy { name, origin: Origin::Resource { name: resource }, scope, action, dry_run: false, rules }
}

/// A clause with one match.
pub(super) fn clause(part: Part, wanted: Match) -> Clause {
    Clause { part, matches: vec![wanted] }
}
