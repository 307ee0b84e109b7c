//! Objects for which Istio has no message, and policies as they were written.

use std::collections::BTreeMap;

use super::address::port;
use super::detail::{labels, named};
use super::facts::ServiceFacts;
use super::policy::{read_match, texts};
use super::reading::{Flaw, Read, Reader, decode, same_name, unknown};
use super::service;
use crate::istio::detail::Name;
use crate::istio::discovery::Resource;
use crate::istio::object::{
    self, Action as ActionMessage, AuthorizationPolicy as Authorization, Clause as ClauseMessage,
    Match as MatchMessage, Mode, Object, ObjectKind, Origin as OriginMessage, OriginPlace, Part as PartMessage,
    PeerAuthentication as Authentication, Rule as RuleMessage, Scope as ScopeMessage, ScopeKind,
};
use crate::model::origin::Origin;
use crate::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, MtlsMode, Part, PeerAuthentication, Rule, Scope,
};
use crate::model::workload::NamespacedName;

/// Kinds of Kubernetes objects that contain policies.
const KINDS: [&str; 2] = ["AuthorizationPolicy", "PeerAuthentication"];

/// One resource of the type [`OBJECT`](crate::istio::discovery::OBJECT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectFacts {
    /// An AuthorizationPolicy, as it was written.
    Authorization(AuthorizationPolicy),
    /// A PeerAuthentication.
    Authentication(PeerAuthentication),
    /// A service that clients cannot find.
    Service(ServiceFacts),
}

/// Reads an object. The name of the resource is `KIND/NAMESPACE/NAME`.
///
/// # Errors
/// The object cannot be used: an unknown part might forbid something.
pub fn object(resource: &Resource, reader: &mut Reader<'_>) -> Result<Read<ObjectFacts>, Flaw> {
    let Object { kind } = decode(resource)?;
    let mut remarks = Vec::new();
    let value = match kind {
        Some(ObjectKind::Authorization(message)) => {
            let policy = authorization(&message, reader)?;
            same_name(resource, &object::authorization_name(&policy.name.namespace, &policy.name.name))?;
            ObjectFacts::Authorization(policy)
        }
        Some(ObjectKind::Authentication(message)) => {
            let policy = authentication(&message, reader)?;
            same_name(resource, &object::authentication_name(&policy.name.namespace, &policy.name.name))?;
            ObjectFacts::Authentication(policy)
        }
        Some(ObjectKind::Service(message)) => {
            let read = service::read(&message, reader)?;
            let service = &read.value.service;
            same_name(resource, &object::hidden_service_name(&service.name.namespace, &service.hostname))?;
            if read.value.exactly.is_none() {
                return Err(Flaw::field("service", "it has no detail"));
            }
            remarks = read.remarks;
            ObjectFacts::Service(read.value)
        }
        None => return Err(Flaw::UnknownKind),
    };
    Ok(Read { value, remarks })
}

fn authorization(message: &Authorization, reader: &mut Reader<'_>) -> Result<AuthorizationPolicy, Flaw> {
    let action = match ActionMessage::try_from(message.action) {
        Ok(ActionMessage::Allow) => Action::Allow,
        Ok(ActionMessage::Deny) => Action::Deny,
        Ok(ActionMessage::Audit) => Action::Audit,
        Ok(ActionMessage::Custom) => Action::Custom,
        Err(_) => return Err(unknown("action", message.action)),
    };
    Ok(AuthorizationPolicy {
        name: policy_name(&message.namespace, &message.name, reader)?,
        origin: origin(message.origin.as_ref(), reader)?,
        scope: scope(message.scope.as_ref(), reader)?,
        action,
        dry_run: message.dry_run,
        rules: message.rules.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn authentication(message: &Authentication, reader: &mut Reader<'_>) -> Result<PeerAuthentication, Flaw> {
    let mut ports = BTreeMap::new();
    for (number, of) in &message.ports {
        ports.insert(port(*number).map_err(|why| Flaw::field("ports", why))?, mode(*of)?);
    }
    Ok(PeerAuthentication {
        name: policy_name(&message.namespace, &message.name, reader)?,
        origin: origin(message.origin.as_ref(), reader)?,
        created: message.created,
        scope: scope(message.scope.as_ref(), reader)?,
        mode: mode(message.mode)?,
        ports,
    })
}

fn policy_name(namespace: &str, name: &str, reader: &mut Reader<'_>) -> Result<NamespacedName, Flaw> {
    let name = Name { namespace: namespace.to_owned(), name: name.to_owned() };
    named("namespace", &name, reader)
}

fn origin(message: Option<&OriginMessage>, reader: &mut Reader<'_>) -> Result<Origin, Flaw> {
    let place = message.and_then(|message| message.place.as_ref());
    Ok(match place.ok_or_else(|| Flaw::field("origin", "it is missing"))? {
        OriginPlace::File(place) => Origin::File { file: (reader.texts)(&place.file), line: place.line },
        OriginPlace::Object(place) => {
            let name = place.name.clone().unwrap_or_default();
            match KINDS.iter().find(|kind| **kind == place.kind) {
                Some(kind) => Origin::Object { kind, name: NamespacedName::new(name.namespace, name.name) },
                None => Origin::Resource { name: format!("{} {}/{}", place.kind, name.namespace, name.name).into() },
            }
        }
        OriginPlace::Resource(name) => Origin::Resource { name: (reader.texts)(name) },
    })
}

fn scope(message: Option<&ScopeMessage>, reader: &mut Reader<'_>) -> Result<Scope, Flaw> {
    let kind = message.and_then(|message| message.kind.as_ref());
    Ok(match kind.ok_or_else(|| Flaw::field("scope", "this version does not know its kind: upgrade the daemon"))? {
        ScopeKind::Mesh(_) => Scope::Mesh,
        ScopeKind::Namespace(namespace) => Scope::Namespace((reader.texts)(namespace)),
        ScopeKind::Selector(selector) => {
            // A selector without labels would select all workloads.
            if selector.labels.is_empty() {
                return Err(Flaw::field("scope", "the selector has no labels"));
            }
            let namespace = selector.namespace.as_ref().map(|namespace| (reader.texts)(namespace));
            Scope::Selector { namespace, labels: labels(&selector.labels, reader) }
        }
        ScopeKind::Services(services) => {
            let names = services.names.iter().map(|name| named("scope", name, reader));
            Scope::Services(names.collect::<Result<_, _>>()?)
        }
    })
}

fn mode(value: i32) -> Result<Option<MtlsMode>, Flaw> {
    Ok(match Mode::try_from(value) {
        Ok(Mode::Unset) => None,
        Ok(Mode::Permissive) => Some(MtlsMode::Permissive),
        Ok(Mode::Strict) => Some(MtlsMode::Strict),
        Ok(Mode::Disable) => Some(MtlsMode::Disable),
        Err(_) => return Err(unknown("mode", value)),
    })
}

fn rule(message: &RuleMessage) -> Result<Rule, Flaw> {
    let clauses = message.clauses.iter().map(clause).collect::<Result<_, _>>()?;
    Ok(Rule { clauses, unjudged: message.unjudged.clone() })
}

fn clause(message: &ClauseMessage) -> Result<Clause, Flaw> {
    let part = match PartMessage::try_from(message.part) {
        Ok(PartMessage::From) => Part::From,
        Ok(PartMessage::To) => Part::To,
        Ok(PartMessage::When) => Part::When(usize::try_from(message.condition).unwrap_or(usize::MAX)),
        Err(_) => return Err(unknown("part", message.part)),
    };
    Ok(Clause { part, matches: message.matches.iter().map(wanted).collect::<Result<_, _>>()? })
}

fn wanted(message: &MatchMessage) -> Result<Match, Flaw> {
    Ok(Match {
        trust_domains: texts("trust_domains", &message.trust_domains)?,
        not_trust_domains: texts("not_trust_domains", &message.not_trust_domains)?,
        ..message.fields.as_ref().map(read_match).transpose()?.unwrap_or_default()
    })
}
