//! A policy.

use ipnet::IpNet;

use super::{bytes, resource};
use crate::istio::discovery::{AUTHORIZATION, Resource};
use crate::istio::security::{
    Action as ActionMessage, Address, Authorization, Clause as ClauseMessage, Match as MatchMessage, MatchType,
    Rule as RuleMessage, Scope as ScopeMessage, ServiceAccountMatch, StringMatch as StringMessage,
};
use crate::istio::standard::Empty;
use crate::model::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, StringMatch};
use crate::model::workload::NamespacedName;

/// The resource of a policy. `None`: it denies nothing, so the protocol has no place for it (AUDIT).
///
/// Workloads that a policy with a selector protects name it; whether they do is not said here.
#[must_use]
pub fn policy(policy: &AuthorizationPolicy) -> Option<Resource> {
    let action = match policy.action {
        Action::Allow => ActionMessage::Allow,
        // Nobody can be asked, so nobody is let in.
        Action::Deny | Action::Custom => ActionMessage::Deny,
        Action::Audit => return None,
    };
    let scope = match policy.scope {
        Scope::Mesh => ScopeMessage::Global,
        Scope::Namespace(_) => ScopeMessage::Namespace,
        Scope::Selector { .. } | Scope::Services(_) => ScopeMessage::WorkloadSelector,
    };
    // With a field that can't be judged an ALLOW rule never matches; a DENY rule matches without it.
    let counts = |rule: &&Rule| action == ActionMessage::Deny || rule.unjudged.is_empty();
    let message = Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        rules: policy.rules.iter().filter(counts).map(rule).collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    };
    Some(resource(policy.name.to_string(), AUTHORIZATION, &message))
}

fn rule(rule: &Rule) -> RuleMessage {
    let clause = |clause: &Clause| ClauseMessage { matches: clause.matches.iter().map(write_match).collect() };
    RuleMessage { clauses: rule.clauses.iter().map(clause).collect() }
}

fn write_match(m: &Match) -> MatchMessage {
    MatchMessage {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        source_ips: ranges(&m.source_ips),
        not_source_ips: ranges(&m.not_source_ips),
        destination_ips: ranges(&m.destination_ips),
        not_destination_ips: ranges(&m.not_destination_ips),
        destination_ports: m.destination_ports.iter().copied().map(u32::from).collect(),
        not_destination_ports: m.not_destination_ports.iter().copied().map(u32::from).collect(),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn texts(values: &[StringMatch]) -> Vec<StringMessage> {
    let kind = |value: &StringMatch| match value {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(Empty {}),
    };
    values.iter().map(|value| StringMessage { match_type: Some(kind(value)) }).collect()
}

fn ranges(nets: &[IpNet]) -> Vec<Address> {
    nets.iter().map(|net| Address { address: bytes(net.network()), length: net.prefix_len().into() }).collect()
}

fn accounts(names: &[NamespacedName]) -> Vec<ServiceAccountMatch> {
    let account = |name: &NamespacedName| ServiceAccountMatch {
        namespace: name.namespace.to_string(),
        service_account: name.name.to_string(),
    };
    names.iter().map(account).collect()
}
