//! A second implementation of policies: no index, no shared comparison, one policy after the other.

use crate::model::labels::Labels;
use crate::model::policy::{Action, AuthorizationPolicy, Match, MtlsMode, Rule, Scope, StringMatch};
use crate::model::service::TargetPort;
use crate::model::workload::Workload;
use crate::policy::Connection;
use crate::store::snapshot::Snapshot;

/// The verdict, as text.
pub(super) fn judge(snapshot: &Snapshot, workload: &Workload, connection: &Connection) -> String {
    let policies = snapshot.policies();
    let namespace = &workload.name.namespace;
    if policies.unread().anywhere.is_some() || policies.unread().namespaces.contains_key(namespace) {
        return "unread".to_owned();
    }
    if connection.source.is_none() && is_strict(snapshot, workload, connection.destination.port()) {
        return "strict".to_owned();
    }
    let applying = || policies.authorization().iter().filter(|policy| applies(snapshot, policy, workload, connection));
    for policy in applying().filter(|policy| !policy.dry_run) {
        if matches!(policy.action, Action::Deny | Action::Custom)
            && let Some(rule) = policy.rules.iter().position(|rule| rule_matches(rule, connection))
        {
            return format!("{} {rule}", policy.name);
        }
    }
    let allow: Vec<_> = applying().filter(|policy| policy.action == Action::Allow && !policy.dry_run).collect();
    let allowing = |rule: &Rule| rule.unjudged.is_empty() && rule_matches(rule, connection);
    let surely = |policy: &AuthorizationPolicy| applies_for(snapshot, policy, workload, connection, true);
    if allow.is_empty() || allow.iter().any(|policy| surely(policy) && policy.rules.iter().any(allowing)) {
        return "allowed".to_owned();
    }
    let names: Vec<String> = allow.iter().take(10).map(|policy| policy.name.to_string()).collect();
    format!("none of {} and {}", names.join(" "), allow.len().saturating_sub(10))
}

fn has_labels(workload: &Workload, labels: &Labels) -> bool {
    labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
}

pub(super) fn applies(
    snapshot: &Snapshot,
    policy: &AuthorizationPolicy,
    workload: &Workload,
    connection: &Connection,
) -> bool {
    applies_for(snapshot, policy, workload, connection, false)
}

/// `surely`: a port's name that the pod does not have leads to no port, instead of to every port.
pub(super) fn applies_for(
    snapshot: &Snapshot,
    policy: &AuthorizationPolicy,
    workload: &Workload,
    connection: &Connection,
    surely: bool,
) -> bool {
    match &policy.scope {
        Scope::Mesh => true,
        Scope::Namespace(namespace) => *namespace == workload.name.namespace,
        Scope::Selector { namespace, labels } => {
            let is_meant = match namespace {
                Some(namespace) => *namespace == workload.name.namespace,
                None => true,
            };
            is_meant && has_labels(workload, labels)
        }
        Scope::Services(names) => snapshot.services().filter(|service| names.contains(&service.name)).any(|service| {
            let is_selected = service.name.namespace == workload.name.namespace
                && !service.selector.is_empty()
                && has_labels(workload, &service.selector);
            let is_listed = service.endpoints.iter().any(|end| end.workload.as_ref() == Some(&workload.name));
            let leads_here = service.ports.iter().any(|port| match &port.target {
                TargetPort::Number(number) => *number == connection.destination.port(),
                TargetPort::Name(name) => {
                    workload.port_named(name).map_or(!surely, |number| number == connection.destination.port())
                }
            });
            (is_selected || is_listed) && (leads_here || service.ports.is_empty())
        }),
    }
}

fn is_strict(snapshot: &Snapshot, workload: &Workload, port: u16) -> bool {
    let oldest = |wanted: &dyn Fn(&Scope) -> bool| {
        let mut found: Vec<_> =
            snapshot.policies().authentication().iter().filter(|policy| wanted(&policy.scope)).collect();
        found.sort_by_key(|policy| (policy.created.is_some(), policy.created.unwrap_or(0), policy.name.clone()));
        found.into_iter().next()
    };
    let own = &workload.name.namespace;
    let closest = oldest(
        &|scope| matches!(scope, Scope::Selector { namespace: Some(namespace), labels } if namespace == own && has_labels(workload, labels)),
    );
    let of_namespace = oldest(&|scope| matches!(scope, Scope::Namespace(namespace) if namespace == own));
    let of_mesh = oldest(&|scope| matches!(scope, Scope::Mesh));
    let at_port = closest.and_then(|policy| policy.ports.get(&port).copied().flatten());
    let by_level = [closest, of_namespace, of_mesh].into_iter().flatten().find_map(|policy| policy.mode);
    at_port.or(by_level) == Some(MtlsMode::Strict)
}

pub(super) fn rule_matches(rule: &Rule, connection: &Connection) -> bool {
    for clause in &rule.clauses {
        let mut is_met = clause.matches.is_empty();
        for wanted in &clause.matches {
            is_met |= match_matches(wanted, connection);
        }
        if !is_met {
            return false;
        }
    }
    true
}

fn text_matches(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => {
            text.len() >= prefix.len() && text.bytes().zip(prefix.bytes()).all(|(a, b)| a == b)
        }
        StringMatch::Suffix(suffix) => {
            text.len() >= suffix.len() && text.bytes().rev().zip(suffix.bytes().rev()).all(|(a, b)| a == b)
        }
        StringMatch::Presence => !text.is_empty(),
    }
}

fn match_matches(wanted: &Match, connection: &Connection) -> bool {
    if *wanted == Match::default() {
        return false;
    }
    let identity = connection.source.as_ref().map(|source| source.identity().clone());
    let full = identity.as_ref().map(|id| format!("{}/ns/{}/sa/{}", id.trust_domain, id.namespace, id.service_account));
    let namespace = identity.as_ref().map_or(String::new(), |id| id.namespace.to_string());
    // For each kind of field: whether a positive field is set and does not match, or a negative field matches.
    let principal = |value: &StringMatch| full.as_ref().is_some_and(|full| text_matches(value, full));
    let account = |value: &crate::model::workload::NamespacedName| {
        identity.as_ref().is_some_and(|id| (&id.namespace, &id.service_account) == (&value.namespace, &value.name))
    };
    let domain =
        |value: &StringMatch| identity.as_ref().is_some_and(|id| text_matches(value, &id.trust_domain.to_string()));
    let (from, to) = (connection.source_ip, connection.destination);
    let fails = [
        !wanted.principals.is_empty() && !wanted.principals.iter().any(principal),
        wanted.not_principals.iter().any(principal),
        !wanted.namespaces.is_empty() && !wanted.namespaces.iter().any(|value| text_matches(value, &namespace)),
        wanted.not_namespaces.iter().any(|value| text_matches(value, &namespace)),
        !wanted.service_accounts.is_empty() && !wanted.service_accounts.iter().any(account),
        wanted.not_service_accounts.iter().any(account),
        !wanted.trust_domains.is_empty() && !wanted.trust_domains.iter().any(domain),
        wanted.not_trust_domains.iter().any(domain),
        !wanted.source_ips.is_empty() && !wanted.source_ips.iter().any(|net| net.contains(&from)),
        wanted.not_source_ips.iter().any(|net| net.contains(&from)),
        !wanted.destination_ips.is_empty() && !wanted.destination_ips.iter().any(|net| net.contains(&to.ip())),
        wanted.not_destination_ips.iter().any(|net| net.contains(&to.ip())),
        !wanted.destination_ports.is_empty() && !wanted.destination_ports.contains(&to.port()),
        wanted.not_destination_ports.contains(&to.port()),
    ];
    fails.iter().all(|fails| !fails)
}
