//! Reading policies.

use std::sync::Arc;

use ipnet::IpNet;

use super::address::{port, range};
use super::reading::{Flaw, Read, Reader, decode, same_name, unknown};
use crate::istio::discovery::Resource;
use crate::istio::security::{
    Action as ActionMessage, Address, Authorization, Clause as ClauseMessage, Match as MatchMessage, MatchType,
    Rule as RuleMessage, Scope as ScopeMessage, ServiceAccountMatch, StringMatch as StringMessage,
};
use crate::model::labels::Labels;
use crate::model::name::check_name;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, Clause, Match, Part, Rule, Scope, StringMatch};
use crate::model::workload::NamespacedName;

/// A control plane attaches policies of the scope `WORKLOAD_SELECTOR` to workloads by name, since it has already
/// compared their labels. Here a workload gets the name of each such policy as a label with this value, and the policy
/// selects that label.
pub const ATTACHED: &str = "attached";

/// One resource of the type [`AUTHORIZATION`](crate::istio::discovery::AUTHORIZATION). Its name is `NAMESPACE/NAME`.
///
/// # Errors
/// The policy cannot be used: some part would make it match other connections than intended.
pub fn policy(resource: &Resource, reader: &mut Reader<'_>) -> Result<Read<AuthorizationPolicy>, Flaw> {
    let message: Authorization = decode(resource)?;
    same_name(resource, &format!("{}/{}", message.namespace, message.name))?;
    check_name(&message.namespace).map_err(|why| Flaw::field("namespace", why))?;
    let resource_name: Arc<str> = (reader.texts)(&resource.name);
    let namespace = (reader.texts)(&message.namespace);
    let scope = match ScopeMessage::try_from(message.scope) {
        Ok(ScopeMessage::Global) => Scope::Mesh,
        Ok(ScopeMessage::Namespace) => Scope::Namespace(Arc::clone(&namespace)),
        Ok(ScopeMessage::WorkloadSelector) => attached(Arc::clone(&resource_name), (reader.texts)(ATTACHED)),
        Err(_) => return Err(unknown("scope", message.scope)),
    };
    let action = match ActionMessage::try_from(message.action) {
        Ok(ActionMessage::Allow) => Action::Allow,
        Ok(ActionMessage::Deny) => Action::Deny,
        Err(_) => return Err(unknown("action", message.action)),
    };
    let value = AuthorizationPolicy {
        name: NamespacedName::new(namespace, message.name.as_str()),
        origin: Origin::Resource { name: resource_name },
        scope,
        action,
        dry_run: message.dry_run,
        rules: message.rules.iter().map(rule).collect::<Result<_, _>>()?,
    };
    Ok(Read { value, remarks: Vec::new() })
}

/// The scope of a policy that is attached to workloads by name.
#[must_use]
pub fn attached(policy: Arc<str>, value: Arc<str>) -> Scope {
    Scope::Selector { namespace: None, labels: Labels::from([(policy, value)]) }
}

fn rule(message: &RuleMessage) -> Result<Rule, Flaw> {
    let clauses = message.clauses.iter().enumerate();
    let clauses = clauses.map(|(index, message)| clause(index, message)).collect::<Result<_, _>>()?;
    Ok(Rule { clauses, unjudged: Vec::new() })
}

fn clause(index: usize, message: &ClauseMessage) -> Result<Clause, Flaw> {
    let matches = message.matches.iter().map(read_match).collect::<Result<Vec<_>, _>>()?;
    Ok(Clause { part: part(index, &matches), matches })
}

/// The part of a rule from which a clause comes. The message does not say it, and only messages to people depend on it.
fn part(index: usize, matches: &[Match]) -> Part {
    let of_client = |m: &Match| {
        let Match { principals, not_principals, namespaces, not_namespaces, source_ips, not_source_ips, .. } = m;
        let names = [principals, not_principals, namespaces, not_namespaces];
        let accounts = [&m.service_accounts, &m.not_service_accounts];
        names.iter().any(|values| !values.is_empty())
            || accounts.iter().any(|values| !values.is_empty())
            || [source_ips, not_source_ips].iter().any(|values| !values.is_empty())
    };
    let of_workload = |m: &Match| {
        let ranges = [&m.destination_ips, &m.not_destination_ips];
        let ports = [&m.destination_ports, &m.not_destination_ports];
        ranges.iter().any(|values| !values.is_empty()) || ports.iter().any(|values| !values.is_empty())
    };
    match (matches.iter().any(of_client), matches.iter().any(of_workload)) {
        (true, false) => Part::From,
        (false, true) => Part::To,
        (true, true) | (false, false) => Part::When(index),
    }
}

pub(super) fn read_match(message: &MatchMessage) -> Result<Match, Flaw> {
    Ok(Match {
        principals: texts("principals", &message.principals)?,
        not_principals: texts("not_principals", &message.not_principals)?,
        namespaces: texts("namespaces", &message.namespaces)?,
        not_namespaces: texts("not_namespaces", &message.not_namespaces)?,
        service_accounts: accounts(&message.service_accounts),
        not_service_accounts: accounts(&message.not_service_accounts),
        source_ips: ranges("source_ips", &message.source_ips)?,
        not_source_ips: ranges("not_source_ips", &message.not_source_ips)?,
        destination_ips: ranges("destination_ips", &message.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &message.not_destination_ips)?,
        destination_ports: ports("destination_ports", &message.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &message.not_destination_ports)?,
        // The protocol has no field for trust domains: there they are prefixes of principals.
        trust_domains: Vec::new(),
        not_trust_domains: Vec::new(),
    })
}

/// Reads the values of a field. A value without a kind cannot be left out: the field could become empty and match
/// everything.
pub(super) fn texts(field: &'static str, messages: &[StringMessage]) -> Result<Vec<StringMatch>, Flaw> {
    let read = |message: &StringMessage| match &message.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(_)) => Ok(StringMatch::Presence),
        None => Err(Flaw::field(field, "a value has a kind of comparison that this version does not know")),
    };
    messages.iter().map(read).collect()
}

fn accounts(messages: &[ServiceAccountMatch]) -> Vec<NamespacedName> {
    let read = |account: &ServiceAccountMatch| {
        NamespacedName::new(account.namespace.as_str(), account.service_account.as_str())
    };
    messages.iter().map(read).collect()
}

fn ranges(field: &'static str, messages: &[Address]) -> Result<Vec<IpNet>, Flaw> {
    let read = |message: &Address| range(&message.address, message.length).map_err(|why| Flaw::field(field, why));
    messages.iter().map(read).collect()
}

fn ports(field: &'static str, numbers: &[u32]) -> Result<Vec<u16>, Flaw> {
    numbers.iter().map(|number| port(*number).map_err(|why| Flaw::field(field, why))).collect()
}
