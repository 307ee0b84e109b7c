//! Whether one text, match, rule or scope covers another: everything that the other matches, it matches too. `true` is
//! certain; `false` means unknown.

use std::sync::Arc;

use ipnet::IpNet;

use crate::model::identity::SpiffeId;
use crate::model::policy::{Clause, Match, Rule, Scope, StringMatch};
use crate::model::workload::NamespacedName;

/// Whether `wide` matches each text that `narrow` matches.
pub(super) fn text_covers(wide: &StringMatch, narrow: &StringMatch) -> bool {
    match (wide, narrow) {
        (StringMatch::Presence, StringMatch::Presence) => true,
        (StringMatch::Presence, StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text)) => {
            !text.is_empty()
        }
        (StringMatch::Prefix(start), StringMatch::Exact(text) | StringMatch::Prefix(text)) => {
            text.starts_with(&**start)
        }
        (StringMatch::Suffix(end), StringMatch::Exact(text) | StringMatch::Suffix(text)) => text.ends_with(&**end),
        (StringMatch::Exact(one), StringMatch::Exact(other)) => one == other,
        (StringMatch::Prefix(_), StringMatch::Suffix(_) | StringMatch::Presence)
        | (StringMatch::Suffix(_), StringMatch::Prefix(_) | StringMatch::Presence)
        | (StringMatch::Exact(_), StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence) => false,
    }
}

/// Whether no text matches both.
pub(super) fn texts_disjoint(one: &StringMatch, other: &StringMatch) -> bool {
    match (one, other) {
        (StringMatch::Exact(text), pattern) | (pattern, StringMatch::Exact(text)) => !pattern.matches(text),
        (StringMatch::Prefix(one), StringMatch::Prefix(other)) => {
            !one.starts_with(&**other) && !other.starts_with(&**one)
        }
        (StringMatch::Suffix(one), StringMatch::Suffix(other)) => !one.ends_with(&**other) && !other.ends_with(&**one),
        _ => false,
    }
}

/// Whether each address of `narrow` is in `wide`.
pub(super) fn range_covers(wide: &IpNet, narrow: &IpNet) -> bool {
    wide.contains(narrow)
}

/// Whether no address is in both.
pub(super) fn ranges_disjoint(one: &IpNet, other: &IpNet) -> bool {
    !one.contains(other) && !other.contains(one)
}

/// The identity that a principal of a policy names, if it names one.
pub(super) fn identity_of(principal: &StringMatch) -> Option<SpiffeId> {
    match principal {
        StringMatch::Exact(text) => format!("spiffe://{text}").parse().ok(),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    }
}

/// A list and its negated list.
struct Lists<'a, T> {
    any: &'a [T],
    none: &'a [T],
}

impl<T> Lists<'_, T> {
    /// Whether everything that satisfies these lists satisfies `wide`: its list, and its negated list.
    fn imply(&self, wide: &Lists<'_, T>, covers: fn(&T, &T) -> bool, disjoint: fn(&T, &T) -> bool) -> (bool, bool) {
        let all_in = |values: &[T], value: &T| values.iter().any(|wide| covers(wide, value));
        let any = wide.any.is_empty() || (!self.any.is_empty() && self.any.iter().all(|value| all_in(wide.any, value)));
        let none = wide.none.iter().all(|excluded| {
            let is_out = !self.any.is_empty() && self.any.iter().all(|value| disjoint(value, excluded));
            is_out || self.none.iter().any(|known| covers(known, excluded))
        });
        (any, none)
    }

    /// Whether these lists follow from another pair of lists, where the first list may also follow from other fields
    /// (`named`).
    fn is_implied_by(
        &self,
        any: &[T],
        named: impl FnOnce() -> Vec<T>,
        none: &[T],
        covers: fn(&T, &T) -> bool,
        disjoint: fn(&T, &T) -> bool,
    ) -> bool {
        let written = Lists { any, none }.imply(self, covers, disjoint);
        // Reading the other fields takes time and is rarely needed.
        if written == (true, true) {
            return true;
        }
        let named = Lists { any: &named(), none }.imply(self, covers, disjoint);
        (written.0 || named.0) && (written.1 || named.1)
    }
}

/// Whether `wide` matches each connection that `narrow` matches.
fn match_covers(wide: &Match, narrow: &Match) -> bool {
    let nothing = Match::default();
    // A match without any field never matches.
    if *wide == nothing || *narrow == nothing {
        return *narrow == nothing;
    }
    addresses_cover(wide, narrow) && identities_cover(wide, narrow)
}

fn addresses_cover(wide: &Match, narrow: &Match) -> bool {
    let ranges = [
        (
            Lists { any: &wide.source_ips, none: &wide.not_source_ips },
            Lists { any: &narrow.source_ips, none: &narrow.not_source_ips },
        ),
        (
            Lists { any: &wide.destination_ips, none: &wide.not_destination_ips },
            Lists { any: &narrow.destination_ips, none: &narrow.not_destination_ips },
        ),
    ];
    let wide_ports = Lists { any: &wide.destination_ports, none: &wide.not_destination_ports };
    let ports = Lists { any: &narrow.destination_ports, none: &narrow.not_destination_ports };
    ranges.iter().all(|(wide, narrow)| narrow.imply(wide, range_covers, ranges_disjoint) == (true, true))
        && ports.imply(&wide_ports, u16::eq, u16::ne) == (true, true)
}

fn identities_cover(wide: &Match, narrow: &Match) -> bool {
    let principals = Lists { any: &narrow.principals, none: &narrow.not_principals };
    let wanted = Lists { any: &wide.principals, none: &wide.not_principals };
    let (any, none) = principals.imply(&wanted, text_covers, texts_disjoint);
    let is_anyone = wide.principals == [StringMatch::Presence] && !narrow.service_accounts.is_empty();
    (any || is_anyone)
        && none
        && accounts_cover(wide, narrow)
        && namespaces_cover(wide, narrow)
        && domains_cover(wide, narrow)
}

fn accounts_cover(wide: &Match, narrow: &Match) -> bool {
    let wanted = Lists { any: &wide.service_accounts, none: &wide.not_service_accounts };
    let (eq, ne) = (NamespacedName::eq, NamespacedName::ne);
    wanted.is_implied_by(&narrow.service_accounts, || accounts_named(narrow), &narrow.not_service_accounts, eq, ne)
}

fn namespaces_cover(wide: &Match, narrow: &Match) -> bool {
    let wanted = Lists { any: &wide.namespaces, none: &wide.not_namespaces };
    let named = || namespaces_named(narrow);
    wanted.is_implied_by(&narrow.namespaces, named, &narrow.not_namespaces, text_covers, texts_disjoint)
}

fn domains_cover(wide: &Match, narrow: &Match) -> bool {
    let wanted = Lists { any: &wide.trust_domains, none: &wide.not_trust_domains };
    let named = || domains_named(narrow);
    wanted.is_implied_by(&narrow.trust_domains, named, &narrow.not_trust_domains, text_covers, texts_disjoint)
}

/// The trust domains in the principals; empty unless all of them are known.
fn domains_named(found: &Match) -> Vec<StringMatch> {
    let domains = found.principals.iter().map(|principal| {
        let identity = identity_of(principal)?;
        Some(StringMatch::Exact(identity.trust_domain.as_str().into()))
    });
    domains.collect::<Option<_>>().unwrap_or_default()
}

/// The service accounts in the principals; empty unless all of them are known.
fn accounts_named(found: &Match) -> Vec<NamespacedName> {
    let accounts = found.principals.iter().map(|principal| {
        let identity = identity_of(principal)?;
        Some(NamespacedName { namespace: identity.namespace, name: identity.service_account })
    });
    accounts.collect::<Option<_>>().unwrap_or_default()
}

/// The namespaces of the service accounts or principals; empty unless all of them are known.
fn namespaces_named(found: &Match) -> Vec<StringMatch> {
    let accounts = match found.service_accounts.as_slice() {
        [] => accounts_named(found),
        accounts => accounts.to_vec(),
    };
    accounts.into_iter().map(|account| StringMatch::Exact(account.namespace)).collect()
}

fn clause_covers(wide: &Clause, narrow: &Clause) -> bool {
    if wide.matches.is_empty() || narrow.matches.is_empty() {
        return wide.matches.is_empty();
    }
    narrow.matches.iter().all(|narrow| wide.matches.iter().any(|wide| match_covers(wide, narrow)))
}

/// Whether `wide` matches each connection that `narrow` matches, judged by their clauses alone.
pub(super) fn rule_covers(wide: &Rule, narrow: &Rule) -> bool {
    wide.clauses
        .iter()
        .all(|wide| wide.matches.is_empty() || narrow.clauses.iter().any(|narrow| clause_covers(wide, narrow)))
}

/// The number of values and entries of a rule: the cost of comparing it.
pub(super) fn weight(rule: &Rule) -> usize {
    let of_match = |found: &Match| {
        1 + found.principals.len()
            + found.not_principals.len()
            + found.namespaces.len()
            + found.not_namespaces.len()
            + found.service_accounts.len()
            + found.not_service_accounts.len()
            + found.trust_domains.len()
            + found.not_trust_domains.len()
            + found.source_ips.len()
            + found.not_source_ips.len()
            + found.destination_ips.len()
            + found.not_destination_ips.len()
            + found.destination_ports.len()
            + found.not_destination_ports.len()
    };
    rule.clauses.iter().flat_map(|clause| &clause.matches).map(of_match).sum()
}

/// Whether `wide` selects each workload, at each port, that `narrow` selects.
pub(super) fn scope_covers(wide: &Scope, narrow: &Scope) -> bool {
    let is_within = |inner: &Option<Arc<str>>, outer: &Option<Arc<str>>| outer.is_none() || inner == outer;
    match (wide, narrow) {
        (Scope::Mesh, _) => true,
        (Scope::Namespace(wide), Scope::Namespace(narrow)) => wide == narrow,
        (Scope::Namespace(wide), Scope::Selector { namespace, .. }) => namespace.as_ref() == Some(wide),
        (Scope::Selector { namespace, labels }, Scope::Selector { namespace: inner, labels: narrow }) => {
            is_within(inner, namespace) && narrow.include(labels)
        }
        (Scope::Services(wide), Scope::Services(narrow)) => narrow.iter().all(|name| wide.contains(name)),
        // Among the reasons: a service may lead to pods of other namespaces and with any labels.
        (Scope::Namespace(_) | Scope::Selector { .. } | Scope::Services(_), _) => false,
    }
}
