//! Entries of rules, and values in them, that no connection can match, because other fields exclude them.

use std::fmt::Display;

use ipnet::IpNet;

use super::code::Code;
use super::covers::{identity_of, range_covers, ranges_disjoint, text_covers, texts_disjoint, weight};
use super::finding::Report;
use super::path::{Field, PathEntry, entries_of};
use crate::model::identity::SpiffeId;
use crate::model::policy::{AuthorizationPolicy, Match, Part, Rule, StringMatch};
use crate::model::workload::NamespacedName;
use crate::store::snapshot::Snapshot;

/// Rules with more values are not checked, since each value is compared with all others.
const HEAVIEST: usize = 2_000;

pub(super) fn check(snapshot: &Snapshot, report: &mut Report<'_>) {
    for policy in snapshot.policies().authorization() {
        let comparable = |(_, rule): &(usize, &Rule)| weight(rule) <= HEAVIEST;
        for (index, rule) in policy.rules.iter().enumerate().filter(comparable) {
            check_rule(policy, index, rule, report);
        }
    }
}

/// Compares each entry of `from` and `to` with all conditions, since all of them must hold together.
fn check_rule(policy: &AuthorizationPolicy, index: usize, rule: &Rule, report: &mut Report<'_>) {
    // If a clause has several matches, any of them may hold, so nothing is certain about such a condition.
    let single =
        |part| rule.clauses.iter().filter(move |clause| clause.part == part && clause.matches.len() == 1).count();
    let is_condition = |entry: &PathEntry| matches!(entry.part, Part::When(_)) && single(entry.part) == 1;
    let conditions: Vec<(PathEntry, &Match)> =
        entries_of(index, rule).filter(|(entry, _)| is_condition(entry)).collect();
    if !conditions.is_empty() && check_together(policy, &conditions, report) {
        return;
    }
    for entry in entries_of(index, rule).filter(|(entry, _)| !matches!(entry.part, Part::When(_))) {
        let mut together = vec![entry];
        together.extend(conditions.iter().copied());
        check_together(policy, &together, report);
    }
}

/// Whether matches that must all hold contradict each other. Reports that, and values that can never match.
fn check_together(policy: &AuthorizationPolicy, together: &[(PathEntry, &Match)], report: &mut Report<'_>) -> bool {
    let Some((entry, first)) = together.first() else { return false };
    if **first == Match::default() {
        report.add(Code::NeverMatches, policy, format!("{entry} compares nothing, so it never matches"), "remove it");
        return true;
    }
    let view = View(together);
    let mut lists = view.identities();
    lists.extend(view.ranges(Field::SourceIps));
    lists.extend(view.ranges(Field::DestinationIps));
    lists.extend(view.ports());
    if let Some(reason) = lists.iter().filter(|list| list.dead.len() == list.values).find_map(|list| list.dead.first())
    {
        let message = format!("{entry} can never match: {reason}");
        report.add(Code::NeverMatches, policy, message, "correct one of the two fields, or remove the entry");
        return true;
    }
    // A value that one entry excludes from a condition may still be wanted by another entry.
    let own = lists.into_iter().filter(|list| list.entry == *entry);
    for reason in own.flat_map(|list| list.dead) {
        let message = format!("{entry} has a value without effect: {reason}");
        report.add(Code::DeadValue, policy, message, "correct one of the two fields, or remove the value");
    }
    false
}

/// A list with values that can never match.
struct Dead {
    /// The entry that has the list.
    entry: PathEntry,
    /// The number of its values.
    values: usize,
    /// The reasons for the values that can never match.
    dead: Vec<String>,
}

impl Dead {
    fn of<T: Display>(
        entry: PathEntry,
        field: Field,
        values: &[T],
        why: impl Fn(&T) -> Option<String>,
    ) -> Option<Self> {
        let reason = |value: &T| Some(format!("{value} of {} {}", entry.field(field, false), why(value)?));
        let dead: Vec<String> = values.iter().filter_map(reason).collect();
        (!dead.is_empty()).then_some(Self { entry, values: values.len(), dead })
    }
}

/// Matches that must all hold.
struct View<'a>(&'a [(PathEntry, &'a Match)]);

impl View<'_> {
    fn identities(&self) -> Vec<Dead> {
        let mut lists: Vec<Dead> = self.nobody().into_iter().collect();
        for (entry, found) in self.0 {
            lists.extend(Dead::of(*entry, Field::Principals, &found.principals, |one| self.why_no_principal(one)));
            let why = |account: &NamespacedName| {
                self.why_no_account(account).or_else(|| self.why_no_namespace(&exactly(&account.namespace)))
            };
            lists.extend(Dead::of(*entry, Field::ServiceAccounts, &found.service_accounts, why));
            lists.extend(Dead::of(*entry, Field::Namespaces, &found.namespaces, |one| self.why_no_namespace(one)));
            lists.extend(Dead::of(*entry, Field::TrustDomains, &found.trust_domains, |one| self.why_no_domain(one)));
        }
        lists
    }

    /// Finds matches that require a client without an identity and one with a certain identity at once.
    fn nobody(&self) -> Option<Dead> {
        let (entry, _) = self.0.iter().find(|(_, found)| found.not_principals.contains(&StringMatch::Presence))?;
        let names = |found: &Match| {
            [
                (Field::Principals, !found.principals.is_empty()),
                (Field::ServiceAccounts, !found.service_accounts.is_empty()),
                (Field::TrustDomains, !found.trust_domains.is_empty()),
                (
                    Field::Namespaces,
                    !found.namespaces.is_empty() && !found.namespaces.iter().any(|name| name.matches("")),
                ),
            ]
        };
        let wanted = self.0.iter().find_map(|(entry, found)| {
            let (field, _) = names(found).into_iter().find(|(_, is_wanted)| *is_wanted)?;
            Some(entry.field(field, false))
        })?;
        let reason = format!(
            "{wanted} requires a client with an identity, and * of {} a client without one",
            entry.field(Field::Principals, true)
        );
        Some(Dead { entry: *entry, values: 1, dead: vec![reason] })
    }

    fn why_no_principal(&self, principal: &StringMatch) -> Option<String> {
        for (entry, found) in self.0 {
            if found.not_principals.iter().any(|not| text_covers(not, principal)) {
                return Some(format!("is excluded by {}", entry.field(Field::Principals, true)));
            }
            let wanted = &found.principals;
            if !wanted.is_empty() && wanted.iter().all(|other| texts_disjoint(other, principal)) {
                return Some(format!("is not in {}", entry.field(Field::Principals, false)));
            }
        }
        let SpiffeId { trust_domain, namespace, service_account } = identity_of(principal)?;
        let account = NamespacedName::new(namespace, service_account);
        let why = self.why_no_account(&account).or_else(|| self.why_no_namespace(&exactly(&account.namespace)));
        why.or_else(|| self.why_no_domain(&exactly(trust_domain.as_str())))
    }

    fn why_no_domain(&self, domain: &StringMatch) -> Option<String> {
        self.0.iter().find_map(|(entry, found)| {
            if found.not_trust_domains.iter().any(|not| text_covers(not, domain)) {
                return Some(format!("is excluded by {}", entry.field(Field::TrustDomains, true)));
            }
            let wanted = &found.trust_domains;
            let is_other = !wanted.is_empty() && wanted.iter().all(|other| texts_disjoint(other, domain));
            is_other.then(|| format!("has no trust domain of {}", entry.field(Field::TrustDomains, false)))
        })
    }

    fn why_no_account(&self, account: &NamespacedName) -> Option<String> {
        self.0.iter().find_map(|(entry, found)| {
            if found.not_service_accounts.contains(account) {
                return Some(format!("is excluded by {}", entry.field(Field::ServiceAccounts, true)));
            }
            let is_other = !found.service_accounts.is_empty() && !found.service_accounts.contains(account);
            is_other.then(|| format!("is not in {}", entry.field(Field::ServiceAccounts, false)))
        })
    }

    fn why_no_namespace(&self, namespace: &StringMatch) -> Option<String> {
        self.0.iter().find_map(|(entry, found)| {
            if found.not_namespaces.iter().any(|not| text_covers(not, namespace)) {
                return Some(format!("is excluded by {}", entry.field(Field::Namespaces, true)));
            }
            let wanted = &found.namespaces;
            let is_other = !wanted.is_empty() && wanted.iter().all(|other| texts_disjoint(other, namespace));
            is_other.then(|| format!("is in no namespace of {}", entry.field(Field::Namespaces, false)))
        })
    }

    fn ranges(&self, field: Field) -> Vec<Dead> {
        let of = |found: &Match| -> (Vec<IpNet>, Vec<IpNet>) {
            match field {
                Field::SourceIps => (found.source_ips.clone(), found.not_source_ips.clone()),
                _ => (found.destination_ips.clone(), found.not_destination_ips.clone()),
            }
        };
        let why = |range: &IpNet| {
            self.0.iter().find_map(|(entry, found)| {
                let (any, none) = of(found);
                if none.iter().any(|not| range_covers(not, range)) {
                    return Some(format!("is excluded by {}", entry.field(field, true)));
                }
                let is_other = !any.is_empty() && any.iter().all(|other| ranges_disjoint(other, range));
                is_other.then(|| format!("is not in {}", entry.field(field, false)))
            })
        };
        self.0.iter().filter_map(|(entry, found)| Dead::of(*entry, field, &of(found).0, why)).collect()
    }

    fn ports(&self) -> Vec<Dead> {
        let why = |port: &u16| {
            self.0.iter().find_map(|(entry, found)| {
                if found.not_destination_ports.contains(port) {
                    return Some(format!("is excluded by {}", entry.field(Field::Ports, true)));
                }
                let is_other = !found.destination_ports.is_empty() && !found.destination_ports.contains(port);
                is_other.then(|| format!("is not in {}", entry.field(Field::Ports, false)))
            })
        };
        let lists = self.0.iter();
        lists.filter_map(|(entry, found)| Dead::of(*entry, Field::Ports, &found.destination_ports, why)).collect()
    }
}

fn exactly(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}
