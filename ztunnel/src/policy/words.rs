//! The fields of a rule that match a connection, or do not, with the names that the manifest uses.

use std::fmt::Display;

use super::Connection;
use super::matching::{Field, check, is_account, is_principal, is_trust_domain};
use crate::model::policy::{Clause, Match, Part, Rule};

/// The maximum number of list entries in a text.
pub(super) const MOST: usize = 10;

/// The first entries of a list, and the number of the others.
pub(super) fn list(texts: &[String], more: usize, separator: &str) -> String {
    let shown = texts.get(..MOST).unwrap_or(texts);
    let more = more.saturating_add(texts.len().saturating_sub(shown.len()));
    let shown = shown.join(separator);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// For each clause of a rule that matches: the field that matches, for example `to[0].operation.ports 9999`.
pub(super) fn matched(rule: &Rule, connection: &Connection) -> String {
    let clauses: Vec<String> = rule.clauses.iter().map(|clause| told(clause, connection)).collect();
    if clauses.is_empty() { EVERYTHING.to_owned() } else { clauses.join(", ") }
}

/// For each clause of a rule: the field that matches, or for each alternative the field that does not.
pub(super) fn why(rule: &Rule, connection: &Connection) -> Vec<String> {
    if rule.clauses.is_empty() {
        return vec![EVERYTHING.to_owned()];
    }
    rule.clauses.iter().map(|clause| told(clause, connection)).collect()
}

const EVERYTHING: &str = "every connection";

fn told(clause: &Clause, connection: &Connection) -> String {
    let mut failures = Vec::new();
    for (index, wanted) in clause.matches.iter().enumerate() {
        match check(wanted, connection) {
            Ok(()) => return holding(clause.part, index, wanted, connection),
            Err(field) => failures.push(failing(clause.part, index, wanted, field, connection)),
        }
    }
    if failures.is_empty() {
        return match clause.part {
            Part::From => "from: every client".to_owned(),
            Part::To => "to: every destination".to_owned(),
            Part::When(index) => format!("when[{index}]: every value"),
        };
    }
    list(&failures, 0, "; ")
}

/// All fields of an alternative that matches; positive fields with the value that matched.
fn holding(part: Part, index: usize, wanted: &Match, connection: &Connection) -> String {
    let mut held = Vec::new();
    for field in ALL {
        let path = path(part, index, field);
        match value(field, wanted, connection) {
            Value::Listed(value) => held.push(format!("{path} {value}")),
            Value::Unlisted if is_negative(field) => held.push(without(&path, field, connection)),
            Value::Unlisted | Value::Absent => {}
        }
    }
    held.join(", ")
}

fn failing(part: Part, index: usize, wanted: &Match, field: Field, connection: &Connection) -> String {
    let path = path(part, index, field);
    match value(field, wanted, connection) {
        // A `not` field that fails lists the value of the connection.
        Value::Listed(value) if value == met(field, connection) => format!("{path} lists {value}"),
        Value::Listed(value) => format!("{path} {value} matches {}", met(field, connection)),
        Value::Unlisted => without(&path, field, connection),
        Value::Absent => format!("{path} is empty, which matches nothing"),
    }
}

fn without(path: &str, field: Field, connection: &Connection) -> String {
    format!("{path} does not list {}", met(field, connection))
}

/// The result of comparing a field with a connection.
enum Value {
    /// The field is empty.
    Absent,
    /// The field does not list the connection's value.
    Unlisted,
    /// The field lists the connection's value in this entry.
    Listed(String),
}

fn value(field: Field, wanted: &Match, connection: &Connection) -> Value {
    fn of<T: Display>(values: &[T], is: impl Fn(&T) -> bool) -> Value {
        match values.iter().find(|value| is(value)) {
            _ if values.is_empty() => Value::Absent,
            Some(value) => Value::Listed(value.to_string()),
            None => Value::Unlisted,
        }
    }
    let (from, to) = (connection.source_ip, connection.destination);
    match field {
        Field::Principals => of(&wanted.principals, |value| is_principal(value, connection)),
        Field::NotPrincipals => of(&wanted.not_principals, |value| is_principal(value, connection)),
        Field::Namespaces => of(&wanted.namespaces, |value| value.matches(connection.namespace())),
        Field::NotNamespaces => of(&wanted.not_namespaces, |value| value.matches(connection.namespace())),
        Field::ServiceAccounts => of(&wanted.service_accounts, |value| is_account(value, connection)),
        Field::NotServiceAccounts => of(&wanted.not_service_accounts, |value| is_account(value, connection)),
        Field::TrustDomains => of(&wanted.trust_domains, |value| is_trust_domain(value, connection)),
        Field::NotTrustDomains => of(&wanted.not_trust_domains, |value| is_trust_domain(value, connection)),
        Field::SourceIps => of(&wanted.source_ips, |net| net.contains(&from)),
        Field::NotSourceIps => of(&wanted.not_source_ips, |net| net.contains(&from)),
        Field::DestinationIps => of(&wanted.destination_ips, |net| net.contains(&to.ip())),
        Field::NotDestinationIps => of(&wanted.not_destination_ips, |net| net.contains(&to.ip())),
        Field::DestinationPorts => of(&wanted.destination_ports, |port| *port == to.port()),
        Field::NotDestinationPorts => of(&wanted.not_destination_ports, |port| *port == to.port()),
        Field::Nothing => Value::Absent,
    }
}

/// The value of the connection with which a field is compared.
fn met(field: Field, connection: &Connection) -> String {
    let source = connection.source.as_ref();
    let nobody = || "a client without identity".to_owned();
    match field {
        Field::Principals | Field::NotPrincipals => source.map_or_else(nobody, |source| source.text().to_owned()),
        Field::Namespaces | Field::NotNamespaces => {
            source.map_or_else(nobody, |source| source.identity().namespace.to_string())
        }
        Field::ServiceAccounts | Field::NotServiceAccounts => source.map_or_else(nobody, |source| {
            format!("{}/{}", source.identity().namespace, source.identity().service_account)
        }),
        Field::TrustDomains | Field::NotTrustDomains => {
            source.map_or_else(nobody, |source| source.identity().trust_domain.to_string())
        }
        Field::SourceIps | Field::NotSourceIps => connection.source_ip.to_string(),
        Field::DestinationIps | Field::NotDestinationIps => connection.destination.ip().to_string(),
        Field::DestinationPorts | Field::NotDestinationPorts => connection.destination.port().to_string(),
        Field::Nothing => String::new(),
    }
}

const ALL: [Field; 14] = [
    Field::Principals,
    Field::NotPrincipals,
    Field::Namespaces,
    Field::NotNamespaces,
    Field::ServiceAccounts,
    Field::NotServiceAccounts,
    Field::TrustDomains,
    Field::NotTrustDomains,
    Field::SourceIps,
    Field::NotSourceIps,
    Field::DestinationIps,
    Field::NotDestinationIps,
    Field::DestinationPorts,
    Field::NotDestinationPorts,
];

const fn is_negative(field: Field) -> bool {
    matches!(
        field,
        Field::NotPrincipals
            | Field::NotNamespaces
            | Field::NotServiceAccounts
            | Field::NotTrustDomains
            | Field::NotSourceIps
            | Field::NotDestinationIps
            | Field::NotDestinationPorts
    )
}

/// The path of a field in the manifest's rule.
fn path(part: Part, index: usize, field: Field) -> String {
    let (in_source, condition) = match field {
        Field::Principals => ("principals", "source.principal"),
        Field::NotPrincipals => ("notPrincipals", "source.principal"),
        Field::Namespaces => ("namespaces", "source.namespace"),
        Field::NotNamespaces => ("notNamespaces", "source.namespace"),
        Field::ServiceAccounts => ("serviceAccounts", "source.serviceAccount"),
        Field::NotServiceAccounts => ("notServiceAccounts", "source.serviceAccount"),
        Field::TrustDomains => ("trustDomains", ""),
        Field::NotTrustDomains => ("notTrustDomains", ""),
        Field::SourceIps => ("ipBlocks", "source.ip"),
        Field::NotSourceIps => ("notIpBlocks", "source.ip"),
        Field::DestinationIps => ("ipBlocks", "destination.ip"),
        Field::NotDestinationIps => ("notIpBlocks", "destination.ip"),
        Field::DestinationPorts => ("ports", "destination.port"),
        Field::NotDestinationPorts => ("notPorts", "destination.port"),
        Field::Nothing => ("", ""),
    };
    match part {
        Part::From | Part::To if field == Field::Nothing => match part {
            Part::From => format!("from[{index}].source"),
            _ => format!("to[{index}].operation"),
        },
        Part::From => format!("from[{index}].source.{in_source}"),
        Part::To => format!("to[{index}].operation.{in_source}"),
        Part::When(condition_index) if field == Field::Nothing => format!("when[{condition_index}]"),
        Part::When(condition_index) => {
            let list = if is_negative(field) { "notValues" } else { "values" };
            format!("when[{condition_index}].{list} ({condition})")
        }
    }
}
