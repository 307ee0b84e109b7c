//! Whether a connection matches a rule.

use ipnet::IpNet;

use super::Connection;
use crate::model::policy::{Clause, Match, Rule, StringMatch};
use crate::model::workload::NamespacedName;

/// A field of a [`Match`], or `Nothing` when all fields are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Principals,
    NotPrincipals,
    Namespaces,
    NotNamespaces,
    ServiceAccounts,
    NotServiceAccounts,
    TrustDomains,
    NotTrustDomains,
    SourceIps,
    NotSourceIps,
    DestinationIps,
    NotDestinationIps,
    DestinationPorts,
    NotDestinationPorts,
    Nothing,
}

/// Whether a connection matches a rule. Fields that can't be evaluated at this layer are not considered.
pub(super) fn rule_matches(rule: &Rule, connection: &Connection) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, connection))
}

/// Whether the connection matches one of a clause's alternatives. A clause without alternatives always matches.
fn clause_matches(clause: &Clause, connection: &Connection) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|wanted| check(wanted, connection).is_ok())
}

/// Whether all fields match.
///
/// # Errors
/// The first field that does not match; the fields that are cheapest to compare come first.
pub(super) fn check(wanted: &Match, connection: &Connection) -> Result<(), Field> {
    // Each field is named, so that a new field is not forgotten.
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
    } = wanted;
    let port = |value: &u16| *value == connection.destination.port();
    let source = |value: &IpNet| value.contains(&connection.source_ip);
    let destination = |value: &IpNet| value.contains(&connection.destination.ip());
    let account = |value: &NamespacedName| is_account(value, connection);
    let namespace = |value: &StringMatch| value.matches(connection.namespace());
    let principal = |value: &StringMatch| is_principal(value, connection);
    let domain = |value: &StringMatch| is_trust_domain(value, connection);

    listed(destination_ports, port, Field::DestinationPorts)?;
    unlisted(not_destination_ports, port, Field::NotDestinationPorts)?;
    listed(source_ips, source, Field::SourceIps)?;
    unlisted(not_source_ips, source, Field::NotSourceIps)?;
    listed(destination_ips, destination, Field::DestinationIps)?;
    unlisted(not_destination_ips, destination, Field::NotDestinationIps)?;
    listed(service_accounts, account, Field::ServiceAccounts)?;
    unlisted(not_service_accounts, account, Field::NotServiceAccounts)?;
    listed(trust_domains, domain, Field::TrustDomains)?;
    unlisted(not_trust_domains, domain, Field::NotTrustDomains)?;
    listed(namespaces, namespace, Field::Namespaces)?;
    unlisted(not_namespaces, namespace, Field::NotNamespaces)?;
    listed(principals, principal, Field::Principals)?;
    unlisted(not_principals, principal, Field::NotPrincipals)?;
    // The same as `wanted == Match::default()` without making a default value: this code runs for every connection.
    let is_empty = principals.is_empty()
        && not_principals.is_empty()
        && namespaces.is_empty()
        && not_namespaces.is_empty()
        && service_accounts.is_empty()
        && not_service_accounts.is_empty()
        && trust_domains.is_empty()
        && not_trust_domains.is_empty()
        && source_ips.is_empty()
        && not_source_ips.is_empty()
        && destination_ips.is_empty()
        && not_destination_ips.is_empty()
        && destination_ports.is_empty()
        && not_destination_ports.is_empty();
    if is_empty { Err(Field::Nothing) } else { Ok(()) }
}

/// Whether a principal is the client's. A value that contains `spiffe://` never is, because the client's text has no prefix.
pub(super) fn is_principal(value: &StringMatch, connection: &Connection) -> bool {
    connection.source.as_ref().is_some_and(|source| value.matches(source.text()))
}

/// Whether a service account is the client's, in any trust domain.
pub(super) fn is_account(value: &NamespacedName, connection: &Connection) -> bool {
    let identity = connection.source.as_ref().map(|source| &source.identity);
    identity.is_some_and(|own| own.namespace == value.namespace && own.service_account == value.name)
}

/// Whether a value matches the trust domain of the client's identity. Without an identity no value matches.
pub(super) fn is_trust_domain(value: &StringMatch, connection: &Connection) -> bool {
    connection.source.as_ref().is_some_and(|source| value.matches(source.identity.trust_domain.as_str()))
}

fn listed<T>(values: &[T], is: impl Fn(&T) -> bool, field: Field) -> Result<(), Field> {
    if values.is_empty() || values.iter().any(is) { Ok(()) } else { Err(field) }
}

fn unlisted<T>(values: &[T], is: impl Fn(&T) -> bool, field: Field) -> Result<(), Field> {
    if values.iter().any(is) { Err(field) } else { Ok(()) }
}
