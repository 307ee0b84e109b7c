//! Joins the policies of all files: whom each protects, and which count for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Objects, Place};
use crate::control::objects::{AuthorizationManifest, PeerAuthenticationManifest, Target, title};
use crate::model::labels::Labels;
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, PolicySet, Scope};
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

const AUTHORIZATION: &str = "AuthorizationPolicy";
const AUTHENTICATION: &str = "PeerAuthentication";

/// All policies of a mesh with this root namespace, by namespace and name.
pub(super) fn join(objects: &Objects<'_>, root_namespace: &str, problems: &mut Vec<Problem>) -> PolicySet {
    let mut set = PolicySet::default();
    for (name, (place, manifest)) in &objects.authorization {
        report_unknown_services(objects, name, *place, manifest, problems);
        set.authorization.push(authorization(name, *place, manifest, root_namespace));
    }
    for (name, (place, manifest)) in &objects.authentication {
        match authentication(name, *place, manifest, root_namespace, problems) {
            Some(policy) => set.authentication.push(policy),
            None => continue,
        }
    }
    report_several(&set.authentication, problems);
    set
}

fn scope(namespace: &Arc<str>, labels: &Labels, root_namespace: &str) -> Scope {
    match (**namespace == *root_namespace, labels.is_empty()) {
        (true, true) => Scope::Mesh,
        (false, true) => Scope::Namespace(Arc::clone(namespace)),
        (true, false) => Scope::Selector { namespace: None, labels: labels.clone() },
        (false, false) => Scope::Selector { namespace: Some(Arc::clone(namespace)), labels: labels.clone() },
    }
}

fn authorization(
    name: &NamespacedName,
    place: Place<'_>,
    manifest: &AuthorizationManifest,
    root_namespace: &str,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: name.clone(),
        origin: place.origin(),
        scope: match &manifest.target {
            Target::Labels(labels) => scope(&name.namespace, labels, root_namespace),
            Target::Services(services) => Scope::Services(services.clone()),
        },
        action: manifest.action,
        dry_run: manifest.dry_run,
        rules: manifest.rules.clone(),
    }
}

fn report_unknown_services(
    objects: &Objects<'_>,
    name: &NamespacedName,
    place: Place<'_>,
    manifest: &AuthorizationManifest,
    problems: &mut Vec<Problem>,
) {
    let Target::Services(services) = &manifest.target else { return };
    for service in services.iter().filter(|service| !objects.services.contains_key(service)) {
        let message = format!("spec.targetRefs: Service {service} is in no file: the policy protects nobody behind it");
        problems.push(place.problem(title(AUTHORIZATION, name), message));
    }
    // An ExternalName, or one whose slices are not there.
    let has_slices = |service: &NamespacedName| objects.slices.values().any(|(_, slice)| slice.service == *service);
    let nobody = |service: &&NamespacedName| {
        let known = objects.services.get(service);
        known.is_some_and(|(_, manifest)| manifest.selector.is_empty()) && !has_slices(service)
    };
    for service in services.iter().filter(nobody) {
        let message = format!(
            "spec.targetRefs: Service {service} has no selector, and no EndpointSlice names it: the policy protects nobody \
             behind it"
        );
        problems.push(place.problem(title(AUTHORIZATION, name), message));
    }
}

/// `None` where it counts for nothing.
fn authentication(
    name: &NamespacedName,
    place: Place<'_>,
    manifest: &PeerAuthenticationManifest,
    root_namespace: &str,
    problems: &mut Vec<Problem>,
) -> Option<PeerAuthentication> {
    let mut wrong = |message: String| problems.push(place.problem(title(AUTHENTICATION, name), message));
    let scope = scope(&name.namespace, &manifest.selector, root_namespace);
    if matches!(scope, Scope::Selector { namespace: None, .. }) {
        wrong(format!(
            "spec.selector: {root_namespace} is the root namespace, where a selector does not count, nor what stands beside \
             it: move it to the namespace of the workloads"
        ));
        return None;
    }
    let is_of_workloads = matches!(scope, Scope::Selector { .. });
    if !is_of_workloads && !manifest.ports.is_empty() {
        wrong("spec.portLevelMtls: counts only beside a selector: write one".to_owned());
    }
    Some(PeerAuthentication {
        name: name.clone(),
        origin: place.origin(),
        created: manifest.created,
        scope,
        mode: manifest.mode,
        ports: if is_of_workloads { manifest.ports.clone() } else { BTreeMap::new() },
    })
}

/// Tells of those that are for the same workloads as another that counts.
fn report_several(policies: &[PeerAuthentication], problems: &mut Vec<Problem>) {
    let mut first: BTreeMap<_, &PeerAuthentication> = BTreeMap::new();
    let rank = |policy: &PeerAuthentication| (policy.created, policy.name.clone());
    for policy in policies {
        let counts = first.entry(level(&policy.scope)).or_insert(policy);
        if rank(policy) < rank(counts) {
            *counts = policy;
        }
    }
    for policy in policies {
        let Some(counts) = first.get(&level(&policy.scope)).filter(|first| first.name != policy.name) else { continue };
        let why = if policy.created == counts.created { "comes first by name" } else { "is older" };
        let message = format!(
            "does not count: {AUTHENTICATION} {} is for the same workloads and {why}: remove one of the two",
            counts.name
        );
        problems.push(Problem {
            origin: policy.origin.clone(),
            object: Some(title(AUTHENTICATION, &policy.name)),
            message,
            severity: Severity::Error,
        });
    }
}

type Level<'a> = (Option<&'a Arc<str>>, Option<&'a Labels>);

fn level(scope: &Scope) -> Level<'_> {
    match scope {
        Scope::Mesh | Scope::Services(_) => (None, None),
        Scope::Namespace(namespace) => (Some(namespace), None),
        Scope::Selector { namespace, labels } => (namespace.as_ref(), Some(labels)),
    }
}
