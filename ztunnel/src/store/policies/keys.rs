//! The keys by which a rule can be found, and the choice of the keys that the fewest rules share.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::model::policy::{Clause, Match, Rule, StringMatch};

/// A property of a connection that can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    /// The client has an identity.
    Identity,
    /// The client has this principal.
    Principal(&'a str),
    /// The text of the principal begins with this.
    Prefix(&'a str),
    /// The text of the principal ends with this.
    Suffix(&'a str),
    /// The client has this service account.
    Account { namespace: &'a str, name: &'a str },
    /// The client's namespace, empty without an identity.
    Namespace(&'a str),
    /// The client's address is in this IP block.
    Source(IpNet),
    /// The workload's address is in this IP block.
    Destination(IpNet),
    /// The workload's port.
    Port(u16),
}

/// The number of rules for each key.
#[derive(Debug, Default)]
pub(super) struct Popularity<'a>(HashMap<Key<'a>, usize>);

impl<'a> Popularity<'a> {
    pub(super) fn of(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut popularity = Self::default();
        let matches = rules.flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
        for key in matches.flat_map(fields).flatten().flatten() {
            *popularity.0.entry(key).or_default() += 1;
        }
        popularity
    }

    /// The keys of which a connection must have at least one to match the rule, chosen so that few rules share them. `None`:
    /// the rule may match without a key.
    pub(super) fn rarest(&self, rule: &'a Rule) -> Option<Vec<Key<'a>>> {
        let clauses = rule.clauses.iter().filter_map(|clause| self.of_clause(clause));
        clauses.min_by_key(|(cost, _)| *cost).map(|(_, keys)| keys)
    }

    /// The keys of one field of each alternative, and the largest number of rules that share one of them.
    fn of_clause(&self, clause: &'a Clause) -> Option<(usize, Vec<Key<'a>>)> {
        if clause.matches.is_empty() {
            return None;
        }
        let mut all = (0, Vec::new());
        for wanted in clause.matches.iter().filter(|wanted| **wanted != Match::default()) {
            let ways = fields(wanted).into_iter().flatten();
            let costs = ways.map(|keys| (keys.iter().map(|key| self.count(key)).max().unwrap_or_default(), keys));
            let (cost, keys) = costs.min_by_key(|(cost, _)| *cost)?;
            all.0 = all.0.max(cost);
            all.1.extend(keys);
        }
        Some(all)
    }

    fn count(&self, key: &Key<'_>) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }
}

/// The keys of each field of an alternative: a connection must have one of them to match the field.
fn fields(wanted: &Match) -> [Option<Vec<Key<'_>>>; 7] {
    // Each field is named, so that a new field is not forgotten. `not` fields have no keys.
    let Match {
        principals,
        not_principals: _,
        namespaces,
        not_namespaces: _,
        service_accounts,
        not_service_accounts: _,
        trust_domains,
        not_trust_domains: _,
        source_ips,
        not_source_ips: _,
        destination_ips,
        not_destination_ips: _,
        destination_ports,
        not_destination_ports: _,
    } = wanted;
    [
        keys(principals, |value| Some(principal(value))),
        keys(service_accounts, |account| Some(Key::Account { namespace: &account.namespace, name: &account.name })),
        keys(namespaces, namespace),
        keys(trust_domains, |value| Some(trust_domain(value))),
        keys(source_ips, |net| Some(Key::Source(net.trunc()))),
        keys(destination_ips, |net| Some(Key::Destination(net.trunc()))),
        keys(destination_ports, |port| Some(Key::Port(*port))),
    ]
}

/// The keys of a field's values. `None` if there are no values, or if one of them has no key.
fn keys<'a, T>(values: &'a [T], key: impl Fn(&'a T) -> Option<Key<'a>>) -> Option<Vec<Key<'a>>> {
    if values.is_empty() { None } else { values.iter().map(key).collect() }
}

/// A principal never matches without an identity.
fn principal(value: &StringMatch) -> Key<'_> {
    match value {
        StringMatch::Exact(text) => Key::Principal(text),
        StringMatch::Prefix(text) if !text.is_empty() => Key::Prefix(text),
        StringMatch::Suffix(text) if !text.is_empty() => Key::Suffix(text),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => Key::Identity,
    }
}

/// The principal's text begins with the trust domain.
fn trust_domain(value: &StringMatch) -> Key<'_> {
    match value {
        StringMatch::Exact(text) | StringMatch::Prefix(text) if !text.is_empty() => Key::Prefix(text),
        _ => Key::Identity,
    }
}

/// Without an identity the namespace is empty, and matches only an empty prefix or suffix.
fn namespace(value: &StringMatch) -> Option<Key<'_>> {
    match value {
        StringMatch::Exact(text) => Some(Key::Namespace(text)),
        StringMatch::Prefix(text) | StringMatch::Suffix(text) => (!text.is_empty()).then_some(Key::Identity),
        StringMatch::Presence => Some(Key::Identity),
    }
}
