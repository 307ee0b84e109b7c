//! Clients that ALLOW policies name and that are outside the mesh: their connections are plaintext, without an
//! identity.

use std::collections::{BTreeSet, HashMap};

use super::code::Code;
use super::covers::identity_of;
use super::finding::{Report, Severity};
use super::index::{Mesh, list};
use super::path::{Field, PathEntry, entries};
use super::pod::{Outside, Pod};
use crate::model::policy::{Action, AuthorizationPolicy, StringMatch};
use crate::model::workload::NamespacedName;

/// Severity, message and remedy.
type Told = Option<(Severity, String, &'static str)>;

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut known = HashMap::new();
    let policies = mesh.snapshot.policies().authorization().iter();
    for policy in policies.filter(|policy| policy.action == Action::Allow && !policy.dry_run) {
        let mut told = BTreeSet::new();
        for (place, source) in sources(policy) {
            if !told.insert(source.clone()) {
                continue;
            }
            let found = known.entry(source).or_insert_with_key(|source| judged(source, mesh));
            if let Some((severity, message, remedy)) = found {
                let (entry, field) = place;
                let message = format!("{}: {message}", entry.field(field, false));
                report.add_as(*severity, Code::ClientOutsideMesh, &**policy, message, *remedy);
            }
        }
    }
}

/// A namespace or a service account that a policy allows by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    Namespace(String),
    Account(NamespacedName),
}

fn sources(policy: &AuthorizationPolicy) -> impl Iterator<Item = ((PathEntry, Field), Source)> {
    entries(policy).flat_map(|(entry, found)| {
        let account = |identity: crate::model::identity::SpiffeId| {
            Source::Account(NamespacedName::new(identity.namespace, identity.service_account))
        };
        let principals = found.principals.iter().filter_map(identity_of).map(account);
        let accounts = found.service_accounts.iter().cloned().map(Source::Account);
        let namespaces = found.namespaces.iter().filter_map(|namespace| match namespace {
            StringMatch::Exact(name) => Some(Source::Namespace(name.to_string())),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
        });
        let principals = principals.map(move |source| ((entry, Field::Principals), source));
        let accounts = accounts.map(move |source| ((entry, Field::ServiceAccounts), source));
        let namespaces = namespaces.map(move |source| ((entry, Field::Namespaces), source));
        principals.chain(accounts).chain(namespaces)
    })
}

fn judged(source: &Source, mesh: &Mesh<'_>) -> Told {
    let (pods, whose) = match source {
        Source::Namespace(name) => (mesh.in_namespace(name), format!("namespace {name}")),
        Source::Account(name) => (mesh.account(&name.namespace, &name.name), format!("service account {name}")),
    };
    let left_out: Vec<(&Pod<'_>, Outside)> = pods.iter().filter_map(|pod| Some((pod, pod.outside()?))).collect();
    let why = left_out.iter().map(|(_, why)| *why).min()?;
    let names = list(left_out.iter().map(|(pod, why)| format!("{}: {}", pod.name, why.why())));
    if pods.iter().any(Pod::is_inside) {
        // If someone took the pod out of the mesh on purpose, the finding is no surprise.
        let severity = if why.is_wanted() { Severity::Info } else { Severity::Warning };
        let message = format!(
            "some pods of {whose} are outside of the mesh and have no identity ({names}), so the rule does not match \
             them"
        );
        return Some((severity, message, why.remedy()));
    }
    if pods.len() > left_out.len() {
        return None;
    }
    let message =
        format!("all pods of {whose} are outside of the mesh and have no identity ({names}), so it never matches");
    Some((Severity::Warning, message, why.remedy()))
}
