//! The evaluation of a connection, with all policies that were considered.

use std::fmt;
use std::sync::Arc;

use super::matching::rule_matches;
use super::{Connection, words};
use crate::model::policy::{Action, AuthorizationPolicy, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::policies::{can_match, lacking, ports_behind};
use crate::store::snapshot::Snapshot;

/// An AuthorizationPolicy that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// The policy.
    pub policy: Arc<AuthorizationPolicy>,
    /// Whether it protects the workload at this port.
    pub applies: Applies,
    /// Whether `applies` is sure. An ALLOW policy for which it is not sure allows no connection.
    pub is_sure: bool,
    /// The first of its rules that matches, if it applies.
    pub matched: Option<usize>,
    /// For each rule, the fields that match or do not match. Present also when the policy does not apply.
    pub rules: Vec<RuleTrace>,
}

/// Whether a policy protects a workload at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applies {
    /// It does.
    Yes,
    /// The workload does not have this label of the selector.
    Lacks {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The workload is behind the service, but the service does not lead to this port of the workload.
    OtherPort {
        /// The service.
        service: NamespacedName,
        /// The port.
        port: u16,
    },
    /// The workload is behind none of these services.
    NotBehind(Vec<NamespacedName>),
}

impl fmt::Display for Applies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("applies"),
            Self::Lacks { key, value } => write!(f, "does not apply: the pod has no label {key}={value}"),
            Self::OtherPort { service, port } => {
                write!(f, "does not apply: Service {service} does not lead to port {port} of the pod")
            }
            Self::NotBehind(services) => {
                let names: Vec<String> = services.iter().map(|name| format!("Service {name}")).collect();
                write!(f, "does not apply: the pod is not an endpoint of {}", words::list(&names, 0, ", "))
            }
        }
    }
}

/// The evaluation of one rule for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTrace {
    /// Its index in the policy.
    pub index: usize,
    /// Whether it matches.
    pub matched: bool,
    /// For each clause: the fields that matched, or the field of each alternative that did not match, with the connection's
    /// value.
    pub why: Vec<String>,
    /// Fields that can't be evaluated at this layer. An ALLOW rule with such a field does not match.
    pub unjudged: Vec<String>,
}

/// All policies that protect the workload, its namespace or a part of the namespace, by namespace and name, and their
/// evaluation for the connection.
#[must_use]
pub fn trace(snapshot: &Snapshot, workload: &Workload, connection: &Connection) -> Vec<Considered> {
    let policies = snapshot.policies().authorization().iter();
    let considered = policies.filter_map(|policy| {
        let (applies, is_sure) = applies(snapshot, policy, workload, connection.destination.port())?;
        let is_closed = policy.action == Action::Allow && !policy.dry_run && !is_sure;
        let rules: Vec<RuleTrace> = policy
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| RuleTrace {
                index,
                matched: !is_closed && can_match(policy, rule) && rule_matches(rule, connection),
                why: if is_closed { vec![UNCLEAR.to_owned()] } else { words::why(rule, connection) },
                unjudged: rule.unjudged.clone(),
            })
            .collect();
        let first = rules.iter().find(|rule| rule.matched).map(|rule| rule.index);
        let matched = if applies == Applies::Yes { first } else { None };
        Some(Considered { policy: Arc::clone(policy), applies, is_sure, matched, rules })
    });
    considered.collect()
}

const UNCLEAR: &str = "its service may or may not lead to this port, since the pod has no port with the name of the \
    targetPort: the policy allows no connection";

/// Whether a policy protects a workload at a port, and whether that is sure. `None`: the policy is for another namespace.
fn applies(
    snapshot: &Snapshot,
    policy: &AuthorizationPolicy,
    workload: &Workload,
    port: u16,
) -> Option<(Applies, bool)> {
    let own = &workload.name.namespace;
    match &policy.scope {
        Scope::Mesh => Some((Applies::Yes, true)),
        Scope::Namespace(namespace) => (namespace == own).then_some((Applies::Yes, true)),
        Scope::Selector { namespace, labels } => {
            let is_meant = namespace.as_ref().is_none_or(|namespace| namespace == own);
            let missing = lacking(labels, &workload.labels);
            let applies = missing
                .map_or(Applies::Yes, |(key, value)| Applies::Lacks { key: key.to_owned(), value: value.to_owned() });
            is_meant.then_some((applies, true))
        }
        Scope::Services(names) => {
            let services = names.iter().filter_map(|name| snapshot.kubernetes_service(name));
            let (mut other_port, mut is_unclear) = (None, false);
            for service in services {
                match ports_behind(service, workload) {
                    Some(ports) if ports.surely_include(port) => return Some((Applies::Yes, true)),
                    Some(ports) if ports.include(port) => is_unclear = true,
                    Some(_) if other_port.is_none() => {
                        other_port = Some(Applies::OtherPort { service: service.name.clone(), port });
                    }
                    Some(_) | None => {}
                }
            }
            if is_unclear {
                return Some((Applies::Yes, false));
            }
            let is_near = policy.name.namespace == *own || names.iter().any(|name| name.namespace == *own);
            Some((other_port.or_else(|| is_near.then(|| Applies::NotBehind(names.clone())))?, true))
        }
    }
}
