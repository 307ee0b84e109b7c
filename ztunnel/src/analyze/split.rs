//! Rules that were split in two by one dash too many.

use super::code::Code;
use super::finding::Report;
use crate::model::policy::{AuthorizationPolicy, Match, Part, Rule};
use crate::store::snapshot::Snapshot;

pub(super) fn check(snapshot: &Snapshot, report: &mut Report<'_>) {
    for policy in snapshot.policies().authorization() {
        for (index, pair) in policy.rules.windows(2).enumerate() {
            let [first, second] = pair else { continue };
            let is_split =
                (has_only_source(first) && has_no_source(second)) || (has_no_source(first) && has_only_source(second));
            if is_split {
                split(policy, index, first, report);
            }
        }
    }
}

/// Whether a rule has only `from`.
fn has_only_source(rule: &Rule) -> bool {
    let is_source = rule.clauses.iter().all(|clause| clause.part == Part::From);
    let has_other = rule.unjudged.iter().any(|field| !field.starts_with("from"));
    is_source && !has_other && !is_everyone(rule)
}

/// Whether a rule has fields, and none of them is about the client.
fn has_no_source(rule: &Rule) -> bool {
    let is_about_client =
        |clause: &crate::model::policy::Clause| clause.part == Part::From || clause.matches.iter().any(names_client);
    let of_request = rule.unjudged.iter().any(|field| field.starts_with("from") || field.contains("request.auth"));
    !rule.clauses.iter().any(is_about_client) && !of_request && !is_everyone(rule)
}

/// Whether the rule is written as `{}`.
fn is_everyone(rule: &Rule) -> bool {
    rule.clauses.is_empty() && rule.unjudged.is_empty()
}

fn names_client(found: &Match) -> bool {
    let about_place = Match {
        destination_ips: found.destination_ips.clone(),
        not_destination_ips: found.not_destination_ips.clone(),
        destination_ports: found.destination_ports.clone(),
        not_destination_ports: found.not_destination_ports.clone(),
        ..Match::default()
    };
    *found != about_place
}

fn split(policy: &AuthorizationPolicy, index: usize, first: &Rule, report: &mut Report<'_>) {
    let next = index + 1;
    let (source, other) = if has_only_source(first) { (index, next) } else { (next, index) };
    let rest = policy.rules.get(other).map(parts).unwrap_or_default();
    let message = format!(
        "rules[{index}] and rules[{next}] are two rules, of which one is enough: rules[{source}] has only from and matches its \
         clients whatever they connect to, and rules[{other}] has only {rest} and matches every client"
    );
    let remedy = format!("if one rule is meant, remove the dash where rules[{next}] begins");
    report.add(Code::SplitRule, policy, message, remedy);
}

/// The parts that a rule has.
fn parts(rule: &Rule) -> &'static str {
    let fields = || rule.unjudged.iter();
    let has_to =
        rule.clauses.iter().any(|clause| clause.part == Part::To) || fields().any(|field| field.starts_with("to"));
    let has_when = rule.clauses.iter().any(|clause| matches!(clause.part, Part::When(_)))
        || fields().any(|field| field.starts_with("when"));
    match (has_to, has_when) {
        (true, true) => "to and when",
        (false, true) => "when",
        (true | false, false) => "to",
    }
}
