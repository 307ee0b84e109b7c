//! Selectors and namespaces that match no pod.

use std::collections::HashMap;

use super::code::Code;
use super::finding::{Report, Subject};
use super::index::Mesh;
use crate::model::labels::Labels;
use crate::model::policy::Scope;
use crate::model::service::ServiceKind;
use crate::model::workload::NamespacedName;

/// Results for a selector in a namespace.
type Known<'m> = HashMap<(Option<&'m str>, &'m Labels), Option<String>>;

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut known = Known::new();
    let policies = mesh.snapshot.policies();
    for policy in policies.authorization() {
        check_scope(mesh, &policy.scope, &policy.name, &**policy, &mut known, report);
    }
    for policy in policies.authentication() {
        check_scope(mesh, &policy.scope, &policy.name, &**policy, &mut known, report);
    }
    for service in mesh.snapshot.services() {
        // A ServiceEntry may also have endpoints of its own.
        if service.selector.is_empty() || (service.kind == ServiceKind::Entry && !service.endpoints.is_empty()) {
            continue;
        }
        let namespace = Some(&*service.name.namespace);
        if let Some(remedy) = unmatched(mesh, namespace, &service.selector, &mut known) {
            let selector = &service.selector;
            let message = format!("spec.selector {selector} matches no pod: the service has no endpoints");
            report.add(Code::UnmatchedSelector, &**service, message, remedy);
        }
    }
}

fn check_scope<'m>(
    mesh: &'m Mesh<'_>,
    scope: &'m Scope,
    name: &'m NamespacedName,
    subject: &impl Subject,
    known: &mut Known<'m>,
    report: &mut Report<'_>,
) {
    let is_of_mesh = matches!(scope, Scope::Mesh | Scope::Selector { namespace: None, .. });
    if !is_of_mesh && !mesh.knows_namespace(&name.namespace) {
        let message = format!("namespace {} has no manifest and no pod: the policy applies to no pod", name.namespace);
        let remedy = match mesh.nearest.find(&name.namespace, mesh.namespaces()) {
            Some(meant) => format!("is namespace {meant} meant?"),
            None => "correct metadata.namespace, or add the namespace's manifests".to_owned(),
        };
        report.add(Code::UnknownNamespace, subject, message, remedy);
        return;
    }
    match scope {
        Scope::Mesh | Scope::Namespace(_) => {}
        Scope::Selector { namespace, labels } => {
            if let Some(remedy) = unmatched(mesh, namespace.as_deref(), labels, known) {
                let place = namespace.as_ref().map_or("of the mesh".to_owned(), |name| format!("of namespace {name}"));
                let message = format!("spec.selector {labels} matches no pod {place}: the policy applies to no pod");
                report.add(Code::UnmatchedSelector, subject, message, remedy);
            }
        }
        Scope::Services(services) => {
            // A service that does not exist, or has no selector, is reported by the reader of the manifests.
            let there =
                services.iter().filter(|name| mesh.service(name).is_some_and(|service| !service.selector.is_empty()));
            for name in there.filter(|name| mesh.behind(name).next().is_none()) {
                let message = format!("spec.targetRefs: Service {name} has no pod: this target matches no pod");
                report.add(Code::UnmatchedTarget, subject, message, "correct the service's selector, or its endpoints");
            }
        }
    }
}

/// What to do about a selector that matches no pod.
fn unmatched<'m>(
    mesh: &'m Mesh<'_>,
    namespace: Option<&'m str>,
    labels: &'m Labels,
    known: &mut Known<'m>,
) -> Option<String> {
    known
        .entry((namespace, labels))
        .or_insert_with(|| mesh.selected(namespace, labels).next().is_none().then(|| remedy(mesh, namespace, labels)))
        .clone()
}

fn remedy(mesh: &Mesh<'_>, namespace: Option<&str>, labels: &Labels) -> String {
    let Some(in_use) = mesh.labels(namespace) else {
        return "no pod has labels: label the pods".to_owned();
    };
    for (key, value) in labels {
        let Some(values) = in_use.get(&**key) else {
            return match mesh.nearest.find(key, in_use.keys().copied()) {
                Some(meant) => format!("no pod has a label {key}: is {meant} meant?"),
                None => format!("no pod has a label {key}: correct the selector, or label the pods"),
            };
        };
        if !values.contains(&**value) {
            return match mesh.nearest.find(value, values.iter().copied()) {
                Some(meant) => format!("no pod has {key}: {value}; is {key}: {meant} meant?"),
                None => format!("no pod has {key}: {value}: correct the selector, or label the pods"),
            };
        }
    }
    "each of these labels is on some pod, but no pod has all of them: correct the selector, or label the pods"
        .to_owned()
}
