//! Rules without effect, because another rule already matches everything that they match.
//!
//! Comparing every rule with every other would take too long in a large mesh. A rule that covers another must have, in
//! each of its clauses, a value that covers some value of the other. So rules are looked up by their rarest value, and
//! of the rules with the same rarest value only the first few are compared. A rule may be missed, but each finding is
//! certain.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use ipnet::IpNet;

use super::code::Code;
use super::covers::{identity_of, rule_covers, scope_covers, weight};
use super::finding::Report;
use super::path::Field;
use crate::model::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, StringMatch};
use crate::model::workload::NamespacedName;
use crate::store::snapshot::Snapshot;

/// The number of rules with the same rarest value that are compared with a rule.
const MOST_COMPARED: usize = 128;
/// Rules with more pairs of values are not compared.
const MOST_WEIGHT: usize = 100_000;

pub(super) fn check(snapshot: &Snapshot, report: &mut Report<'_>) {
    let mut known: HashMap<u64, Vec<&AuthorizationPolicy>> = HashMap::new();
    // Audit policies and policies in dry-run have a purpose even if they repeat others: their names distinguish them.
    let policies = snapshot
        .policies()
        .authorization()
        .iter()
        .map(|policy| &**policy)
        .filter(|policy| !policy.dry_run && policy.action != Action::Audit);
    let (mut allowing, mut denying) = (Vec::new(), Vec::new());
    for policy in policies {
        let alike = known.entry(digest(policy)).or_default();
        if let Some(same) = alike.iter().take(MOST_COMPARED).find(|other| is_same(other, policy)) {
            duplicate(policy, same, report);
            continue;
        }
        alike.push(policy);
        let rules = if policy.action == Action::Allow { &mut allowing } else { &mut denying };
        let numbered = |(index, rule)| Numbered { policy, index, rule, weight: weight(rule) };
        rules.extend(policy.rules.iter().enumerate().map(numbered));
    }
    // With a field that cannot be evaluated an ALLOW rule never matches, and the effect of any other rule differs from
    // its text.
    allowing.retain(|rule| rule.rule.unjudged.is_empty());
    let of_denying = Index::new(&denying);
    for rule in &allowing {
        if let Some(other) = of_denying.covering(rule) {
            denied(rule, other, report);
        }
    }
    denying.retain(|rule| rule.rule.unjudged.is_empty() && rule.policy.action == Action::Deny);
    for rules in [&allowing, &denying] {
        let index = Index::new(rules);
        for rule in rules {
            if let Some(other) = index.covering(rule) {
                shadowed(rule, other, report);
            }
        }
    }
}

fn is_same(one: &AuthorizationPolicy, other: &AuthorizationPolicy) -> bool {
    (one.action, &one.scope, &one.rules) == (other.action, &other.scope, &other.rules)
}

/// A number that is equal for policies with the same content.
fn digest(policy: &AuthorizationPolicy) -> u64 {
    let mut hasher = DefaultHasher::new();
    (policy.action, keys_of(&policy.scope), policy.rules.len()).hash(&mut hasher);
    for value in policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(choices) {
        value.hash(&mut hasher);
    }
    hasher.finish()
}

fn duplicate(policy: &AuthorizationPolicy, same: &AuthorizationPolicy, report: &mut Report<'_>) {
    let message = format!("has the same rules as AuthorizationPolicy {}, for the same pods", same.name);
    report.add(Code::DuplicatePolicy, policy, message, "remove one of the two");
}

fn denied(rule: &Numbered<'_>, by: &Numbered<'_>, report: &mut Report<'_>) {
    let message = format!(
        "rules[{}] allows no connection: every connection that it matches is denied by rules[{}] of {} policy {}",
        rule.index,
        by.index,
        by.policy.action.name(),
        by.policy.name
    );
    report.add(Code::DeniedRule, rule.policy, message, "narrow the DENY rule, or remove this one");
}

fn shadowed(rule: &Numbered<'_>, by: &Numbered<'_>, report: &mut Report<'_>) {
    let of = if rule.policy.name == by.policy.name {
        String::new()
    } else {
        format!(" of AuthorizationPolicy {}", by.policy.name)
    };
    let message = format!(
        "rules[{}] has no effect: rules[{}]{of} matches every connection that it matches",
        rule.index, by.index
    );
    report.add(Code::ShadowedRule, rule.policy, message, "remove it, or narrow the other one");
}

/// A rule and its place.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    policy: &'a AuthorizationPolicy,
    index: usize,
    rule: &'a Rule,
    weight: usize,
}

impl Numbered<'_> {
    fn covers(&self, narrow: &Numbered<'_>) -> bool {
        self.weight.saturating_mul(narrow.weight) <= MOST_WEIGHT
            && scope_covers(&self.policy.scope, &narrow.policy.scope)
            && rule_covers(self.rule, narrow.rule)
    }

    fn is(&self, other: &Numbered<'_>) -> bool {
        std::ptr::eq(self.rule, other.rule)
    }
}

/// A key of a scope. A scope that covers another has a key that is found from the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ScopeKey<'a> {
    Mesh,
    Namespace(&'a str),
    Label(Option<&'a str>, &'a str, &'a str),
    Service(&'a NamespacedName),
}

/// A value in a clause.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Value<'a> {
    Exact(Field, &'a str),
    Prefix(Field, &'a str),
    Suffix(Field, &'a str),
    Presence(Field),
    Account(&'a str, &'a str),
    Range(Field, IpNet),
    Port(u16),
    /// Stands for clauses in which no field is set in all matches.
    Nothing,
}

/// Rules by the keys that they share with the rules that they cover.
struct Index<'a> {
    rules: HashMap<(ScopeKey<'a>, Value<'a>), Vec<Numbered<'a>>>,
    /// The lengths of prefixes and suffixes, and the prefix lengths of IP blocks, that occur.
    lengths: BTreeSet<usize>,
}

impl<'a> Index<'a> {
    fn new(rules: &[Numbered<'a>]) -> Self {
        let mut counts: HashMap<Value<'a>, usize> = HashMap::new();
        for rule in rules {
            for value in rule.rule.clauses.iter().flat_map(choices).flatten() {
                *counts.entry(value).or_default() += 1;
            }
        }
        let mut index = Self { rules: HashMap::new(), lengths: BTreeSet::new() };
        for rule in rules {
            let choices = rule.rule.clauses.iter().flat_map(choices);
            let commonest =
                |values: &Vec<Value<'a>>| values.iter().filter_map(|value| counts.get(value)).max().copied();
            let values = choices.min_by_key(commonest).unwrap_or_else(|| vec![Value::Nothing]);
            for value in values {
                index.lengths.extend(length(&value));
                for scope in keys_of(&rule.policy.scope) {
                    index.rules.entry((scope, value.clone())).or_default().push(*rule);
                }
            }
        }
        index
    }

    /// Another rule that covers this one. Of two rules with the same meaning only the second is reported.
    fn covering(&self, rule: &Numbered<'a>) -> Option<&Numbered<'a>> {
        let mut wanted = vec![Value::Nothing];
        for clause in &rule.rule.clauses {
            self.covering_values(clause, &mut wanted);
        }
        let scopes = covering_keys(&rule.policy.scope);
        let found =
            scopes.iter().flat_map(|scope| wanted.iter().filter_map(|value| self.rules.get(&(*scope, value.clone()))));
        let candidates = found.flat_map(|rules| rules.iter().take(MOST_COMPARED));
        candidates.filter(|other| !other.is(rule) && other.covers(rule)).find(|other| {
            let place = |one: &Numbered<'_>| (one.policy.name.clone(), one.index);
            place(other) < place(rule) || !rule.covers(other)
        })
    }

    /// The values of which a clause that covers this one must have at least one: those that cover the first value of
    /// each field of its first match.
    fn covering_values(&self, clause: &'a Clause, wanted: &mut Vec<Value<'a>>) {
        let Some(first) = clause.matches.first() else { return };
        for (field, patterns) in [(Field::Principals, &first.principals), (Field::Namespaces, &first.namespaces)] {
            if let Some(pattern) = patterns.first() {
                self.covering_texts(field, pattern, wanted);
            }
        }
        let account = first.service_accounts.first().map(|account| (&*account.namespace, &*account.name));
        if let Some((namespace, name)) = account.or_else(|| account_in(first.principals.first()?)) {
            wanted.extend([Value::Account(namespace, name), Value::Presence(Field::Principals)]);
            self.covering_text(Field::Namespaces, namespace, true, true, wanted);
        }
        for (field, ranges) in [(Field::SourceIps, &first.source_ips), (Field::DestinationIps, &first.destination_ips)]
        {
            let Some(range) = ranges.first() else { continue };
            let lengths = self.lengths.iter().filter_map(|length| u8::try_from(*length).ok());
            let supernets = lengths.filter(|length| *length <= range.prefix_len());
            let supernets = supernets.filter_map(|length| IpNet::new(range.addr(), length).ok());
            wanted.extend(supernets.map(|net| Value::Range(field, net.trunc())));
        }
        wanted.extend(first.destination_ports.first().copied().map(Value::Port));
    }

    fn covering_texts(&self, field: Field, pattern: &'a StringMatch, wanted: &mut Vec<Value<'a>>) {
        match pattern {
            StringMatch::Exact(text) => self.covering_text(field, text, true, true, wanted),
            StringMatch::Prefix(text) => self.covering_text(field, text, true, false, wanted),
            StringMatch::Suffix(text) => self.covering_text(field, text, false, true, wanted),
            StringMatch::Presence => wanted.push(Value::Presence(field)),
        }
    }

    /// The values that cover a text of which the beginning, the end, or both (the whole text) are known.
    fn covering_text(&self, field: Field, text: &'a str, begins: bool, ends: bool, wanted: &mut Vec<Value<'a>>) {
        wanted.push(Value::Presence(field));
        if begins && ends {
            wanted.push(Value::Exact(field, text));
        }
        for length in self.lengths.range(..=text.len()) {
            let start = text.get(..*length).filter(|_| begins);
            wanted.extend(start.map(|start| Value::Prefix(field, start)));
            let end = text.get(text.len() - length..).filter(|_| ends);
            wanted.extend(end.map(|end| Value::Suffix(field, end)));
        }
    }
}

/// The values of each field that all matches of a clause set.
fn choices<'a>(clause: &'a Clause) -> impl Iterator<Item = Vec<Value<'a>>> {
    let fields = [
        Field::Principals,
        Field::Namespaces,
        Field::ServiceAccounts,
        Field::SourceIps,
        Field::DestinationIps,
        Field::Ports,
    ];
    let matches = Some(&clause.matches).filter(|matches| !matches.is_empty());
    fields.into_iter().filter_map(move |field| {
        let values: Vec<Vec<Value<'a>>> = matches?.iter().map(|found| values_of(found, field)).collect();
        values.iter().all(|values| !values.is_empty()).then(|| values.concat())
    })
}

fn values_of(found: &Match, field: Field) -> Vec<Value<'_>> {
    fn text(field: Field, pattern: &StringMatch) -> Value<'_> {
        match pattern {
            StringMatch::Exact(text) => Value::Exact(field, text),
            StringMatch::Prefix(text) => Value::Prefix(field, text),
            StringMatch::Suffix(text) => Value::Suffix(field, text),
            StringMatch::Presence => Value::Presence(field),
        }
    }
    let ranges = |ranges: &[IpNet]| ranges.iter().map(|range| Value::Range(field, *range)).collect();
    match field {
        Field::Principals => found.principals.iter().map(|pattern| text(field, pattern)).collect(),
        Field::Namespaces => found.namespaces.iter().map(|pattern| text(field, pattern)).collect(),
        Field::ServiceAccounts => {
            found.service_accounts.iter().map(|account| Value::Account(&account.namespace, &account.name)).collect()
        }
        Field::TrustDomains => found.trust_domains.iter().map(|pattern| text(field, pattern)).collect(),
        Field::SourceIps => ranges(&found.source_ips),
        Field::DestinationIps => ranges(&found.destination_ips),
        Field::Ports => found.destination_ports.iter().copied().map(Value::Port).collect(),
    }
}

fn length(value: &Value<'_>) -> Option<usize> {
    match value {
        Value::Prefix(_, text) | Value::Suffix(_, text) => Some(text.len()),
        Value::Range(_, range) => Some(usize::from(range.prefix_len())),
        Value::Exact(..) | Value::Presence(_) | Value::Account(..) | Value::Port(_) | Value::Nothing => None,
    }
}

/// Namespace and service account of a principal.
fn account_in(principal: &StringMatch) -> Option<(&str, &str)> {
    identity_of(principal)?;
    let StringMatch::Exact(text) = principal else { return None };
    let mut parts = text.split('/');
    Some((parts.nth(2)?, parts.nth(1)?))
}

/// The keys under which a rule with this scope is stored.
fn keys_of(scope: &Scope) -> Vec<ScopeKey<'_>> {
    match scope {
        Scope::Mesh => vec![ScopeKey::Mesh],
        Scope::Namespace(namespace) => vec![ScopeKey::Namespace(namespace)],
        Scope::Selector { namespace, labels } => {
            let first = labels.iter().next();
            first.map(|(key, value)| ScopeKey::Label(namespace.as_deref(), key, value)).into_iter().collect()
        }
        Scope::Services(services) => services.iter().map(ScopeKey::Service).collect(),
    }
}

/// The keys under which rules are stored whose scopes cover this one.
fn covering_keys(scope: &Scope) -> Vec<ScopeKey<'_>> {
    let mut keys = vec![ScopeKey::Mesh];
    match scope {
        Scope::Mesh => {}
        Scope::Namespace(namespace) => keys.push(ScopeKey::Namespace(namespace)),
        Scope::Selector { namespace, labels } => {
            keys.extend(namespace.as_deref().map(ScopeKey::Namespace));
            for (key, value) in labels {
                keys.push(ScopeKey::Label(None, key, value));
                keys.extend(namespace.as_deref().map(|namespace| ScopeKey::Label(Some(namespace), key, value)));
            }
        }
        Scope::Services(services) => keys.extend(services.first().map(ScopeKey::Service)),
    }
    keys
}
