//! Writing policies.

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

/// The resource of a policy. `None`: an AUDIT policy neither allows nor denies anything, so the protocol has no message
/// for it.
///
/// Workloads that a policy with a selector selects name the policy in their own messages.
#[must_use]
pub fn policy(policy: &AuthorizationPolicy) -> Option<Resource> {
    let action = match policy.action {
        Action::Allow => ActionMessage::Allow,
        // The external service of a CUSTOM policy cannot be asked, so the connection is denied.
        Action::Deny | Action::Custom => ActionMessage::Deny,
        Action::Audit => return None,
    };
    let scope = match policy.scope {
        Scope::Mesh => ScopeMessage::Global,
        Scope::Namespace(_) => ScopeMessage::Namespace,
        Scope::Selector { .. } | Scope::Services(_) => ScopeMessage::WorkloadSelector,
    };
    // With a field that cannot be evaluated or written, an ALLOW rule never matches, and a DENY rule matches without
    // the field.
    let is_whole = |rule: &Rule| rule.unjudged.is_empty() && can_be_written(rule);
    let counts = |rule: &&Rule| action == ActionMessage::Deny || is_whole(rule);
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
    let clause = |clause: &Clause| {
        let is_lost = |m: &Match| *m != Match::default() && write_match(m) == MatchMessage::default();
        // A match without any remaining field would match nothing, although its value may match everything.
        let is_whole = !clause.matches.iter().any(is_lost);
        is_whole.then(|| ClauseMessage { matches: clause.matches.iter().map(write_match).collect() })
    };
    RuleMessage { clauses: rule.clauses.iter().filter_map(clause).collect() }
}

/// Whether a rule can be written without loss: the protocol has no field for trust domains, which are prefixes of
/// principals.
fn can_be_written(rule: &Rule) -> bool {
    let matches = rule.clauses.iter().flat_map(|clause| &clause.matches);
    matches.into_iter().all(|m| {
        let begins = |values: &[StringMatch]| values.iter().all(|value| principal_of(value).is_some());
        let has_place = m.trust_domains.is_empty() || m.principals.is_empty();
        has_place && begins(&m.trust_domains) && begins(&m.not_trust_domains)
    })
}

/// The pattern of the principals of a trust domain. A trust domain contains no slash. `None`: no single pattern covers
/// them.
fn principal_of(domain: &StringMatch) -> Option<StringMatch> {
    match domain {
        StringMatch::Exact(text) => Some(StringMatch::Prefix(format!("{text}/").into())),
        StringMatch::Prefix(_) | StringMatch::Presence => Some(domain.clone()),
        StringMatch::Suffix(_) => None,
    }
}

/// Principals, and the principals of trust domains. Required trust domains are written only if no principals are
/// required: both lists would have to match.
fn with_domains(own: &[StringMatch], domains: &[StringMatch], are_negative: bool) -> Vec<StringMessage> {
    let of_domains: Option<Vec<StringMatch>> = match are_negative {
        true => Some(domains.iter().filter_map(principal_of).collect()),
        false => domains.iter().map(principal_of).collect::<Option<_>>().filter(|_| own.is_empty()),
    };
    let mut all = own.to_vec();
    all.extend(of_domains.unwrap_or_default());
    texts(&all)
}

pub(super) fn write_match(m: &Match) -> MatchMessage {
    // All fields are named, so that a new field cannot be forgotten: nodes would not get it.
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
    } = m;
    MatchMessage {
        namespaces: texts(namespaces),
        not_namespaces: texts(not_namespaces),
        principals: with_domains(principals, trust_domains, false),
        not_principals: with_domains(not_principals, not_trust_domains, true),
        source_ips: ranges(source_ips),
        not_source_ips: ranges(not_source_ips),
        destination_ips: ranges(destination_ips),
        not_destination_ips: ranges(not_destination_ips),
        destination_ports: destination_ports.iter().copied().map(u32::from).collect(),
        not_destination_ports: not_destination_ports.iter().copied().map(u32::from).collect(),
        service_accounts: accounts(service_accounts),
        not_service_accounts: accounts(not_service_accounts),
        extensions: Vec::new(),
    }
}

pub(super) fn texts(values: &[StringMatch]) -> Vec<StringMessage> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_domains_are_written_as_principals_or_not_at_all() {
        let list = |texts: &[&str]| texts.iter().map(|text| StringMatch::new(text)).collect::<Vec<_>>();
        let written = |wanted: Match| {
            let rule = Rule {
                clauses: vec![Clause { part: crate::model::policy::Part::From, matches: vec![wanted.clone()] }],
                unjudged: Vec::new(),
            };
            let message = write_match(&wanted);
            (can_be_written(&rule), message.principals, message.not_principals)
        };
        let of = |trust_domains: &[&str], principals: &[&str]| {
            written(Match { trust_domains: list(trust_domains), principals: list(principals), ..Match::default() })
        };
        assert_eq!(of(&["a.b", "c*", "*"], &[]), (true, texts(&list(&["a.b/*", "c*", "*"])), vec![]));
        // A DENY rule is written without the fields that the protocol lacks, and so denies more.
        assert_eq!(of(&["*.b"], &[]), (false, vec![], vec![]));
        assert_eq!(of(&["a.b"], &["x"]), (false, texts(&list(&["x"])), vec![]));
        let not = |not_trust_domains: &[&str]| {
            let not_principals = list(&["x"]);
            written(Match { not_trust_domains: list(not_trust_domains), not_principals, ..Match::default() })
        };
        assert_eq!(not(&["a.b"]), (true, vec![], texts(&list(&["x", "a.b/*"]))));
        assert_eq!(not(&["*.b"]), (false, vec![], texts(&list(&["x"]))));
        let lost = Match { not_trust_domains: list(&["*.b"]), ..Match::default() };
        let part = crate::model::policy::Part::From;
        let denying = Rule { clauses: vec![Clause { part, matches: vec![lost] }], unjudged: Vec::new() };
        assert_eq!(rule(&denying), RuleMessage { clauses: vec![] }, "it matches everything, and not nothing");
    }
}
