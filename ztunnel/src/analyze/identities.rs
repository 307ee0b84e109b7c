//! Principals, service accounts and namespaces in policies that no client has.

use std::collections::{HashMap, HashSet};

use super::code::Code;
use super::covers::identity_of;
use super::finding::{Report, Severity};
use super::index::Mesh;
use super::path::{Field, PathEntry, entries};
use crate::model::policy::{AuthorizationPolicy, StringMatch};
use crate::model::workload::NamespacedName;

/// A scheme that principals must not have.
const SCHEME: &str = "spiffe://";

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut check = Check { mesh, report, known: HashMap::new() };
    for policy in mesh.snapshot.policies().authorization() {
        check.policy(policy);
    }
}

/// Severity, code, message and remedy.
type Wrong = (Severity, Code, String, String);

struct Check<'c, 'a, 'r> {
    mesh: &'c Mesh<'a>,
    report: &'c mut Report<'r>,
    /// Results for values that were checked before.
    known: HashMap<(Field, String), Option<Wrong>>,
}

impl Check<'_, '_, '_> {
    fn policy(&mut self, policy: &AuthorizationPolicy) {
        let mut told = HashSet::new();
        for (entry, found) in entries(policy) {
            let principals = [(&found.principals, false), (&found.not_principals, true)];
            let namespaces = [(&found.namespaces, false), (&found.not_namespaces, true)];
            let accounts = [(&found.service_accounts, false), (&found.not_service_accounts, true)];
            let mut add = |field, negative, shown: String, wrong: &dyn Fn(&Mesh<'_>) -> Option<Wrong>| {
                if told.insert((field, negative, shown.clone())) {
                    self.value(policy, (entry, field, negative), shown, wrong);
                }
            };
            for (values, negative) in principals {
                for value in values {
                    add(Field::Principals, negative, value.to_string(), &|mesh| principal(mesh, value));
                }
            }
            for (values, negative) in namespaces {
                for value in values {
                    add(Field::Namespaces, negative, value.to_string(), &|mesh| namespace(mesh, value));
                }
            }
            for (values, negative) in accounts {
                for value in values {
                    add(Field::ServiceAccounts, negative, value.to_string(), &|mesh| account(mesh, value));
                }
            }
        }
    }

    fn value(
        &mut self,
        policy: &AuthorizationPolicy,
        (entry, field, negative): (PathEntry, Field, bool),
        shown: String,
        wrong: &dyn Fn(&Mesh<'_>) -> Option<Wrong>,
    ) {
        let wrong = self.known.entry((field, shown)).or_insert_with(|| wrong(self.mesh));
        if let Some((severity, code, message, remedy)) = wrong {
            let consequence = if negative { "so it excludes no client" } else { "so it never matches" };
            let message = format!("{}: {message}, {consequence}", entry.field(field, negative));
            self.report.add_as(*severity, *code, policy, message, remedy.as_str());
        }
    }
}

fn principal(mesh: &Mesh<'_>, value: &StringMatch) -> Option<Wrong> {
    let (StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text)) = value else { return None };
    if text.contains(SCHEME) {
        let message = format!("{value} contains {SCHEME}, which principals do not have");
        let remedy = format!("write {}", value.to_string().replace(SCHEME, ""));
        return Some((Severity::Error, Code::SpiffePrefix, message, remedy));
    }
    if mesh.trust_domains().is_empty() || mesh.has_principal(value) {
        return None;
    }
    other_trust_domain(mesh, value).or_else(|| match (value, identity_of(value)) {
        (StringMatch::Exact(_), None) => {
            let message = format!("{value} is not a principal");
            let remedy = "write TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT".to_owned();
            Some((Severity::Warning, Code::MalformedPrincipal, message, remedy))
        }
        (_, Some(identity)) => {
            let name = NamespacedName::new(identity.namespace, identity.service_account);
            let (message, meant) = unknown_account(mesh, &name);
            if meant.is_none() && is_elsewhere(mesh, &name) {
                return None;
            }
            let remedy = match meant {
                Some(meant) => {
                    let domain = &identity.trust_domain;
                    format!("is {domain}/ns/{}/sa/{} meant?", meant.namespace, meant.name)
                }
                None => "correct it, or add the manifests of the pods that have it".to_owned(),
            };
            Some((Severity::Warning, Code::UnknownPrincipal, message, remedy))
        }
        (_, None) => {
            let message = format!("no pod has the principal {value}");
            Some((Severity::Warning, Code::UnknownPrincipal, message, "correct it".to_owned()))
        }
    })
}

/// A principal whose trust domain is known not to be one of the mesh.
fn other_trust_domain(mesh: &Mesh<'_>, value: &StringMatch) -> Option<Wrong> {
    let (StringMatch::Exact(text) | StringMatch::Prefix(text)) = value else { return None };
    let (domain, rest) = text.split_once('/')?;
    if !rest.starts_with("ns/") || mesh.trust_domains().contains(domain) {
        return None;
    }
    let own = mesh.trust_domains().first()?;
    let message = format!("{value} is of trust domain {domain}, and the pods of this mesh are of {own}");
    let star = if matches!(value, StringMatch::Prefix(_)) { "*" } else { "" };
    Some((
        Severity::Warning,
        Code::OtherTrustDomain,
        message,
        format!("write {own}/{rest}{star}, if pods of this mesh are meant"),
    ))
}

fn account(mesh: &Mesh<'_>, name: &NamespacedName) -> Option<Wrong> {
    if mesh.pods().is_empty() || !mesh.account(&name.namespace, &name.name).is_empty() {
        return None;
    }
    let (message, meant) = unknown_account(mesh, name);
    if meant.is_none() && is_elsewhere(mesh, name) {
        return None;
    }
    let remedy = match meant {
        Some(meant) => format!("is {meant} meant?"),
        None => "correct it, or add the manifests of the pods that have it".to_owned(),
    };
    Some((Severity::Warning, Code::UnknownServiceAccount, message, remedy))
}

/// Whether the pods of a service account may be described elsewhere: the account is declared, or the manifests are
/// those of a repository that has no pod of its namespace.
fn is_elsewhere(mesh: &Mesh<'_>, name: &NamespacedName) -> bool {
    mesh.declares_account(name) || (mesh.is_repository() && mesh.accounts_of(&name.namespace).is_none())
}

/// The fault of a service account that no pod has, and the account that the author probably meant.
fn unknown_account(mesh: &Mesh<'_>, name: &NamespacedName) -> (String, Option<NamespacedName>) {
    let Some(accounts) = mesh.accounts_of(&name.namespace) else {
        let meant = mesh.nearest.find(&name.namespace, mesh.namespaces());
        let meant = meant.filter(|namespace| !mesh.account(namespace, &name.name).is_empty());
        let meant = meant.map(|namespace| NamespacedName::new(namespace, &*name.name));
        return (format!("service account {name} is of namespace {}, which has no pods", name.namespace), meant);
    };
    let meant = mesh.nearest.find(&name.name, accounts.keys().copied());
    let meant = meant.map(|account| NamespacedName::new(&*name.namespace, account));
    (format!("no pod has service account {name}"), meant)
}

fn namespace(mesh: &Mesh<'_>, value: &StringMatch) -> Option<Wrong> {
    let is_known = match value {
        StringMatch::Exact(name) => mesh.knows_namespace(name),
        pattern => mesh.namespaces().any(|name| pattern.matches(name)),
    };
    if is_known || mesh.namespaces().len() == 0 {
        return None;
    }
    let meant = match value {
        StringMatch::Exact(name) => mesh.nearest.find(name, mesh.namespaces()),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
    };
    let remedy = match meant {
        Some(meant) => format!("is {meant} meant?"),
        None if mesh.is_repository() => return None,
        None => "correct it, or add the namespace's manifests".to_owned(),
    };
    Some((
        Severity::Warning,
        Code::UnknownSourceNamespace,
        format!("namespace {value} has no manifest and no pod"),
        remedy,
    ))
}
