//! Objects for which Istio has no message, and policies as they were written.

use super::detail::{labels, name};
use super::policy::{texts, write_match};
use super::{Writer, resource, service};
use crate::istio::discovery::{OBJECT, Resource};
use crate::istio::object::{
    self, Action as ActionMessage, AuthorizationPolicy as Authorization, Clause as ClauseMessage, FilePlace,
    Match as MatchMessage, Mode, Object, ObjectKind, ObjectPlace, Origin as OriginMessage, OriginPlace,
    Part as PartMessage, PeerAuthentication as Authentication, Rule as RuleMessage, Scope as ScopeMessage, ScopeKind,
    Selector, Services,
};
use crate::istio::read::ServiceFacts;
use crate::istio::standard::Empty;
use crate::model::origin::Origin;
use crate::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, MtlsMode, Part, PeerAuthentication, Rule, Scope,
};

/// The resource of an AuthorizationPolicy as it was written.
#[must_use]
pub fn authorization_object(policy: &AuthorizationPolicy) -> Resource {
    let action = match policy.action {
        Action::Allow => ActionMessage::Allow,
        Action::Deny => ActionMessage::Deny,
        Action::Audit => ActionMessage::Audit,
        Action::Custom => ActionMessage::Custom,
    };
    let message = Authorization {
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        origin: Some(origin(&policy.origin)),
        scope: Some(scope(&policy.scope)),
        action: action.into(),
        dry_run: policy.dry_run,
        rules: policy.rules.iter().map(rule).collect(),
    };
    object(object::authorization_name(&policy.name.namespace, &policy.name.name), ObjectKind::Authorization(message))
}

/// The resource of a PeerAuthentication.
#[must_use]
pub fn authentication_object(policy: &PeerAuthentication) -> Resource {
    let message = Authentication {
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        origin: Some(origin(&policy.origin)),
        created: policy.created,
        scope: Some(scope(&policy.scope)),
        mode: mode(policy.mode).into(),
        ports: policy.ports.iter().map(|(port, of)| ((*port).into(), mode(*of).into())).collect(),
    };
    object(object::authentication_name(&policy.name.namespace, &policy.name.name), ObjectKind::Authentication(message))
}

/// The resource of a service that clients cannot find.
#[must_use]
pub fn hidden_service(facts: &ServiceFacts, writer: Writer<'_>) -> Resource {
    let message = service::message(facts, writer);
    let service = &facts.service;
    let name = object::hidden_service_name(&service.name.namespace, &service.hostname);
    object(name, ObjectKind::Service(Box::new(message)))
}

fn object(name: String, kind: ObjectKind) -> Resource {
    resource(name, OBJECT, &Object { kind: Some(kind) })
}

fn origin(origin: &Origin) -> OriginMessage {
    let place = match origin {
        Origin::File { file, line } => OriginPlace::File(FilePlace { file: file.to_string(), line: *line }),
        Origin::Object { kind, name: of } => {
            OriginPlace::Object(ObjectPlace { kind: (*kind).to_owned(), name: Some(name(of)) })
        }
        Origin::Resource { name } => OriginPlace::Resource(name.to_string()),
    };
    OriginMessage { place: Some(place) }
}

fn scope(scope: &Scope) -> ScopeMessage {
    let kind = match scope {
        Scope::Mesh => ScopeKind::Mesh(Empty {}),
        Scope::Namespace(namespace) => ScopeKind::Namespace(namespace.to_string()),
        Scope::Selector { namespace, labels: of } => {
            ScopeKind::Selector(Selector { namespace: namespace.as_ref().map(ToString::to_string), labels: labels(of) })
        }
        Scope::Services(names) => ScopeKind::Services(Services { names: names.iter().map(name).collect() }),
    };
    ScopeMessage { kind: Some(kind) }
}

fn mode(mode: Option<MtlsMode>) -> Mode {
    match mode {
        None => Mode::Unset,
        Some(MtlsMode::Permissive) => Mode::Permissive,
        Some(MtlsMode::Strict) => Mode::Strict,
        Some(MtlsMode::Disable) => Mode::Disable,
    }
}

fn rule(rule: &Rule) -> RuleMessage {
    RuleMessage { clauses: rule.clauses.iter().map(clause).collect(), unjudged: rule.unjudged.clone() }
}

fn clause(clause: &Clause) -> ClauseMessage {
    let (part, condition) = match clause.part {
        Part::From => (PartMessage::From, 0),
        Part::To => (PartMessage::To, 0),
        Part::When(condition) => (PartMessage::When, u32::try_from(condition).unwrap_or(u32::MAX)),
    };
    ClauseMessage { part: part.into(), condition, matches: clause.matches.iter().map(wanted).collect() }
}

/// Trust domains have fields of their own; in Istio's message they would be prefixes of principals.
fn wanted(wanted: &Match) -> MatchMessage {
    let fields = Match { trust_domains: Vec::new(), not_trust_domains: Vec::new(), ..wanted.clone() };
    MatchMessage {
        fields: Some(write_match(&fields)),
        trust_domains: texts(&wanted.trust_domains),
        not_trust_domains: texts(&wanted.not_trust_domains),
    }
}
