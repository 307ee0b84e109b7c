//! Rules with identities, for pods that accept plaintext: a plaintext client has no identity.

use std::collections::HashMap;
use std::sync::Arc;

use super::code::Code;
use super::covers::identity_of;
use super::finding::{Report, Severity};
use super::index::Mesh;
use super::path::{Field, PathEntry, entries_of};
use super::pod::Pod;
use crate::model::labels::Labels;
use crate::model::policy::{Action, AuthorizationPolicy, Match, Rule, Scope, StringMatch};
use crate::model::workload::NamespacedName;
use crate::store::policies::Group;

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut open = Open { mesh, by_scope: HashMap::new(), by_group: HashMap::new() };
    for policy in mesh.snapshot.policies().authorization() {
        if policy.dry_run || !matches!(policy.action, Action::Allow | Action::Deny) {
            continue;
        }
        let found = policy.rules.iter().enumerate().find_map(|(index, rule)| match policy.action {
            Action::Deny => named(index, rule),
            _ => excluded_only(index, rule),
        });
        let Some((entry, field, negative)) = found else { continue };
        let Some(pod) = open.first(policy) else { continue };
        let (place, pod) = (entry.field(field, negative), &pod.name);
        match policy.action {
            Action::Deny => deny(mesh, policy, &place, pod, report),
            _ => allow(policy, &place, pod, report),
        }
    }
}

fn deny(mesh: &Mesh<'_>, policy: &AuthorizationPolicy, place: &str, pod: &NamespacedName, report: &mut Report<'_>) {
    let are_inside = all_inside(mesh, policy);
    let severity = if are_inside { Severity::Info } else { Code::DenyMissesPlaintext.severity() };
    let message = format!(
        "{place}: a client without identity never matches, and pods that the policy selects accept plaintext (PERMISSIVE), such as \
         {pod}: clients outside of the mesh are not denied"
    );
    let remedy = "set mTLS mode STRICT for these pods (PeerAuthentication), or add a DENY rule with from: [{source: \
                  {notPrincipals: [\"*\"]}}]";
    report.add_as(severity, Code::DenyMissesPlaintext, policy, message, remedy);
}

fn allow(policy: &AuthorizationPolicy, place: &str, pod: &NamespacedName, report: &mut Report<'_>) {
    let message = format!(
        "{place}: the rule has only not… fields for clients, so it matches every client without identity, and pods \
         that the policy selects accept plaintext (PERMISSIVE), such as {pod}: clients outside of the mesh may connect"
    );
    let remedy =
        "set mTLS mode STRICT for these pods (PeerAuthentication), or add principals: [\"*\"] to the same source";
    report.add(Code::AllowAdmitsPlaintext, policy, message, remedy);
}

/// Whether all clients that a policy names by identity are pods of the mesh, as far as is known.
fn all_inside(mesh: &Mesh<'_>, policy: &AuthorizationPolicy) -> bool {
    let inside = |pods: &[Pod<'_>]| !pods.is_empty() && pods.iter().all(Pod::is_inside);
    let namespace = |name: &StringMatch| match name {
        StringMatch::Exact(name) => inside(mesh.in_namespace(name)),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => false,
    };
    let account = |name: &NamespacedName| inside(mesh.account(&name.namespace, &name.name));
    let principal = |name: &StringMatch| {
        let identity = identity_of(name);
        identity.is_some_and(|identity| inside(mesh.account(&identity.namespace, &identity.service_account)))
    };
    policy.rules.iter().flat_map(|rule| entries_of(0, rule)).all(|(_, found)| {
        // Workloads of a trust domain may be anywhere.
        let is_by_domain_only = matches!(Demand::of(found), Demand { required: Some(Field::TrustDomains), .. });
        !is_by_domain_only
            && found.namespaces.iter().all(namespace)
            && found.service_accounts.iter().all(account)
            && found.principals.iter().all(principal)
    })
}

/// The first field of a rule that requires a client with an identity.
fn named(index: usize, rule: &Rule) -> Option<(PathEntry, Field, bool)> {
    entries_of(index, rule).find_map(|(entry, found)| Some((entry, Demand::of(found).required?, false)))
}

/// The first field of a rule that excludes identities, if the rule has no other field about clients.
fn excluded_only(index: usize, rule: &Rule) -> Option<(PathEntry, Field, bool)> {
    if !rule.unjudged.is_empty() || !matches_plaintext(rule) {
        return None;
    }
    let demands = || entries_of(index, rule).map(|(entry, found)| (entry, Demand::of(found)));
    if demands().any(|(_, demand)| demand.required.is_some() || demand.by_address) {
        return None;
    }
    demands().find_map(|(entry, demand)| Some((entry, demand.excluded?, true)))
}

/// What a match demands of the client, as far as it concerns clients without identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Demand {
    /// The first field that a client without identity cannot match.
    required: Option<Field>,
    /// The first field that excludes identities: every client without identity matches it.
    excluded: Option<Field>,
    /// It compares the client's address.
    by_address: bool,
    /// It compares the address or the port of the workload.
    by_destination: bool,
}

impl Demand {
    fn of(found: &Match) -> Self {
        // Each field is named, so that a new field is not forgotten.
        let Match {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            trust_domains,
            not_trust_domains,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = found;
        // The namespace of a client without identity is empty.
        let is_of_namespace = !namespaces.is_empty() && !namespaces.iter().any(|name| name.matches(""));
        let required = [
            (Field::Principals, !principals.is_empty()),
            (Field::ServiceAccounts, !service_accounts.is_empty()),
            (Field::Namespaces, is_of_namespace),
            (Field::TrustDomains, !trust_domains.is_empty()),
        ];
        let excluded = [
            (Field::Principals, !not_principals.is_empty()),
            (Field::Namespaces, !not_namespaces.is_empty()),
            (Field::ServiceAccounts, !not_service_accounts.is_empty()),
            (Field::TrustDomains, !not_trust_domains.is_empty()),
        ];
        let first = |fields: [(Field, bool); 4]| fields.into_iter().find_map(|(field, is)| is.then_some(field));
        Self {
            required: first(required),
            excluded: first(excluded),
            by_address: !source_ips.is_empty() || !not_source_ips.is_empty(),
            by_destination: !destination_ips.is_empty()
                || !not_destination_ips.is_empty()
                || !destination_ports.is_empty()
                || !not_destination_ports.is_empty(),
        }
    }
}

/// Whether some client without identity may match, with addresses and ports ignored.
fn matches_plaintext(rule: &Rule) -> bool {
    rule.clauses.iter().all(|clause| {
        clause.matches.is_empty() || clause.matches.iter().any(|found| Demand::of(found).required.is_none())
    })
}

/// Whether every client without identity matches, at every port.
fn matches_all_plaintext(rule: &Rule) -> bool {
    let is_free = |found: &Match| {
        matches!(
            Demand::of(found),
            Demand { required: None, excluded: Some(_), by_address: false, by_destination: false }
        )
    };
    rule.unjudged.is_empty()
        && rule.clauses.iter().all(|clause| clause.matches.is_empty() || clause.matches.iter().any(is_free))
}

/// The effect of the policies of a scope on clients without identity.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// A DENY policy denies all of them.
    refused: bool,
    /// There is an ALLOW policy.
    allows: bool,
    /// An ALLOW policy allows such a client.
    admits: bool,
}

/// An action, and the namespace and the labels of a scope.
type Asked = (Action, Option<Arc<str>>, Option<Labels>);

/// Finds pods that accept clients without identity.
struct Open<'m, 'a> {
    mesh: &'m Mesh<'a>,
    /// The first such pod, by the scope and the action of a policy.
    by_scope: HashMap<Asked, Option<Pod<'a>>>,
    /// The effect of the policies of one scope, by their address in memory.
    by_group: HashMap<usize, Known>,
}

impl<'a> Open<'_, 'a> {
    /// The first pod of a policy that accepts clients without identity, as far as the other policies allow it.
    fn first(&mut self, policy: &AuthorizationPolicy) -> Option<Pod<'a>> {
        let key = match &policy.scope {
            Scope::Mesh => (policy.action, None, None),
            Scope::Namespace(namespace) => (policy.action, Some(Arc::clone(namespace)), None),
            Scope::Selector { namespace, labels } => (policy.action, namespace.clone(), Some(labels.clone())),
            Scope::Services(_) => return self.search(policy),
        };
        if let Some(known) = self.by_scope.get(&key) {
            return *known;
        }
        let found = self.search(policy);
        self.by_scope.insert(key, found);
        found
    }

    fn search(&mut self, policy: &AuthorizationPolicy) -> Option<Pod<'a>> {
        let mesh = self.mesh;
        let mut pods =
            mesh.protected(policy).filter(|pod| pod.is_inside() && !mesh.authentication.of(pod).mode.is_strict());
        pods.find(|pod| {
            let known = self.known(pod);
            // An ALLOW policy of this kind allows them by itself.
            !known.refused && (policy.action == Action::Allow || known.admits || !known.allows)
        })
    }

    fn known(&mut self, pod: &Pod<'_>) -> Known {
        let mut all = Known::default();
        for protection in self.mesh.snapshot.policies().protecting(pod.workload, self.mesh.snapshot) {
            let group = &protection.group;
            let of_group = self.by_group.entry(Arc::as_ptr(group).addr()).or_insert_with(|| known(group));
            all.refused |= of_group.refused;
            all.allows |= of_group.allows;
            all.admits |= of_group.admits;
        }
        all
    }
}

fn known(group: &Group) -> Known {
    let enforced = group.policies().iter().filter(|policy| !policy.dry_run);
    let rules = |action| {
        let of_action = enforced.clone().filter(move |policy| policy.action == action);
        of_action.flat_map(|policy| &policy.rules)
    };
    Known {
        refused: rules(Action::Deny).any(matches_all_plaintext),
        allows: !group.allowing().is_empty(),
        admits: rules(Action::Allow).any(|rule| rule.unjudged.is_empty() && matches_plaintext(rule)),
    }
}
