//! The place of something in a policy, in the words of its manifest.

use std::fmt;

use crate::model::policy::{AuthorizationPolicy, Match, Part, Rule};

/// An entry of `from` or `to`, or a condition of `when`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PathEntry {
    pub(super) rule: usize,
    pub(super) part: Part,
    pub(super) index: usize,
}

/// A field of an entry, or its negation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Field {
    Principals,
    Namespaces,
    ServiceAccounts,
    TrustDomains,
    SourceIps,
    DestinationIps,
    Ports,
}

impl PathEntry {
    /// The path of a field in the entry, such as `rules[0].from[1].source.notPrincipals`.
    pub(super) fn field(self, field: Field, negative: bool) -> String {
        if let Part::When(_) = self.part {
            return format!("{self}.{}", if negative { "notValues" } else { "values" });
        }
        let (object, name) = match field {
            Field::Principals => ("source", "principals"),
            Field::Namespaces => ("source", "namespaces"),
            Field::ServiceAccounts => ("source", "serviceAccounts"),
            Field::TrustDomains => ("source", "trustDomains"),
            Field::SourceIps => ("source", "ipBlocks"),
            Field::DestinationIps => ("operation", "destination.ip"),
            Field::Ports => ("operation", "ports"),
        };
        if !negative {
            return format!("{self}.{object}.{name}");
        }
        let mut letters = name.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        format!("{self}.{object}.not{}{}", first.into_iter().collect::<String>(), letters.as_str())
    }
}

impl fmt::Display for PathEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::From => write!(f, "rules[{}].from[{}]", self.rule, self.index),
            Part::To => write!(f, "rules[{}].to[{}]", self.rule, self.index),
            Part::When(index) => write!(f, "rules[{}].when[{index}]", self.rule),
        }
    }
}

/// The entries of a policy that are compared, with their places. Entries of rules that never match for other reasons
/// are left out.
pub(super) fn entries(policy: &AuthorizationPolicy) -> impl Iterator<Item = (PathEntry, &Match)> {
    policy.rules.iter().enumerate().flat_map(|(index, rule)| entries_of(index, rule))
}

/// The entries of a rule.
pub(super) fn entries_of(rule_index: usize, rule: &Rule) -> impl Iterator<Item = (PathEntry, &Match)> {
    rule.clauses.iter().flat_map(move |clause| {
        let entry = move |index| PathEntry { rule: rule_index, part: clause.part, index };
        clause.matches.iter().enumerate().map(move |(index, found)| (entry(index), found))
    })
}
